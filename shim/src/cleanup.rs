//! The `delete` action: clear up what a shim that died has left of its sandbox.
//!
//! Most of it the kernel has done by then: the shim's mounts went with its mount namespace, and QEMU and its helpers
//! are told to die with their parent. What is left to find are processes that did not, which the run directory lists,
//! and files.

use std::{
    fs,
    io::{Error as IoError, ErrorKind},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use containerd_shim::Flags;
use containerd_shim_protos::{
    api::{ConnectRequest, DeleteResponse},
    protobuf::{Message, MessageField},
    shim_async::{Client, TaskClient},
    ttrpc::{self, r#async::transport::Socket, context},
};
use nix::mount::{MntFlags, umount2};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{
    bootstrap::PID_FILE,
    cache, cli,
    container::{bundle, direct},
    error::{Error, Result},
    hooks, management, network, pidfd,
    process::{Exit, LOST},
    sandbox::{host_cgroup, run_dir},
};

/// How long a shim may take to end by itself, and how long a live one to answer. containerd gives both together, and
/// all the rest, 5 seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a killed shim's descriptors may outlive what it is known by.
const DYING: Duration = Duration::from_millis(500);
/// How long a process may take to be gone after SIGKILL.
const DEATH: Duration = Duration::from_secs(2);

/// Clears up after the container `flags` name and prints containerd's `DeleteResponse`.
///
/// # Errors
/// Only when the answer cannot be given: what could not be cleared up is told on standard error, and everything else
/// was cleared up all the same.
pub(crate) fn delete(flags: &Flags) -> Result<()> {
    let bundle = if flags.bundle.is_empty() { PathBuf::from(".") } else { PathBuf::from(&flags.bundle) };
    // A bundle that is gone, or was never right, says nothing of a pod: the sandbox's name is the container's then.
    let read = bundle::read(&bundle, &flags.id);
    let owns_sandbox = read.as_ref().map_or(true, |(_, sandbox, _)| sandbox.is_own);
    if owns_sandbox && !shim_lives(&bundle, &flags.id) {
        clear(&run_dir::path_of(&flags.namespace, &flags.id), &bundle);
        let left = read.map_or(Ok(()), |(spec, ..)| hooks::run_left(&spec, &flags.id, &bundle));
        left.unwrap_or_else(|error| cli::complain(&error));
    }
    // Older shims mounted here; ours never do.
    let _ = umount2(&bundle.join("rootfs"), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    let response = DeleteResponse {
        exit_status: LOST,
        exited_at: MessageField::some(Exit { status: LOST, at: SystemTime::now() }.timestamp()),
        ..Default::default()
    };
    let answer =
        response.write_to_bytes().map_err(|error| Error::Failed(format!("delete response: {error}")))?;
    cli::print(&answer)
}

fn clear(run_dir: &Path, bundle: &Path) {
    // containerd may remove the bundle meanwhile.
    let socket = shim_socket(bundle);
    if let Err(error) = vmm::sweep(run_dir) {
        cli::complain(&Error::Failed(format!("processes of {}: {error}", run_dir.display())));
    }
    if let Err(error) = host_cgroup::sweep(run_dir) {
        cli::complain(&Error::Failed(error.to_string()));
    }
    if let Some(shim) = shim_pid(bundle) {
        cache::sweep_waiting(shim);
    }
    management::sweep(run_dir);
    direct::sweep(run_dir);
    // Last, as it may take longest: containerd may not wait for it.
    if let Err(error) = network::sweep(run_dir) {
        cli::complain(&error);
    }
    if let Err(error) = run_dir::remove(run_dir) {
        cli::complain(&Error::Failed(format!("{}: {error}", run_dir.display())));
    }
    if let Some(socket) = socket {
        remove_unheard(&socket);
    }
}

/// Removes the socket unless somebody listens on it: another shim may have the name by now. The kernel takes a killed
/// shim's program from it before its descriptors, so that it may not be known as a shim and yet have the socket.
fn remove_unheard(socket: &Path) {
    let until = Instant::now() + DYING;
    while UnixStream::connect(socket).is_ok() {
        if Instant::now() > until {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = fs::remove_file(socket);
}

fn shim_socket(bundle: &Path) -> Option<PathBuf> {
    let address = fs::read_to_string(bundle.join("address")).ok()?;
    address.trim().strip_prefix("unix://").map(PathBuf::from)
}

/// Whether the shim of this bundle is alive and to be left alone. One that ends on its own within the time is not,
/// nor is one that does not answer: that one is killed.
fn shim_lives(bundle: &Path, id: &str) -> bool {
    let Some(shim) = running_shim(bundle, id) else { return false };
    if shim.gone_within(PATIENCE) {
        return false;
    }
    if shim_socket(bundle).is_some_and(|socket| answers(&socket, id)) {
        cli::complain(&Error::FailedPrecondition(format!(
            "the shim of {id} is alive (process {}): left alone",
            shim.pid
        )));
        return true;
    }
    if let Err(error) = shim.kill() {
        cli::complain(&Error::Failed(format!(
            "shim process {} does not answer and stays: {error}",
            shim.pid
        )));
    }
    false
}

fn shim_pid(bundle: &Path) -> Option<u32> {
    fs::read_to_string(bundle.join(PID_FILE)).ok()?.trim().parse().ok()
}

/// The process the bundle's pid file names, if it really is this container's shim: process ids are used again.
fn running_shim(bundle: &Path, id: &str) -> Option<Process> {
    let pid = i32::try_from(shim_pid(bundle)?).ok()?;
    let process = Process::open(pid)?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    let is_shim = words.first().is_some_and(|program| program.ends_with(b"containerd-shim-kata-v2"));
    let is_this = words.windows(2).any(|pair| pair[0] == b"-id" && pair[1] == id.as_bytes());
    (is_shim && is_this).then_some(process)
}

/// Any answer will do, a refusal too.
fn answers(socket: &Path, id: &str) -> bool {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return false;
    };
    let ask = async {
        let socket = Socket::connect(format!("unix://{}", socket.display())).await.ok()?;
        let client = TaskClient::new(Client::new(socket));
        let request = ConnectRequest { id: id.to_string(), ..Default::default() };
        match client.connect(context::with_timeout(PATIENCE.as_nanos() as i64), &request).await {
            Ok(_) | Err(ttrpc::Error::RpcStatus(_)) => Some(()),
            Err(_) => None,
        }
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await }).ok().flatten().is_some()
}

/// A process held by a descriptor: whatever happens to its number, this is it.
struct Process {
    pid: i32,
    fd: OwnedFd,
}

impl Process {
    fn open(pid: i32) -> Option<Process> {
        let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Process { pid, fd })
    }

    fn kill(&self) -> std::io::Result<()> {
        match pidfd_send_signal(&self.fd, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            other => other?,
        }
        if self.gone_within(DEATH) {
            return Ok(());
        }
        Err(IoError::new(
            ErrorKind::TimedOut,
            "still there after SIGKILL: it may hang in a dead device or file system",
        ))
    }

    fn gone_within(&self, limit: Duration) -> bool {
        pidfd::gone_within(&self.fd, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_removed_as_soon_as_nobody_listens_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let heard = std::os::unix::net::UnixListener::bind(&path).unwrap();
        remove_unheard(&path);
        assert!(path.exists(), "another shim's");
        let dies = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(heard);
        });
        remove_unheard(&path);
        assert!(!path.exists());
        dies.join().unwrap();
    }

    #[test]
    fn a_pid_file_that_names_somebody_else_is_not_believed() {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join(PID_FILE), std::process::id().to_string()).unwrap();
        assert!(running_shim(bundle.path(), "c1").is_none());
    }
}
