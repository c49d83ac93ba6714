//! The network of pods, as real CNI plugins make it: a bridge on their host, addresses of both families.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use tests::case::PATIENCE;
use tests::command::run;
use tests::pods::{Pod, PodWorld};
use tests::{Context, Result, check, check_eq};

crate::listed![d18_d19_pods_reach_each_other_and_their_host];

/// What goes from one pod to the other: not more, as busybox's nc moves a KiB at a time, which takes emulated processors
/// two minutes for 256 MiB.
const MIB: usize = 32;

/// How long that may take on a loaded machine without KVM.
const TRANSFER: Duration = Duration::from_secs(240);

/// What the bridge has on the pods' host.
const GATEWAYS: [&str; 2] = ["10.88.0.1", "fd88::1"];

/// What the pods' host answers to whoever asks it for a name.
const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

fn d18_d19_pods_reach_each_other_and_their_host(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |one| {
        world.pod(world.config(), |two| {
            let waits = |pod: &Pod<'_>| pod.run(&pod.container("waits", ["sleep", "1000"]));
            let (from, to) = (waits(one)?, waits(two)?);
            let addresses = addresses(two)?;
            let own = two.sh(&to, "ip addr show eth0")?;
            check!(addresses.iter().all(|address| own.contains(address)), "{addresses:?} in {own}");
            for address in addresses.iter().map(String::as_str).chain(GATEWAYS) {
                one.sh(&from, &format!("ping -c 1 -w 10 {address}")).context("ping")?;
            }
            // Who has no such port says so, by which the way there and back is shown.
            let hops = one.sh(&from, &format!("traceroute -n -q 1 -w 5 -m 2 {}", addresses[0]))?;
            check!(hops.lines().count() == 2 && hops.contains(" ms"), "UDP to the other pod: {hops}");
            transfer(one, &from, two, &to, &addresses)?;
            host_and_pod(world, two, &to, &addresses)
        })
    })
}

fn addresses(pod: &Pod<'_>) -> Result<Vec<String>> {
    let network = pod.world.cri().pod_status(&pod.id)?.network.context("the pod's network")?;
    let all: Vec<String> =
        std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect();
    check_eq!(all.len(), 2, "addresses of the pod");
    Ok(all)
}

/// A transfer over TCP, taken by a process in the other pod. busybox's nc ends with what it hears, so whoever is to
/// be heard in full must not be the first to have said everything.
fn transfer(one: &Pod<'_>, from: &str, two: &Pod<'_>, to: &str, addresses: &[String]) -> Result<()> {
    let content = format!("yes 'all of this is to arrive' | head -c {}", MIB << 20);
    let wanted =
        run(Command::new("sh").args(["-c", &format!("{content} | md5sum")]), PATIENCE)?.exits(0)?.out();
    two.sh(to, "(sleep 1000 | nc -l -p 9000 | md5sum > /tmp/sum) > /dev/null 2>&1 &")?;
    // Longer than an exec may take.
    let send = format!("{content} | nc {} 9000", addresses[0]);
    one.sh(from, &format!("(for i in $(seq 50); do {send} && exit; sleep 0.1; done) > /dev/null 2>&1 &"))?;
    let deadline = Instant::now() + TRANSFER;
    let sum = loop {
        let sum =
            two.sh(to, "for i in $(seq 300); do [ -s /tmp/sum ] && break; sleep 0.1; done; cat /tmp/sum")?;
        if !sum.is_empty() {
            break sum;
        }
        check!(Instant::now() < deadline, "{MIB} MiB have not arrived after {TRANSFER:?}");
    };
    check_eq!(sum, wanted.trim(), "the sum of {MIB} MiB");
    Ok(())
}

/// TCP from the host to the pod, and UDP from the pod to the host and back.
fn host_and_pod(world: &PodWorld, pod: &Pod<'_>, id: &str, addresses: &[String]) -> Result<()> {
    for address in addresses {
        pod.sh(
            id,
            "((echo from the pod; sleep 3) | nc -l -p 9001 > /tmp/heard) > /dev/null 2>&1 & sleep 0.5",
        )?;
        let heard = on_host(world, &format!("(echo from the host; sleep 1) | busybox nc {address} 9001"))?;
        check_eq!(heard, "from the pod\n", "what the host hears by {address}");
        check_eq!(pod.sh(id, "cat /tmp/heard")?, "from the host", "what the pod hears by {address}");
    }
    let server = name_server(world)?;
    for gateway in GATEWAYS {
        let said = pod.sh(id, &format!("nslookup -type=a name.test {gateway}"))?;
        check!(said.contains(&ANSWER.to_string()), "UDP to {gateway} and back: {said}");
    }
    server.join().map_err(|_| tests::Failure::new("the name server panicked"))?
}

/// Answers a question for each of the gateways, on the pods' host.
fn name_server(world: &PodWorld) -> Result<thread::JoinHandle<Result<()>>> {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", world.host()))?;
    let (bound, ready) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let socket = UdpSocket::bind("[::]:53")?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        let _ = bound.send(());
        let mut question = [0; 512];
        for _ in GATEWAYS {
            let (length, asker) = socket.recv_from(&mut question)?;
            socket.send_to(&answer(&question[..length]), asker)?;
        }
        Ok(())
    });
    ready.recv_timeout(Duration::from_secs(5))?;
    Ok(server)
}

/// RFC 1035, 4.1: the question again, with one address.
fn answer(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
    // The name is the question's; an address of the Internet, for a minute.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(ANSWER.octets());
    answer
}

fn on_host(world: &PodWorld, script: &str) -> Result<String> {
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &world.host().to_string(), "--net", "sh", "-c", script]);
    Ok(run(&mut nsenter, Duration::from_secs(20))?.exits(0)?.out())
}
