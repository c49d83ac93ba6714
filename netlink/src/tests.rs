//! Against the kernel, each in a network namespace of its own.

use std::{net::IpAddr, process::Command};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressProtocol},
};
use nix::sched::{CloneFlags, unshare};

use super::*;

/// Carries out `test` on a thread of its own in an empty network namespace.
fn apart<T: Send + 'static>(test: impl FnOnce(&mut Netlink) -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of the network run as root");
        test(&mut Netlink::open().unwrap())
    });
    thread.join().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs iproute2's `ip` in this thread's namespace.
fn run_ip(args: &str) {
    assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success(), "ip {args}");
}

/// A pair, both ends in use: their numbers.
fn pair(netlink: &mut Netlink) -> (u32, u32) {
    run_ip("link add v0 type veth peer name v1");
    let (one, other) = (find(netlink, "v0").index, find(netlink, "v1").index);
    for index in [one, other] {
        netlink.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    }
    (one, other)
}

fn find(netlink: &mut Netlink, name: &str) -> Link {
    netlink.links().unwrap().into_iter().find(|link| link.name == name).unwrap()
}

fn route(link: u32, destination: Option<(&str, u8)>, gateway: Option<&str>) -> Route {
    let is_v6 = destination.map(|(to, _)| to).or(gateway).is_some_and(|text| text.contains(':'));
    Route {
        destination: destination.map(|(to, prefix)| (ip(to), prefix)),
        gateway: gateway.map(ip),
        source: None,
        link,
        is_v6,
        scope: if gateway.is_none() && !is_v6 { 253 } else { 0 },
        onlink: false,
        mtu: None,
        is_kernels: false,
        priority: None,
    }
}

#[test]
fn a_new_namespace_has_its_loopback_alone() {
    let links = apart(|netlink| netlink.links().unwrap());
    assert_eq!(links.len(), 1);
    assert!(links[0].is_loopback && links[0].name == "lo" && !links[0].is_up);
}

#[test]
fn an_interface_is_changed_in_what_is_asked_for() {
    apart(|netlink| {
        run_ip("link add v0 type veth peer name v1");
        let before = find(netlink, "v0");
        assert_eq!((&before.kind, before.mtu, before.is_up), (&Kind::Veth, 1500, false));
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let change = LinkChange {
            name: Some("eth0".into()),
            mac: Some(mac),
            mtu: Some(1400),
            queue_length: Some(7),
            no_arp: Some(true),
            up: Some(true),
        };
        netlink.change_link(before.index, &change).unwrap();
        let expected = Link {
            name: "eth0".into(),
            mac: Some(mac),
            mtu: 1400,
            queue_length: 7,
            no_arp: true,
            is_up: true,
            ..before
        };
        assert_eq!(find(netlink, "eth0"), expected);
        netlink
            .change_link(expected.index, &LinkChange { mtu: Some(1300), ..LinkChange::default() })
            .unwrap();
        assert_eq!(find(netlink, "eth0"), Link { mtu: 1300, ..expected });
    });
}

#[test]
fn an_address_is_there_at_once_and_goes_again() {
    apart(|netlink| {
        let (link, _) = pair(netlink);
        let all = ["10.1.0.2/24", "fd00::2/64"].map(|text| {
            let (address, prefix) = text.split_once('/').unwrap();
            Address::new(link, ip(address), prefix.parse().unwrap())
        });
        for address in all {
            netlink.add_address(address).unwrap();
            netlink.add_address(address).expect("what is there already is no error");
            assert!(netlink.addresses().unwrap().contains(&address));
        }
        for address in all {
            netlink.remove_address(address).unwrap();
            assert!(!netlink.addresses().unwrap().contains(&address));
        }
    });
}

