//! One hook's process.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::Hook;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::PATIENCE;
use crate::{
    error::{Error, Result},
    pidfd,
};

/// How much of what a hook said goes into an error, in bytes.
const LAST_WORDS: u64 = 1024;

/// Runs `hook` with `state` as its input, in `bundle`, and with no environment but its own.
///
/// # Errors
/// Names the hook, and says how it ended and what its last words were. One that takes too long is killed, with all that
/// it started.
pub(super) fn hook(hook: &Hook, state: &[u8], bundle: &Path) -> Result<()> {
    let path = hook.path();
    let what = || format!("hook {}", path.display());
    if !path.is_absolute() {
        return Err(Error::InvalidArgument(format!("{}: not an absolute path", what())));
    }
    // Files take any amount at once, so that nobody has to feed and to read the process while it runs.
    let (mut input, mut output) =
        (memory().map_err(Error::io(what()))?, memory().map_err(Error::io(what()))?);
    input.write_all(state).and_then(|()| input.rewind()).map_err(Error::io(what()))?;
    let mut command = Command::new(path);
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear().current_dir(bundle).process_group(0).stdin(input);
    command.envs(hook.env().iter().flatten().filter_map(|pair| pair.split_once('=')));
    for stream in [Command::stdout, Command::stderr] {
        stream(&mut command, output.try_clone().map_err(Error::io(what()))?);
    }
    let timeout = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let timeout = timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(PATIENCE);
    let child = command.spawn().map_err(Error::io(what()))?;
    match wait(child, timeout).map_err(Error::io(what()))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(Error::Failed(format!("{}: {status}{}", what(), last_words(&mut output)))),
        None => {
            let words = last_words(&mut output);
            Err(Error::DeadlineExceeded(format!("{}: not done after {timeout:?}, killed{words}", what())))
        }
    }
}

fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create(c"hook", MFdFlags::MFD_CLOEXEC)?))
}

/// How the process ended; nothing if it had to be killed.
fn wait(mut child: Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let ended = pidfd.as_ref().is_ok_and(|pidfd| pidfd::gone_within(pidfd, timeout));
    if !ended {
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait()?;
    pidfd?;
    Ok(ended.then_some(status))
}

fn last_words(output: &mut File) -> String {
    let mut words = Vec::new();
    let length = output.metadata().map_or(0, |output| output.len());
    let read = output.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)));
    let _ = read.and_then(|_| output.read_to_end(&mut words));
    let words = String::from_utf8_lossy(&words);
    let words = words.trim();
    if words.is_empty() { String::new() } else { format!("; it said: {words}") }
}
