//! containerd's `binary://` logging: a program that reads a container's output from descriptors 3 and 4 and says on
//! 5 that it is ready (containerd's runtime v2 documentation, "Logging").

use std::{
    fs,
    io::{Error as IoError, ErrorKind},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{fcntl::OFlag, sys::signal::Signal, unistd::pipe2};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::{Receiver, Sender},
    process::{Child, Command},
    time::timeout,
};

use crate::error::{Error, Result};

/// A logger that has not said it is ready by then is taken for broken.
const READY: Duration = Duration::from_secs(10);
/// How long a logger may go on writing after its input ended: as long as containerd's own shim gives it.
const FINISH: Duration = Duration::from_secs(12);

/// A running logger process. Dropping it kills it; [`Logger::finish`] lets it write what it has read.
pub(crate) struct Logger(Child);

impl Logger {
    /// Starts the program of a `binary://` URI (scheme taken off) and waits until it is ready. Returns it with the
    /// pipes that lead to its stdout and stderr inputs.
    ///
    /// # Errors
    /// Names the program when it is not one root alone can have put there, or did not get ready.
    pub(crate) async fn start(uri: &str, id: &str, namespace: &str) -> Result<(Logger, Sender, Sender)> {
        let (program, args) = split(uri);
        check(&program)?;
        let what = || format!("logger {}", program.display());
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(Error::os(what()));
        let (out_read, out_write) = pipe()?;
        let (err_read, err_write) = pipe()?;
        let (ready_read, ready_write) = pipe()?;
        let mut command = Command::new(&program);
        command.args(args).env_clear().envs([("CONTAINER_ID", id), ("CONTAINER_NAMESPACE", namespace)]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        pass(&mut command, [out_read.as_raw_fd(), err_read.as_raw_fd(), ready_write.as_raw_fd()]);
        let child = command.spawn().map_err(Error::io(what()))?;
        drop((out_read, err_read, ready_write));
        wait_ready(ready_read).await.map_err(Error::io(what()))?;
        let sender = |fd| Sender::from_owned_fd(fd).map_err(Error::io(what()));
        Ok((Logger(child), sender(out_write)?, sender(err_write)?))
    }

    /// Lets the logger end by itself after its input did; asks, then forces it when it does not.
    pub(crate) async fn finish(mut self) {
        if timeout(FINISH, self.0.wait()).await.is_ok() {
            return;
        }
        if let Some(pid) = self.0.id() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        }
        if timeout(Duration::from_secs(1), self.0.wait()).await.is_err() {
            let _ = self.0.kill().await;
        }
    }
}

/// Puts `fds` at 3, 4 and 5 of the child.
fn pass(command: &mut Command, fds: [RawFd; 3]) {
    // SAFETY: fcntl, dup2 and close are async-signal-safe, and only integers are captured.
    unsafe {
        command.pre_exec(move || {
            // Moved out of the way first: a source may sit at another's target. The copies close on exec.
            let mut high = [0; 3];
            for (copy, fd) in high.iter_mut().zip(fds) {
                *copy = nix::libc::fcntl(fd, nix::libc::F_DUPFD_CLOEXEC, 16);
                if *copy < 0 {
                    return Err(IoError::last_os_error());
                }
            }
            for (target, copy) in (3..).zip(high) {
                if nix::libc::dup2(copy, target) < 0 {
                    return Err(IoError::last_os_error());
                }
            }
            Ok(())
        });
    }
}

async fn wait_ready(ready: OwnedFd) -> std::io::Result<()> {
    let mut ready = Receiver::from_owned_fd(ready)?;
    // A byte or the end of the pipe: containerd takes both as ready.
    match timeout(READY, ready.read(&mut [0; 1])).await {
        Ok(read) => read.map(drop),
        Err(_) => {
            Err(IoError::new(ErrorKind::TimedOut, format!("did not get ready within {} s", READY.as_secs())))
        }
    }
}

/// Program and arguments of a URI: every query key is an argument, followed by its value where it has one.
fn split(uri: &str) -> (PathBuf, Vec<String>) {
    let (program, query) = uri.split_once('?').unwrap_or((uri, ""));
    let pairs = form_urlencoded::parse(query.as_bytes());
    let args = pairs.flat_map(|(key, value)| [key, value]).filter(|word| !word.is_empty()).map(String::from);
    (PathBuf::from(&*percent_encoding::percent_decode_str(program).decode_utf8_lossy()), args.collect())
}

/// A logger runs as root on the host while an image's label may have chosen it, so it must be a program that only
/// root can have put there.
fn check(program: &Path) -> Result<()> {
    let refuse =
        |why: &str| Err(Error::InvalidArgument(format!("logger binary://{}: {why}", program.display())));
    if !program.is_absolute() {
        return refuse("the path must be absolute");
    }
    match fs::metadata(program) {
        Err(error) => refuse(&error.to_string()),
        Ok(file) if !file.is_file() || file.mode() & 0o111 == 0 => refuse("is not an executable file"),
        Ok(file) if file.uid() != 0 => refuse("must belong to root"),
        Ok(file) if file.mode() & 0o022 != 0 => refuse("must not be writable by group or others"),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::AsyncWriteExt;

    use super::*;

    fn script(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("logger");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_logger_reads_both_streams_and_knows_whose_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let body = "exec 5>&-; { echo $CONTAINER_ID $CONTAINER_NAMESPACE $1; cat <&3; cat <&4; } > $2";
        let uri = format!("{}?tag&{}", script(dir.path(), body).display(), log.display());
        let (logger, mut out, mut err) = Logger::start(&uri, "c1", "ns1").await.unwrap();
        out.write_all(b"out\n").await.unwrap();
        err.write_all(b"err\n").await.unwrap();
        drop((out, err));
        logger.finish().await;
        assert_eq!(fs::read_to_string(log).unwrap(), "c1 ns1 tag\nout\nerr\n");
    }

    #[tokio::test]
    async fn only_a_program_of_roots_is_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = script(dir.path(), "true");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        for (uri, why) in [
            ("logger", "absolute"),
            ("/nonexistent/logger", "No such file"),
            ("/etc/passwd", "executable"),
            (path.to_str().unwrap(), "writable"),
        ] {
            let error = Logger::start(uri, "c", "n").await.err().expect(uri).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn arguments_come_from_the_query() {
        let (program, args) = split("/usr/bin/log%20ger?-f=/var/a+b&-v");
        assert_eq!(program, Path::new("/usr/bin/log ger"));
        assert_eq!(args, ["-f", "/var/a b", "-v"]);
    }
}
