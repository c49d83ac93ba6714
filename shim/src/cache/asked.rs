//! Asking a keeper, without a runtime: for a shim, or how it stands.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
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
    propagation,
};
use crate::{
    container::bundle,
    error::Error,
    factory::Kept,
    logging::{self, Verbosity},
    sandbox::{boot, host_cgroup, options, run_dir},
};

/// How long a keeper or a shim that waits may take for an answer. A sandbox can always boot a machine of its own.
const PATIENCE: Duration = Duration::from_secs(2);
const MOUNTS: &str = "/proc/self/mountinfo";
/// Where others mount what sandboxes are to have.
const PLACES: [&str; 3] = ["/", "/run", "/var/lib"];
/// What a waiting shim and whoever asks it must have in common.
const NAMESPACES: [&str; 4] = ["mnt", "net", "pid", "user"];

/// A shim that waited, and now is the one that was asked for.
pub(crate) struct Taken {
    pub(crate) pid: u32,
    process: OwnedFd,
}

impl Taken {
    pub(crate) fn kill(&self) {
        // One that is not there any more is what is wanted.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

/// Has a waiting shim be the one that `opts` asks for, if the sandbox's configuration says that there may be some.
/// Without one `listener` is nobody's.
pub(crate) fn take(opts: &StartOpts, bundle: &Path, listener: &UnixListener) -> Option<Taken> {
    let any = opts.extensions.iter().find(|any| options::is_runtimes(any));
    // Without a keeper on this host there is nothing to find out, and a shim that waits has another environment.
    let by_environment =
        configuration::file_of_environment().is_some() && !any.is_some_and(options::name_a_file);
    if !run_dir::ready().exists() || by_environment {
        return None;
    }
    let spec = bundle::read(bundle, &opts.id).map_or_else(|_| Spec::default(), |(spec, ..)| spec);
    // What is wrong with it, the shim says.
    let log = Logger::root(Discard, o!());
    let configuration = options::configuration(any, &spec, &log).ok()?;
    let endpoint = &configuration.factory.cache.as_ref()?.endpoint;
    let taken = boot::needs(&configuration, &spec, &log)
        .map_err(|why| std::io::Error::other(why.to_string()))
        .and_then(|kept| ask(endpoint, &kept, &order(opts, bundle)?, &spec, listener));
    taken.inspect_err(|why| told(opts, bundle, why)).ok()
}

fn order(opts: &StartOpts, bundle: &Path) -> std::io::Result<Order> {
    Ok(Order {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        namespace: opts.namespace.clone(),
        id: opts.id.clone(),
        debug: opts.debug,
        address: opts.address.clone(),
        events: opts.ttrpc_address.clone(),
        bundle: bundle.to_owned(),
        cgroups: host_cgroup::own().map_err(|error| std::io::Error::other(error.to_string()))?,
    })
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
        Error::FailedPrecondition(format!(
            "no machines are kept ready at {}: {error}; `factory init` keeps them for as long as it runs",
            endpoint.display()
        ))
    };
    let mut stream = reach(endpoint).map_err(failed)?;
    let mut text = String::new();
    stream.write_all(&[STATUS]).and_then(|()| stream.read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}

fn ask(
    endpoint: &Path,
    kept: &Kept,
    order: &Order,
    spec: &Spec,
    listener: &UnixListener,
) -> std::io::Result<Taken> {
    sees_what_comes(&order.bundle, spec)?;
    let stream = reach(endpoint)?;
    if !is_at_home(&stream)? {
        return Err(std::io::Error::other("their keeper is in other namespaces"));
    }
    (&stream).write_all(&[&[TAKE], kept.name().as_bytes()].concat())?;
    let mut answers = BufReader::new(&stream);
    let mut line = || {
        let mut line = String::new();
        answers.read_line(&mut line).map(|_| line.trim().to_owned())
    };
    let nobody = || std::io::Error::other("none like that is ready");
    let pid: u32 = line()?.parse().map_err(|_| nobody())?;
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(nobody)?;
    let taken = Taken { pid, process: pidfd_open(process, PidfdFlags::empty())? };
    match order.send(&stream, listener).and_then(|()| line()) {
        Ok(line) if line == pid.to_string() => Ok(taken),
        said => {
            // It may have got the order nevertheless, and there must not be two.
            taken.kill();
            said.and(Err(nobody()))
        }
    }
}

/// Whether a process with a copy of this one's mounts has what is mounted for the sandbox now and later.
///
/// # Errors
/// Names what it would not have.
fn sees_what_comes(bundle: &Path, spec: &Spec) -> std::io::Result<()> {
    let mounts = fs::read_to_string(MOUNTS)?;
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    let namespaces = namespaces.filter_map(|namespace| namespace.path().as_deref());
    let all = PLACES.map(Path::new).into_iter().chain([bundle]).chain(namespaces);
    match all.filter(|path| !path.starts_with("/proc")).find(|path| !propagation::reaches(&mounts, path)) {
        None => Ok(()),
        Some(path) => Err(std::io::Error::other(format!(
            "mounts at {} would not come to one: `mount --make-rshared /` before containerd and the keeper start",
            path.display()
        ))),
    }
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
