//! Against the kernel, each in a network namespace of its own, with iproute2 to make interfaces and to look at them.

use std::{fs, process::Command, time::Duration};

use nix::sched::{CloneFlags, unshare};

use super::{place::Place, *};

/// Carries out `test` on a thread of its own in an empty network namespace.
fn apart(test: impl AsyncFnOnce(&Devices) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of the network run as root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Devices::start().unwrap().as_ref()).await });
    });
    thread.join().unwrap();
}

/// Runs iproute2's `ip` in this thread's namespace.
fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const MAC: &str = "02:00:00:00:00:07";

/// A pair whose one end has the address [`MAC`] and the name that a guest's kernel gives.
fn pair() {
    ip(&format!("link add eth5 address {MAC} type veth peer name other"));
    ip("link set other up");
}

fn ip_address(text: &str) -> types::IPAddress {
    let (address, mask) = text.split_once('/').unwrap();
    let family = if address.contains(':') { types::IPFamily::v6 } else { types::IPFamily::v4 };
    types::IPAddress {
        family: family.into(),
        address: address.into(),
        mask: mask.into(),
        ..Default::default()
    }
}

fn asked(addresses: &[&str]) -> types::Interface {
    types::Interface {
        device: "eth0".into(),
        name: "eth0".into(),
        ip_addresses: addresses.iter().map(|text| ip_address(text)).collect(),
        mtu: 1400,
        hw_addr: MAC.into(),
        ..Default::default()
    }
}

fn route(dest: &str, gateway: &str) -> types::Route {
    let is_v6 = dest.contains(':') || gateway.contains(':');
    types::Route {
        dest: dest.into(),
        gateway: gateway.into(),
        device: "eth0".into(),
        scope: if gateway.is_empty() && !is_v6 { 253 } else { 0 },
        family: if is_v6 { types::IPFamily::v6 } else { types::IPFamily::v4 }.into(),
        ..Default::default()
    }
}

#[test]
fn an_interface_gets_its_name_size_and_addresses() {
    apart(async |devices| {
        pair();
        let now = update_interface(devices, &asked(&["10.1.0.2/24", "fd00::2/64"])).await.unwrap();
        assert_eq!((now.name.as_str(), now.mtu, now.hw_addr.as_str()), ("eth0", 1400, MAC));
        let shown = ip("addr show eth0");
        for part in ["mtu 1400", "inet 10.1.0.2/24 brd 10.1.0.255", "inet6 fd00::2/64", ",UP"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
        let global = shown.lines().find(|line| line.contains("fd00::2/64")).unwrap();
        assert!(global.contains("nodad") && !global.contains("tentative"), "{global}");
        let second = update_interface(devices, &asked(&["10.1.0.3/24"])).await.unwrap();
        let addresses = second.ip_addresses.iter().map(|ip| ip.address.as_str()).collect::<Vec<_>>();
        assert!(addresses.contains(&"10.1.0.3") && !addresses.contains(&"10.1.0.2"), "{addresses:?}");
        assert!(interfaces().unwrap().contains(&second));
    });
}

#[test]
fn an_interface_that_comes_later_is_waited_for() {
    apart(async |devices| {
        let asked = asked(&["10.1.0.2/24"]);
        let late = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            pair();
        };
        let (now, ()) = tokio::join!(update_interface(devices, &asked), late);
        assert_eq!(now.unwrap().name, "eth0");
    });
}

#[test]
fn interfaces_may_swap_their_names() {
    apart(async |devices| {
        pair();
        ip("link add eth0 address 02:00:00:00:00:08 type veth peer name yet-another");
        ip("link set eth0 up");
        update_interface(devices, &asked(&[])).await.unwrap();
        let other = types::Interface {
            name: "eth5".into(),
            hw_addr: "02:00:00:00:00:08".into(),
            ..asked(&["10.2.0.2/24"])
        };
        update_interface(devices, &other).await.unwrap();
        assert!(ip("link show eth0").contains(MAC));
        assert!(ip("link show eth5").contains("02:00:00:00:00:08"));
    });
}

#[test]
fn routes_are_replaced_whatever_their_order() {
    apart(async |devices| {
        pair();
        update_interface(devices, &asked(&["10.1.0.2/24", "fd00::2/64"])).await.unwrap();
        let gateway = types::Route { flags: 0x14, mtu: 1300, ..route("198.51.100.0/24", "10.9.0.1") };
        let source = types::Route { source: "10.1.0.2".into(), ..route("192.0.2.0/24", "") };
        let all = [
            route("", "169.254.1.1"),
            gateway,
            route("169.254.1.1/32", ""),
            source,
            route("::/0", "fd00::1"),
            route("2001:db8::/32", ""),
        ];
        let told = update_routes(&all).unwrap();
        let shown = ip("route") + &ip("-6 route");
        for part in [
            "default via 169.254.1.1 dev eth0",
            "198.51.100.0/24 via 10.9.0.1 dev eth0 onlink mtu 1300",
            "169.254.1.1 dev eth0 scope link",
            "192.0.2.0/24 dev eth0 scope link src 10.1.0.2",
            "10.1.0.0/24 dev eth0 proto kernel",
            "default via fd00::1 dev eth0",
            "2001:db8::/32 dev eth0",
        ] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
        assert!(told.iter().any(|route| route.dest.is_empty() && route.gateway == "fd00::1"), "{told:?}");
        update_routes(&[route("", "10.1.0.1")]).unwrap();
        let shown = ip("route") + &ip("-6 route");
        assert!(shown.contains("default via 10.1.0.1") && !shown.contains("192.0.2.0"), "{shown}");
        assert!(!shown.contains("2001:db8"), "{shown}");
    });
}