#[test]
fn routes_are_told_as_they_were_made() {
    apart(|netlink| {
        let (link, _) = pair(netlink);
        netlink.add_address(Address::new(link, ip("10.1.0.2"), 24)).unwrap();
        netlink.add_address(Address::new(link, ip("fd00::2"), 64)).unwrap();
        let made = [
            route(link, Some(("192.0.2.0", 24)), None),
            Route {
                source: Some(ip("10.1.0.2")),
                mtu: Some(1300),
                ..route(link, Some(("198.51.100.0", 24)), Some("10.1.0.1"))
            },
            route(link, None, Some("10.1.0.1")),
            Route { onlink: true, ..route(link, Some(("203.0.113.7", 32)), Some("169.254.1.1")) },
            Route { priority: Some(1024), ..route(link, Some(("2001:db8::", 32)), None) },
            Route { priority: Some(1024), ..route(link, None, Some("fd00::1")) },
        ];
        for route in &made {
            netlink.add_route(route).unwrap_or_else(|error| panic!("{route:?}: {error}"));
        }
        let told = netlink.routes().unwrap();
        assert!(told.iter().any(|route| route.is_kernels && route.destination == Some((ip("10.1.0.0"), 24))));
        for route in &made {
            assert!(told.contains(route), "{route:?} is not among {told:?}");
            netlink.remove_route(route).unwrap_or_else(|error| panic!("{route:?}: {error}"));
        }
        assert!(netlink.routes().unwrap().iter().all(|route| route.is_kernels));
    });
}

/// Who asks for these has the kernel's own: a router's are made the same way.
#[test]
fn what_a_router_advertised_is_told_apart() {
    apart(|netlink| {
        let (link, _) = pair(netlink);
        let ordinary = Address::new(link, ip("fd00::2"), 64);
        netlink.add_address(ordinary).unwrap();
        let mut advertised = AddressMessage::default();
        advertised.header.family = AddressFamily::Inet6;
        (advertised.header.index, advertised.header.prefix_len) = (link, 64);
        advertised.attributes = vec![
            AddressAttribute::Local(ip("fd01::2")),
            AddressAttribute::Protocol(AddressProtocol::RouterAnnouncement),
        ];
        netlink.order(RouteNetlinkMessage::NewAddress(advertised), NLM_F_CREATE).unwrap();
        let told = netlink.addresses().unwrap();
        assert!(told.contains(&ordinary));
        assert!(told.contains(&Address { is_advertised: true, ..Address::new(link, ip("fd01::2"), 64) }));
        for by in ["static", "ra"] {
            run_ip(&format!("-6 route add default via fd00::1 dev v0 proto {by}"));
            let routes = netlink.routes().unwrap();
            let ours: Vec<_> = routes.iter().filter(|route| route.gateway.is_some()).collect();
            assert_eq!(ours.len(), 1);
            assert_eq!(ours[0].is_kernels, by == "ra");
            run_ip("-6 route del default");
        }
    });
}

#[test]
fn a_neighbour_is_known_for_good() {
    apart(|netlink| {
        let (link, _) = pair(netlink);
        for text in ["10.1.0.1", "fd00::1"] {
            let neighbour = Neighbour { link, ip: ip(text), mac: Mac([2, 0, 0, 0, 0, 1]), flags: 0 };
            netlink.add_neighbour(&neighbour).unwrap();
            assert!(netlink.permanent_neighbours().unwrap().contains(&neighbour));
        }
    });
}

#[test]
fn what_comes_in_goes_out_elsewhere_until_the_discipline_goes() {
    apart(|netlink| {
        let (from, to) = pair(netlink);
        netlink.add_ingress(from).unwrap();
        assert_eq!(netlink.add_ingress(from).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        netlink.redirect(from, to).unwrap();
        assert!(netlink.has_ingress(from).unwrap() && !netlink.has_ingress(to).unwrap());
        netlink.remove_ingress(from).unwrap();
        assert!(!netlink.has_ingress(from).unwrap());
    });
}

#[test]
fn a_macvtap_comes_and_goes() {
    apart(|netlink| {
        let (lower, _) = pair(netlink);
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        netlink.add_macvtap(8200, "tap0_kata", lower, mac, 1400).unwrap();
        let link = find(netlink, "tap0_kata");
        assert_eq!((link.index, link.kind, link.mac, link.mtu), (8200, Kind::Macvtap, Some(mac), 1400));
        netlink.remove_link(8200).unwrap();
        assert!(netlink.links().unwrap().iter().all(|link| link.index != 8200));
    });
}

#[test]
fn the_kernels_refusal_is_told() {
    apart(|netlink| {
        let error = netlink.change_link(4711, &LinkChange { up: Some(true), ..LinkChange::default() });
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ENODEV));
    });
}

