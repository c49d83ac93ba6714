//! Log lines in the kernel's log: `agent: level target: message`, one write each.
//!
//! The kernel's log is there from the first instruction and shows on every console, also on one whose driver the
//! agent has yet to load; what the host captures is that console.

use std::{
    fs::{self, File},
    io::{self, Write},
};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::worker;

/// Where the kernel takes lines for its log, each with a `<priority>` in front.
const KERNEL_LOG: &str = "/dev/kmsg";

/// Longest line, in bytes: the kernel refuses what does not fit one of its records.
const LONGEST: usize = 900;

struct Kernel;

static KERNEL: Kernel = Kernel;

/// Logs at `info` until [`set_level_from_command_line`] knows better.
pub(crate) fn start() {
    if log::set_logger(&KERNEL).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Takes the level from `agent.log=` on the kernel command line; needs `/proc`.
pub(crate) fn set_level_from_command_line() {
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some(level) = level(&command_line) {
        log::set_max_level(level);
    }
}

fn level(command_line: &str) -> Option<LevelFilter> {
    command_line.split_whitespace().rev().find_map(|word| word.strip_prefix("agent.log="))?.parse().ok()
}

impl Log for Kernel {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = format!("agent: {} {}: {}", record.level().as_str(), record.target(), record.args());
        let text = &text[..text.floor_char_boundary(LONGEST)];
        // Inside a container there is no such file, and standard error is the container's.
        if write(record.level(), text).is_err() && !worker::is_worker() {
            // Not in a virtual machine. Nobody is left to be told if this fails too.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    fn flush(&self) {}
}

/// Opened each time: a worker has closed what the agent had open, and the kernel drops lines of one that stays open
/// when there are many in a few seconds.
fn write(level: Level, text: &str) -> io::Result<()> {
    let line = format!("<{}>{text}", priority(level));
    File::options().write(true).open(KERNEL_LOG)?.write_all(line.as_bytes())
}

/// As syslog counts. With `quiet`, consoles show no more than errors (3), and a warning of the agent's should be seen.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error | Level::Warn => 3,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_level_on_the_command_line_wins() {
        assert_eq!(level("quiet agent.log=debug panic=1 agent.log=warn"), Some(LevelFilter::Warn));
        assert_eq!(level("console=ttyS0 agent.log=loud"), None);
        assert_eq!(level(""), None);
    }
}
