//! Log lines on the console: `level target: message`, one write each.
//!
//! The console is the only way out before the host has connected, and the host captures it.

use std::{fs, io::Write};

use log::{LevelFilter, Log, Metadata, Record};

struct Console;

static CONSOLE: Console = Console;

/// Logs at `info` until [`set_level_from_command_line`] knows better.
pub(crate) fn start() {
    if log::set_logger(&CONSOLE).is_ok() {
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

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("agent: {} {}: {}\n", record.level().as_str(), record.target(), record.args());
            // Nobody is left to be told if the console is gone.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
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
