//! A process that joins a running container.
//!
//! One fork of the agent becomes it: born in the container's cgroup and process namespace, it enters the other
//! namespaces, takes its streams, becomes its user and executes its program. libcontainer would take two processes
//! more, files and a socket, most of what an exec cost on an emulated processor (docs/decisions/0011).

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
};

use libcontainer::syscall::{Syscall, syscall::create_syscall};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
    unistd::{
        Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, getcwd, setgroups, setresgid, setresuid,
        setsid, write,
    },
};
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::{home, privileges::Privileges, program::Program};
use crate::{
    cgroup::{self, Cgroup},
    console,
    error::{Error, chain},
    stdio::{ChildStdio, Pipes},
    worker,
};

/// clone3(2): the child is born in the cgroup of `clone_args.cgroup`. Not in libc as a number of 64 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What becomes a process of a running container.
pub(crate) struct Exec<'a> {
    pub(crate) cgroup: &'a Cgroup,
    /// The first process of the container, whose end has not been seen yet, so that the id is still its own.
    pub(crate) init: Pid,
    /// As [`super::spec::adapt_process`] leaves it.
    pub(crate) process: &'a Process,
    /// The configuration of the container.
    pub(crate) spec: &'a Spec,
    /// A terminal is made in the container and sent to this socket.
    pub(crate) stdio: ChildStdio<OwnedFd>,
    /// The writing end of [`super::Failure`]. It closes as the program is executed.
    pub(crate) failure: OwnedFd,
}

impl Exec<'_> {
    /// Starts the process, a child of the agent, and returns its id. What keeps it from executing its program it says
    /// on `failure`.
    pub(crate) fn start(self) -> Result<Pid, Error> {
        let refused = |what: &str| Error::system(format!("make a process: {what}"));
        let init = pidfd(self.init).map_err(refused("find the container's first process"))?;
        let namespaces = namespaces(self.spec);
        // The namespace of processes is entered by being born there.
        let born_in = namespaces & CloneFlags::CLONE_NEWPID;
        let within =
            Within::enter(&init, born_in).map_err(refused("enter the container's process namespace"))?;
        let forked = self.fork().map_err(refused("fork"))?;
        if let Some(pid) = forked {
            drop(within);
            return Ok(pid);
        }
        self.become_it(&init, namespaces - born_in)
    }

    /// None in the child.
    fn fork(&self) -> io::Result<Option<Pid>> {
        match fork_into(&File::open(self.cgroup.path())?) {
            // A container that has divided its cgroup among cgroups of its own holds no process there itself.
            Err(Errno::EBUSY | Errno::EOPNOTSUPP) => {
                Ok(fork_into(&File::open(cgroup::of_process(self.init)?)?)?)
            }
            forked => Ok(forked?),
        }
    }

    /// The life of the child.
    fn become_it(self, init: &OwnedFd, namespaces: CloneFlags) -> ! {
        let failure = self.failure.as_raw_fd();
        let joined = catch_unwind(AssertUnwindSafe(|| self.join(init, namespaces)));
        let said = match joined {
            Ok(Err(said)) => said,
            Err(_) => "the process panicked before its program ran".to_owned(),
        };
        // SAFETY: `self` is never dropped, so the pipe is open.
        let failure = unsafe { std::os::fd::BorrowedFd::borrow_raw(failure) };
        // The agent that does not read this sees the process end.
        let _ = write(failure, said.as_bytes());
        // SAFETY: ends the process without running the agent's own exit handlers.
        unsafe { libc::_exit(1) }
    }

    /// Returns only with what went wrong.
    fn join(&self, init: &OwnedFd, namespaces: CloneFlags) -> Result<Infallible, String> {
        let system = create_syscall();
        let mut kept = self.stdio.fds();
        kept.extend([init.as_raw_fd(), self.failure.as_raw_fd()]);
        worker::leave_the_agent(kept).map_err(said("leave the agent"))?;
        self.limits(system.as_ref())?;
        // In the container others could look into a process that is still the agent's program.
        prctl::set_dumpable(false).map_err(said("hide from the container"))?;
        setns(init, namespaces).map_err(said("enter the container"))?;
        if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
            become_user(0, 0).map_err(said("become root there"))?;
        }
        setsid().map_err(said("begin a session"))?;
        self.streams()?;
        let privileges = Privileges::of(self.process, self.spec);
        privileges.none_anew()?;
        let outside = self.enter_directory()?;
        self.become_user()?;
        privileges.before_looking(system.as_ref())?;
        if outside {
            self.enter_directory_as_user()?;
        }
        check_directory()?;
        let program = self.program()?;
        privileges.at_last(system.as_ref())?;
        program.execute()
    }

    fn limits(&self, system: &dyn Syscall) -> Result<(), String> {
        let score = self.process.oom_score_adj().unwrap_or(0);
        fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(said("set oom_score_adj"))?;
        for limit in self.process.rlimits().iter().flatten() {
            system.set_rlimit(limit).map_err(told(&format!("set rlimit {:?}", limit.typ())))?;
        }
        Ok(())
    }

    fn streams(&self) -> Result<(), String> {
        match &self.stdio {
            ChildStdio::Pipes(Pipes { stdin, stdout, stderr }) => take_streams(stdin, stdout, stderr),
            ChildStdio::Terminal(socket) => {
                let device = self.terminal(socket)?;
                take_streams(&device, &device, &device)
            }
        }
    }

    /// Makes a terminal of the container's own, the one that controls this session, and sends the agent its master.
    fn terminal(&self, socket: &OwnedFd) -> Result<OwnedFd, String> {
        let (master, device) = console::open().map_err(said("make a terminal"))?;
        let cells = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        if let Some(size) = self.process.console_size().filter(|size| size.height() > 0 && size.width() > 0) {
            let (rows, columns) = (cells(size.height()), cells(size.width()));
            console::resize(&master, rows.into(), columns.into()).map_err(|error| chain(&error))?;
        }
        console::give_to(&master, self.process.user().uid()).map_err(|error| chain(&error))?;
        // SAFETY: the argument is a number. 0: not from a session that has it.
        if unsafe { libc::ioctl(device.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
            return Err(said("control a terminal")(io::Error::last_os_error()));
        }
        let fds = [master.as_raw_fd()];
        let sent = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"t")], &sent, MsgFlags::empty(), None)
            .map_err(said("send a terminal"))?;
        Ok(device)
    }

    /// Whether the working directory is yet to be entered: some only their user may enter, others only root.
    fn enter_directory(&self) -> Result<bool, String> {
        match chdir(self.process.cwd()) {
            Err(Errno::EACCES | Errno::EPERM) => Ok(true),
            Err(error) => Err(self.no_directory(error)),
            Ok(()) => Ok(false),
        }
    }

    fn enter_directory_as_user(&self) -> Result<(), String> {
        chdir(self.process.cwd()).map_err(|error| self.no_directory(error))
    }

    fn no_directory(&self, error: Errno) -> String {
        format!("chdir to cwd ({:?}): {}", self.process.cwd(), io::Error::from(error))
    }

    fn become_user(&self) -> Result<(), String> {
        let user = self.process.user();
        let groups = user.additional_gids().iter().flatten();
        let groups: Vec<Gid> = groups.map(|gid| Gid::from_raw(*gid)).collect();
        if !groups.is_empty() {
            setgroups(&groups).map_err(said("set the user's groups"))?;
        }
        let (uid, gid) = (user.uid(), user.gid());
        become_user(uid, gid).map_err(said(&format!("become user {uid}:{gid}")))
    }

    fn program(&self) -> Result<Program, String> {
        let mut env = self.process.env().clone().unwrap_or_default();
        if !env.iter().any(|entry| home::is_home(entry)) {
            env.extend(home::find().map(|home| format!("HOME={home}")));
        }
        Program::find(self.process, &env)
    }
}

