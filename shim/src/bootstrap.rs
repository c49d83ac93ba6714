//! The `start` action: make a shim for a sandbox, or find the one it has, and tell containerd its address.
//!
//! The listening socket is made here and handed to the new shim as a file descriptor, so the address is good the
//! moment it is printed: containerd's first connection waits in the socket's queue while the shim gets up.

use std::{
    fs,
    io::{ErrorKind, IsTerminal, Read, stdin},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt},
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use containerd_shim::{
    Flags, StartOpts,
    api::Options,
    bootstrap::{BootstrapParams, BootstrapResult},
    cgroup,
};
use containerd_shim_protos::{
    TASK_API_VERSION,
    protobuf::{Message, well_known_types::any::Any},
};

use crate::{
    cache, cli,
    container::bundle::{self, SandboxRef},
    error::{Error, Result},
    sandbox::options,
    serve,
};

/// containerd never pipes more than this to a shim.
const LONGEST_INPUT: u64 = 10 << 20;
/// Where containerd 1.x looks for the address of a shim when it restarts.
const ADDRESS_FILE: &str = "address";
/// Where the shim of a sandbox that is no container finds the runtime options, an `Any`.
pub(crate) const OPTIONS_FILE: &str = "runtime-options";
/// Where an operator, and the `delete` action, find the shim's process.
pub(crate) const PID_FILE: &str = "shim.pid";

/// Makes the shim (or finds it) and prints its address. The working directory is the container's bundle.
///
/// # Errors
/// Names what is wrong with the bundle, the socket or the process; no shim runs then.
pub(crate) fn start(flags: &Flags) -> Result<()> {
    let call = Call::read(flags)?;
    let bundle = std::env::current_dir().map_err(Error::io("working directory"))?;
    let sandbox = call.sandbox(&bundle)?;
    let address = call.opts.socket_address(&sandbox.id);
    let socket = PathBuf::from(address.trim_start_matches("unix://"));
    if !sandbox.is_own {
        // One shim a pod: this container's calls go to the shim that has the sandbox.
        require_listening(&socket, &sandbox.id)?;
    } else if let Some(listener) = listen(&socket)? {
        make(&call.opts, &bundle, listener).inspect_err(|_| drop(fs::remove_file(&socket)))?;
    }
    write(&bundle, ADDRESS_FILE, &address)?;
    cli::print(&call.reply(&address)?)
}

/// How containerd called, which decides how it wants to be answered.
struct Call {
    opts: StartOpts,
    /// containerd 2.3 and later: a message on standard input, a message back.
    speaks_bootstrap: bool,
}

impl Call {
    fn read(flags: &Flags) -> Result<Call> {
        let input = read_input()?;
        let call = match BootstrapParams::parse_from_bytes(&input) {
            Ok(params) if !input.is_empty() && params.instance_id == flags.id => {
                Call { opts: params.into(), speaks_bootstrap: true }
            }
            _ => Call { opts: legacy_opts(flags, &input), speaks_bootstrap: false },
        };
        if call.opts.ttrpc_address.is_empty() {
            return Err(Error::InvalidArgument(
                "TTRPC_ADDRESS is not set: containerd gives the address it takes events at".into(),
            ));
        }
        Ok(call)
    }

    /// Whose shim is asked for. What is to be a sandbox without being a container leaves its runtime options for the
    /// shim: containerd gives them to nobody else.
    fn sandbox(&self, bundle: &Path) -> Result<SandboxRef> {
        if !bundle::is_a_sandboxs(bundle) {
            return bundle::read(bundle, &self.opts.id).map(|(_, sandbox, _)| sandbox);
        }
        if let Some(options) = self.opts.extensions.iter().find(|any| options::is_runtimes(any)) {
            let options = options
                .write_to_bytes()
                .map_err(|error| Error::Failed(format!("runtime options: {error}")))?;
            write(bundle, OPTIONS_FILE, &options)?;
        }
        Ok(SandboxRef { id: self.opts.id.clone(), is_own: true })
    }

    fn reply(&self, address: &str) -> Result<Vec<u8>> {
        if !self.speaks_bootstrap {
            // A bare address means task API v2, which containerd 1.6, 1.7 and 2.x all speak.
            return Ok(address.as_bytes().to_vec());
        }
        let result = BootstrapResult {
            version: TASK_API_VERSION,
            address: address.to_string(),
            protocol: "ttrpc".to_string(),
            ..Default::default()
        };
        result.write_to_bytes().map_err(|error| Error::Failed(format!("bootstrap answer: {error}")))
    }
}

fn read_input() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    if !stdin().is_terminal() {
        stdin().take(LONGEST_INPUT).read_to_end(&mut input).map_err(Error::io("standard input"))?;
    }
    Ok(input)
}

/// containerd before 2.3: flags, the environment, and the runtime options as an `Any` on standard input.
fn legacy_opts(flags: &Flags, input: &[u8]) -> StartOpts {
    let options = Any::parse_from_bytes(input).ok().filter(|any| !any.type_url.is_empty());
    StartOpts {
        id: flags.id.clone(),
        namespace: flags.namespace.clone(),
        address: flags.address.clone(),
        publish_binary: flags.publish_binary.clone(),
        ttrpc_address: std::env::var(serve::TTRPC_ADDRESS).unwrap_or_default(),
        debug: flags.debug,
        extensions: options.into_iter().collect(),
        ..Default::default()
    }
}

