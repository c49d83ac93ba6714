//! The shim's log: lines in logfmt through the FIFO `log` in the bundle, which containerd copies to its own log.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::Write as _,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use slog::{Drain, KV, Level, Logger, OwnedKVList, Record, Serializer, o};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::error::{Error, Result};

/// A line longer than this is cut: what the kernel writes to a pipe in one piece.
const LONGEST_LINE: usize = nix::libc::PIPE_BUF;

/// How much a log has; shared by all who may want more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verbosity(Arc<AtomicBool>);

impl Verbosity {
    /// What is for debugging, from the start or not.
    pub(crate) fn new(debug: bool) -> Verbosity {
        Verbosity(Arc::new(debug.into()))
    }

    /// From now on the log has what is for debugging.
    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn level(&self) -> Level {
        if self.0.load(Ordering::Relaxed) { Level::Debug } else { Level::Info }
    }
}

/// Where the lines of a log go, and whose they are; shared by all who may change it.
#[derive(Debug, Clone)]
pub(crate) struct Outlet(Arc<RwLock<Open>>);

#[derive(Debug)]
struct Open {
    file: File,
    id: String,
}

impl Outlet {
    /// Lines go to standard error.
    ///
    /// # Errors
    /// When it is closed.
    pub(crate) fn standard_error(id: &str) -> Result<Outlet> {
        let file = std::io::stderr().as_fd().try_clone_to_owned().map_err(Error::io("standard error"))?;
        Ok(Outlet(Arc::new(RwLock::new(Open { file: file.into(), id: id.to_owned() }))))
    }

    /// From now on lines go to the log of the shim whose bundle that is.
    ///
    /// # Errors
    /// When the FIFO cannot be opened; they go where they went then.
    pub(crate) fn change(&self, bundle: &Path, id: &str) -> Result<()> {
        let file = fifo(bundle)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Open { file, id: id.to_owned() };
        Ok(())
    }
}

/// Opens the log of the shim whose bundle is the working directory. Also takes what libraries say through `log`.
///
/// # Errors
/// When the FIFO cannot be opened.
pub(crate) fn open(bundle: &Path, verbosity: Verbosity, id: &str) -> Result<Logger> {
    let open = Open { file: fifo(bundle)?, id: id.to_owned() };
    Ok(to(Outlet(Arc::new(RwLock::new(open))), verbosity))
}

/// A log whose lines go to `outlet`, as those of libraries do from now on.
pub(crate) fn to(outlet: Outlet, verbosity: Verbosity) -> Logger {
    let drain = Logfmt(outlet).filter(move |record| record.level().is_at_least(verbosity.level()));
    let logger = Logger::root(drain.ignore_res(), o!("runtime" => crate::cli::RUNTIME_NAME));
    capture_libraries(&logger);
    logger
}

fn fifo(bundle: &Path) -> Result<File> {
    let path = bundle.join("log");
    // Read-write, so that opening waits for nobody and a restarted containerd finds the pipe alive; non-blocking,
    // so that a containerd that is gone stops nothing here.
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(&path)
        .map_err(Error::io(format_args!("log {}", path.display())))
}

/// Warnings of libraries that use the `log` facade (ttrpc, containerd-shim) go to the same place.
fn capture_libraries(logger: &Logger) {
    struct Bridge(Logger);
    impl log::Log for Bridge {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Warn
        }
        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                slog::debug!(self.0, "{}", record.args(); "library" => record.target().to_string());
            }
        }
        fn flush(&self) {}
    }
    if log::set_boxed_logger(Box::new(Bridge(logger.clone()))).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

struct Logfmt(Outlet);

impl Drain for Logfmt {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> std::result::Result<(), slog::Never> {
        let mut line = Line(String::with_capacity(256));
        line.pair("time", &now());
        line.pair("level", level_name(record.level()));
        line.pair("msg", &record.msg().to_string());
        // A value that cannot be rendered leaves the rest of the line standing.
        let _ = record.kv().serialize(record, &mut line);
        let _ = values.serialize(record, &mut line);
        let outlet = self.0.0.read().unwrap_or_else(PoisonError::into_inner);
        line.pair("id", &outlet.id);
        let mut text = line.0;
        if text.len() >= LONGEST_LINE {
            text.truncate((0..LONGEST_LINE - 4).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0));
            text.push_str("...");
        }
        text.push('\n');
        // A full pipe means containerd does not read: the line is lost, the shim goes on.
        let _ = (&outlet.file).write_all(text.as_bytes());
        Ok(())
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Critical => "fatal",
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// One line of `key=value` pairs, values quoted where logfmt needs it.
struct Line(String);

impl Line {
    fn pair(&mut self, key: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        let plain = !value.is_empty()
            && value.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\'));
        // Quoting escapes control characters, so text from a guest cannot forge a line.
        let written = if plain { write!(self.0, "{key}={value}") } else { write!(self.0, "{key}={value:?}") };
        debug_assert!(written.is_ok(), "writing to a String never fails");
    }
}

impl Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        self.pair(key, &value.to_string());
        Ok(())
    }
}

/// RFC 3339 in UTC.
fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_value_with_line_breaks_stays_one_line() {
        let mut line = Line(String::new());
        line.pair("msg", "a\nlevel=error forged");
        line.pair("n", "1");
        assert_eq!(line.0, r#"msg="a\nlevel=error forged" n=1"#);
    }

    #[test]
    fn lines_reach_the_pipe_and_a_full_pipe_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let verbosity = Verbosity::default();
        let logger = open(dir.path(), verbosity.clone(), "c1").unwrap();
        slog::info!(logger, "hello"; "n" => 1);
        slog::debug!(logger, "unheard");
        verbosity.raise();
        slog::debug!(logger, "heard");
        let mut reader = OpenOptions::new().read(true).write(true).open(dir.path().join("log")).unwrap();
        let mut bytes = [0; 512];
        let count = std::io::Read::read(&mut reader, &mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..count]);
        assert!(
            text.contains("msg=hello n=1 runtime=io.containerd.kata.v2 id=c1") && text.ends_with('\n'),
            "{text}"
        );
        assert!(!text.contains("unheard") && text.contains("msg=heard"), "{text}");
        for _ in 0..2000 {
            slog::info!(logger, "{}", "x".repeat(100));
        }
    }

    #[test]
    fn a_log_may_come_to_be_another_shims() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("log"), "").unwrap();
        }
        let outlet = Outlet::standard_error("nobody").unwrap();
        let logger = to(outlet.clone(), Verbosity::default());
        for name in ["one", "two"] {
            outlet.change(&dir.path().join(name), name).unwrap();
            slog::info!(logger, "hello");
        }
        assert!(outlet.change(&dir.path().join("three"), "three").is_err());
        for name in ["one", "two"] {
            let text = fs::read_to_string(dir.path().join(name).join("log")).unwrap();
            assert!(text.ends_with(&format!(" id={name}\n")) && text.lines().count() == 1, "{text}");
        }
    }
}
