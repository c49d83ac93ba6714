//! The pod's network, seen from inside the guest and from the other end of the pod's veth.

use std::time::{Duration, Instant};

use containerd_shim_protos::api::ConnectResponse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::case::PATIENCE;
use tests::command::run;
use tests::keeper::Keeper;
use tests::pod_network::{MAC, PodNetwork, kernel_has};
use tests::{Case, Context, Result, check, check_eq, eventually, operator};

use crate::listed;

listed!(
    all: [],
    ours: [
        a_copy_of_a_template_gets_the_network_of_its_own_pod,
        a_guest_behind_a_macvlan_reaches_and_is_reached,
        a_guest_behind_a_macvtap_has_the_network_of_its_pod,
        a_guest_behind_a_tap_of_the_pods_reaches_and_is_reached,
        a_guest_behind_an_ipvlan_reaches_and_is_reached,
        a_guest_has_the_network_of_its_pod,
        a_guest_without_pci_has_the_network_of_its_pod,
        a_network_interface_has_as_many_queues_as_there_are_processors,
        a_machine_that_waited_gets_the_network_of_its_pod,
        a_shim_that_is_killed_leaves_the_pods_network_as_it_was,
        d20_a_container_without_a_network_is_given_one_by_the_process_that_is_its_machine,
        d22_an_interface_that_comes_later_is_the_guests_until_it_goes,
    ]
);

/// Cases of a kind of interface that this machine's kernel may lack.
pub(crate) fn lacks_its_kind(name: &str) -> bool {
    ["macvlan", "ipvlan"].into_iter().any(|kind| name.contains(kind) && !kernel_has(kind))
}

/// What goes each way, in MiB.
const MIB: usize = 16;

/// Where it is taken.
const PORT: u16 = 7000;

/// Ends when the guest has its address.
const SEEN: &str = "until ip addr show eth0 2>/dev/null | grep -q 10.7.0.2; do sleep 0.05; done";

/// Fails where it has its interface still after a while.
const GONE: &str =
    "i=0; while ip link show eth0 && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; ! ip link show eth0";

/// How long that may take: PCI, driver and all, also where other guests keep the processors busy.
const LATE: Duration = Duration::from_secs(2);

/// How long a namespace may take to be as it was.
const SETTLE: Duration = Duration::from_secs(15);

fn a_guest_has_the_network_of_its_pod(case: &Case<'_>) -> Result<()> {
    has_its_pods_network(case, "pod", &[])
}

fn a_guest_behind_a_macvlan_reaches_and_is_reached(case: &Case<'_>) -> Result<()> {
    reaches_and_is_reached(case, "macvlan", &PodNetwork::by_plugin("macvlan")?)
}

fn a_guest_behind_an_ipvlan_reaches_and_is_reached(case: &Case<'_>) -> Result<()> {
    reaches_and_is_reached(case, "ipvlan", &PodNetwork::by_plugin("ipvlan")?)
}

fn a_guest_behind_a_tap_of_the_pods_reaches_and_is_reached(case: &Case<'_>) -> Result<()> {
    reaches_and_is_reached(case, "tap", &PodNetwork::by_tap()?)
}

fn reaches_and_is_reached(case: &Case<'_>, id: &str, network: &PodNetwork) -> Result<()> {
    let before = network.state()?;
    start(case, network, id, &[])?;
    let shown = inside(case, id, "ip addr show eth0; ip route; ip -6 route")?;
    for part in
        ["mtu 1400", "inet 10.7.0.2/24", "inet6 fd07::2/64", "default via 10.7.0.1", "default via fd07::1"]
    {
        check!(shown.contains(part), "{part:?} is not in what the guest shows:\n{shown}");
    }
    both_ends_hear_each_other(case, network, id)?;
    from_the_guest(case, network, id)?;
    to_the_guest(case, network, id)?;
    case.ctr(["task", "kill", "-s", "KILL", id])?.exits(0)?;
    is_as_before(network, &before)
}

fn a_guest_behind_a_macvtap_has_the_network_of_its_pod(case: &Case<'_>) -> Result<()> {
    let configuration = case.configuration(|file| {
        file.set("runtime.internetworking_model", "macvtap");
    })?;
    has_its_pods_network(case, "macvtap", &["--runtime-config-path", &operator::path(&configuration)])
}

fn a_guest_without_pci_has_the_network_of_its_pod(case: &Case<'_>) -> Result<()> {
    let configuration = case.configuration(|file| {
        file.set("hypervisor.qemu.machine_type", "microvm");
    })?;
    has_its_pods_network(case, "microvm", &["--runtime-config-path", &operator::path(&configuration)])
}

