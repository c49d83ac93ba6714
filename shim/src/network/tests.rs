//! Against the kernel, each in a network namespace of its own.

use std::fs;

use configuration::InternetworkingModel;
use netlink::{Address, Kind, Link, Mac, Route};
use oci_spec::runtime::{
    HookBuilder, HooksBuilder, LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, MountBuilder,
    SpecBuilder,
};

use crate::fakes::{Host, Pod};

use super::{plan::How, scan::Found, *};

mod special;

/// Joins the network at `path` on a thread that ends with that.
fn join_at(path: &Path, manner: Manner, run_dir: &Path) -> Result<Network> {
    let (path, run_dir) = (path.to_path_buf(), run_dir.to_path_buf());
    std::thread::spawn(move || Network::join(&Place::At(path), None, manner, &run_dir)).join().unwrap()
}

fn join(pod: &Pod, manner: Manner, run_dir: &Path) -> Result<Network> {
    join_at(&pod.path, manner, run_dir)
}

fn manner(queues: u32) -> Manner {
    Manner {
        model: InternetworkingModel::Default,
        queues,
        vhost: false,
        rates: Rates::default(),
        passes_through: false,
        is_late: false,
    }
}

/// By the shim itself, or as the kernel does it for one that is killed, and `delete` then.
fn end(network: Network, is_killed: bool, run_dir: &Path) {
    if !is_killed {
        return drop(network);
    }
    std::mem::forget(network.joined.lock().unwrap().take());
    drop(network);
    sweep(run_dir).unwrap();
}

#[test]
fn a_veth_is_redirected_to_a_tap_until_it_is_dropped() {
    let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
    let before = pod.state();
    let network = join(&pod, manner(1), run_dir.path()).unwrap();
    let nic = network.nics().remove(0);
    assert_eq!((nic.queues.len(), nic.mac), (1, [2, 0, 0, 0, 0, 7]));
    let tap = pod.run("ip -d link show tap0_kata");
    for part in ["mtu 1400", "tun type tap pi off vnet_hdr on persist off"] {
        assert!(tap.contains(part), "{part} is not in {tap}");
    }
    for (from, to) in [("eth0", "tap0_kata"), ("tap0_kata", "eth0")] {
        let filters = pod.run(&format!("tc filter show dev {from} parent ffff:"));
        assert!(filters.contains(&format!("mirred (Egress Redirect to device {to}) stolen")), "{filters}");
        assert!(filters.contains("match 00000000/00000000"), "{filters}");
    }
    drop(network);
    assert_eq!(pod.state(), before);
}

#[test]
fn a_machine_of_several_processors_has_as_many_queues() {
    let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
    let network = join(&pod, manner(3), run_dir.path()).unwrap();
    assert_eq!(network.nics()[0].queues.len(), 3);
    assert!(pod.run("ip -d link show tap0_kata").contains("multi_queue"));
}

#[test]
fn the_guest_is_told_what_the_pod_has() {
    let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
    let network = join(&pod, manner(1), run_dir.path()).unwrap();
    let interface = &network.told.interfaces[0];
    assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1400));
    assert_eq!(interface.hw_addr, "02:00:00:00:00:07");
    let addresses: Vec<_> =
        interface.ip_addresses.iter().map(|ip| format!("{}/{}", ip.address, ip.mask)).collect();
    assert!(addresses.contains(&"10.1.0.2/24".to_owned()) && addresses.contains(&"fd00::2/64".to_owned()));
    let routes: Vec<_> =
        network.told.routes.iter().map(|route| (route.dest.as_str(), route.gateway.as_str())).collect();
    assert_eq!(routes, [("", "10.1.0.1")], "those of the kernel's own are made again");
    let neighbour = &network.told.neighbours[0];
    assert_eq!((neighbour.lladdr.as_str(), neighbour.state), ("02:00:00:00:00:09", 0x80));
}

