//! Where output goes: a FIFO (the default), a file (`file://`) or a logger process (`binary://`).

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    fs::File,
    io::AsyncWriteExt,
    net::unix::pipe::{self, Sender},
    time::{sleep, timeout},
    try_join,
};

use super::{Paths, logger::Logger};
use crate::error::{Error, Result};

/// How long a FIFO's reader may be late.
const LATE: Duration = Duration::from_secs(5);
/// How often a late reader is looked for, of whose coming there is no event.
const LOOK: Duration = Duration::from_millis(5);

/// One open destination.
pub(crate) enum Sink {
    Pipe(Sender),
    File(File),
}

/// The open destinations of a process, and the logger process that reads them where one was asked for.
#[derive(Default)]
pub(crate) struct Sinks {
    pub(crate) stdout: Option<Sink>,
    pub(crate) stderr: Option<Sink>,
    pub(crate) logger: Option<Logger>,
}

impl Sink {
    /// Writes all of `data`, waiting while the reader is slow.
    ///
    /// # Errors
    /// When the destination takes no more: the reader is gone, or the disk is full.
    pub(crate) async fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Sink::Pipe(pipe) => pipe.write_all(data).await,
            Sink::File(file) => {
                file.write_all(data).await?;
                file.flush().await
            }
        }
    }
}

/// Opens what `paths` asks for, on behalf of container `id` in `namespace` (a logger process is told both).
///
/// # Errors
/// Names the path or URI and what is wrong with it.
pub(crate) async fn open(paths: &Paths, id: &str, namespace: &str) -> Result<Sinks> {
    if let Some(uri) = paths.stdout.strip_prefix("binary://") {
        let (logger, stdout, stderr) = Logger::start(uri, id, namespace).await?;
        let stderr = (!paths.terminal).then_some(Sink::Pipe(stderr));
        return Ok(Sinks { stdout: Some(Sink::Pipe(stdout)), stderr, logger: Some(logger) });
    }
    let stderr = if paths.terminal { "" } else { &paths.stderr };
    let (stdout, stderr) = try_join!(open_one(&paths.stdout), open_one(stderr))?;
    Ok(Sinks { stdout, stderr, logger: None })
}

async fn open_one(target: &str) -> Result<Option<Sink>> {
    match target.split_once("://") {
        _ if target.is_empty() => Ok(None),
        None => open_fifo(target).await.map(Some),
        Some(("fifo", path)) => open_fifo(path).await.map(Some),
        Some(("file", path)) => open_file(path).await.map(Some),
        Some((scheme, _)) => Err(Error::InvalidArgument(format!(
            "stdio {target}: {scheme}:// is not a scheme for output; fifo, file and binary are"
        ))),
    }
}

async fn open_fifo(path: &str) -> Result<Sink> {
    let opened = async {
        // Closed after the other is open, or its reader would see the end.
        let _met = met(Path::new(path)).await?;
        // For reading as well, as containerd's own shims do: output survives a client that goes, and one that comes
        // later finds it.
        pipe::OpenOptions::new().read_write(true).open_sender(path)
    };
    opened.await.map(Sink::Pipe).map_err(Error::io(format_args!("stdio FIFO {path}")))
}

/// Waits for the FIFO's reader. One that opens it after a short process has come and gone finds neither what that
/// wrote nor an end. containerd's own shims wait without a limit; a client that wants nothing must not cost the start.
async fn met(path: &Path) -> io::Result<Option<Sender>> {
    let met = async {
        loop {
            match pipe::OpenOptions::new().open_sender(path) {
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => sleep(LOOK).await,
                opened => return opened.map(Some),
            }
        }
    };
    timeout(LATE, met).await.unwrap_or(Ok(None))
}

async fn open_file(path: &str) -> Result<Sink> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(Error::InvalidArgument(format!(
            "stdio file://{}: the path must be absolute",
            path.display()
        )));
    }
    let opened = async {
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        File::options().create(true).append(true).mode(0o644).open(&path).await
    };
    opened.await.map(Sink::File).map_err(Error::io(format_args!("stdio file {}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, task::Poll};

    use super::*;

    fn paths(stdout: &str) -> Paths {
        Paths { stdout: stdout.into(), ..Paths::default() }
    }

    #[tokio::test]
    async fn output_to_a_file_is_appended_and_its_directory_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("logs/out.log");
        for line in [b"one\n", b"two\n"] {
            let mut sinks = open(&paths(&format!("file://{}", file.display())), "c", "ns").await.unwrap();
            sinks.stdout.as_mut().unwrap().write_all(line).await.unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), "one\ntwo\n");
    }

    #[tokio::test]
    async fn what_is_no_destination_is_refused_by_name() {
        for (target, named) in
            [("http://x", "http"), ("file://a", "absolute"), ("/nonexistent/fifo", "/nonexistent/fifo")]
        {
            let error = open(&paths(target), "c", "ns").await.err().expect(target).to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    fn fifo(dir: &Path) -> String {
        let path = dir.join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    #[tokio::test]
    async fn a_reader_that_is_late_finds_all_that_a_short_process_wrote_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let paths = paths(&path);
        let mut opening = pin!(open(&paths, "c", "ns"));
        assert!(poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx).is_pending())).await, "nobody reads yet");
        let reader = tokio::task::spawn_blocking(|| std::fs::read_to_string(path).unwrap());
        let mut sinks = opening.await.unwrap();
        sinks.stdout.as_mut().unwrap().write_all(b"short").await.unwrap();
        drop(sinks);
        assert_eq!(timeout(LATE, reader).await.expect("an end").unwrap(), "short");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_never_comes_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(&fifo(dir.path()));
        let opened = timeout(2 * LATE, open(&paths, "c", "ns")).await.expect("an end of the wait");
        opened.unwrap().stdout.unwrap().write_all(b"to be found later").await.unwrap();
    }

    #[tokio::test]
    async fn a_terminal_has_no_stderr_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| format!("file://{}", dir.path().join(name).display());
        let terminal = Paths { stdin: String::new(), stdout: file("o"), stderr: file("e"), terminal: true };
        assert!(open(&terminal, "c", "ns").await.unwrap().stderr.is_none());
    }
}
