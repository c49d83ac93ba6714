//! What can go wrong with a virtual machine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::exit::{How, VmExit, Who};
use crate::identity::Process;
use crate::spec::SpecError;

/// A virtual machine that did not come to run. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file the machine is made of is not what it has to be.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Parts of the machine that cannot be had together.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A process could not be started.
    #[error("start {who} from {}: {source}", program.display())]
    Spawn {
        /// Which process.
        who: Who,
        /// Its executable file.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A process ended, or the guest got stuck, before the guest ran.
    #[error("the virtual machine ended while it was booting: {0}")]
    Exited(VmExit),
    /// QEMU did not do as told.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU is older than what this version can drive.
    #[error("{} is QEMU {found}; {} is the oldest that will do", path.display(), crate::OLDEST_QEMU)]
    TooOld {
        /// QEMU's executable file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// `nydusd` did not do as told.
    #[error(transparent)]
    Nydusd(#[from] NydusdError),
    /// The host has too few huge pages.
    #[error(
        "the guest's {mib} MiB need {needed} huge pages of {page_kib} KiB, and the host has {free} free: reserve more \
         (sysctl vm.nr_hugepages), or do without enable_hugepages"
    )]
    HugePages {
        /// The guest's memory.
        mib: u64,
        /// Pages it needs.
        needed: u64,
        /// The size of one; 0 where the kernel has none.
        page_kib: u64,
        /// Pages there are.
        free: u64,
    },
    /// The host's kernel has no SELinux.
    #[error(
        "process.selinuxLabel {label}: the host's kernel runs without SELinux: leave the label out, or set \
         disable_selinux"
    )]
    Selinux {
        /// The label that was to be.
        label: String,
    },
    /// No free address for the guest was found.
    #[error("no free vsock address in {0} attempts")]
    NoFreeCid(u32),
    /// The kernel refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried, and on what.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BootError {
    /// The machine is known to have ended; `None` only if whoever would know why is gone too.
    pub(crate) fn ended(exit: Option<VmExit>) -> BootError {
        let unknown =
            || VmExit { who: Who::Qemu, how: How::Lost("nobody waits for it".into()), last_words: "".into() };
        BootError::Exited(exit.unwrap_or_else(unknown))
    }
}

/// A file that is not what the virtual machine needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {}: {problem}", path.display())]
pub struct PathError {
    /// What the file is for.
    pub what: &'static str,
    /// Where it should be.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: PathProblem,
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// Nothing is there.
    #[error("missing")]
    Missing,
    /// The path does not start at the root.
    #[error("not an absolute path")]
    NotAbsolute,
    /// The path is not UTF-8.
    #[error("not text in UTF-8")]
    NotText,
    /// A directory or the like.
    #[error("not a regular file")]
    NotAFile,
    /// Not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A file that is to be memory does not end where a page does.
    #[error("not a multiple of 4096 bytes, as a file that the guest sees as memory has to be")]
    NotPages,
    /// The executable bit is missing, or the file system is mounted without it.
    #[error("not executable")]
    NotExecutable,
    /// Permission is missing.
    #[error("not readable")]
    NotReadable,
    /// The user of a rootless machine may not open it.
    #[error(
        "not open to the user of a rootless machine: the permissions of it and its directories have to allow others"
    )]
    NotForUser,
    /// The kernel would not say.
    #[error("cannot be looked at: {0}")]
    Unknown(nix::errno::Errno),
}

/// A command that QEMU did not carry out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// QEMU said no.
    #[error("qemu refused {command}: {desc} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of error.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// No answer came in time.
    #[error("qemu did not answer {command} within {after:?}")]
    Timeout {
        /// The command.
        command: String,
        /// How long it had.
        after: Duration,
    },
    /// The connection is gone, and so is QEMU.
    #[error("qemu was gone before it answered {command}")]
    Gone {
        /// The command.
        command: String,
    },
    /// What came was not QMP.
    #[error("qemu's answer to {command} makes no sense: {what}")]
    Protocol {
        /// The command.
        command: String,
        /// What was wrong with it.
        what: String,
    },
}

/// What `nydusd` was asked by its administration API and did not do.
#[derive(Debug, thiserror::Error)]
pub enum NydusdError {
    /// It said no.
    #[error("nydusd refused {asked} with status {status}: {words}")]
    Refused {
        /// Method and target of the request.
        asked: String,
        /// The answer's status.
        status: u16,
        /// What the answer says.
        words: String,
    },
    /// It does not listen, does not answer, or does not get to serve.
    #[error("nydusd did not get through {asked} within {after:?}: {last}")]
    Timeout {
        /// What was waited for.
        asked: String,
        /// How long it had.
        after: Duration,
        /// What was known of it last.
        last: String,
    },
    /// The connection failed.
    #[error("ask nydusd for {asked}: {source}")]
    Io {
        /// Method and target of the request, or a socket.
        asked: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What came was no answer of its API.
    #[error("nydusd's answer to {asked} makes no sense: {what}")]
    Protocol {
        /// Method and target of the request.
        asked: String,
        /// What was wrong with it.
        what: String,
    },
}

/// Why a machine is not well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwell {
    /// Its guest will never run again; the word is QEMU's, as in [`How::Stuck`].
    #[error("the guest is stuck in state {0}")]
    Stuck(String),
    /// QEMU does not answer.
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// A virtual machine that would not go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// Processes that did not end on SIGKILL, which only a wait in the kernel explains.
    #[error("still there {after:?} after SIGKILL: {}", names(.processes))]
    StillThere {
        /// The processes.
        processes: Vec<Process>,
        /// How long was waited.
        after: Duration,
    },
}

fn names(processes: &[Process]) -> String {
    processes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
