//! The three streams of a process, or its terminal.
//!
//! ```text
//! process -- pipe or terminal -- Stream, read and written by the host's calls
//!                              \ pump or, into a pipe, splice -- connection with the host
//! ```
//!
//! The process never has the connection itself: a program may open `/dev/stdout` again, which no socket allows.

pub(crate) mod arrivals;
mod pump;
mod splice;
mod stream;

use std::{
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use libcontainer::container::builder::ContainerBuilder;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{Gid, Uid, fchown, pipe2},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{
    console::{self, Console},
    error::Error,
};
use arrivals::{Connection, Connections};
use stream::{End, Pumped, Stream};

/// What the pipes of input and output hold, in bytes, where the default is 64 KiB: the more there is at once, the fewer times
/// the one processor of a small guest turns from the process to the agent and back. What is in that of the output is charged
/// to the container.
const PIPE_SIZE: libc::c_int = 1024 * 1024;

/// The process' side, handed to the fork that makes it. `T` is where the terminal is sent, if it has one.
pub(crate) enum ChildStdio<T> {
    Pipes(Pipes),
    Terminal(T),
}

/// The process' ends, or the agent's.
pub(crate) struct Pipes {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Pipes {
    fn fds(&self) -> Vec<RawFd> {
        [&self.stdin, &self.stdout, &self.stderr].map(AsRawFd::as_raw_fd).to_vec()
    }
}

impl ChildStdio<OwnedFd> {
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        match self {
            Self::Pipes(pipes) => pipes.fds(),
            Self::Terminal(socket) => vec![socket.as_raw_fd()],
        }
    }
}

impl ChildStdio<PathBuf> {
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        match self {
            Self::Pipes(pipes) => pipes.fds(),
            Self::Terminal(_) => Vec::new(),
        }
    }

    pub(crate) fn attach(self, builder: ContainerBuilder) -> ContainerBuilder {
        match self {
            Self::Pipes(Pipes { stdin, stdout, stderr }) => {
                builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
            }
            Self::Terminal(socket) => builder.with_console_socket(Some(socket)),
        }
    }
}

/// The agent's side.
pub(crate) struct Stdio {
    stdin: Input,
    stdout: Output,
    /// A terminal has one output.
    stderr: Option<Output>,
    /// Not kept open by this: it goes when its last process or reader does.
    terminal: Option<Weak<AsyncFd<OwnedFd>>>,
}

enum Input {
    Calls(Stream),
    /// Dropping what is in it ends the pump.
    Pump(Mutex<Option<oneshot::Sender<()>>>),
}

enum Output {
    Calls(Stream),
    Pump(JoinHandle<()>),
}

/// What becomes a [`Stdio`] when the process is there. Dropping it hangs up on the host.
pub(crate) struct Prepared {
    ends: Ends,
    connections: Connections,
}

enum Ends {
    Pipes(Pipes),
    /// Where the library sends the terminal of a container's first process.
    Terminal(Console),
    /// Where a process that joins a container sends its own.
    Socket(OwnedFd),
}

