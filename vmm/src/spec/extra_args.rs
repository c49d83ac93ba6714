//! What an operator adds to the command lines of others.

use super::SpecError;

/// Arguments for the daemon of a virtio-fs share that the operator adds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtraArgs(Vec<String>);

/// Options of `virtiofsd` that decide what is shared, with whom and from within which jail. `-o` is the old syntax for
/// all of them.
const NOT_EXTRA: [&str; 16] = [
    "--sandbox",
    "--seccomp",
    "--shared-dir",
    "--socket",
    "--socket-path",
    "--socket-group",
    "--fd",
    "--cache",
    "--tag",
    "--uid-map",
    "--gid-map",
    "--translate-uid",
    "--translate-gid",
    "--modcaps",
    "--syslog",
    "--print-capabilities",
];

/// Options of `nydusd` that decide what it serves and to whom, and where its words go.
const NOT_EXTRA_OF_NYDUSD: [&str; 15] = [
    "--hybrid-mode",
    "--sock",
    "--apisock",
    "--shared-dir",
    "--bootstrap",
    "--localfs-dir",
    "--virtual-mountpoint",
    "--id",
    "--supervisor",
    "--upgrade",
    "--config",
    "--log-file",
    "--log-rotation-size",
    "--help",
    "--version",
];

impl ExtraArgs {
    /// Takes `args` for `virtiofsd` if none of them is the shim's own business.
    pub fn new(args: impl IntoIterator<Item = String>) -> Result<ExtraArgs, SpecError> {
        ExtraArgs::without(args, &NOT_EXTRA, "virtiofsd")
    }

    /// Takes `args` for `nydusd` if none of them is the shim's own business.
    pub fn of_nydusd(args: impl IntoIterator<Item = String>) -> Result<ExtraArgs, SpecError> {
        ExtraArgs::without(args, &NOT_EXTRA_OF_NYDUSD, "nydusd")
    }

    fn without(
        args: impl IntoIterator<Item = String>,
        own: &[&str],
        daemon: &'static str,
    ) -> Result<ExtraArgs, SpecError> {
        let (refused, args): (Vec<_>, Vec<_>) = args.into_iter().partition(|arg| is_own(arg, own));
        if refused.is_empty() {
            Ok(ExtraArgs(args))
        } else {
            Err(SpecError::ExtraArgs { args: refused, daemon })
        }
    }

    /// The arguments, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

fn is_own(arg: &str, own: &[&str]) -> bool {
    let name = arg.split('=').next().unwrap_or_default();
    let short = arg.starts_with('-') && !arg.starts_with("--");
    short || arg == "--" || own.contains(&name) || arg.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_weaken_the_jail_are_refused_in_every_spelling() {
        for arg in [
            "--sandbox=none",
            "--sandbox",
            "-o",
            "-osandbox=none",
            "--seccomp",
            "--fd=3",
            "--shared-dir=/",
            "--",
        ] {
            assert!(ExtraArgs::new([arg.to_owned()]).is_err(), "{arg:?}");
        }
        for arg in
            ["--sock", "--apisock=/x", "-A", "-A/x", "--shared-dir=/", "--bootstrap=/b", "--log-file=x"]
        {
            let error = ExtraArgs::of_nydusd([arg.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(arg) && error.contains("nydusd"), "{error}");
        }
        let args = ["--log-level", "debug", "--rlimit-nofile=0"].map(str::to_owned);
        assert_eq!(ExtraArgs::of_nydusd(args).unwrap().iter().count(), 3);
        let args = ["--thread-pool-size=1", "--announce-submounts", "--xattr"].map(str::to_owned);
        assert_eq!(ExtraArgs::new(args).unwrap().iter().count(), 3);
    }
}