#[test]
fn an_ethernet_address_is_read_as_it_is_written() {
    let mac: Mac = "02:00:5e:10:0A:ff".parse().unwrap();
    assert_eq!(mac.to_string(), "02:00:5e:10:0a:ff");
    for text in [
        "",
        "02:00:5e:10:00",
        "02:00:5e:10:00:01:02",
        "2:0:5e:10:0:1",
        "02:00:5e:10:00:+1",
        "02-00-5e-10-00-01",
    ] {
        assert!(text.parse::<Mac>().is_err(), "{text}");
    }
}

#[test]
fn what_was_saved_is_as_it_was() {
    apart(|netlink| {
        let (link, _) = pair(netlink);
        for args in [
            "addr add 10.1.0.2/24 dev v0",
            "addr add fd00::2/64 dev v0 nodad",
            "route add default via 10.1.0.1 proto static",
            "route add 192.0.2.0/24 dev v0 src 10.1.0.2 mtu 1300",
            "-6 route add default via fd00::1 metric 77",
            "neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent",
        ] {
            run_ip(args);
        }
        let look =
            || ["-4 addr", "-6 addr show scope global", "route", "-6 route show default", "neigh"].map(show);
        let before = look();
        let saved = netlink.save(link).unwrap();
        netlink.clear_addresses(link).unwrap();
        let mac = Some(Mac([2, 0, 0, 0, 0, 3]));
        netlink.change_link(link, &LinkChange { mac, ..LinkChange::default() }).unwrap();
        assert!(!look().concat().contains("10.1.0.9"));
        assert_ne!(look(), before);
        netlink.restore(&saved).unwrap();
        assert_eq!(look(), before);
        netlink.restore(&saved).expect("what is there is as good");
        assert_eq!(look(), before);
    });
}

/// What `ip` says.
fn show(args: &str) -> String {
    String::from_utf8(Command::new("ip").args(args.split(' ')).output().unwrap().stdout).unwrap()
}

#[test]
fn an_interface_sends_no_faster_than_it_may() {
    apart(|netlink| {
        let (one, other) = pair(netlink);
        for (bits, told) in [(1_000_000, "rate 1Mbit"), (100_000_000_000, "rate 100Gbit")] {
            netlink.limit_rate(one, bits).unwrap();
            let shown = Command::new("tc").args(["qdisc", "show", "dev", "v0"]).output().unwrap().stdout;
            let shown = String::from_utf8(shown).unwrap();
            assert!(shown.contains("tbf 6b61: root") && shown.contains(told), "{shown}");
            assert!(netlink.is_rate_limited(one).unwrap() && !netlink.is_rate_limited(other).unwrap());
            let twice = netlink.limit_rate(one, bits).unwrap_err();
            assert_eq!(twice.kind(), std::io::ErrorKind::AlreadyExists);
            netlink.unlimit_rate(one).unwrap();
            assert!(!netlink.is_rate_limited(one).unwrap());
        }
    });
}

#[test]
fn news_are_told_of_interfaces_addresses_and_routes() {
    apart(|netlink| {
        let watch = Watch::open().unwrap();
        let is_quiet = || watch.take().unwrap_err().kind() == std::io::ErrorKind::WouldBlock;
        assert!(is_quiet());
        let (link, _) = pair(netlink);
        watch.take().unwrap();
        netlink.add_address(Address::new(link, ip("10.1.0.2"), 24)).unwrap();
        watch.take().unwrap();
        netlink.add_route(&route(link, Some(("192.0.2.0", 24)), None)).unwrap();
        watch.take().unwrap();
        for number in 0..9000_u32 {
            // More than a socket keeps.
            let change = LinkChange { mtu: Some(1300 + number % 2), ..LinkChange::default() };
            netlink.change_link(link, &change).unwrap();
        }
        watch.take().expect("lost news are news");
        netlink.remove_link(link).unwrap();
        watch.take().unwrap();
    });
}