/// Pipes. `owner` may open them again by their names in `/proc/self/fd`.
pub(crate) fn prepare<T>(
    owner: (u32, u32),
    connections: Connections,
) -> Result<(ChildStdio<T>, Prepared), Error> {
    let [stdin, stdout, stderr] = [pipe(owner)?, pipe(owner)?, pipe(owner)?];
    // Smaller ones do as well, only slower. Most processes have no input, and the kernel gives processes of a user small
    // pipes alone once all of that user's could hold 64 MiB.
    if connections.stdin.is_some() {
        let _ = fcntl(&stdin.1, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    }
    let _ = fcntl(&stdout.0, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    let child = Pipes { stdin: stdin.0, stdout: stdout.1, stderr: stderr.1 };
    let ends = Pipes { stdin: stdin.1, stdout: stdout.0, stderr: stderr.0 };
    Ok((ChildStdio::Pipes(child), Prepared { ends: Ends::Pipes(ends), connections }))
}

/// A socket by whose path the library sends a terminal.
pub(crate) fn prepare_console(connections: Connections) -> Result<(ChildStdio<PathBuf>, Prepared), Error> {
    let console = Console::listen()?;
    let child = ChildStdio::Terminal(console.path().to_owned());
    Ok((child, Prepared { ends: Ends::Terminal(console), connections }))
}

/// A socket for a terminal that its process makes.
pub(crate) fn prepare_terminal(connections: Connections) -> Result<(ChildStdio<OwnedFd>, Prepared), Error> {
    let (ours, theirs) = UnixStream::pair().map_err(Error::system("make a socket for a terminal"))?;
    let ends = Ends::Socket(ours.into());
    Ok((ChildStdio::Terminal(theirs.into()), Prepared { ends, connections }))
}

impl Prepared {
    /// The streams of the process that has now been made. What goes by connections begins to. A terminal that the
    /// library has made is given to `owner`.
    pub(crate) fn complete(self, owner: (u32, u32)) -> Result<Stdio, Error> {
        match self.ends {
            Ends::Pipes(Pipes { stdin, stdout, stderr }) => pipes(stdin, stdout, stderr, self.connections),
            Ends::Terminal(console) => {
                let master = console.receive()?;
                console::give_to(&master, owner.0)?;
                terminal(master, self.connections)
            }
            Ends::Socket(socket) => {
                let master = console::take(&socket).map_err(Error::system("receive a terminal"))?;
                terminal(master, self.connections)
            }
        }
    }
}

fn pipes(stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd, with: Connections) -> Result<Stdio, Error> {
    Ok(Stdio {
        stdin: Input::pipe(stdin, with.stdin)?,
        stdout: Output::new(stream::watch(stdout, Interest::READABLE)?, with.stdout),
        stderr: Some(Output::new(stream::watch(stderr, Interest::READABLE)?, with.stderr)),
        terminal: None,
    })
}

/// A connection for its errors ends at once, as that stream of a terminal does for calls.
fn terminal(master: OwnedFd, with: Connections) -> Result<Stdio, Error> {
    let copy = master.try_clone().map_err(Error::system("duplicate a terminal"))?;
    let master = stream::watch(master, Interest::READABLE)?;
    Ok(Stdio {
        stdin: Input::terminal(copy, with.stdin)?,
        terminal: Some(Arc::downgrade(&master)),
        stdout: Output::new(master, with.stdout),
        stderr: None,
    })
}

impl Input {
    fn pipe(fd: OwnedFd, connection: Option<Box<dyn Connection>>) -> Result<Self, Error> {
        let end = stream::watch(fd, Interest::WRITABLE)?;
        let Some(connection) = connection else { return Ok(Self::Calls(Stream::new(end))) };
        let host =
            connection.as_fd().try_clone_to_owned().map_err(Error::system("duplicate a connection"))?;
        drop(connection);
        let host = stream::watch(host, Interest::READABLE)?;
        Ok(Self::pumped(|closed| splice::input(host, end, closed)))
    }

    fn terminal(fd: OwnedFd, connection: Option<Box<dyn Connection>>) -> Result<Self, Error> {
        let end = stream::watch(fd, Interest::WRITABLE)?;
        let Some(connection) = connection else { return Ok(Self::Calls(Stream::new(end))) };
        Ok(Self::pumped(|closed| pump::input(connection, Pumped(end), closed)))
    }

    fn pumped<P: Future<Output = ()> + Send + 'static>(
        pump: impl FnOnce(oneshot::Receiver<()>) -> P,
    ) -> Self {
        let (open, closed) = oneshot::channel();
        tokio::spawn(pump(closed));
        Self::Pump(Mutex::new(Some(open)))
    }
}

impl Output {
    fn new(end: End, connection: Option<Box<dyn Connection>>) -> Self {
        match connection {
            Some(connection) => Self::Pump(tokio::spawn(pump::output(Pumped(end), connection))),
            None => Self::Calls(Stream::new(end)),
        }
    }

    async fn read(&self, max: usize) -> Result<Vec<u8>, Error> {
        match self {
            Self::Calls(stream) => stream.read(max).await,
            Self::Pump(_) => Err(by_connection("output")),
        }
    }

    fn drained(&self) -> bool {
        match self {
            Self::Calls(stream) => stream.is_closed(),
            Self::Pump(pump) => pump.is_finished(),
        }
    }
}

fn by_connection(stream: &str) -> Error {
    Error::state(format!("the {stream} of this process goes by a connection of its own, not by calls"))
}

impl Stdio {
    /// Writes what fits once something fits; waits for that as long as it takes.
    ///
    /// # Errors
    ///
    /// [`Error::State`] if the stream is closed, on this side or by all its readers.
    pub(crate) async fn write_stdin(&self, data: &[u8]) -> Result<usize, Error> {
        match &self.stdin {
            Input::Calls(stream) => stream.write(data).await,
            Input::Pump(_) => Err(by_connection("input")),
        }
    }

    /// Up to `max` bytes as soon as there are some; none at the end of the stream.
    pub(crate) async fn read_stdout(&self, max: usize) -> Result<Vec<u8>, Error> {
        self.stdout.read(max).await
    }

    /// As [`Self::read_stdout`]; of a terminal, nothing at once.
    pub(crate) async fn read_stderr(&self, max: usize) -> Result<Vec<u8>, Error> {
        match &self.stderr {
            Some(output) => output.read(max).await,
            None => Ok(Vec::new()),
        }
    }

    /// Ends the input. A terminal has no end of input of its own; its user types one.
    pub(crate) fn close_stdin(&self) {
        match &self.stdin {
            Input::Calls(stream) => stream.close(),
            Input::Pump(open) => drop(open.lock().unwrap_or_else(PoisonError::into_inner).take()),
        }
    }

    /// Sets the size of the terminal.
    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        let terminal = self.terminal.as_ref().ok_or_else(|| Error::state("the process has no terminal"))?;
        let master = terminal.upgrade().ok_or_else(|| Error::state("the terminal is closed"))?;
        console::resize(master.get_ref(), rows, columns)
    }

    /// Whether everything the process has written has been taken.
    pub(crate) fn drained(&self) -> bool {
        self.stdout.drained() && self.stderr.as_ref().is_none_or(Output::drained)
    }
}

