//! A pod's network as a CNI plugin leaves it: a veth in a network namespace of the pod's, its other end in another one.
//!
//! A namespace is a thread's, which ends with what holds it, so nothing is left of it whatever becomes of the test. The
//! host's own is never touched.

mod kinds;

use std::fmt::Debug;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::command::{Running, run, start};
use crate::{Context, Failure, Result};
pub use kinds::kernel_has;

/// Longest time for a command that changes or shows a namespace.
const PATIENCE: Duration = Duration::from_secs(10);

/// The veth's address, which the guest's interface is to have too.
pub const MAC: &str = "02:00:5e:07:00:02";

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    path: String,
    /// What keeps it.
    _held: Box<dyn Debug + Send>,
}

impl Namespace {
    /// An empty one.
    pub fn new() -> Result<Namespace> {
        let (held, until) = channel::<()>();
        let (made, path) = channel();
        thread::spawn(move || hold(&made, &until));
        let path = path.recv().map_err(|_| Failure::new("the thread of a network namespace is gone"))??;
        Ok(Namespace { path, _held: Box::new(held) })
    }

    /// That of a process, which it may outlive.
    pub fn of_process(pid: u32) -> Result<Namespace> {
        let held = File::open(format!("/proc/{pid}/ns/net")).context("the network namespace of a process")?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd());
        Ok(Namespace { path, _held: Box::new(held) })
    }

    /// Where it is, for any process.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A program in it, by words with blanks between them.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path)).args(words.split(' '));
        command
    }

    /// What a program says that has to succeed.
    pub fn says(&self, words: &str) -> Result<String> {
        Ok(run(&mut self.command(words), PATIENCE)?.exits(0).context(words)?.out())
    }

    /// A connection that is made in it, which gives up a read or a write that takes longer than `patience`.
    pub fn connect(&self, address: &str, patience: Duration) -> Result<TcpStream> {
        let (namespace, address) = (File::open(&self.path)?, address.parse()?);
        let dial = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let stream = TcpStream::connect_timeout(&address, patience)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok(stream)
        });
        dial.join().map_err(|_| Failure::new("the thread that dials panicked"))?
    }

    /// Starts a program with `input`.
    pub fn start(&self, words: &str, input: Vec<u8>) -> Result<Running> {
        start(&mut self.command(words), input)
    }
}

fn hold(made: &Sender<Result<String>>, until: &Receiver<()>) {
    let own = unshare(CloneFlags::CLONE_NEWNET).context("a network namespace of its own, as root");
    let path = own.map(|()| format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid()));
    if made.send(path).is_ok() {
        // Ends with an error when the other end is dropped.
        let _ = until.recv();
    }
}

/// A pod with `eth0`, and the peer at its other end.
#[derive(Debug)]
pub struct PodNetwork {
    /// Where the pod's interface is.
    pub pod: Namespace,
    /// Where packets from it come in.
    pub peer: Namespace,
    /// Where an interface is that the pod's is on.
    _node: Option<Namespace>,
}

impl PodNetwork {
    /// A pod that has its interface from the start.
    pub fn new() -> Result<PodNetwork> {
        let network = PodNetwork::empty()?;
        network.connect()?;
        Ok(network)
    }

    /// A pod that has its loopback alone.
    pub fn empty() -> Result<PodNetwork> {
        let (pod, peer) = (Namespace::new()?, Namespace::new()?);
        pod.says("ip link set lo up")?;
        Ok(PodNetwork { pod, peer, _node: None })
    }

    /// A pod whose network is that of a process.
    pub fn of_process(pid: u32) -> Result<PodNetwork> {
        Ok(PodNetwork { pod: Namespace::of_process(pid)?, peer: Namespace::new()?, _node: None })
    }

    /// 10.7.0.2 and fd07::2 for the pod, 10.7.0.1 and fd07::1 for its peer and gateway, packets of 1400 bytes.
    pub fn connect(&self) -> Result<()> {
        let (pod, peer) = (&self.pod, &self.peer);
        let other = peer.path();
        pod.says(&format!(
            "ip link add eth0 address {MAC} mtu 1400 type veth peer name peer0 mtu 1400 netns {other}"
        ))?;
        for (namespace, words) in [
            (pod, "ip link set eth0 up"),
            (peer, "ip link set peer0 up"),
            (pod, "ip addr add 10.7.0.2/24 dev eth0"),
            (pod, "ip addr add fd07::2/64 dev eth0 nodad"),
            (peer, "ip addr add 10.7.0.1/24 dev peer0"),
            (peer, "ip addr add fd07::1/64 dev peer0 nodad"),
            (pod, "ip route add default via 10.7.0.1"),
            (pod, "ip route add 198.51.100.0/24 via 10.7.0.1 src 10.7.0.2"),
            (pod, "ip route add 192.0.2.0/24 dev eth0"),
            (pod, "ip -6 route add default via fd07::1"),
            (pod, "ip neigh add 10.7.0.9 lladdr 02:00:5e:07:00:09 dev eth0 nud permanent"),
        ] {
            namespace.says(words)?;
        }
        Ok(())
    }

    /// All that a sandbox could have changed in the pod's namespace.
    pub fn state(&self) -> Result<String> {
        let all = [
            "ip link",
            "ip -4 addr",
            "ip -6 addr show scope global",
            "ip route",
            "ip -6 route show default",
            "ip neigh show nud permanent",
            "tc qdisc",
        ];
        all.iter().map(|words| self.pod.says(words)).collect()
    }
}
