//! A supervised process.
//!
//! ```text
//! Launch --spawn--> Child, a task reads its output --exit--> drained, reaped, published --> VmExit
//!                     | dropped
//!                     v
//!                   SIGKILL; the task reaps
//! ```
//!
//! A child dies with the thread that started it, cannot gain privileges, leaves no core (it holds a guest's memory),
//! has a session of its own and inherits standard input and output, the descriptors it was given, and nothing else.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use slog::{Logger, info, o, warn};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::watch;

use crate::exit::{self, How, VmExit, Who};
use crate::identity::{self, Process};
use crate::lines::{Budget, Lines, Verdict};
use crate::selinux::Labelled;
use crate::user::Credentials;

/// Lines kept as a process's last words.
const LAST_WORDS: usize = 4;
/// How long output is read after an exit: somebody the process left behind may hold the pipe for ever.
const DRAIN: Duration = Duration::from_millis(200);

/// A process to start.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) who: Who,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Its working directory.
    pub(crate) dir: PathBuf,
    /// The descriptors it inherits, under the numbers they have here.
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) umask: libc::mode_t,
    /// Who it is; `None` is who we are.
    pub(crate) user: Option<Credentials>,
    /// What SELinux is to know it by.
    pub(crate) label: Option<Labelled>,
    /// The network namespace that it is in; `None` is ours.
    pub(crate) network: Option<Arc<OwnedFd>>,
}

/// A running process; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<VmExit>>,
}

impl Launch {
    /// Starts the process. `first_exit` learns of its exit unless it already holds another one's.
    pub(crate) fn spawn(self, log: &Logger, first_exit: watch::Sender<Option<VmExit>>) -> io::Result<Child> {
        let log = log.new(o!("process" => self.who.to_string()));
        let (input, output) = pipe::pipe()?;
        let input = input.into_blocking_fd()?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .current_dir(&self.dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input)
            .kill_on_drop(true);
        let inherited: Vec<RawFd> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let (umask, user, label, parent) = (self.umask, self.user, self.label, std::process::id());
        let network = self.network;
        // SAFETY: between fork and exec these functions make system calls only; they neither allocate nor lock.
        unsafe {
            command.pre_exec(move || {
                network.as_ref().map_or(Ok(()), |network| setns(network, CloneFlags::CLONE_NEWNET))?;
                label.as_ref().map_or(Ok(()), Labelled::take)?;
                confine(parent, umask, user, &inherited)
            });
        }
        let mut child = command.spawn()?;
        // The command holds copies of the pipe's end, the launch those of what the child now has.
        drop((command, self.fds));
        let pid = child.id().ok_or_else(|| io::Error::other("the process was reaped as it started"))?;
        let process = Process::of(pid, self.who.to_string())?;
        let pidfd = identity::open_pidfd(pid)?;
        let (own_exit, exit) = watch::channel(None);
        tokio::spawn(async move {
            let mut words = Words::new(log);
            let status = words.read_until(output, child.wait()).await;
            let exit = words.exit(self.who, status);
            exit::publish_after_its_cause(&first_exit, exit.clone()).await;
            own_exit.send_replace(Some(exit));
        });
        Ok(Child { process, pidfd, exit })
    }
}

impl Child {
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Sends `signal` unless the process is gone.
    pub(crate) fn signal(&self, signal: i32) {
        // The only other error is EPERM, and the process is ours: it has no privileges we lack.
        let _ = identity::send(self.pidfd.as_fd(), signal);
    }

    /// Descriptors for the processes it started itself; none once it is gone, when its number may be another's.
    pub(crate) fn workers(&self) -> Vec<OwnedFd> {
        if self.is_gone() { Vec::new() } else { identity::children(self.process.pid) }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits up to `patience` until the process is reaped; says whether it is.
    pub(crate) async fn gone_within(&self, patience: Duration) -> bool {
        let mut exit = self.exit.clone();
        tokio::time::timeout(patience, exit.wait_for(Option::is_some)).await.is_ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
    }
}

/// What the new process does to itself before it becomes the program.
fn confine(
    parent: u32,
    umask: libc::mode_t,
    user: Option<Credentials>,
    inherited: &[RawFd],
) -> io::Result<()> {
    // Before the parent's death is watched for, as the kernel stops watching when the user changes.
    user.map_or(Ok(()), Credentials::assume)?;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: system calls on numbers, and on one structure that lives here.
    unsafe {
        check(libc::setsid())?;
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // The parent may have died before its death was watched for.
        if libc::getppid().unsigned_abs() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
        libc::umask(umask);
        // Closed at exec rather than now: the standard library reports a failed exec through one of them.
        check(libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC))?;
        for fd in inherited {
            check(libc::fcntl(*fd, libc::F_SETFD, 0))?;
        }
    }
    Ok(())
}

