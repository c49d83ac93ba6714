//! Runs a program with a deadline, its stdout and stderr kept apart.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Context, Failure, Result, fail};

/// How long a program's pipes may stay open after it exited. Longer means that something it started holds them.
const DRAIN: Duration = Duration::from_secs(5);

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Output {
    /// The exit status; 128 + n if signal n ended it.
    pub status: i32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// From the start to the exit.
    pub took: Duration,
}

impl Output {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails, showing what was said, unless the status is `wanted`.
    pub fn exits(self, wanted: i32) -> Result<Output> {
        if self.status != wanted {
            fail!(
                "exit status {} where {wanted} was wanted; stdout: {}; stderr: {}",
                self.status,
                tail(&self.out()),
                tail(&self.err())
            );
        }
        Ok(self)
    }
}

/// The last 2000 bytes of a text, which is what a failure shows.
pub fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(2000);
    let from = (from..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    &text[from..]
}

/// A program that runs, with a thread on each of its pipes.
pub struct Running {
    what: String,
    pid: Pid,
    started: Instant,
    exit: Receiver<std::io::Result<ExitStatus>>,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the exit and for the end of both pipes.
    ///
    /// A program still there at the deadline is killed, which is a failure.
    pub fn wait(mut self, deadline: Duration) -> Result<Output> {
        let status = match self.exit.recv_timeout(deadline.saturating_sub(self.started.elapsed())) {
            Ok(status) => status?,
            Err(RecvTimeoutError::Timeout) => {
                let _ = kill(self.pid, Signal::SIGKILL);
                let err = self.stderr.recv_timeout(DRAIN).unwrap_or_default();
                let err = String::from_utf8_lossy(&err);
                fail!("{} did not end within {deadline:?}; stderr: {}", self.what, tail(&err));
            }
            Err(RecvTimeoutError::Disconnected) => fail!("{}: nobody waits for it", self.what),
        };
        let took = self.started.elapsed();
        let stdout = self.drained(|own| &own.stdout)?;
        let stderr = self.drained(|own| &own.stderr)?;
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(Output { status, stdout, stderr, took })
    }

    /// Ends the program by SIGKILL and waits for that.
    pub fn stop(self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = self.exit.recv_timeout(DRAIN);
    }

    fn drained(&mut self, pipe: impl Fn(&Running) -> &Receiver<Vec<u8>>) -> Result<Vec<u8>> {
        pipe(self)
            .recv_timeout(DRAIN)
            .map_err(|_| Failure::new(format!("a pipe of {} is held open after its exit", self.what)))
    }
}

/// Starts `command` with `stdin` written to it, and then closed once it has said something.
///
/// `ctr` forgets the end of its input when that comes before the task exists.
pub fn start(command: &mut Command, stdin: Vec<u8>) -> Result<Running> {
    let what = format!("{command:?}");
    command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().context(&what)?;
    let (said, something) = channel();
    if let Some(mut pipe) = child.stdin.take() {
        thread::spawn(move || {
            // A program may end without having read everything, and that is its right.
            let _ = pipe.write_all(&stdin);
            let _ = something.recv();
        });
    }
    let stdout = read_all(child.stdout.take(), said);
    let stderr = read_all(child.stderr.take(), channel().0);
    Ok(Running { what, pid: pid_of(&child), started, exit: reap(child), stdout, stderr })
}

/// Runs `command` without input until it ends or `deadline` passes.
pub fn run(command: &mut Command, deadline: Duration) -> Result<Output> {
    start(command, Vec::new())?.wait(deadline)
}

/// The process id of a child in the type that signals take.
pub fn pid_of(child: &Child) -> Pid {
    // Linux has no process id above 2^22.
    Pid::from_raw(child.id().cast_signed())
}

fn reap(mut child: Child) -> Receiver<std::io::Result<ExitStatus>> {
    let (sender, exit) = channel();
    thread::spawn(move || sender.send(child.wait()));
    exit
}

/// Reads to the end; `said` hears of the first bytes, or ends with the pipe.
fn read_all(pipe: Option<impl Read + Send + 'static>, said: Sender<()>) -> Receiver<Vec<u8>> {
    let (sender, all) = channel();
    thread::spawn(move || {
        let mut bytes = vec![0; 4096];
        if let Some(mut pipe) = pipe {
            // What was read before an error still counts.
            let first = pipe.read(&mut bytes).unwrap_or(0);
            bytes.truncate(first);
            let _ = said.send(());
            let _ = pipe.read_to_end(&mut bytes);
        }
        sender.send(bytes)
    });
    all
}
