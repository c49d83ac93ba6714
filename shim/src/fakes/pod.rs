//! A pod's network namespace, with iproute2 to make interfaces and to look at them.

use std::{
    path::PathBuf,
    process::Command,
    sync::mpsc::{Sender, channel},
};

use nix::sched::{CloneFlags, unshare};

/// A network namespace, held by a thread: it goes with the test, whatever becomes of that.
pub(crate) struct Pod {
    pub(crate) path: PathBuf,
    _held: Sender<()>,
}

impl Pod {
    pub(crate) fn new() -> Pod {
        let (held, until) = channel::<()>();
        let (made, path) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests of the network run as root");
            let thread = nix::unistd::gettid();
            made.send(format!("/proc/{}/task/{thread}/ns/net", std::process::id()).into()).unwrap();
            let _ = until.recv();
        });
        Pod { path: path.recv().unwrap(), _held: held }
    }

    /// One with a veth whose other end is in it, too.
    pub(crate) fn with_veth() -> Pod {
        let pod = Pod::new();
        pod.run("ip link add eth0 address 02:00:00:00:00:07 mtu 1400 type veth peer name other");
        pod.run("ip link set eth0 up");
        pod.run("ip addr add 10.1.0.2/24 dev eth0");
        pod.run("ip addr add fd00::2/64 dev eth0 nodad");
        pod.run("ip route add default via 10.1.0.1");
        pod.run("ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        pod
    }

    pub(crate) fn run(&self, words: &str) -> String {
        let net = format!("--net={}", self.path.display());
        let output = Command::new("nsenter").arg(net).args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a sandbox could have changed.
    pub(crate) fn state(&self) -> String {
        ["ip link", "ip -4 addr", "ip route", "tc qdisc"].map(|words| self.run(words)).concat()
    }
}