fn check<N: Into<i64>>(result: N) -> io::Result<()> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A process's output, on its way into the log.
struct Words {
    log: Logger,
    lines: Lines,
    budget: Budget,
    last: VecDeque<String>,
}

impl Words {
    fn new(log: Logger) -> Words {
        Words { log, lines: Lines::default(), budget: Budget::new(Instant::now()), last: VecDeque::new() }
    }

    /// Reads `output` until `exit` is ready, and then what is still in it.
    async fn read_until<T>(&mut self, mut output: pipe::Receiver, exit: impl Future<Output = T>) -> T {
        let mut buffer = vec![0; 4096];
        tokio::pin!(exit);
        let result = loop {
            tokio::select! {
                result = &mut exit => break result,
                read = output.read(&mut buffer) => match read {
                    Ok(n) if n > 0 => self.hear(&buffer[..n]),
                    // It closed its output and lives on.
                    _ => break (&mut exit).await,
                },
            }
        };
        let rest = async {
            while let Ok(n @ 1..) = output.read(&mut buffer).await {
                self.hear(&buffer[..n]);
            }
        };
        let _ = tokio::time::timeout(DRAIN, rest).await;
        let Words { log, lines, budget, last } = self;
        lines.finish(|line| keep(log, budget, last, line));
        result
    }

    fn hear(&mut self, bytes: &[u8]) {
        let Words { log, lines, budget, last } = self;
        lines.feed(bytes, |line| keep(log, budget, last, line));
    }

    fn exit(&mut self, who: Who, status: io::Result<ExitStatus>) -> VmExit {
        let how = match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => How::Exited(code),
                (None, signal) => How::Killed(signal.unwrap_or_default()),
            },
            Err(error) => How::Lost(error.to_string()),
        };
        VmExit { who, how, last_words: Vec::from(std::mem::take(&mut self.last)).join(" | ") }
    }
}

