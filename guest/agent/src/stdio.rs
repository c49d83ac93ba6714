//! The three streams of a process, or its terminal.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libcontainer::container::builder::ContainerBuilder;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{Gid, Uid, fchown, pipe2, read, write},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    console::{self, Console},
    error::Error,
    readiness,
};

/// What a pipe holds, in bytes, so that one call of the host carries more than the 64 KiB of the default.
const PIPE_SIZE: libc::c_int = 256 * 1024;

/// Most bytes one read returns, however many the host asks for.
const MAX_READ: usize = 256 * 1024;

/// The process' side, handed to a worker.
pub(crate) enum ChildStdio {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The socket the terminal is sent back through.
    Terminal(PathBuf),
}

impl ChildStdio {
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        match self {
            Self::Pipes { stdin, stdout, stderr } => [stdin, stdout, stderr].map(AsRawFd::as_raw_fd).to_vec(),
            Self::Terminal(_) => Vec::new(),
        }
    }

    pub(crate) fn attach(self, builder: ContainerBuilder) -> ContainerBuilder {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
            }
            Self::Terminal(socket) => builder.with_console_socket(Some(socket)),
        }
    }
}

/// The agent's side.
pub(crate) struct Stdio {
    stdin: Stream,
    stdout: Stream,
    /// A terminal has one output.
    stderr: Option<Stream>,
    terminal: bool,
}

/// What becomes a [`Stdio`] when the process is there.
pub(crate) enum Prepared {
    Pipes(Stdio),
    Terminal(Console),
}

/// Makes pipes, or the socket a terminal comes from. `owner` may open the streams again by their names in
/// `/proc/self/fd`.
pub(crate) fn prepare(terminal: bool, owner: (u32, u32)) -> Result<(ChildStdio, Prepared), Error> {
    if terminal {
        let console = Console::listen()?;
        return Ok((ChildStdio::Terminal(console.path().to_owned()), Prepared::Terminal(console)));
    }
    let [stdin, stdout, stderr] = [pipe(owner)?, pipe(owner)?, pipe(owner)?];
    let ours = Stdio {
        stdin: Stream::new(stdin.1, Interest::WRITABLE)?,
        stdout: Stream::new(stdout.0, Interest::READABLE)?,
        stderr: Some(Stream::new(stderr.0, Interest::READABLE)?),
        terminal: false,
    };
    let child = ChildStdio::Pipes { stdin: stdin.0, stdout: stdout.1, stderr: stderr.1 };
    Ok((child, Prepared::Pipes(ours)))
}

impl Prepared {
    /// The streams of the process that has now been made.
    pub(crate) fn complete(self, owner: (u32, u32)) -> Result<Stdio, Error> {
        let master = match self {
            Self::Pipes(stdio) => return Ok(stdio),
            Self::Terminal(console) => console.receive()?,
        };
        console::give_to(&master, owner.0)?;
        let copy = master.try_clone().map_err(Error::system("duplicate a terminal"))?;
        Ok(Stdio {
            stdin: Stream::new(copy, Interest::WRITABLE)?,
            stdout: Stream::new(master, Interest::READABLE)?,
            stderr: None,
            terminal: true,
        })
    }
}

impl Stdio {
    /// Writes what fits once something fits; waits for that as long as it takes.
    ///
    /// # Errors
    ///
    /// [`Error::State`] if the stream is closed, on this side or by all its readers.
    pub(crate) async fn write_stdin(&self, data: &[u8]) -> Result<usize, Error> {
        let closed = || Error::state("stdin is closed");
        let fd = self.stdin.get().ok_or_else(closed)?;
        match fd.async_io(Interest::WRITABLE, |fd| Ok(write(fd, data)?)).await {
            Ok(len) => Ok(len),
            Err(error) if is_hangup(&error) => Err(closed()),
            Err(error) => Err(Error::system("write stdin")(error)),
        }
    }

    /// Up to `max` bytes as soon as there are some; none at the end of the stream.
    pub(crate) async fn read_stdout(&self, max: usize) -> Result<Vec<u8>, Error> {
        self.stdout.read(max).await
    }

    /// As [`Self::read_stdout`]; of a terminal, nothing at once.
    pub(crate) async fn read_stderr(&self, max: usize) -> Result<Vec<u8>, Error> {
        match &self.stderr {
            Some(stream) => stream.read(max).await,
            None => Ok(Vec::new()),
        }
    }

    /// Ends the input. A terminal has no end of input of its own; its user types one.
    pub(crate) fn close_stdin(&self) {
        self.stdin.close();
    }

