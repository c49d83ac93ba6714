//! The guest's console: read for as long as QEMU has it open, its end kept, its lines logged.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use slog::{Logger, debug, info, warn};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::lines::{Budget, Lines, Verdict, escape};

/// Bytes of the console that are kept.
const TAIL: usize = 16 << 10;

/// A console that is being read. Dropping it stops that.
#[derive(Debug)]
pub(crate) struct Console {
    tail: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
}

impl Console {
    /// Reads `stream` until QEMU closes it. A guest that writes faster than the log takes is not held back: what is
    /// too much is dropped. `loud` lines are for every log, others for one that has all.
    pub(crate) fn read(stream: UnixStream, loud: bool, log: Logger) -> Console {
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let reader = tokio::spawn(pump(
            stream,
            tail.clone(),
            Report { log, budget: Budget::new(Instant::now()), loud },
        ));
        Console { tail, reader }
    }

    /// The end of what the guest wrote, line ends kept, other control characters escaped.
    pub(crate) fn tail(&self) -> String {
        let bytes: Vec<u8> = lock(&self.tail).iter().copied().collect();
        let lines = bytes.split(|byte| *byte == b'\n');
        let text: Vec<String> = lines.map(|line| escape(line.strip_suffix(b"\r").unwrap_or(line))).collect();
        text.join("\n")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn lock(tail: &Mutex<VecDeque<u8>>) -> MutexGuard<'_, VecDeque<u8>> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pump(mut stream: UnixStream, tail: Arc<Mutex<VecDeque<u8>>>, mut report: Report) {
    let mut buffer = vec![0; 4096];
    let mut lines = Lines::default();
    // An end and a reset both mean that QEMU is gone.
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        remember(&mut lock(&tail), &buffer[..n]);
        lines.feed(&buffer[..n], |line| report.line(&line));
    }
    lines.finish(|line| report.line(&line));
}

fn remember(tail: &mut VecDeque<u8>, bytes: &[u8]) {
    let over = (tail.len() + bytes.len()).saturating_sub(TAIL);
    tail.drain(..over.min(tail.len()));
    tail.extend(bytes);
}

/// Where lines go.
struct Report {
    log: Logger,
    budget: Budget,
    loud: bool,
}

impl Report {
    fn line(&mut self, line: &str) {
        let Verdict::Log { dropped } = self.budget.spend(line.len(), Instant::now()) else { return };
        if dropped > 0 {
            warn!(self.log, "console lines left out, there were too many at once"; "lines" => dropped);
        }
        if self.loud {
            info!(self.log, "console"; "line" => line);
        } else {
            debug!(self.log, "console"; "line" => line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slog::{Drain, Level, Never, OwnedKVList, Record};
    use tokio::io::AsyncWriteExt;

    /// The levels of all lines.
    #[derive(Clone, Default)]
    struct Levels(Arc<Mutex<Vec<Level>>>);

    impl Drain for Levels {
        type Ok = ();
        type Err = Never;

        fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
            self.0.lock().unwrap().push(record.level());
            Ok(())
        }
    }

    #[tokio::test]
    async fn b19_lines_are_for_every_log_where_the_operator_wants_them() {
        for (loud, level) in [(true, Level::Info), (false, Level::Debug)] {
            let (mut guest, ours) = UnixStream::pair().unwrap();
            let levels = Levels::default();
            let mut console = Console::read(ours, loud, Logger::root(levels.clone().fuse(), slog::o!()));
            guest.write_all(b"one\ntwo").await.unwrap();
            drop(guest);
            (&mut console.reader).await.unwrap();
            assert_eq!(*levels.0.lock().unwrap(), [level; 2]);
        }
    }

    #[tokio::test]
    async fn the_end_is_kept_and_a_flood_takes_no_room() {
        let (mut guest, ours) = UnixStream::pair().unwrap();
        let mut console = Console::read(ours, true, Logger::root(slog::Discard, slog::o!()));
        let block = [b'x'; 1 << 16];
        for _ in 0..256 {
            guest.write_all(&block).await.unwrap();
        }
        guest.write_all(b"\r\nKernel panic\x1b[0m\r\nbye").await.unwrap();
        drop(guest);
        (&mut console.reader).await.unwrap();
        let tail = console.tail();
        assert!(tail.ends_with("xx\nKernel panic\\u{1b}[0m\nbye"), "{}", &tail[tail.len() - 40..]);
        assert!(lock(&console.tail).len() <= TAIL);
    }
}
