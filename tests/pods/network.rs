//! The network of pods, as real CNI plugins make it: a bridge on their host, addresses of both families.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tests::case::PATIENCE;
use tests::command::run;
use tests::pods::{Pod, PodWorld};
use tests::{Context, Result, check, check_eq, eventually};

use crate::volumes::{mount, volume, with};

crate::listed![
    d18_d19_pods_reach_each_other_and_their_host,
    d21_e7_a_pods_annotations_limit_how_fast_it_receives_and_sends,
];

/// What goes from one pod to the other.
const MIB: usize = 256;

/// How long that may take on a loaded machine without KVM.
const TRANSFER: Duration = Duration::from_secs(240);

/// What the bridge has on the pods' host.
const GATEWAYS: [&str; 2] = ["10.88.0.1", "fd88::1"];

/// What the pods' host answers to whoever asks it for a name.
const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

fn d18_d19_pods_reach_each_other_and_their_host(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |one| {
        world.pod(world.config(), |two| {
            let (content, sum) = content(world)?;
            let waits = |pod, mounts| with(pod, "waits", mounts);
            let (from, to) = (waits(one, Vec::new())?, waits(two, vec![mount(&content, "/served")])?);
            let addresses = addresses(two)?;
            let own = two.sh(&to, "ip addr show eth0")?;
            check!(addresses.iter().all(|address| own.contains(address)), "{addresses:?} in {own}");
            for address in addresses.iter().map(String::as_str).chain(GATEWAYS) {
                one.sh(&from, &format!("ping -c 1 -w 10 {address}")).context("ping")?;
            }
            // Who has no such port says so, by which the way there and back is shown.
            for (trace, address) in ["traceroute", "traceroute6"].into_iter().zip(&addresses) {
                let hops = one.sh(&from, &format!("{trace} -n -q 1 -w 5 -m 2 {address}"))?;
                check!(hops.lines().count() == 2 && hops.contains(" ms"), "UDP to {address}: {hops}");
            }
            two.sh(&to, "httpd -p 9000 -h /served")?;
            transfer(one, &from, &addresses[0], &sum)?;
            let by_ipv6 = format!("wget -q -O - 'http://[{}]:9000/small'", addresses[1]);
            check_eq!(one.sh(&from, &by_ipv6)?, SMALL, "what the other pod serves by IPv6");
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

/// What is in the file `small`.
const SMALL: &str = "served";

/// A directory with a file of random bytes, `content`, and the file's sum.
fn content(world: &PodWorld) -> Result<(PathBuf, String)> {
    let dir = volume(world, "kubernetes.io~empty-dir", "served")?;
    let script = format!("head -c {MIB}M /dev/urandom | tee {}/content | md5sum", dir.display());
    let sum = run(Command::new("sh").args(["-c", &script]), PATIENCE)?.exits(0)?.out();
    std::fs::write(dir.join("small"), SMALL)?;
    Ok((dir, sum.trim().to_owned()))
}

/// A transfer over TCP, by HTTP: busybox's nc moves a KiB at a time, which takes emulated processors minutes.
fn transfer(pod: &Pod<'_>, id: &str, address: &str, wanted: &str) -> Result<()> {
    let fetch = format!("wget -q -O - http://{address}:9000/content");
    // Longer than an exec may take.
    pod.sh(id, &format!("(({fetch} | md5sum) > /tmp/sum.new; mv /tmp/sum.new /tmp/sum) > /dev/null 2>&1 &"))?;
    let sum = eventually(TRANSFER, || {
        let sum = pod.sh(id, "cat /tmp/sum 2>/dev/null || true")?;
        check!(!sum.is_empty(), "{MIB} MiB have not arrived");
        Ok(sum)
    })?;
    check_eq!(sum, wanted, "the sum of {MIB} MiB");
    Ok(())
}

/// TCP either way between host and pod, and UDP from the pod to the host and back.
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
    let server = greeter(world)?;
    for gateway in GATEWAYS {
        check_eq!(
            pod.sh(id, &format!("nc {gateway} 9002 </dev/null"))?,
            gateway,
            "what the pod asks of the host"
        );
    }
    server.join().map_err(|_| tests::Failure::new("the greeter panicked"))??;
    let server = name_server(world)?;
    for gateway in GATEWAYS {
        let said = pod.sh(id, &format!("nslookup -type=a name.test {gateway}"))?;
        check!(said.contains(&ANSWER.to_string()), "UDP to {gateway} and back: {said}");
    }
    server.join().map_err(|_| tests::Failure::new("the name server panicked"))?
}

/// Tells each who connects to a gateway which one that is, on the pods' host.
fn greeter(world: &PodWorld) -> Result<thread::JoinHandle<Result<()>>> {
    let (bound, ready) = std::sync::mpsc::channel();
    let server = world.on_host_network(move || {
        let listener = TcpListener::bind("[::]:9002")?;
        let _ = bound.send(());
        for _ in GATEWAYS {
            let (mut asker, _) = listener.accept()?;
            let asked = asker.local_addr()?.ip().to_canonical();
            asker.write_all(asked.to_string().as_bytes())?;
        }
        Ok(())
    })?;
    ready.recv_timeout(Duration::from_secs(5))?;
    Ok(server)
}

/// Answers a question for each of the gateways, on the pods' host.
fn name_server(world: &PodWorld) -> Result<thread::JoinHandle<Result<()>>> {
    let (bound, ready) = std::sync::mpsc::channel();
    let server = world.on_host_network(move || {
        let socket = UdpSocket::bind("[::]:53")?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        let _ = bound.send(());
        let mut question = [0; 512];
        for _ in GATEWAYS {
            let (length, asker) = socket.recv_from(&mut question)?;
            socket.send_to(&answer(&question[..length]), asker)?;
        }
        Ok(())
    })?;
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

/// In bits per second.
const LIMITED: [(&str, u64); 2] = [("rx", 4_000_000), ("tx", 6_000_000)];
const LIMITED_BYTES: u64 = 2 << 20;
/// What may go at once after a pause, in bytes, with the kernel's own buffers beside the sender.
const BURST: u64 = 512 << 10;

fn d21_e7_a_pods_annotations_limit_how_fast_it_receives_and_sends(world: &PodWorld) -> Result<()> {
    let mut config = world.config();
    for (direction, rate) in LIMITED {
        let annotation = format!("io.katacontainers.config.hypervisor.{direction}_rate_limiter_max_rate");
        config.annotations.insert(annotation, rate.to_string());
    }
    world.pod(config, |pod| {
        let id = pod.run(&pod.container("waits", ["sleep", "1000"]))?;
        let address = pod.world.cri().pod_status(&pod.id)?.network.context("the pod's network")?.ip;
        pod.sh(&id, "(sleep 60 | nc -l -p 9002 | wc -c > /tmp/count) > /dev/null 2>&1 & sleep 0.5")?;
        let bytes = LIMITED_BYTES;
        let receives = took(|| {
            on_host(world, &format!("head -c {bytes} /dev/zero | busybox nc {address} 9002"))?;
            pod.sh(&id, "for i in $(seq 200); do [ -s /tmp/count ] && break; sleep 0.1; done").map(drop)
        })?;
        check_eq!(pod.sh(&id, "cat /tmp/count")?, bytes.to_string(), "bytes that came in");
        let (port, counted) = counter(world)?;
        let send = format!("head -c {bytes} /dev/zero | nc {address} {port}", address = GATEWAYS[0]);
        let sends = took(|| {
            pod.sh(&id, &format!("({send}) > /dev/null 2>&1 &"))?;
            let came = counted.join().map_err(|_| tests::Failure::new("the counter panicked"))??;
            check_eq!(came, bytes, "bytes that went out");
            Ok(())
        })?;
        for ((direction, rate), time) in LIMITED.into_iter().zip([receives, sends]) {
            let least = Duration::from_secs_f64(((bytes - BURST) * 8) as f64 / rate as f64);
            check!(time >= least, "{direction}: {bytes} bytes took {time:?}, at {rate} bits per second");
        }
        Ok(())
    })
}

fn took(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let since = Instant::now();
    act()?;
    Ok(since.elapsed())
}

/// Counts what one sender sends to a port of the pods' host.
fn counter(world: &PodWorld) -> Result<(u16, thread::JoinHandle<Result<u64>>)> {
    let (bound, ready) = std::sync::mpsc::channel();
    let counter = world.on_host_network(move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let _ = bound.send(listener.local_addr()?.port());
        let (mut sender, _) = listener.accept()?;
        sender.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(std::io::copy(&mut sender, &mut std::io::sink())?)
    })?;
    Ok((ready.recv_timeout(Duration::from_secs(5))?, counter))
}
