//! Network interfaces that come to a running machine.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use vmm::plug::{Nic, PlugError, Pluggable};
use vmm::spec::{PciPlaces, Window};

use crate::Machine;
use crate::common::Fixture;

const MAC: [u8; 6] = [0x02, 0, 0, 0xca, 0xfe, 0x01];

/// The queues of a tap in a network of its own, which is gone with them; `None` where only root can make one.
fn tap(queues: usize) -> Option<Vec<OwnedFd>> {
    if !nix::unistd::geteuid().is_root() {
        println!("left out: only root can make a tap");
        return None;
    }
    let made = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        (0..queues).map(|_| queue(queues > 1)).collect()
    });
    Some(made.join().unwrap())
}

fn queue(one_of_many: bool) -> OwnedFd {
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if one_of_many {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = Request { name: [0; _], flags: flags as libc::c_short, rest: [0; _] };
    request.name[..4].copy_from_slice(b"tap0");
    // SAFETY: the kernel reads and writes a struct ifreq, which this is one of.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    nix::errno::Errno::result(result).unwrap();
    tun.into()
}

fn fixture() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.spec.pci = PciPlaces::new(1, 0, Window::default()).unwrap();
    fixture
}

#[tokio::test]
async fn b12_an_interface_has_its_address_its_queues_and_its_place() {
    for (count, mq, vectors) in [(1, false, 4), (2, true, 6)] {
        let Some(queues) = tap(count) else { return };
        let mut machine = Machine::boot(fixture()).await;
        let nic = Nic { queues, vhost: Vec::new(), mac: MAC };
        let plugged = machine.vm.plug(Pluggable::Nic(nic)).await.unwrap();
        assert_eq!(plugged.at.to_string(), "02/01");
        let device = format!("/machine/peripheral/{}", plugged.id);
        assert_eq!(machine.property(&device, "mac"), "02:00:00:ca:fe:01");
        assert_eq!(machine.property(&device, "mq"), mq);
        assert_eq!(machine.property(&device, "vectors"), vectors);
        assert_eq!(machine.property(&device, "netdev"), plugged.id.to_string());
        assert_eq!(machine.property(&device, "addr"), 1 << 3);
        let bus = machine.property(&device, "parent_bus");
        assert_eq!(bus, "/machine/peripheral/pci-bridge-0/pci-bridge-0");
        machine.end().await;
    }
}

#[tokio::test]
async fn b12_an_interface_that_is_refused_leaves_nothing() {
    let mut machine = Machine::boot(fixture()).await;
    let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let plug = |queues, vhost| Pluggable::Nic(Nic { queues, vhost, mac: MAC });
    for (queues, vhost) in [(vec![], vec![]), (vec![file()], vec![file(), file()])] {
        let refused = machine.vm.plug(plug(queues, vhost)).await.unwrap_err();
        assert!(matches!(refused, PlugError::Queues { .. }), "{refused}");
    }
    // What is no tap.
    let refused = machine.vm.plug(plug(vec![file()], vec![])).await.unwrap_err();
    assert!(matches!(refused, PlugError::Qmp(_)), "{refused}");
    let networks = machine.ask("human-monitor-command", json!({"command-line": "info network"}));
    assert_eq!(networks, "");
    if let Some(queues) = tap(1) {
        assert_eq!(machine.vm.plug(plug(queues, vec![])).await.unwrap().at.to_string(), "02/01");
    }
    machine.end().await;
}
