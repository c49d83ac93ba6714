//! The command line containerd calls the shim with, and what a person sees who runs it by hand.

use std::{
    ffi::OsString,
    io::{Read, Write},
};

use containerd_shim::Flags;
use containerd_shim_protos::{
    protobuf::Message,
    types::introspection::{RuntimeInfo, RuntimeVersion},
};

use crate::{
    container::direct::command::DirectVolume,
    error::{Error, Result},
    factory::Factory,
    ids,
};

/// The runtime's name as containerd's `runtime_type` spells it.
pub(crate) const RUNTIME_NAME: &str = "io.containerd.kata.v2";

const USAGE: &str = r#"containerd-shim-kata-v2 runs every container or pod in a QEMU virtual machine of its own.

It is not meant to be run by hand: containerd starts it for containers whose runtime is
io.containerd.kata.v2, when it stands in containerd's PATH. To try it:

    ctr run --rm --runtime io.containerd.kata.v2 IMAGE NAME COMMAND

How containerd calls it, with the container's bundle as working directory:

    containerd-shim-kata-v2 -namespace NS -id ID -address SOCKET -publish-binary PATH [-debug] start
        makes a shim for the container (or finds its pod's) and prints the shim's address
    containerd-shim-kata-v2 -namespace NS -id ID -bundle DIR delete
        clears up what a shim that died has left behind
    containerd-shim-kata-v2 -info
        prints what the runtime supports, as a RuntimeInfo message
    containerd-shim-kata-v2 -v
        prints versions

What operators call, with the configuration's factory.enable_template or factory.vm_cache_number set:

    containerd-shim-kata-v2 factory init|status|destroy [-config FILE]
        makes the machine that sandboxes start as copies of, shows what there is, removes it;
        with vm_cache_number, init stays and keeps machines ready until it is told to end by SIGTERM

What storage drivers call, as they would call kata-runtime, about a volume that the guest is to mount:

    containerd-shim-kata-v2 direct-volume add --volume-path PATH --mount-info JSON
        notes, for the volume that is published to PATH, the block device that it is on:
        {"volume-type": "block", "device": "/dev/...", "fstype": "ext4", "options": [],
         "metadata": {"fsGroup": "1000", "fsGroupChangePolicy": "OnRootMismatch"}}
    containerd-shim-kata-v2 direct-volume remove --volume-path PATH
        takes the note away
    containerd-shim-kata-v2 direct-volume stats --volume-path PATH
        prints how full the volume is, as JSON, while a pod has it
    containerd-shim-kata-v2 direct-volume resize --volume-path PATH --size BYTES
        has the file system grow, while a pod has it; the device must be that large already

The configuration file is /etc/kata-containers/configuration.toml or, when there is none,
/usr/share/defaults/kata-containers/configuration.toml.
"#;

/// What the command line asks for.
pub(crate) enum Action {
    /// Print this and be done.
    Print(Vec<u8>),
    /// Make a shim.
    Start(Flags),
    /// Clear up after one.
    Delete(Flags),
    /// Be one.
    Serve(Flags),
    /// Make, show or remove templates.
    Factory(Factory),
    /// Note, forget, measure or grow a volume.
    DirectVolume(DirectVolume),
}

/// Reads the arguments (without the program's name).
///
/// # Errors
/// Names the flag or action that is not right.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Action> {
    let args: Vec<OsString> = args.collect();
    if args.is_empty() || ["-h", "-help", "--help"].iter().any(|help| args[0] == *help) {
        return Ok(Action::Print(USAGE.into()));
    }
    if args[0] == *"factory" {
        return Factory::parse(&args[1..]).map(Action::Factory);
    }
    if args[0] == *"direct-volume" {
        return DirectVolume::parse(&args[1..]).map(Action::DirectVolume);
    }
    let flags = containerd_shim::parse(&args)
        .map_err(|error| Error::InvalidArgument(format!("command line: {error}; -help shows the flags")))?;
    if flags.version {
        return Ok(Action::Print(version().into()));
    }
    if flags.info {
        return info().map(Action::Print);
    }
    ids::check("namespace", &flags.namespace)?;
    ids::check("container id", &flags.id)?;
    match flags.action.as_str() {
        "start" => Ok(Action::Start(flags)),
        "delete" => Ok(Action::Delete(flags)),
        "" => Ok(Action::Serve(flags)),
        other => Err(Error::InvalidArgument(format!(
            "action {other:?}: containerd's actions are start and delete; -help says more"
        ))),
    }
}

fn version() -> String {
    format!(
        "containerd-shim-kata-v2:\n  Version:  {}\n  Runtime:  {RUNTIME_NAME}\n  Protocol: containerd task API v2 and v3 \
         (ttrpc), guest agent grpc.AgentService (ttrpc over vsock)\n  QEMU:     {} to {}\n",
        env!("CARGO_PKG_VERSION"),
        vmm::OLDEST_QEMU,
        vmm::NEWEST_QEMU,
    )
}

/// Answers containerd 2's `-info`: it may send runtime options on standard input, which change nothing here.
fn info() -> Result<Vec<u8>> {
    let mut ignored = Vec::new();
    std::io::stdin().take(1 << 20).read_to_end(&mut ignored).map_err(Error::io("standard input"))?;
    let info = RuntimeInfo {
        name: RUNTIME_NAME.to_string(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_string(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    info.write_to_bytes().map_err(|error| Error::Failed(format!("runtime info: {error}")))
}

/// Writes an answer to standard output, which containerd reads to its end.
///
/// # Errors
/// When nobody reads it.
pub(crate) fn print(answer: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(answer).and_then(|()| out.flush()).map_err(Error::io("standard output"))
}

/// Tells why nothing came of it; containerd shows standard error to whoever asked.
pub(crate) fn complain(error: &Error) {
    // With standard error gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "containerd-shim-kata-v2: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(line: &str) -> Result<Action> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn run_by_hand_it_says_what_it_is_for() {
        assert!(matches!(action(""), Ok(Action::Print(text)) if text == USAGE.as_bytes()));
    }

    #[test]
    fn the_version_names_qemu_and_the_protocol() {
        let Ok(Action::Print(text)) = action("-v") else { panic!("-v prints") };
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains(env!("CARGO_PKG_VERSION")) && text.contains("QEMU") && text.contains("task API")
        );
    }

    #[test]
    fn containerds_own_calls_are_understood() {
        let line = "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id c1 start";
        assert!(matches!(action(line), Ok(Action::Start(flags)) if flags.id == "c1"));
        assert!(matches!(action("-namespace default -id c1 -bundle /b delete"), Ok(Action::Delete(_))));
        assert!(matches!(action("-namespace default -id c1"), Ok(Action::Serve(_))));
    }

    #[test]
    fn operators_and_storage_drivers_calls_are_understood() {
        assert!(matches!(action("factory status"), Ok(Action::Factory(_))));
        assert!(matches!(action("direct-volume stats --volume-path /x"), Ok(Action::DirectVolume(_))));
        assert!(matches!(action("direct-volume"), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn an_id_that_could_leave_its_directory_is_refused_before_anything_else() {
        for id in ["../x", "a/b", "..", ".", "", "é"] {
            let args = ["-namespace", "default", "-id", id, "start"].map(OsString::from);
            assert!(matches!(parse(args.into_iter()), Err(Error::InvalidArgument(_))), "{id}");
        }
    }
}