#[test]
fn neighbours_stay_known() {
    apart(async |devices| {
        pair();
        update_interface(devices, &asked(&["10.1.0.2/24", "fd00::2/64"])).await.unwrap();
        let neighbour = |to: &str| types::ARPNeighbor {
            to_ip_address: protobuf::MessageField::some(ip_address(to)),
            device: "eth0".into(),
            lladdr: "02:00:00:00:00:01".into(),
            state: 0x80,
            ..Default::default()
        };
        add_neighbours(&[neighbour("10.1.0.1/24"), neighbour("fd00::1/64")]).unwrap();
        let shown = ip("neigh");
        for part in ["10.1.0.1 dev eth0", "fd00::1 dev eth0", "PERMANENT"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
    });
}

#[test]
fn what_cannot_be_is_refused_by_its_name() {
    let says = |error: Error, field: &str| {
        assert!(matches!(&error, Error::Invalid(text) if text.contains(field)), "{error}");
    };
    let bad = |change: &dyn Fn(&mut types::Interface), field: &str| {
        let mut interface = asked(&["10.1.0.2/24"]);
        change(&mut interface);
        says(Asked::parse(&interface).err().unwrap(), field);
    };
    for name in ["a/b", "..", "a b", "a234567890123456", "a:1", "a%d", "\u{e9}"] {
        bad(&|interface| interface.name = name.into(), "interface.name");
    }
    bad(&|interface| interface.hw_addr = "x".into(), "interface.hwAddr");
    bad(&|interface| interface.device_path = "../../x".into(), "interface.devicePath");
    bad(&|interface| interface.mtu = 67, "interface.mtu");
    bad(&|interface| interface.mtu = u64::MAX, "interface.mtu");
    bad(&|interface| interface.raw_flags = 1, "interface.raw_flags");
    for address in ["10.1.0.2/33", "10.1.0.2/", "10.1.0.2/+1", "fd00::2/129"] {
        bad(&|interface| interface.ip_addresses = vec![ip_address(address)], "IPAddresses.mask");
    }
    bad(&|interface| interface.ip_addresses[0].address = "10.1".into(), "IPAddresses.address");
    bad(&|interface| interface.ip_addresses[0].address = "fd00::1".into(), "IPAddresses.family");
    let bad = |change: &dyn Fn(&mut types::Route), field: &str| {
        let mut route = route("192.0.2.0/24", "10.1.0.1");
        change(&mut route);
        says(AskedRoute::parse(&route).err().unwrap(), field);
    };
    bad(&|route| route.dest = "192.0.2.0/33".into(), "route.dest");
    bad(&|route| route.gateway = "x".into(), "route.gateway");
    bad(&|route| route.gateway = "fd00::1".into(), "route.family");
    bad(&|route| route.source = "x".into(), "route.source");
    bad(&|route| route.scope = 256, "route.scope");
    bad(&|route| route.device = String::new(), "route.device");
    let neighbour = types::ARPNeighbor { device: "eth0".into(), ..Default::default() };
    says(AskedNeighbour::parse(&neighbour).err().unwrap(), "neighbor.toIPAddress");
}

#[test]
fn routes_of_an_interface_that_is_not_there_change_nothing() {
    apart(async |devices| {
        pair();
        update_interface(devices, &asked(&["10.1.0.2/24"])).await.unwrap();
        update_routes(&[route("", "10.1.0.1")]).unwrap();
        let stranger = types::Route { device: "eth9".into(), ..route("192.0.2.0/24", "") };
        assert!(matches!(update_routes(&[stranger]), Err(Error::NotFound { .. })));
        assert!(ip("route").contains("default via 10.1.0.1"));
    });
}

#[test]
fn an_interface_is_where_its_device_is() {
    let sys = tempfile::tempdir().unwrap();
    let root = sys.path().join("devices/pci0000:00");
    let behind = root.join("0000:00:02.0/0000:01:03.0");
    for (device, interface) in [(&root.join("0000:00:05.0/virtio1"), "eth0"), (&behind, "eth1")] {
        fs::create_dir_all(device).unwrap();
        let class = sys.path().join("class/net").join(interface);
        fs::create_dir_all(&class).unwrap();
        std::os::unix::fs::symlink(device, class.join("device")).unwrap();
    }
    let bus = sys.path().join("bus/pci/devices");
    fs::create_dir_all(&bus).unwrap();
    for name in ["0000:00:02.0", "0000:00:05.0"] {
        std::os::unix::fs::symlink(root.join(name), bus.join(name)).unwrap();
    }
    let is_at = |place: &str, name| place.parse::<Place>().unwrap().has_below(sys.path(), name);
    assert!(is_at("05", "eth0") && is_at("02/03", "eth1"));
    assert!(!is_at("05", "eth1") && !is_at("02/04", "eth1") && !is_at("06", "eth0") && !is_at("05", "eth9"));
}
