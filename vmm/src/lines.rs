//! Text from a process or a guest, on its way into the log: bounded lines, a bounded rate, nothing a terminal obeys.

use std::fmt::Write;
use std::time::{Duration, Instant};

/// The longest line that is kept; what is beyond it is left out and counted.
pub(crate) const LONGEST: usize = 8 << 10;
/// Bytes of one source that go into the log in a second; what is beyond them is left out and counted.
const PER_SECOND: usize = 256 << 10;

/// Cuts a stream of bytes into escaped lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    open: Vec<u8>,
    left_out: usize,
}

impl Lines {
    /// Takes the next bytes and hands on every line they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = LONGEST - self.open.len();
            self.open.extend_from_slice(&text[..text.len().min(room)]);
            self.left_out += text.len().saturating_sub(room);
            if ended {
                self.finish(&mut line);
            }
        }
    }

    /// Hands on what there is of a last line without an end.
    pub(crate) fn finish(&mut self, mut line: impl FnMut(String)) {
        let mut text = escape(self.open.strip_suffix(b"\r").unwrap_or(&self.open));
        if self.left_out > 0 {
            let _ = write!(text, " [{} bytes more]", self.left_out);
        }
        self.open.clear();
        self.left_out = 0;
        if !text.trim().is_empty() {
            line(text);
        }
    }
}

/// `bytes` as text in which every control character but the tab, and everything that is not UTF-8, is spelt out.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() && c != '\t' { text.extend(c.escape_default()) } else { text.push(c) }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Lets through what fits a second's budget and counts what does not.
#[derive(Debug)]
pub(crate) struct Budget {
    second: Instant,
    spent: usize,
    dropped: u64,
}

/// What a [`Budget`] says about a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Log it; so many lines before it were not.
    Log {
        /// Lines dropped since the last one that was logged.
        dropped: u64,
    },
    /// Do not.
    Drop,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Budget {
        Budget { second: now, spent: 0, dropped: 0 }
    }

    /// Accounts for a line of `bytes` bytes at `now`.
    pub(crate) fn spend(&mut self, bytes: usize, now: Instant) -> Verdict {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.spent = 0;
        }
        if self.spent + bytes > PER_SECOND {
            self.dropped += 1;
            return Verdict::Drop;
        }
        self.spent += bytes;
        Verdict::Log { dropped: std::mem::take(&mut self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut cutter = Lines::default();
        let mut found = Vec::new();
        for piece in pieces {
            cutter.feed(piece, |line| found.push(line));
        }
        cutter.finish(|line| found.push(line));
        found
    }

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        assert_eq!(lines(&[b"on", b"e\r\ntw", b"o\n\nthree"]), ["one", "two", "three"]);
    }

    #[test]
    fn a_line_without_end_takes_no_more_than_its_share() {
        let mut cutter = Lines::default();
        for _ in 0..1000 {
            cutter.feed(&[b'x'; 4096], |_| panic!("no line has ended"));
        }
        assert!(cutter.open.capacity() <= 2 * LONGEST);
        let mut found = String::new();
        cutter.feed(b"\n", |line| found = line);
        assert!(found.ends_with("xx [4087808 bytes more]"), "{}", &found[LONGEST..]);
    }

    #[test]
    fn control_characters_and_broken_text_are_spelt_out() {
        assert_eq!(escape(b"a\x1b[31m\tb\xff\x00\xc2\x9b"), "a\\u{1b}[31m\tb\\xff\\u{0}\\u{9b}");
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..PER_SECOND / 1024 {
            assert_eq!(budget.spend(1024, start), Verdict::Log { dropped: 0 });
        }
        assert_eq!(budget.spend(1024, start), Verdict::Drop);
        assert_eq!(budget.spend(1024, start), Verdict::Drop);
        assert_eq!(budget.spend(1024, start + Duration::from_secs(1)), Verdict::Log { dropped: 2 });
    }
}
