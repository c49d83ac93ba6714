//! A sandbox and the network of its pod.

use std::fs;

use containerd_shim_protos::{
    api::CreateTaskRequest,
    shim_async::Task,
    ttrpc::{Code, r#async::TtrpcContext},
};

use crate::fakes::{Pod, Shim, code, on_fakes};

const NETWORK: [&str; 4] = ["UpdateInterface", "UpdateRoutes", "AddARPNeighbors", "CreateSandbox"];

/// A request to create `id` in the network of `pod`.
fn request(shim: &Shim, id: &str, pod: &Pod) -> CreateTaskRequest {
    let request = shim.request(id);
    let file = shim.dir.path().join(id).join("config.json");
    let text = fs::read_to_string(&file).unwrap();
    let with_path = format!(r#"{{"path":"{}","type":"network"}}"#, pod.path.display());
    let with_network = text.replace(r#"{"type":"network"}"#, &with_path);
    assert_ne!(text, with_network);
    fs::write(&file, with_network).unwrap();
    request
}

#[test]
fn d1_d19_the_guest_is_told_of_its_network_before_there_is_a_sandbox() {
    on_fakes(async |shim| {
        let pod = Pod::with_veth();
        let before = pod.state();
        shim.service.create(&TtrpcContext::default(), request(shim, "c1", &pod)).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        assert_eq!(shim.guest.asked(&NETWORK), NETWORK);
        assert!(pod.run("tc qdisc").contains("ingress"));
        shim.service.stop().await;
        assert_eq!(shim.published(1).await, ["exit c1 255"]);
        assert_eq!(pod.state(), before);
    });
}

#[test]
fn d20_without_a_namespace_the_machine_is_in_one_of_its_own_that_is_followed() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        let path = shim.machine.network().expect("a network namespace for QEMU");
        let link = std::fs::read_link(&path).unwrap();
        assert_ne!(link, std::fs::read_link("/proc/thread-self/ns/net").unwrap());
        let run = |words: &str| {
            let net = format!("--net={}", path.display());
            let status = std::process::Command::new("nsenter").arg(net).args(words.split(' ')).status();
            assert!(status.unwrap().success(), "{words}");
        };
        run("ip link add eth0 address 02:00:00:00:00:08 type veth peer name other");
        run("ip addr add 10.2.0.2/24 dev eth0");
        shim.machine.has_nics(&[8]).await;
        shim.guest.is_asked("UpdateInterface eth0").await;
    });
}