fn keep(log: &Logger, budget: &mut Budget, last: &mut VecDeque<String>, line: String) {
    if let Verdict::Log { dropped } = budget.spend(line.len(), Instant::now()) {
        if dropped > 0 {
            warn!(log, "lines left out, there were too many at once"; "lines" => dropped);
        }
        info!(log, "{}", line);
    }
    if last.len() == LAST_WORDS {
        last.pop_front();
    }
    last.push_back(line);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selinux;
    use std::fs::File;
    use std::os::fd::IntoRawFd;

    struct Started {
        child: Child,
        exit: watch::Receiver<Option<VmExit>>,
        _dir: tempfile::TempDir,
    }

    fn shell(script: &str, fds: Vec<OwnedFd>) -> Started {
        shell_with(script, |launch| launch.fds = fds)
    }

    fn labelled_shell(script: &str, fds: Vec<OwnedFd>, label: Option<Labelled>) -> Started {
        shell_with(script, |launch| (launch.fds, launch.label) = (fds, label))
    }

    fn shell_with(script: &str, change: impl FnOnce(&mut Launch)) -> Started {
        let dir = tempfile::tempdir().unwrap();
        let (first, exit) = watch::channel(None);
        let mut launch = Launch {
            who: Who::Qemu,
            program: "/bin/sh".into(),
            args: ["-c", script].map(Into::into).into(),
            dir: dir.path().into(),
            fds: Vec::new(),
            umask: 0o077,
            user: None,
            label: None,
            network: None,
        };
        change(&mut launch);
        let child = launch.spawn(&Logger::root(slog::Discard, o!()), first).unwrap();
        Started { child, exit, _dir: dir }
    }

    async fn exit_of(started: &mut Started) -> VmExit {
        let exit = tokio::time::timeout(Duration::from_secs(5), started.exit.wait_for(Option::is_some)).await;
        exit.unwrap().unwrap().clone().unwrap()
    }

    #[tokio::test]
    async fn d20_it_is_in_the_network_namespace_it_is_given() {
        let other = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("namespaces are made by root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let network = other.join().unwrap();
        let name = std::fs::read_link(format!("/proc/self/fd/{}", network.as_raw_fd())).unwrap();
        let script = format!("[ $(readlink /proc/self/ns/net) = '{}' ] && exit 7", name.display());
        let mut started = shell_with(&script, |launch| launch.network = Some(Arc::new(network.into())));
        assert_eq!(exit_of(&mut started).await.how, How::Exited(7));
    }

    #[tokio::test]
    async fn an_exit_comes_with_its_last_words() {
        let mut started =
            shell("for i in 1 2 3 4 5 6; do echo line $i >&2; done; printf end; exit 7", vec![]);
        let exit = exit_of(&mut started).await;
        assert_eq!(exit.how, How::Exited(7));
        assert_eq!(exit.last_words, "line 4 | line 5 | line 6 | end");
    }

    #[tokio::test]
    async fn a_flood_without_line_ends_is_cut() {
        let mut started = shell("head -c 4000000 /dev/zero | tr '\\0' x >&2", vec![]);
        let exit = exit_of(&mut started).await;
        assert!(exit.last_words.len() < 9000, "{}", exit.last_words.len());
        assert!(exit.last_words.ends_with("bytes more]"));
    }

    #[tokio::test]
    async fn an_exit_is_known_although_a_grandchild_holds_the_output() {
        let mut started = shell("sleep 3 & exit 1", vec![]);
        let start = Instant::now();
        assert_eq!(exit_of(&mut started).await.how, How::Exited(1));
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_dropped_child_is_killed_and_reaped() {
        let mut started = shell("exec sleep 60", vec![]);
        let process = started.child.process().clone();
        drop(std::mem::replace(&mut started.child, shell("exit 0", vec![]).child));
        assert_eq!(exit_of(&mut started).await.how, How::Killed(9));
        assert!(!process.is_there());
    }

    #[tokio::test]
    async fn a_child_has_a_session_of_its_own_and_no_way_up() {
        let mut started =
            shell("grep -E '^(NoNewPrivs|Umask)' /proc/self/status; ulimit -c; ps -o sid= $$", vec![]);
        let pid = started.child.process().pid;
        let words = exit_of(&mut started).await.last_words;
        let words: Vec<&str> = words.split(" | ").map(str::trim).collect();
        assert_eq!(words, ["Umask:\t0077", "NoNewPrivs:\t1", "0", pid.to_string().as_str()]);
    }

    #[tokio::test]
    async fn a40_a_child_takes_its_label_before_it_becomes_the_program() {
        let root = tempfile::tempdir().unwrap();
        let label = selinux::tests::labelled(root.path());
        let mut started = labelled_shell("exit 0", vec![], Some(label));
        assert_eq!(exit_of(&mut started).await.how, How::Exited(0));
        assert_eq!(selinux::tests::written(root.path()), selinux::tests::LABEL);
    }

    #[tokio::test]
    async fn a34_s_d2_a_child_inherits_what_it_is_given_and_nothing_else() {
        let canaries: Vec<RawFd> = (0..50)
            .map(|_| {
                let fd = File::open("/dev/null").unwrap().into_raw_fd();
                // SAFETY: a flag of a descriptor that was opened on the line before.
                assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }, 0);
                fd
            })
            .collect();
        let given: OwnedFd = File::open("/dev/zero").unwrap().into();
        let number = given.as_raw_fd();
        let mut started =
            shell("for fd in /proc/$$/fd/*; do [ -e $fd ] && printf '%s ' ${fd##*/}; done", vec![given]);
        let words = exit_of(&mut started).await.last_words;
        for fd in canaries {
            // SAFETY: the descriptor is this test's own, and used for the last time.
            unsafe { libc::close(fd) };
        }
        let mut found: Vec<RawFd> = words.split_whitespace().map(|fd| fd.parse().unwrap()).collect();
        found.retain(|fd| *fd > 2);
        assert_eq!(found, [number]);
    }
}