#[test]
fn a_killed_shims_redirection_is_swept_and_nothing_else() {
    let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
    let before = pod.state();
    let network = join(&pod, manner(1), run_dir.path()).unwrap();
    // What the kernel does for a shim that is killed.
    std::mem::forget(network.joined.lock().unwrap().take());
    drop(network);
    assert!(pod.run("tc qdisc").contains("ingress"));
    sweep(run_dir.path()).unwrap();
    assert_eq!(pod.state(), before);
    sweep(run_dir.path()).expect("nothing is left to do");

    let other = Pod::with_veth();
    other.run("tc qdisc add dev eth0 ingress");
    let record = run_dir.path().join("network.json");
    let text = fs::read_to_string(&record).unwrap();
    let here = |pod: &Pod| pod.path.display().to_string();
    fs::write(&record, text.replace(&here(&pod), &here(&other))).unwrap();
    sweep(run_dir.path()).unwrap();
    assert!(other.run("tc qdisc").contains("ingress"), "another namespace at the path is another's");
}

#[test]
fn a_macvtap_has_the_address_of_a_veth_until_it_is_dropped() {
    let pod = Pod::with_veth();
    let manner = Manner { model: InternetworkingModel::Macvtap, ..manner(2) };
    for is_killed in [false, true] {
        let run_dir = tempfile::tempdir().unwrap();
        let before = pod.state();
        let network = join(&pod, manner, run_dir.path()).unwrap();
        let nic = network.nics().remove(0);
        assert_eq!((nic.queues.len(), nic.mac), (2, [2, 0, 0, 0, 0, 7]));
        let tap = pod.run("ip -d link show tap0_kata");
        for part in ["mtu 1400", "link/ether 02:00:00:00:00:07", "macvtap mode bridge", ",UP"] {
            assert!(tap.contains(part), "{part} is not in {tap}");
        }
        let lower = pod.run("ip addr show eth0");
        assert!(!lower.contains("02:00:00:00:00:07") && !lower.contains("10.1.0.2"), "{lower}");
        assert_eq!(network.told.interfaces[0].ip_addresses[0].address, "10.1.0.2");
        end(network, is_killed, run_dir.path());
        assert_eq!(pod.state(), before);
    }
}

#[test]
fn d21_each_direction_is_as_fast_as_it_may_be_until_it_is_dropped() {
    let (pod, macvlan) = (Pod::with_veth(), with_macvlan());
    let manner = Manner { rates: Rates { rx: 8_000_000, tx: 16_000_000 }, ..manner(1) };
    for (pod, is_killed) in [&pod, &macvlan].into_iter().flat_map(|pod| [(pod, false), (pod, true)]) {
        let run_dir = tempfile::tempdir().unwrap();
        let before = pod.state();
        let network = join(pod, manner, run_dir.path()).unwrap();
        for (sender, rate) in [("tap0_kata", "rate 8Mbit"), ("eth0", "rate 16Mbit")] {
            let shown = pod.run(&format!("tc qdisc show dev {sender} root"));
            assert!(shown.contains("tbf") && shown.contains(rate), "{shown}");
        }
        end(network, is_killed, run_dir.path());
        assert_eq!(pod.state(), before);
    }
    pod.run("tc qdisc add dev eth0 root tbf rate 1mbit burst 32kb latency 50ms");
    let before = pod.state();
    let error = join(&pod, manner, tempfile::tempdir().unwrap().path()).err().unwrap().to_string();
    assert!(error.contains("eth0") && error.contains("tc qdisc del dev eth0 root"), "{error}");
    assert_eq!(pod.state(), before);
}