#[test]
fn d19_an_agent_that_takes_no_neighbours_will_do() {
    on_fakes(async |shim| {
        let pod = Pod::with_veth();
        shim.guest.refuses("AddARPNeighbors", Code::UNIMPLEMENTED, "no");
        shim.service.create(&TtrpcContext::default(), request(shim, "c1", &pod)).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn d18_a_sandbox_whose_guest_does_not_take_its_network_leaves_the_pods_as_it_was() {
    on_fakes(async |shim| {
        let pod = Pod::with_veth();
        let before = pod.state();
        shim.guest.refuses("UpdateInterface", Code::INVALID_ARGUMENT, "no such interface");
        let refused = shim.service.create(&TtrpcContext::default(), request(shim, "c1", &pod)).await;
        assert_eq!(code(refused), Code::INVALID_ARGUMENT);
        assert_eq!(pod.state(), before);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn d18_without_an_internetworking_model_the_pods_network_is_not_touched() {
    on_fakes(async |shim| {
        let pod = Pod::with_veth();
        let before = pod.state();
        shim.configure("[runtime]\ninternetworking_model = \"none\"");
        shim.service.create(&TtrpcContext::default(), request(shim, "c1", &pod)).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        assert_eq!(pod.state(), before);
        assert_eq!(shim.guest.asked(&NETWORK), ["CreateSandbox"]);
    });
}

#[test]
fn d22_what_comes_to_the_pods_network_later_comes_to_the_machine_and_goes_with_it() {
    on_fakes(async |shim| {
        let pod = Pod::with_veth();
        shim.service.create(&TtrpcContext::default(), request(shim, "c1", &pod)).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        let before = pod.state();
        pod.run("ip link add eth1 address 02:00:00:00:00:08 type veth peer name other1");
        pod.run("ip link set eth1 up");
        pod.run("ip addr add 10.2.0.2/24 dev eth1");
        shim.machine.has_nics(&[8]).await;
        shim.guest.is_asked("UpdateInterface eth1 [02/01] ").await;
        pod.run("ip link set other1 up");
        pod.run("ip route add 198.51.100.0/24 via 10.2.0.1");
        shim.guest.is_asked("UpdateRoutes 2").await;
        pod.run("ip addr add 10.2.0.3/24 dev eth1");
        shim.guest.is_asked("UpdateInterface eth1 [02/01] 3 addresses").await;
        pod.run("ip link del eth1");
        shim.machine.has_nics(&[]).await;
        let as_before = || pod.state() == before;
        while !as_before() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        pod.run("ip addr del 10.1.0.2/24 dev eth0");
        shim.guest.is_asked("UpdateInterface eth0 [] ").await;
        pod.run("ip link del eth0");
        shim.guest.is_asked("UpdateInterface eth0 [] 0 addresses").await;
        shim.service.stop().await;
        assert_eq!(shim.published(1).await, ["exit c1 255"]);
        assert!(!pod.run("ip link").contains("kata"));
    });
}

#[test]
fn an_interface_that_cannot_be_had_later_ends_nothing_and_is_had_once_it_can() {
    on_fakes(async |shim| {
        let pod = Pod::with_veth();
        shim.service.create(&TtrpcContext::default(), request(shim, "c1", &pod)).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        shim.guest.refuses("UpdateInterface", Code::INTERNAL, "no");
        pod.run("ip link add br0 type bridge");
        pod.run("ip addr add 10.3.0.2/24 dev br0");
        pod.run("ip link add eth1 address 02:00:00:00:00:08 type veth peer name other1");
        pod.run("ip addr add 10.2.0.2/24 dev eth1");
        shim.guest.is_asked("UpdateInterface eth1").await;
        shim.machine.has_nics(&[]).await;
        shim.guest.obeys();
        pod.run("ip addr add 10.2.0.3/24 dev eth1");
        shim.guest.is_asked("UpdateInterface eth1 [02/01] 2").await;
        shim.machine.has_nics(&[8]).await;
        shim.service.stop().await;
        assert_eq!(shim.published(1).await, ["exit c1 255"]);
        let links = pod.run("ip link");
        assert!(links.contains("eth1") && !links.contains("kata"), "{links}");
    });
}

/// Has the network namespace that the machine is in, as whoever finds it by the machine's process does.
fn of_the_machine(shim: &Shim) -> impl Fn(&str) + use<> {
    let path = shim.machine.network().expect("a network namespace for QEMU");
    move |words| {
        let net = format!("--net={}", path.display());
        let status = std::process::Command::new("nsenter").arg(net).args(words.split(' ')).status();
        assert!(status.unwrap().success(), "{words}");
    }
}

#[test]
fn d20_what_is_started_has_the_network_that_was_made_before() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        let run = of_the_machine(shim);
        run("ip link add eth0 address 02:00:00:00:00:08 type veth peer name other");
        run("ip addr add 10.2.0.2/24 dev eth0");
        let delayed = shim.guest.delays("UpdateInterface");
        let starting = shim.starting("c1");
        shim.guest.is_asked("UpdateInterface eth0").await;
        assert!(shim.guest.asked(&["StartContainer"]).is_empty(), "started before it has its network");
        drop(delayed);
        starting.await.unwrap().unwrap();
        assert_eq!(shim.published(2).await, ["create c1", "start c1"]);
    });
}

#[test]
fn d20_a_container_whose_network_cannot_be_had_does_not_start() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        let run = of_the_machine(shim);
        run("ip link add br0 type bridge");
        run("ip addr add 10.3.0.2/24 dev br0");
        let why = shim.start("c1").await.unwrap_err().to_string();
        assert!(why.contains("br0") && why.contains("kind bridge"), "{why}");
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn d20_a_machine_that_waited_is_found_in_a_namespace_of_its_own_that_is_followed() {
    on_fakes(async |shim| {
        let ready = shim.ready().await;
        let run = of_the_machine(shim);
        let link = std::fs::read_link(shim.machine.network().unwrap()).unwrap();
        assert_ne!(link, std::fs::read_link("/proc/thread-self/ns/net").unwrap());
        shim.uses(ready, "c1", async || {
            run("ip link add eth0 address 02:00:00:00:00:08 type veth peer name other");
            run("ip addr add 10.2.0.2/24 dev eth0");
            shim.machine.has_nics(&[8]).await;
        })
        .await;
    });
}

#[test]
fn d22_what_was_there_from_the_start_may_go_and_come_back() {
    on_fakes(async |shim| {
        let pod = Pod::with_veth();
        shim.service.create(&TtrpcContext::default(), request(shim, "c1", &pod)).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        pod.run("ip link del eth0");
        shim.guest.is_asked("UpdateInterface eth0 [] 0 addresses").await;
        pod.run("ip link add eth1 address 02:00:00:00:00:07 mtu 1300 type veth peer name other");
        pod.run("ip link set eth1 up");
        pod.run("ip addr add 10.1.0.3/24 dev eth1");
        shim.guest.is_asked("UpdateInterface eth1 [] ").await;
        for (from, to) in [("eth1", "tap0_kata"), ("tap0_kata", "eth1")] {
            let filters = pod.run(&format!("tc filter show dev {from} parent ffff:"));
            assert!(filters.contains(&format!("Redirect to device {to}")), "{filters}");
        }
        assert!(pod.run("ip link show tap0_kata").contains("mtu 1300"));
        shim.machine.has_nics(&[]).await;
        shim.service.stop().await;
        assert_eq!(shim.published(1).await, ["exit c1 255"]);
        assert!(!pod.run("ip link").contains("kata") && !pod.run("tc qdisc").contains("ingress"));
    });
}

#[test]
fn d22_an_interface_waits_for_one_of_its_address_that_the_guest_does_not_let_go_of() {
    on_fakes(async |shim| {
        let pod = Pod::with_veth();
        shim.service.create(&TtrpcContext::default(), request(shim, "c1", &pod)).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        let add = |ip: &str| {
            pod.run("ip link add eth1 address 02:00:00:00:00:08 type veth peer name other1");
            pod.run(&format!("ip addr add {ip}/24 dev eth1"));
        };
        add("10.2.0.2");
        shim.guest.is_asked("UpdateInterface eth1 [02/01] 1").await;
        shim.machine.holds_on(true);
        pod.run("ip link del eth1");
        shim.machine.has_held().await;
        add("10.2.0.3");
        pod.run("ip addr add 10.2.0.4/24 dev eth1");
        shim.machine.holds_on(false);
        shim.guest.is_asked("UpdateInterface eth1 [02/01] 2").await;
        shim.machine.has_nics(&[8]).await;
        shim.service.stop().await;
        assert_eq!(shim.published(1).await, ["exit c1 255"]);
        assert!(!pod.run("ip link").contains("kata"));
    });
}

#[test]
fn d22_what_goes_and_is_back_at_once_has_its_routes_again() {
    on_fakes(async |shim| {
        let pod = Pod::with_veth();
        shim.service.create(&TtrpcContext::default(), request(shim, "c1", &pod)).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        let routes = || shim.guest.asked(&["UpdateRoutes"]).len();
        let before = routes();
        pod.run("ip link del eth0");
        pod.run("ip link add eth0 address 02:00:00:00:00:07 mtu 1400 type veth peer name other");
        pod.run("ip link set eth0 up");
        pod.run("ip addr add 10.1.0.2/24 dev eth0");
        pod.run("ip route add default via 10.1.0.1");
        shim.guest.is_asked("UpdateInterface eth0 [] 0 addresses").await;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while routes() == before {
            assert!(std::time::Instant::now() < deadline, "the guest has not been told its routes again");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        shim.service.stop().await;
        assert_eq!(shim.published(1).await, ["exit c1 255"]);
    });
}