/// Binds a socket, a shim's say, or answers `None` when a live one already listens there. A socket that nobody listens
/// on is what a shim that died left behind: it is replaced.
pub(crate) fn listen(socket: &Path) -> Result<Option<UnixListener>> {
    if let Some(parent) = socket.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(parent)
            .map_err(Error::io(format_args!("socket directory {}", parent.display())))?;
    }
    match UnixListener::bind(socket) {
        Ok(listener) => return Ok(Some(listener)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        Err(error) => return Err(Error::io(format_args!("shim socket {}", socket.display()))(error)),
    }
    if UnixStream::connect(socket).is_ok() {
        return Ok(None);
    }
    let what = || format!("stale shim socket {}", socket.display());
    if !fs::symlink_metadata(socket).map_err(Error::io(what()))?.file_type().is_socket() {
        return Err(Error::Failed(format!("{}: in the way, and not a socket: remove it", socket.display())));
    }
    fs::remove_file(socket).map_err(Error::io(what()))?;
    UnixListener::bind(socket).map(Some).map_err(Error::io(what()))
}

fn require_listening(socket: &Path, sandbox: &str) -> Result<()> {
    UnixStream::connect(socket).map(drop).map_err(|error| {
        Error::FailedPrecondition(format!(
            "sandbox {sandbox}: its shim does not answer at {}: {error}",
            socket.display()
        ))
    })
}

/// Has a process be the shim: one that waits for that, or a new one.
fn make(opts: &StartOpts, bundle: &Path, listener: UnixListener) -> Result<()> {
    if let Some(taken) = cache::take(opts, bundle, &listener) {
        // It is nobody's whom containerd could ask.
        return place(opts, taken.pid).inspect_err(|_| taken.kill());
    }
    let mut child = spawn(opts, listener)?;
    // Not waited for otherwise: it outlives this process, and init reaps it.
    place(opts, child.id()).inspect_err(|_| drop(child.kill().and_then(|()| child.wait())))
}

/// Has containerd and the kernel treat a process as a shim.
fn place(opts: &StartOpts, pid: u32) -> Result<()> {
    confine(opts, pid)?;
    write(Path::new("."), PID_FILE, pid.to_string())
}

/// Starts this very program as the shim, in a session of its own and with the listening socket as descriptor 3.
fn spawn(opts: &StartOpts, listener: UnixListener) -> Result<Child> {
    let program = std::env::current_exe().map_err(Error::io("this program's own path"))?;
    let mut command = Command::new(&program);
    command
        .args(["-namespace", &opts.namespace, "-id", &opts.id, "-address", &opts.address])
        .args(["-publish-binary", &opts.publish_binary])
        .args(opts.debug.then_some("-debug"))
        .env(serve::TTRPC_ADDRESS, &opts.ttrpc_address)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let listener: OwnedFd = listener.into();
    let fd = listener.as_raw_fd();
    // SAFETY: all of it is async-signal-safe, and the closure touches nothing but the integer it captured.
    unsafe { command.pre_exec(move || settle(fd, serve::LISTENER_FD)) };
    command.spawn().map_err(Error::io(format_args!("shim process {}", program.display())))
}

/// Gives a process that was forked a session of its own, and a descriptor the number at which its program looks for it.
pub(crate) fn settle(fd: RawFd, number: RawFd) -> std::io::Result<()> {
    nix::unistd::setsid()?;
    let settled = if fd == number {
        // Already in place: only the close-on-exec flag must go.
        // SAFETY: a number goes in, and one comes out.
        unsafe { nix::libc::fcntl(fd, nix::libc::F_SETFD, 0) }
    } else {
        // SAFETY: as above.
        unsafe { nix::libc::dup2(fd, number) }
    };
    if settled < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts the shim into the cgroup the runtime options ask for and makes it a better victim than containerd.
fn confine(opts: &StartOpts, pid: u32) -> Result<()> {
    let cgroup =
        opts.extension::<Options>().ok().flatten().map(|options| options.shim_cgroup).unwrap_or_default();
    if !cgroup.is_empty() {
        cgroup::add_task_to_cgroup(&cgroup, pid)
            .map_err(|error| Error::Failed(format!("shim_cgroup {cgroup}: {error}")))?;
    }
    // Without CAP_SYS_RESOURCE the score cannot go down; the shim is then as likely a victim as its parent.
    let _ = cgroup::adjust_oom_score(pid);
    Ok(())
}

/// Writes a file containerd reads, whole or not at all.
fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
    let (new, place) = (dir.join(format!(".{name}")), dir.join(name));
    fs::write(&new, content)
        .and_then(|()| fs::rename(&new, &place))
        .map_err(Error::io(format_args!("{}", place.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_nobody_listens_on_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s").join("shim.sock");
        drop(listen(&socket).unwrap().expect("a fresh socket"));
        let live = listen(&socket).unwrap().expect("a stale socket is replaced");
        assert!(listen(&socket).unwrap().is_none(), "a live shim is left alone");
        drop(live);
    }

    #[test]
    fn a_file_in_the_sockets_place_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("precious");
        fs::write(&file, "data").unwrap();
        assert!(listen(&file).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "data");
    }

    #[test]
    fn older_containerds_are_answered_with_the_bare_address_and_newer_ones_with_a_message() {
        let opts = StartOpts::default;
        let old = Call { opts: opts(), speaks_bootstrap: false }.reply("unix:///s").unwrap();
        assert_eq!(old, b"unix:///s");
        let new = Call { opts: opts(), speaks_bootstrap: true }.reply("unix:///s").unwrap();
        let new = BootstrapResult::parse_from_bytes(&new).unwrap();
        assert_eq!((new.version, new.address.as_str(), new.protocol.as_str()), (3, "unix:///s", "ttrpc"));
    }
}