#[test]
fn d21_what_comes_in_is_slowed_on_a_detour() {
    let (veth, tap) = (Pod::with_veth(), Pod::new());
    tap.run("ip tuntap add dev eth0 mode tap");
    tap.run("ip addr add 10.1.0.2/24 dev eth0");
    let rates = Rates { rx: 8_000_000, tx: 16_000_000 };
    let by_macvtap = Manner { rates, model: InternetworkingModel::Macvtap, ..manner(1) };
    let senders = [
        (&veth, by_macvtap, [("tap0_kata", "rate 16Mbit"), ("ifb0_kata", "rate 8Mbit")]),
        (&tap, Manner { rates, ..manner(1) }, [("eth0", "rate 8Mbit"), ("ifb0_kata", "rate 16Mbit")]),
    ];
    for ((pod, manner, senders), is_killed) in senders.iter().flat_map(|case| [(case, false), (case, true)]) {
        let run_dir = tempfile::tempdir().unwrap();
        let before = pod.state();
        let network = join(pod, *manner, run_dir.path()).unwrap();
        for (sender, rate) in senders {
            let shown = pod.run(&format!("tc qdisc show dev {sender} root"));
            assert!(shown.contains("tbf") && shown.contains(rate), "{sender}: {shown}");
        }
        let filters = pod.run("tc filter show dev eth0 parent ffff:");
        assert!(filters.contains("mirred (Egress Redirect to device ifb0_kata) stolen"), "{filters}");
        end(network, is_killed, run_dir.path());
        assert_eq!(pod.state(), before);
    }
}

#[test]
fn hooks_make_the_network_of_a_namespace_that_is_new() {
    let bundle = tempfile::tempdir().unwrap();
    let script = "ip link add eth0 type veth peer name other && ip addr add 10.9.0.2/24 dev eth0 && \
                  ip link set eth0 up && pid=$(grep -o '\"pid\":[0-9]*' | cut -d: -f2) && \
                  readlink /proc/$pid/ns/net > by-pid && readlink /proc/self/ns/net > own";
    let path = std::env::var("PATH").unwrap_or_default();
    let args = ["sh", "-c", script].map(str::to_owned);
    let hook =
        HookBuilder::default().path("/bin/sh").args(args).env([format!("PATH={path}")]).build().unwrap();
    let hooks = HooksBuilder::default().create_runtime([hook]).build().unwrap();
    let spec = SpecBuilder::default().hooks(hooks).build().unwrap();
    let log = Logger::root(slog::Discard, slog::o!());
    let hooks = ContainerHooks::of(&spec, "one", bundle.path(), &log);
    let run_dir = bundle.path().to_path_buf();
    let join = move || Network::join(&Place::New, hooks.as_deref(), manner(1), &run_dir);
    let network = std::thread::spawn(join).join().unwrap().unwrap();
    assert_eq!(network.told.interfaces[0].ip_addresses[0].address, "10.9.0.2");
    assert_eq!(network.nics().len(), 1);
    let read = |name| fs::read_to_string(bundle.path().join(name)).unwrap();
    assert_eq!(read("by-pid"), read("own"), "what hooks are told leads to the namespace");
    assert!(!bundle.path().join("network.json").exists(), "it ends with us");
}

#[test]
fn filters_of_somebody_else_are_left_alone() {
    let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
    pod.run("tc qdisc add dev eth0 ingress");
    let before = pod.state();
    let error = join(&pod, manner(1), run_dir.path()).err().unwrap().to_string();
    assert!(error.contains("eth0") && error.contains("tc qdisc del"), "{error}");
    assert_eq!(pod.state(), before);
}

#[test]
fn a_tap_of_the_pods_is_attached_to() {
    let (pod, run_dir) = (Pod::new(), tempfile::tempdir().unwrap());
    for (name, flags) in [("one", "vnet_hdr"), ("many", "vnet_hdr multi_queue")] {
        pod.run(&format!("ip tuntap add dev {name} mode tap {flags}"));
    }
    pod.run("ip addr add 10.1.0.2/24 dev one");
    pod.run("ip addr add 10.2.0.2/24 dev many");
    let network = join(&pod, manner(2), run_dir.path()).unwrap();
    assert_eq!(network.nics().iter().map(|nic| nic.queues.len()).collect::<Vec<_>>(), [1, 2]);
    drop(network);
    assert!(pod.run("ip link").contains("many"));
}

#[test]
fn what_cannot_be_had_is_named_before_anything_is_done() {
    let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
    pod.run("ip link add br0 type bridge");
    pod.run("ip addr add 10.3.0.2/24 dev br0");
    let before = pod.state();
    let error = join(&pod, manner(1), run_dir.path()).err().unwrap().to_string();
    assert!(error.contains("br0") && error.contains("bridge"), "{error}");
    assert_eq!(pod.state(), before);
    let error = join_at(Path::new("/no"), manner(1), run_dir.path()).err().unwrap();
    assert!(error.to_string().contains("/no"), "{error}");
    let error = join_at(Path::new("/proc/self/ns/uts"), manner(1), run_dir.path());
    assert!(error.err().unwrap().to_string().contains("ns/uts"));
}

