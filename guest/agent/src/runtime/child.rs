//! The steps of a fork of the agent on its way to be a container's process, wherever it was born.

use std::{
    convert::Infallible,
    fs,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use libcontainer::syscall::Syscall;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
    unistd::{
        Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, getcwd, setgroups, setresgid, setresuid,
    },
};
use oci_spec::runtime::{Process, Spec};

use super::{home, privileges::Privileges, program::Program};
use crate::{
    console,
    error::chain,
    stdio::{ChildStdio, Pipes},
};

pub(super) struct Child<'a> {
    /// As [`super::spec::adapt_process`] leaves it.
    pub(super) process: &'a Process,
    /// The configuration of its container.
    pub(super) container: &'a Spec,
    /// A terminal is made by this process and sent to the socket.
    pub(super) stdio: &'a ChildStdio<OwnedFd>,
}

/// A program that only waits to be executed.
pub(super) struct Ready<'a> {
    program: Program,
    privileges: Privileges<'a>,
}

impl Ready<'_> {
    /// Returns only with what went wrong.
    pub(super) fn execute(self, failure: &OwnedFd, system: &dyn Syscall) -> Result<Infallible, String> {
        // Should anything of ours, or of the library's, be open still.
        system.close_range(0).map_err(told("close what is not the program's"))?;
        self.privileges.at_last()?;
        self.program.execute(failure)
    }
}

impl<'a> Child<'a> {
    /// While it still has the agent's view of the system and all its privileges.
    pub(super) fn limits(&self, system: &dyn Syscall) -> Result<(), String> {
        let score = self.process.oom_score_adj().unwrap_or(0);
        fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(said("set oom_score_adj"))?;
        for limit in self.process.rlimits().iter().flatten() {
            system.set_rlimit(limit).map_err(told(&format!("set rlimit {:?}", limit.typ())))?;
        }
        Ok(())
    }

    /// Takes its streams. A terminal is made in the root it now has; its device is returned.
    pub(super) fn streams(&self) -> Result<Option<OwnedFd>, String> {
        match self.stdio {
            ChildStdio::Pipes(Pipes { stdin, stdout, stderr }) => {
                take_streams(stdin, stdout, stderr).map(|()| None)
            }
            ChildStdio::Terminal(socket) => {
                let device = self.terminal(socket)?;
                take_streams(&device, &device, &device).map(|()| Some(device))
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

    /// Becomes its user, in the root of its container, and finds its program.
    pub(super) fn ready(&self, system: &dyn Syscall) -> Result<Ready<'a>, String> {
        let privileges = Privileges::of(self.process, self.container);
        privileges.none_anew()?;
        let outside = self.enter_directory()?;
        self.become_user()?;
        privileges.before_looking(system)?;
        if outside {
            self.enter_directory_as_user()?;
        }
        check_directory()?;
        let program = self.program()?;
        privileges.before_waiting(system)?;
        Ok(Ready { program, privileges })
    }
}

/// Capabilities stay, to be dropped one by one.
pub(super) fn become_user(uid: u32, gid: u32) -> nix::Result<()> {
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

pub(super) fn said<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {}", error.into())
}

pub(super) fn told<E: std::error::Error>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {}", chain(&error))
}
