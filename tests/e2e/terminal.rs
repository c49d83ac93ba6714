//! Terminals.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tests::bundle::{process, spec};
use tests::case::PATIENCE;
use tests::command::pid_of;
use tests::stdio::Fifos;
use tests::world::SHARED;
use tests::{Case, Context, Result, check_eq, fail};

use crate::listed;

listed! {
    all: [
        a_terminal_has_the_size_asked_for_and_follows_a_resize,
        an_exec_with_a_terminal_follows_a_resize,
        an_exec_with_a_terminal_has_one_stream_and_a_controlling_terminal,
    ],
    ours: []
}

/// Prints its size, and again after each resize, until the one that is 120 wide.
const WATCH: &str = "trap 'stty size; case $(stty size) in *120) exit 3;; esac' WINCH; stty size; \
                     while :; do sleep 0.2; done";

nix::ioctl_write_ptr_bad!(
    /// Sets a terminal's size.
    set_size, libc::TIOCSWINSZ, Winsize
);

fn a_terminal_has_the_size_asked_for_and_follows_a_resize(case: &Case<'_>) -> Result<()> {
    let mut command = case.container("tty").flags(["--rm", "-t"]).command(["sh", "-c", WATCH])?;
    follows(&mut command)
}

fn an_exec_with_a_terminal_follows_a_resize(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let fifos = case.dir().display().to_string();
    let exec = ["task", "exec", "-t", "--exec-id", "tty", "--fifo-dir", &fifos];
    follows(&mut shared.ctr_command(exec.into_iter().chain([SHARED, "sh", "-c", WATCH])))
}

fn follows(command: &mut Command) -> Result<()> {
    let mut terminal = Terminal::start(command, size(31, 97))?;
    terminal.shows("31 97")?;
    terminal.resize(size(50, 120), "50 120")?;
    check_eq!(terminal.exit()?, Some(3), "status");
    Ok(())
}

fn an_exec_with_a_terminal_has_one_stream_and_a_controlling_terminal(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let task = shared.shim_of(SHARED)?;
    let script =
        "test -t 0 && test -t 1 && test -t 2 && echo out; echo err >&2; stty size; echo x > /dev/tty";
    let mut shell = process(&spec(case.world, &case.namespace, SHARED, &[]), &["sh", "-c", script]);
    shell["terminal"] = json!(true);
    shell["consoleSize"] = json!({ "height": 12, "width": 34 });
    let stdio = Fifos::new(&case.dir(), "one")?;
    task.exec("one", &shell, Some(&stdio))?;
    task.start("one")?;
    check_eq!(task.wait("one")?, 0, "status");
    check_eq!(stdio.output(PATIENCE)?, "out\r\nerr\r\n12 34\r\nx\r\n", "what the terminal showed");
    task.delete("one")?;
    Ok(())
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// A program with a terminal of ours.
struct Terminal {
    child: Child,
    master: File,
    shown: String,
    more: Receiver<Vec<u8>>,
}

impl Terminal {
    fn start(command: &mut Command, size: Winsize) -> Result<Terminal> {
        let pty = openpty(Some(&size), None)?;
        let slave = |fd: &OwnedFd| fd.try_clone();
        command.stdin(slave(&pty.slave)?).stdout(slave(&pty.slave)?).stderr(slave(&pty.slave)?);
        let child = command.spawn().context("ctr")?;
        // The command value keeps the slave open, and with it the master from ending.
        command.stdin(std::process::Stdio::null());
        let master = File::from(pty.master);
        let (sender, more) = channel();
        let mut reader = master.try_clone()?;
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Terminal { child, master, shown: String::new(), more })
    }

    /// Waits until `text` has been shown.
    fn shows(&mut self, text: &str) -> Result<()> {
        if !self.shows_within(text, PATIENCE) {
            fail!("the terminal never showed {text:?}, but {:?}", self.shown);
        }
        Ok(())
    }

    fn shows_within(&mut self, text: &str, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while !self.shown.contains(text) {
            match self.more.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => return false,
            }
        }
        true
    }

    /// Waits until the new size has been shown, as `text`.
    fn resize(&mut self, size: Winsize, text: &str) -> Result<()> {
        self.master.flush()?;
        // SAFETY: the descriptor is open for as long as `self`, and the structure is the one this request reads.
        unsafe { set_size(self.master.as_raw_fd(), &raw const size) }?;
        let until = Instant::now() + PATIENCE;
        loop {
            // The terminal is not ctr's controlling one, so the kernel does not send it. ctr may not listen yet: it
            // begins to after it has passed on the first size.
            kill(pid_of(&self.child), Signal::SIGWINCH)?;
            if self.shows_within(text, Duration::from_secs(1)) {
                return Ok(());
            }
            if Instant::now() > until {
                fail!("the terminal never showed {text:?}, but {:?}", self.shown);
            }
        }
    }

    fn exit(&mut self) -> Result<Option<i32>> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            if Instant::now() > until {
                fail!("ctr did not end; the terminal showed {:?}", self.shown);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