    /// Sets the size of the terminal.
    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        if !self.terminal {
            return Err(Error::state("the process has no terminal"));
        }
        let master = self.stdout.get().ok_or_else(|| Error::state("the terminal is closed"))?;
        console::resize(master.get_ref(), rows, columns)
    }

    /// Whether everything the process has written has been read.
    pub(crate) fn drained(&self) -> bool {
        self.stdout.get().is_none() && self.stderr.as_ref().is_none_or(|stream| stream.get().is_none())
    }
}

/// One non-blocking descriptor, dropped at its end. A call under way keeps it open until it returns.
struct Stream(Mutex<Option<Arc<AsyncFd<OwnedFd>>>>);

impl Stream {
    fn new(fd: OwnedFd, interest: Interest) -> Result<Self, Error> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(Error::system("make a stream non-blocking"))?;
        let fd = readiness::watch(fd, interest).map_err(Error::system("watch a stream"))?;
        Ok(Self(Mutex::new(Some(Arc::new(fd)))))
    }

    fn get(&self) -> Option<Arc<AsyncFd<OwnedFd>>> {
        self.slot().clone()
    }

    fn close(&self) {
        drop(self.slot().take());
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<AsyncFd<OwnedFd>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, max: usize) -> Result<Vec<u8>, Error> {
        if max == 0 {
            return Err(Error::invalid("len: 0, wants at least 1 byte"));
        }
        let Some(fd) = self.get() else { return Ok(Vec::new()) };
        let mut data = vec![0; max.min(MAX_READ)];
        let len = match fd.async_io(Interest::READABLE, |fd| Ok(read(fd, &mut data)?)).await {
            Ok(len) => len,
            Err(error) if is_hangup(&error) => 0,
            Err(error) => return Err(Error::system("read a stream")(error)),
        };
        if len == 0 {
            self.close();
        }
        data.truncate(len);
        Ok(data)
    }
}

/// A pipe without readers; a terminal that no process has open any more.
fn is_hangup(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EIO))
}

fn pipe(owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd), Error> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(Error::system("make a pipe"))?;
    // A smaller pipe does as well, only slower.
    let _ = fcntl(&reader, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    fchown(reader.as_fd(), Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))
        .map_err(Error::system("give a pipe to its user"))?;
    Ok((reader, writer))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    fn me() -> (u32, u32) {
        (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw())
    }

    fn pipes() -> (ChildStdio, Stdio) {
        let (child, prepared) = prepare(false, me()).unwrap();
        (child, prepared.complete(me()).unwrap())
    }

    #[tokio::test]
    async fn output_arrives_apart_and_ends_when_its_writers_do() {
        let (child, stdio) = pipes();
        let ChildStdio::Pipes { stdin, stdout, stderr } = child else { panic!("asked for pipes") };
        File::from(stdout).write_all(b"out").unwrap();
        File::from(stderr).write_all(b"err").unwrap();
        assert_eq!(stdio.read_stdout(2).await.unwrap(), b"ou");
        assert_eq!(stdio.read_stdout(100).await.unwrap(), b"t");
        assert_eq!(stdio.read_stderr(100).await.unwrap(), b"err");
        assert!(!stdio.drained());
        assert_eq!(stdio.read_stdout(1).await.unwrap(), b"");
        assert_eq!(stdio.read_stdout(1).await.unwrap(), b"");
        assert_eq!(stdio.read_stderr(1).await.unwrap(), b"");
        assert!(stdio.drained());
        drop(stdin);
    }

    #[tokio::test]
    async fn input_waits_for_room_and_ends_when_closed() {
        let (child, stdio) = pipes();
        let ChildStdio::Pipes { stdin, .. } = &child else { panic!("asked for pipes") };
        let much = vec![7; 4 * 1024 * 1024];
        let len = stdio.write_stdin(&much).await.unwrap();
        assert!(len > 0 && len < much.len());
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(50), stdio.write_stdin(&much))
                .await
                .is_err()
        );
        let mut back = vec![0; len];
        assert_eq!(read(stdin, &mut back).unwrap(), len);
        stdio.close_stdin();
        assert!(matches!(stdio.write_stdin(b"x").await, Err(Error::State(_))));
        assert_eq!(read(stdin, &mut back).unwrap(), 0);
    }

    #[tokio::test]
    async fn input_nobody_reads_is_refused() {
        let (child, stdio) = pipes();
        drop(child);
        assert!(matches!(stdio.write_stdin(b"x").await, Err(Error::State(_))));
    }

    #[tokio::test]
    async fn pipes_are_no_terminal() {
        let (_child, stdio) = pipes();
        assert!(stdio.resize(24, 80).is_err());
        assert!(stdio.read_stdout(0).await.is_err());
    }
}
