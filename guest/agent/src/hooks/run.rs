//! The agent's program as what runs one hook, in a process of its own.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl::set_pdeathsig,
        signal::{Signal, killpg},
    },
    unistd::Pid,
};

use super::PRESTART;
use crate::pidfd;

/// What the program is called then.
pub(crate) const NAME: &str = "guest-hook";
/// How long a hook may take. Less than the steps of a container's life that it is in.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where in a bundle it is left why a hook keeps the container from being made.
const FAILURE: &str = "hook-failed";
/// How much of what a hook said is told, in bytes.
const LAST_WORDS: u64 = 1024;

/// Runs the hook that the arguments name: its file, its stage, and the container's bundle. Its input is this process'.
pub(crate) fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let Ok([program, stage, bundle]) = <[String; 3]>::try_from(arguments.collect::<Vec<_>>()) else {
        log::error!("{NAME}: a file, a stage and a bundle are needed");
        return ExitCode::from(2);
    };
    let bundle = PathBuf::from(bundle);
    let Err(why) = run(Path::new(&program), &stage, &bundle, Stdio::inherit(), PATIENCE) else {
        return ExitCode::SUCCESS;
    };
    log::warn!("{why}");
    if stage == PRESTART {
        let _ = fs::write(bundle.join(FAILURE), why);
        return ExitCode::FAILURE;
    }
    // Later ones change nothing of what has happened, as the specification has it.
    ExitCode::SUCCESS
}

/// Why a hook kept the container of that bundle from being made; told once.
pub(crate) fn failure(bundle: &Path) -> Option<String> {
    let file = bundle.join(FAILURE);
    let why = fs::read_to_string(&file).ok()?;
    let _ = fs::remove_file(file);
    Some(why)
}

fn run(program: &Path, stage: &str, bundle: &Path, state: Stdio, patience: Duration) -> Result<(), String> {
    let what = format!("guest hook {} ({stage})", program.display());
    let wrong = |error: io::Error| format!("{what}: {error}");
    let mut output =
        File::from(memfd_create(c"hook", MFdFlags::MFD_CLOEXEC).map_err(|error| wrong(error.into()))?);
    let mut command = Command::new(program);
    command.arg0(program.file_name().unwrap_or_default()).arg(stage);
    command.current_dir(bundle).process_group(0).stdin(state);
    command.stdout(output.try_clone().map_err(wrong)?).stderr(output.try_clone().map_err(wrong)?);
    // SAFETY: between fork and exec this makes one system call, and no use of memory.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    let child = command.spawn().map_err(wrong)?;
    match wait(child, patience).map_err(wrong)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{what}: {status}{}", last_words(&mut output))),
        None => Err(format!("{what}: not done after {patience:?}, killed{}", last_words(&mut output))),
    }
}

/// How the process ended; nothing if it had to be killed, with all that it started.
fn wait(mut child: Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let ended = pidfd::open(pid).and_then(|pidfd| ends_within(&pidfd, patience));
    if !matches!(ended, Ok(true)) {
        // ESRCH: it has ended by itself.
        let _ = killpg(pid, Signal::SIGKILL);
    }
    let status = child.wait()?;
    Ok(ended?.then_some(status))
}

fn ends_within(pidfd: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], left) {
            Err(Errno::EINTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

fn last_words(output: &mut File) -> String {
    let length = output.metadata().map_or(0, |output| output.len());
    let mut words = Vec::new();
    let read = output.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)));
    let _ = read.and_then(|_| output.read_to_end(&mut words));
    let words = String::from_utf8_lossy(&words);
    let words = words.trim();
    if words.is_empty() { String::new() } else { format!("; it said: {words}") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Runs a script as a hook that reads `state`, in a bundle that is returned.
    fn hook(script: &str, state: &str, patience: Duration) -> (Result<(), String>, tempfile::TempDir) {
        let bundle = tempfile::tempdir().unwrap();
        let at = |name: &str| bundle.path().join(name);
        fs::write(at("hook"), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(at("hook"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(at("state"), state).unwrap();
        let input = File::open(at("state")).unwrap();
        (run(&at("hook"), "prestart", bundle.path(), input.into(), patience), bundle)
    }

    #[test]
    fn d23_a_hook_reads_the_state_in_the_bundle() {
        let (ran, bundle) = hook("cat > seen; echo $1 >> seen", "{\"id\":\"c1\"}", PATIENCE);
        ran.unwrap();
        assert_eq!(fs::read_to_string(bundle.path().join("seen")).unwrap(), "{\"id\":\"c1\"}prestart\n");
    }

    #[test]
    fn d23_a_hook_that_fails_is_named_with_its_last_words() {
        let (ran, _bundle) = hook("echo no such thing >&2; exit 3", "", PATIENCE);
        let why = ran.unwrap_err();
        for word in ["/hook (prestart)", "exit status: 3", "no such thing"] {
            assert!(why.contains(word), "{why}");
        }
        let absent = run(Path::new("/no/hook"), "poststop", Path::new("/"), Stdio::null(), PATIENCE);
        assert!(absent.unwrap_err().contains("/no/hook (poststop)"));
    }

    #[test]
    fn d23_a_hook_that_hangs_is_killed_with_what_it_has_started() {
        let began = Instant::now();
        let (ran, _bundle) = hook("echo waits; sleep 60 & sleep 60", "", Duration::from_millis(200));
        let why = ran.unwrap_err();
        assert!(why.contains("not done after 200ms, killed; it said: waits"), "{why}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn d23_why_a_container_is_not_made_is_told_once() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(failure(bundle.path()), None);
        let arguments = ["/no/hook", "prestart", bundle.path().to_str().unwrap()].map(str::to_owned);
        assert_eq!(main(arguments.into_iter()), ExitCode::FAILURE);
        assert!(failure(bundle.path()).unwrap().contains("/no/hook"));
        assert_eq!(failure(bundle.path()), None);
        let arguments = ["/no/hook", "poststart", "/"].map(str::to_owned);
        assert_eq!(main(arguments.into_iter()), ExitCode::SUCCESS);
    }
}
