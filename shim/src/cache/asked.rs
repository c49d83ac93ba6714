//! Asking a keeper, without a runtime: for a shim, or how it stands.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixListener, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use containerd_shim::StartOpts;
use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt},
    time::TimeVal,
};
use oci_spec::runtime::Spec;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use slog::{Discard, Logger, info, o};

use super::{
    keeper::{STATUS, TAKE},
    order::Order,
};
use crate::{
    container::bundle,
    error::Error,
    logging::{self, Verbosity},
    sandbox::{host_cgroup, options, run_dir},
};

/// How long a keeper or a shim that waits may take for an answer. A sandbox can always boot a machine of its own.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a waiting shim and whoever asks it must have in common.
const NAMESPACES: [&str; 4] = ["mnt", "net", "pid", "user"];

/// Has a waiting shim be the one that `opts` asks for, if the sandbox's configuration says that there may be some.
/// Returns its process. Otherwise `listener` is nobody's.
pub(crate) fn take(opts: &StartOpts, bundle: &Path, listener: &UnixListener) -> Option<u32> {
    let any = opts.extensions.iter().find(|any| options::is_runtimes(any));
    // Without a keeper on this host there is nothing to find out, and a shim that waits has another environment.
    let by_environment =
        env::var_os(configuration::FILE_VARIABLE).is_some() && !any.is_some_and(options::name_a_file);
    if !run_dir::ready().exists() || by_environment {
        return None;
    }
    let spec = bundle::read(bundle, &opts.id).map_or_else(|_| Spec::default(), |(spec, _)| spec);
    // What is wrong with it, the shim says.
    let configuration = options::configuration(any, &spec, &Logger::root(Discard, o!())).ok()?;
    let order = Order {
        namespace: opts.namespace.clone(),
        id: opts.id.clone(),
        debug: opts.debug,
        address: opts.address.clone(),
        events: opts.ttrpc_address.clone(),
        bundle: bundle.to_owned(),
        cgroups: host_cgroup::own().ok()?,
    };
    let taken = ask(&configuration.factory.cache?.endpoint, &order, listener);
    taken.inspect_err(|why| told(opts, bundle, why)).ok()
}

/// The one who asks is no shim, but its log is the same.
fn told(opts: &StartOpts, bundle: &Path, why: &std::io::Error) {
    if let Ok(log) = logging::open(bundle, Verbosity::new(opts.debug), &opts.id) {
        info!(log, "no shim that waits: a new one is started"; "why" => why.to_string());
    }
}

/// What the keeper says of itself.
///
/// # Errors
/// Nobody keeps machines there.
pub(crate) fn status(endpoint: &Path) -> crate::error::Result<String> {
    let failed = |error| {
        Error::FailedPrecondition(format!("no machines are kept ready at {}: {error}", endpoint.display()))
    };
    let mut stream = reach(endpoint).map_err(failed)?;
    let mut text = String::new();
    stream.write_all(&[STATUS]).and_then(|()| stream.read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}

fn ask(endpoint: &Path, order: &Order, listener: &UnixListener) -> std::io::Result<u32> {
    let stream = reach(endpoint)?;
    if !is_at_home(&stream)? {
        return Err(std::io::Error::other("a keeper in other namespaces"));
    }
    (&stream).write_all(&[TAKE])?;
    let mut answers = BufReader::new(&stream);
    let mut line = || {
        let mut line = String::new();
        answers.read_line(&mut line).map(|_| line.trim().to_owned())
    };
    let nobody = || std::io::Error::other("none is ready");
    let pid: u32 = line()?.parse().map_err(|_| nobody())?;
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(nobody)?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let taken = order.send(&stream, listener).and_then(|()| line());
    if taken.as_ref().is_ok_and(|line| *line == pid.to_string()) {
        return Ok(pid);
    }
    // It may have got the order nevertheless, and there must not be two.
    let _ = pidfd_send_signal(&process, Signal::KILL);
    taken.and(Err(nobody()))
}

/// Connects to a process of the same user.
fn reach(endpoint: &Path) -> std::io::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    // As long as nobody takes connections, making one waits, too.
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(endpoint)?)?;
    let stream = UnixStream::from(fd);
    let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return Err(std::io::Error::other(format!("somebody else listens there, of user {}", peer.uid())));
    }
    Ok(stream)
}

/// Whether the other side sees the same files, networks and processes.
fn is_at_home(stream: &UnixStream) -> std::io::Result<bool> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?.pid();
    for namespace in NAMESPACES {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}"));
        if of("self")? != of(&peer.to_string())? {
            return Ok(false);
        }
    }
    Ok(true)
}