#[test]
fn each_interface_gets_what_is_its_own() {
    let link = |index, name: &str, is_loopback| Link {
        index,
        name: name.into(),
        kind: if is_loopback { Kind::Device } else { Kind::Veth },
        mac: Some(Mac([2, 0, 0, 0, 0, index as u8])),
        mtu: 1500,
        queue_length: 1000,
        is_loopback,
        is_up: true,
        no_arp: false,
        pci_device: None,
    };
    let address = |link| Address::new(link, [10, 0, 0, link as u8].into(), 24);
    let route = |link, is_kernels| Route {
        destination: None,
        gateway: None,
        source: None,
        link,
        is_v6: false,
        scope: 0,
        onlink: false,
        mtu: None,
        is_kernels,
        priority: None,
    };
    let links =
        vec![link(5, "eth1", false), link(1, "lo", true), link(3, "eth0", false), link(4, "bare", false)];
    let less = Route { priority: Some(100), ..route(3, false) };
    let routes = [route(3, true), less, route(5, false)];
    let found = scan::sorted(links, &[address(1), address(3), address(5)], &routes, &[]);
    let names = |found: &Found| (found.link.name.clone(), found.addresses.len(), found.routes.len());
    let bare = ("bare".into(), 0, 0);
    assert_eq!(
        found.iter().map(names).collect::<Vec<_>>(),
        [("eth0".into(), 1, 1), bare, ("eth1".into(), 1, 1)]
    );
    let told = Told::of(&found).routes;
    assert_eq!(told.iter().map(|route| route.device.as_str()).collect::<Vec<_>>(), ["eth1"], "the used one");
    let mut keep = |_| panic!("nothing is to be kept");
    let steps = plan::steps(&found, 0, manner(1), &mut keep).unwrap();
    assert_eq!(steps[1].how, How::Redirected { tap: "tap1_kata".into() });
}

#[test]
fn the_name_servers_are_those_of_the_mount() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("resolv.conf");
    fs::write(&file, "nameserver 10.0.0.1\nsearch a.b\n").unwrap();
    let mounted = |source: &Path| {
        let mount = MountBuilder::default().destination("/etc/resolv.conf").source(source).build().unwrap();
        SpecBuilder::default().mounts([mount]).build().unwrap()
    };
    assert_eq!(resolver(&mounted(&file)), ["nameserver 10.0.0.1", "search a.b"]);
    assert!(resolver(&mounted(&dir.path().join("none"))).is_empty());
    assert!(resolver(&Spec::default()).is_empty());
}

#[test]
fn a_namespace_that_is_yet_to_be_made_is_no_network() {
    let spec = |path: Option<&str>| {
        let mut namespace = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
        if let Some(path) = path {
            namespace = namespace.path(path);
        }
        let linux = LinuxBuilder::default().namespaces([namespace.build().unwrap()]).build().unwrap();
        SpecBuilder::default().linux(linux).build().unwrap()
    };
    assert_eq!(namespace::path_in(&spec(None)), None);
    assert_eq!(namespace::path_in(&spec(Some(""))), None);
    assert_eq!(namespace::path_in(&spec(Some("/run/netns/a"))), Some("/run/netns/a".into()));
}

/// What there is in the namespace of `pod`, by its names.
fn seen(pod: &Pod) -> Vec<Found> {
    let path = pod.path.clone();
    std::thread::spawn(move || {
        enter(&path).unwrap();
        scan::all(&mut Netlink::open().unwrap()).unwrap()
    })
    .join()
    .unwrap()
}

fn one(pod: &Pod, name: &str) -> Found {
    seen(pod).into_iter().find(|found| found.link.name == name).unwrap()
}

