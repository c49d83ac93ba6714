//! Which process a number means: a pid is used again, a pid with its start time is not.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process, told apart from later ones with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine booted: field 22 of `/proc/<pid>/stat`.
    pub start_time: u64,
    /// What it is to us, such as `qemu`.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

impl Process {
    /// Identifies `pid`, which has to be there.
    pub fn of(pid: u32, name: impl Into<String>) -> io::Result<Process> {
        Ok(Process { pid, start_time: start_time(Path::new("/proc"), pid)?, name: name.into() })
    }

    /// Whether it has not been reaped yet.
    #[must_use]
    pub fn is_there(&self) -> bool {
        start_time(Path::new("/proc"), self.pid).is_ok_and(|found| found == self.start_time)
    }

    /// Sends SIGKILL. `false` says that the process was gone; another one with its number is not touched.
    pub fn kill(&self) -> io::Result<bool> {
        // The descriptor first: whoever has the number now keeps it while its start time is compared.
        let pidfd = match open_pidfd(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
            Err(error) => return Err(error),
        };
        if !self.is_there() {
            return Ok(false);
        }
        send(std::os::fd::AsFd::as_fd(&pidfd), libc::SIGKILL)
    }
}

/// A descriptor for the process `pid`.
pub(crate) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends `signal` to the process behind `pidfd`; `false` says that it was gone.
pub(crate) fn send(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<bool> {
    // SAFETY: numbers only; the null pointer asks for the signal information that kill() would send.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match io::Error::last_os_error() {
        _ if sent == 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        error => Err(error),
    }
}

/// Descriptors for the processes that `pid` started and that are still its children.
pub(crate) fn children(pid: u32) -> Vec<OwnedFd> {
    children_of(pid).into_iter().filter_map(|child| open_pidfd(child).ok()).collect()
}

/// The processes that `pid` started, by any of its threads, and that are still its children; none if it is not there.
#[must_use]
pub fn children_of(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// Waits until the process behind `pidfd` has ended, whoever may reap it.
pub(crate) async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    // SAFETY: an `OwnedFd` gives the one descriptor it owns for as long as it lives.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    pidfd.readable().await.map(drop)
}

fn start_time(proc: &Path, pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(proc.join(pid.to_string()).join("stat"))?;
    // The name, field 2, is in parentheses and may hold any character, so counting begins at the last one.
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_whitespace().nth(22 - 3);
    field.and_then(|field| field.parse().ok()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("no start time in /proc/{pid}/stat"))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A process that does nothing, and not for long.
    pub(crate) struct Sleep(pub(crate) Child);

    impl Sleep {
        pub(crate) fn start() -> Sleep {
            Sleep(Command::new("/bin/sleep").arg("60").spawn().unwrap())
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc.path().join("7")).unwrap();
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a ) b (c)) S {}\n", fields.join(" "));
        std::fs::write(proc.path().join("7/stat"), stat).unwrap();
        assert_eq!(start_time(proc.path(), 7).unwrap(), 22);
    }
}