/// What a container has of its own and a process can enter. The network is the guest's.
fn namespaces(spec: &Spec) -> CloneFlags {
    let kinds = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten();
    kinds.map(|namespace| flag(namespace.typ())).collect()
}

fn flag(kind: LinuxNamespaceType) -> CloneFlags {
    match kind {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Time => CloneFlags::from_bits_retain(libc::CLONE_NEWTIME),
    }
}

/// While it lives, the agent's children are born in another process namespace. It is of no consequence to anybody else,
/// as the agent has one thread.
struct Within(Option<File>);

impl Within {
    /// Nothing changes if `born_in` is empty.
    fn enter(init: &OwnedFd, born_in: CloneFlags) -> io::Result<Self> {
        if born_in.is_empty() {
            return Ok(Self(None));
        }
        let own = File::open("/proc/self/ns/pid")?;
        setns(init, born_in)?;
        Ok(Self(Some(own)))
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        if let Some(own) = &self.0 {
            // Its own namespace is one every process may enter. Whatever it made from here on would be in the wrong one.
            let back = setns(own, CloneFlags::CLONE_NEWPID);
            assert!(back.is_ok(), "come back to the agent's own process namespace: {back:?}");
        }
    }
}

fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: passes two numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forks into a cgroup. None in the child.
fn fork_into(cgroup: &File) -> nix::Result<Option<Pid>> {
    // SAFETY: of numbers alone, for which zero means nothing.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = CLONE_INTO_CGROUP;
    how.exit_signal = libc::SIGCHLD as u64;
    how.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: the agent has one thread, so the child may use the heap and any lock as it finds them; it has a copy of
    // the stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of_val(&how)) };
    let pid = Errno::result(pid)?;
    Ok((pid > 0).then(|| Pid::from_raw(pid as i32)))
}

/// Capabilities stay, to be dropped one by one.
fn become_user(uid: u32, gid: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    prctl::set_keepcaps(true)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    prctl::set_keepcaps(false)
}

fn take_streams(stdin: &impl AsFd, stdout: &impl AsFd, stderr: &impl AsFd) -> Result<(), String> {
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .map_err(said("take its streams"))
}

/// A directory outside the container's root has no name there (CVE-2024-21626).
fn check_directory() -> Result<(), String> {
    let directory = getcwd().map_err(said("find the working directory"))?;
    if directory.is_absolute() {
        Ok(())
    } else {
        Err("the working directory is outside the container".to_owned())
    }
}

fn said<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {}", error.into())
}

fn told<E: std::error::Error>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {}", chain(&error))
}
