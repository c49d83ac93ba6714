//! Forks of the agent that are born where they belong.

use std::{
    convert::Infallible,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::stat::Mode,
    unistd::{Pid, write},
};

/// clone3(2): the child is born in the cgroup of `clone_args.cgroup`. Not in libc as a number of 64 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// While it lives, the agent's children are born in another process namespace. It is of no consequence to anybody else,
/// as the agent has one thread.
pub(super) struct Within(File);

impl Within {
    /// That of `other`: a namespace's file, or a process.
    pub(super) fn enter(other: &impl AsFd) -> io::Result<Self> {
        let own = File::open("/proc/self/ns/pid")?;
        setns(other, CloneFlags::CLONE_NEWPID)?;
        Ok(Self(own))
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        // Its own namespace is one every process may enter. Whatever it made from here on would be in the wrong one.
        let back = setns(&self.0, CloneFlags::CLONE_NEWPID);
        assert!(back.is_ok(), "come back to the agent's own process namespace: {back:?}");
    }
}

/// Forks into a cgroup, and with `flags` into namespaces of the child's own. None in the child.
pub(super) fn fork_into(cgroup: &Path, flags: CloneFlags) -> nix::Result<Option<Pid>> {
    let cgroup = open(cgroup, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    // SAFETY: of numbers alone, for which zero means nothing.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = CLONE_INTO_CGROUP | flags.bits() as u64;
    how.exit_signal = libc::SIGCHLD as u64;
    how.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: the agent has one thread, so the child may use the heap and any lock as it finds them; it has a copy of
    // the stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of_val(&how)) };
    let pid = Errno::result(pid)?;
    Ok((pid > 0).then(|| Pid::from_raw(pid as i32)))
}

/// The life of a child: what keeps it from executing its program it says on `failure`, which closes with the execution.
pub(super) fn live(failure: &OwnedFd, life: impl FnOnce() -> Result<Infallible, String>) -> ! {
    let said = match catch_unwind(AssertUnwindSafe(life)) {
        Ok(Err(said)) => said,
        Err(_) => "the process panicked before its program ran".to_owned(),
    };
    // The agent that does not read this sees the process end.
    let _ = write(failure, said.as_bytes());
    // SAFETY: ends the process without running the agent's own exit handlers.
    unsafe { libc::_exit(1) }
}
