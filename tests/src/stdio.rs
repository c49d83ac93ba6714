//! The FIFOs that containerd would make for a process.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::{Context, Failure, Result};

/// Three FIFOs with readers on the outputs.
pub struct Fifos {
    /// The process reads this.
    pub stdin: PathBuf,
    /// The process writes this.
    pub stdout: PathBuf,
    /// The process writes this, unless it has a terminal.
    pub stderr: PathBuf,
    out: Receiver<Vec<u8>>,
    err: Receiver<Vec<u8>>,
}

impl Fifos {
    /// Makes them in `dir` as `<name>-stdin` and so on, and reads both outputs.
    pub fn new(dir: &Path, name: &str) -> Result<Fifos> {
        let mut fifos = Fifos::unread(dir, name)?;
        fifos.out = reader(fifos.stdout.clone());
        Ok(fifos)
    }

    /// Makes them and leaves the standard output to the caller, whose reader the shim waits for.
    pub fn unread(dir: &Path, name: &str) -> Result<Fifos> {
        let [stdin, stdout, stderr] =
            ["stdin", "stdout", "stderr"].map(|stream| dir.join(format!("{name}-{stream}")));
        for path in [&stdin, &stdout, &stderr] {
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).context(path.display())?;
        }
        let err = reader(stderr.clone());
        Ok(Fifos { stdin, stdout, stderr, out: channel().1, err })
    }

    /// The writing end of the input. To be opened after the shim did, or what is written is lost.
    pub fn input(&self) -> Result<File> {
        // Open for reading too: that never blocks. The end of file comes when the value is dropped.
        let file = OpenOptions::new().read(true).write(true).open(&self.stdin);
        file.context(self.stdin.display())
    }

    /// Writes `bytes` as the whole of the input.
    pub fn feed(&self, bytes: &[u8]) -> Result<()> {
        self.input()?.write_all(bytes).context(self.stdin.display())
    }

    /// What arrived on both outputs until they ended.
    pub fn collect(&self, deadline: Duration) -> Result<(String, String)> {
        Ok((self.output(deadline)?, arrived(&self.err, &self.stderr, deadline)?))
    }

    /// What arrived on the standard output until it ended: all there is of a terminal.
    pub fn output(&self, deadline: Duration) -> Result<String> {
        arrived(&self.out, &self.stdout, deadline)
    }
}

fn arrived(stream: &Receiver<Vec<u8>>, path: &Path, deadline: Duration) -> Result<String> {
    let bytes = stream.recv_timeout(deadline);
    let bytes =
        bytes.map_err(|_| Failure::new(format!("{} had no end within {deadline:?}", path.display())))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Drop for Fifos {
    fn drop(&mut self) {
        // A reader whose FIFO never got a writer would wait in open() for ever.
        for path in [&self.stdout, &self.stderr] {
            let _ = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
        }
    }
}

fn reader(path: PathBuf) -> Receiver<Vec<u8>> {
    let (sender, all) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Ok(mut fifo) = File::open(&path) {
            let _ = fifo.read_to_end(&mut bytes);
        }
        sender.send(bytes)
    });
    all
}