fn a_machine_that_waited_gets_the_network_of_its_pod(case: &Case<'_>) -> Result<()> {
    let keeper = Keeper::start(case, 1, |_| {})?;
    let waiting = keeper.shims()?;
    has_its_pods_network(case, "waited", &["--runtime-config-path", &operator::path(&keeper.configuration)])?;
    let shim = case.shim_of("waited")?.plain::<ConnectResponse>("Connect")?.shim_pid;
    check!(waiting.contains(&shim), "the shim {shim} is none of {waiting:?}");
    Ok(())
}

fn has_its_pods_network(case: &Case<'_>, id: &str, flags: &[&str]) -> Result<()> {
    let network = PodNetwork::new()?;
    let before = network.state()?;
    start(case, &network, id, flags)?;
    is_set_up(case, id)?;
    both_ends_hear_each_other(case, &network, id)?;
    from_the_guest(case, &network, id)?;
    to_the_guest(case, &network, id)?;
    case.ctr(["task", "kill", "-s", "KILL", id])?.exits(0)?;
    is_as_before(&network, &before)
}

fn a_shim_that_is_killed_leaves_the_pods_network_as_it_was(case: &Case<'_>) -> Result<()> {
    let network = PodNetwork::new()?;
    let before = network.state()?;
    start(case, &network, "lost", &[])?;
    check!(network.pod.says("tc qdisc")?.contains("ingress"), "the veth is not redirected");
    let shim = case.shim_of("lost")?.plain::<ConnectResponse>("Connect")?.shim_pid;
    kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
    let exit = |line: &str| line.contains(&format!(" {} ", case.namespace)) && line.contains("/tasks/exit");
    case.world.events().log.wait_for(PATIENCE, exit)?;
    is_as_before(&network, &before)
}

fn a_copy_of_a_template_gets_the_network_of_its_own_pod(case: &Case<'_>) -> Result<()> {
    let templates = operator::path(&case.dir().join("templates"));
    let configuration = case.configuration(|file| {
        file.set("factory.enable_template", true)
            .set("factory.template_path", templates)
            .set("hypervisor.qemu.default_memory", 256);
    })?;
    let configuration = operator::path(&configuration);
    let network = PodNetwork::new()?;
    let before = network.state()?;
    start(case, &network, "copy", &["--runtime-config-path", &configuration])?;
    check!(!case.log().contains("boots by itself"), "the sandbox is no copy");
    is_set_up(case, "copy")?;
    both_ends_hear_each_other(case, &network, "copy")?;
    case.ctr(["task", "kill", "-s", "KILL", "copy"])?.exits(0)?;
    is_as_before(&network, &before)
}

fn a_network_interface_has_as_many_queues_as_there_are_processors(case: &Case<'_>) -> Result<()> {
    let configuration = case.configuration(|file| {
        file.set("hypervisor.qemu.default_vcpus", 2);
    })?;
    let network = PodNetwork::new()?;
    start(case, &network, "queues", &["--runtime-config-path", &operator::path(&configuration)])?;
    let queues = inside(case, "queues", "ls /sys/class/net/eth0/queues")?;
    check_eq!(queues.split_whitespace().collect::<Vec<_>>(), ["rx-0", "rx-1", "tx-0", "tx-1"], "queues");
    both_ends_hear_each_other(case, &network, "queues")?;
    from_the_guest(case, &network, "queues")
}

fn d22_an_interface_that_comes_later_is_the_guests_until_it_goes(case: &Case<'_>) -> Result<()> {
    let network = PodNetwork::empty()?;
    start(case, &network, "later", &[])?;
    comes_and_goes(case, &network, "later")
}

/// As Docker does it: the process that it is told of leads to the namespace.
fn d20_a_container_without_a_network_is_given_one_by_the_process_that_is_its_machine(
    case: &Case<'_>,
) -> Result<()> {
    case.container("docker").detach(["sleep", "1000000"])?;
    let machine = case.shim_of("docker")?.plain::<ConnectResponse>("Connect")?.task_pid;
    let network = PodNetwork::of_process(machine)?;
    let links = network.pod.says("ip link")?;
    check!(links.contains("lo:") && links.lines().count() == 2, "no namespace of its own: {links}");
    comes_and_goes(case, &network, "docker")
}

fn comes_and_goes(case: &Case<'_>, network: &PodNetwork, id: &str) -> Result<()> {
    let before = network.state()?;
    let waiting = ["task", "exec", "--exec-id", "wait", id, "sh", "-c", SEEN];
    let seen = tests::command::start(&mut case.ctr_command(waiting), Vec::new())?;
    // So that the exec is there, and not waited for.
    inside(case, id, "true")?;
    network.connect()?;
    let since = Instant::now();
    seen.wait(PATIENCE)?.exits(0)?;
    let took = since.elapsed();
    check!(took < LATE, "the guest has seen its interface after {took:?}");
    eventually(SETTLE, || is_set_up(case, id))?;
    both_ends_hear_each_other(case, network, id)?;
    from_the_guest(case, network, id)?;
    network.pod.says("ip link del eth0")?;
    inside(case, id, GONE)?;
    is_as_before(network, &before)?;
    case.ctr(["task", "kill", "-s", "KILL", id])?.exits(0)?;
    is_as_before(network, &before)
}