fn pipe(owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd), Error> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(Error::system("make a pipe"))?;
    fchown(reader.as_fd(), Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))
        .map_err(Error::system("give a pipe to its user"))?;
    Ok((reader, writer))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, time::Duration};

    use nix::{pty::openpty, sys::termios, unistd::read};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream as Socket,
        time::timeout,
    };

    use super::*;

    fn me() -> (u32, u32) {
        (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw())
    }

    fn pipes() -> (Pipes, Stdio) {
        pipes_with(Connections::default())
    }

    fn pipes_with(connections: Connections) -> (Pipes, Stdio) {
        let (child, prepared) = prepare::<OwnedFd>(me(), connections).unwrap();
        let ChildStdio::Pipes(child) = child else { panic!("asked for pipes") };
        (child, prepared.complete(me()).unwrap())
    }

    fn connection() -> (Socket, Option<Box<dyn Connection>>) {
        let (host, guest) = Socket::pair().unwrap();
        (host, Some(Box::new(guest)))
    }

    async fn all(mut host: Socket) -> Vec<u8> {
        let mut got = Vec::new();
        timeout(Duration::from_secs(10), host.read_to_end(&mut got)).await.unwrap().unwrap();
        got
    }

    #[tokio::test]
    async fn output_arrives_apart_and_ends_when_its_writers_do() {
        let (child, stdio) = pipes();
        let Pipes { stdin, stdout, stderr } = child;
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
        let stdin = &child.stdin;
        let much = vec![7; 4 * 1024 * 1024];
        let len = stdio.write_stdin(&much).await.unwrap();
        assert!(len > 0 && len < much.len());
        assert!(timeout(Duration::from_millis(50), stdio.write_stdin(&much)).await.is_err());
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

    #[tokio::test]
    async fn connections_carry_output_apart_and_end_with_it() {
        let ((out, stdout), (err, stderr)) = (connection(), connection());
        let (child, stdio) = pipes_with(Connections { stdin: None, stdout, stderr });
        let Pipes { stdin, stdout, stderr } = child;
        let much: Vec<u8> = (0..2_000_000).map(|at: u32| at as u8).collect();
        let wanted = much.clone();
        let writer = std::thread::spawn(move || File::from(stdout).write_all(&much).unwrap());
        File::from(stderr).write_all(b"err").unwrap();
        assert!(!stdio.drained());
        assert!(matches!(stdio.read_stdout(1).await, Err(Error::State(_))));
        assert_eq!(all(err).await, b"err");
        assert!(all(out).await == wanted);
        writer.join().unwrap();
        tokio::task::yield_now().await;
        assert!(stdio.drained());
        // The stream without a connection goes by calls.
        assert_eq!(stdio.write_stdin(b"in").await.unwrap(), 2);
        assert_eq!(read(&stdin, &mut [0; 9]).unwrap(), 2);
    }

    #[tokio::test]
    async fn a_connection_carries_input_until_either_side_ends_it() {
        for by_call in [false, true] {
            let (mut host, stdin) = connection();
            let (child, stdio) = pipes_with(Connections { stdin, ..Connections::default() });
            let stdin = &child.stdin;
            host.write_all(b"in").await.unwrap();
            assert!(matches!(stdio.write_stdin(b"x").await, Err(Error::State(_))));
            if by_call {
                stdio.close_stdin();
            } else {
                host.shutdown().await.unwrap();
            }
            // The agent's end is closed, too.
            assert!(all(host).await.is_empty());
            let mut got = [0; 9];
            assert_eq!(read(stdin, &mut got).unwrap(), 2);
            assert_eq!(read(stdin, &mut got).unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn a_process_that_is_not_made_hangs_up() {
        let (host, stdout) = connection();
        drop(prepare::<OwnedFd>(me(), Connections { stdout, ..Connections::default() }).unwrap());
        assert!(all(host).await.is_empty());
    }

    #[tokio::test]
    async fn a_terminal_goes_by_connections_until_nobody_has_it_open() {
        let pty = openpty(None, None).unwrap();
        let mut raw = termios::tcgetattr(&pty.slave).unwrap();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&pty.slave, termios::SetArg::TCSANOW, &raw).unwrap();
        let ((mut input, stdin), (out, stdout), (err, stderr)) = (connection(), connection(), connection());
        let stdio = terminal(pty.master, Connections { stdin, stdout, stderr }).unwrap();
        assert!(all(err).await.is_empty());
        stdio.resize(24, 80).unwrap();
        input.write_all(b"in").await.unwrap();
        let slave = File::from(pty.slave);
        let mut device = slave.try_clone().unwrap();
        let typed = tokio::task::spawn_blocking(move || {
            let mut got = [0; 9];
            let len = read(&device, &mut got).unwrap();
            device.write_all(&vec![7; 100_000]).unwrap();
            got[..len].to_vec()
        });
        let screen = tokio::spawn(all(out));
        assert_eq!(typed.await.unwrap(), b"in");
        assert!(!stdio.drained());
        drop(slave);
        assert_eq!(screen.await.unwrap().len(), 100_000);
        tokio::task::yield_now().await;
        assert!(stdio.drained());
        assert!(stdio.resize(24, 80).is_err());
    }
}
