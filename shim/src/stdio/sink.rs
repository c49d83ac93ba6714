//! Where output goes: a FIFO (the default), a file (`file://`) or a logger process (`binary://`).

use std::path::{Path, PathBuf};

use tokio::{
    fs::File,
    io::AsyncWriteExt,
    net::unix::pipe::{self, Sender},
};

use super::{Paths, logger::Logger};
use crate::error::{Error, Result};

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
    pub(crate) async fn write_all(&mut self, data: &[u8]) -> std::io::Result<()> {
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
    let stdout = open_one(&paths.stdout).await?;
    let stderr = if paths.terminal { None } else { open_one(&paths.stderr).await? };
    Ok(Sinks { stdout, stderr, logger: None })
}

async fn open_one(target: &str) -> Result<Option<Sink>> {
    match target.split_once("://") {
        _ if target.is_empty() => Ok(None),
        None => open_fifo(Path::new(target)).map(Some),
        Some(("fifo", path)) => open_fifo(Path::new(path)).map(Some),
        Some(("file", path)) => open_file(path).await.map(Some),
        Some((scheme, _)) => Err(Error::InvalidArgument(format!(
            "stdio {target}: {scheme}:// is not a scheme for output; fifo, file and binary are"
        ))),
    }
}

/// Opened for reading as well, as containerd's own shims do: output survives a client that goes and one that comes
/// later finds it.
fn open_fifo(path: &Path) -> Result<Sink> {
    pipe::OpenOptions::new()
        .read_write(true)
        .open_sender(path)
        .map(Sink::Pipe)
        .map_err(Error::io(format_args!("stdio FIFO {}", path.display())))
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

    #[tokio::test]
    async fn a_terminal_has_no_stderr_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| format!("file://{}", dir.path().join(name).display());
        let terminal = Paths { stdin: String::new(), stdout: file("o"), stderr: file("e"), terminal: true };
        assert!(open(&terminal, "c", "ns").await.unwrap().stderr.is_none());
    }
}