pub(crate) fn start(case: &Case<'_>, network: &PodNetwork, id: &str, flags: &[&str]) -> Result<()> {
    let namespace = format!("network:{}", network.pod.path());
    case.container(id)
        .flags(["--with-ns", &namespace])
        .flags(flags.iter().copied())
        .detach(["sleep", "1000000"])
}

pub(crate) fn inside(case: &Case<'_>, id: &str, script: &str) -> Result<String> {
    Ok(case.exec(id, &[], &["sh", "-c", script])?.exits(0).context(script)?.out())
}

/// The guest's interface is what the pod's is, with all that goes by it.
fn is_set_up(case: &Case<'_>, id: &str) -> Result<()> {
    let shown = inside(case, id, "ip link show eth0; ip addr show eth0; ip route; ip -6 route")?;
    for part in [
        MAC,
        "mtu 1400",
        ",UP",
        "inet 10.7.0.2/24",
        "inet6 fd07::2/64",
        "default via 10.7.0.1 dev eth0",
        "10.7.0.0/24 dev eth0",
        "198.51.100.0/24 via 10.7.0.1 dev eth0",
        "192.0.2.0/24 dev eth0",
        "default via fd07::1 dev eth0",
    ] {
        check!(shown.contains(part), "{part:?} is not in what the guest shows:\n{shown}");
    }
    let neighbours = inside(case, id, "ip neigh show")?.to_lowercase();
    let is_known = neighbours.contains("10.7.0.9") && neighbours.contains("permanent");
    check!(is_known, "the neighbour is not known: {neighbours}");
    Ok(())
}

fn both_ends_hear_each_other(case: &Case<'_>, network: &PodNetwork, id: &str) -> Result<()> {
    for address in ["10.7.0.1", "fd07::1"] {
        inside(case, id, &format!("ping -c 2 -w 20 {address}"))?;
    }
    for (ping, address) in [("ping", "10.7.0.2"), ("ping6", "fd07::2")] {
        // Who answers is the guest: whatever comes in at the veth goes there alone.
        network.peer.says(&format!("busybox {ping} -c 2 -w 9 {address}"))?;
    }
    Ok(())
}

fn from_the_guest(case: &Case<'_>, network: &PodNetwork, id: &str) -> Result<()> {
    let listener = network.peer.start(&listen("busybox nc"), Vec::new())?;
    let said = inside(case, id, &send("nc 10.7.0.1", "/dev/shm/data"))?;
    listener.wait(PATIENCE)?.exits(0)?;
    is_intact(&said)
}

fn to_the_guest(case: &Case<'_>, network: &PodNetwork, id: &str) -> Result<()> {
    let exec = ["task", "exec", "--exec-id", "listen", id];
    let words = listen("nc");
    let mut command = case.ctr_command(exec.into_iter().chain(words.split(' ')));
    let listener = tests::command::start(&mut command, Vec::new())?;
    let file = case.dir().join("data").to_string_lossy().into_owned();
    let mut sender = network.peer.command("sh -c");
    let said = run(sender.arg(send("busybox nc fd07::2", &file)), PATIENCE)?.exits(0)?.out();
    listener.wait(PATIENCE)?.exits(0)?;
    is_intact(&said)
}

/// Answers with the digest of what came.
fn listen(nc: &str) -> String {
    format!("{nc} -l -p {PORT} -e sha256sum")
}

/// Says the digest of what it sends, and then what the listener says. Nobody tells when that listens; until then it is
/// not there. The data is in a file, as busybox's `nc` does not notice that a pipe ends.
fn send(nc: &str, file: &str) -> String {
    format!(
        "dd if=/dev/urandom of={file} bs=1M count={MIB} 2>/dev/null; sha256sum <{file}; \
         until {nc} {PORT} <{file}; do sleep 0.2; done; rm {file}"
    )
}

fn is_intact(said: &str) -> Result<()> {
    let lines: Vec<&str> = said.lines().collect();
    check!(lines.len() == 2 && lines[0] == lines[1], "what was sent, and what came: {lines:?}");
    Ok(())
}

/// Waits until the pod's namespace is what it was.
pub(crate) fn is_as_before(network: &PodNetwork, before: &str) -> Result<()> {
    eventually(SETTLE, || {
        let now = network.state()?;
        check!(now == before, "the pod's network was\n{before}\nand is now\n{now}");
        Ok(())
    })
}