fn with_macvlan() -> Pod {
    let pod = Pod::new();
    pod.run("ip link add up0 type veth peer name up1");
    pod.run("ip link add link up0 name eth0 type macvlan mode bridge");
    // As network plugins make it.
    pod.run("ip link set eth0 txqueuelen 0");
    pod.run("ip addr add 10.1.0.2/24 dev eth0");
    pod
}

#[test]
fn d18_a_macvlan_is_redirected_and_has_no_longer_queue_afterwards() {
    let pod = with_macvlan();
    for is_killed in [false, true] {
        let run_dir = tempfile::tempdir().unwrap();
        let before = pod.state();
        assert!(!pod.run("ip link show eth0").contains("qlen"));
        let network = join(&pod, manner(2), run_dir.path()).unwrap();
        assert_eq!(network.nics()[0].mac, one(&pod, "eth0").link.mac.unwrap().0);
        assert!(pod.run("tc filter show dev eth0 parent ffff:").contains("tap0_kata"));
        end(network, is_killed, run_dir.path());
        assert_eq!(pod.state(), before);
    }
}

#[test]
fn d18_an_ipvlan_is_redirected_whatever_the_model_and_stands_alone_on_its_interface() {
    let pod = Pod::with_veth();
    let mut found = one(&pod, "eth0");
    found.link.kind = Kind::Ipvlan;
    let macvtap = Manner { model: InternetworkingModel::Macvtap, ..manner(1) };
    let steps = |found: &[Found]| plan::steps(found, 3, macvtap, &mut |_| panic!("nothing is to be kept"));
    assert_eq!(steps(&[found.clone()]).unwrap()[0].how, How::Redirected { tap: "tap3_kata".into() });
    let mut other = found.clone();
    other.link.name = "eth1".into();
    let error = steps(&[found, other]).err().unwrap().to_string();
    assert!(error.contains("eth0 and eth1") && error.contains("02:00:00:00:00:07"), "{error}");
}

#[test]
fn an_interface_that_came_later_is_joined_and_released_alone() {
    for model in [InternetworkingModel::Default, InternetworkingModel::Macvtap] {
        let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
        let network = join(&pod, Manner { model, ..manner(1) }, run_dir.path()).unwrap();
        pod.run("ip link add eth1 address 02:00:00:00:00:08 type veth peer name other1");
        pod.run("ip addr add 10.2.0.2/24 dev eth1");
        let (before, joined) = (pod.run("ip -4 addr show eth1"), network.joined.clone());
        let on_thread = move |act: Box<dyn FnOnce(&mut Joined) + Send>| {
            let joined = joined.clone();
            std::thread::spawn(move || act(joined.lock().unwrap().as_mut().unwrap())).join().unwrap();
        };
        let late = one(&pod, "eth1");
        let link = late.link.index;
        on_thread(Box::new(move |joined| {
            assert_eq!(joined.join_late(&late).unwrap().mac, [2, 0, 0, 0, 0, 8]);
            let names: Vec<_> = joined.look().unwrap().into_iter().map(|found| found.link.name).collect();
            assert!(
                names.contains(&"eth1".into()) && !names.iter().any(|name| name.ends_with("_kata")),
                "{names:?}"
            );
        }));
        assert!(fs::read_to_string(run_dir.path().join("network.json")).unwrap().contains("eth1"));
        on_thread(Box::new(move |joined| joined.release(link)));
        assert!(!fs::read_to_string(run_dir.path().join("network.json")).unwrap().contains("eth1"));
        assert_eq!(pod.run("ip -4 addr show eth1"), before);
        assert!(pod.run("ip link").contains("tap0_kata"), "the first one's stays");
    }
}

#[test]
fn what_the_kernel_gives_an_interface_by_itself_does_not_set_it_up() {
    let address = |ip: &str| Address::new(3, ip.parse().unwrap(), 64);
    let bare = Found { addresses: vec![address("fe80::1")], ..one(&Pod::with_veth(), "eth0") };
    let given = Found { addresses: vec![address("fe80::2"), address("fd00::1")], ..bare.clone() };
    assert!(!bare.is_set_up() && given.is_set_up());
    let other = Found { addresses: vec![address("fd00::1")], ..given.clone() };
    assert!(bare.differs(&given) && !given.differs(&other));
}
