//! What pods cost that come by CRI: starts, an exec, the network, and memory by their number.

use std::io::{Read, Write, copy, sink};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tests::memory::family_pss_kib;
use tests::pods::{Pod, PodWorld};
use tests::{Context, Result, check_eq};

use crate::guest::rate;
use crate::measure::{millis, rounds};
use crate::report::{Report, median, percentile};

const EXECS: usize = 30;
/// What goes each way over the network, in bytes.
const TRANSFER: usize = 64 << 20;
/// Idle pods, of which the memory is told.
const CROWDS: [usize; 4] = [1, 4, 8, 16];
/// The pods' host, as pods see it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

/// Measures everything into `report`.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let world = PodWorld::new()?;
    report.heading("Pods by CRI");
    starts(&world, report)?;
    world.pod(world.config(), |pod| {
        let id = pod.run(&pod.container("waits", ["sleep", "100000"]))?;
        execs(pod, &id, report)?;
        network(pod, &id, report)
    })?;
    report.heading("Idle pods, each with one container");
    crowd(&world, &mut Vec::new(), report)
}

/// A pod with its first container, and one more in it.
fn starts(world: &PodWorld, report: &mut Report) -> Result<()> {
    let (mut pods, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..rounds() {
        let began = Instant::now();
        world.pod(world.config(), |pod| {
            pod.run(&pod.container("first", ["sleep", "100000"]))?;
            pods.push(began.elapsed().as_secs_f64());
            let began = Instant::now();
            pod.run(&pod.container("second", ["sleep", "100000"]))?;
            seconds.push(millis(began.elapsed()));
            Ok(())
        })?;
    }
    report.add("pod_start_s", median(pods), "RunPodSandbox, until its first container runs");
    report.add(
        "pod_second_container_ms",
        median(seconds),
        "CreateContainer and StartContainer of a second one",
    );
    Ok(())
}

fn execs(pod: &Pod<'_>, id: &str, report: &mut Report) -> Result<()> {
    let exec = |_| Ok(millis(pod.world.cri().exec(id, ["true"])?.exits(0)?.took));
    let times = (0..EXECS).map(exec).collect::<Result<Vec<f64>>>()?;
    report.add("pod_exec_p50_ms", percentile(times.clone(), 50), "ExecSync of true");
    report.add("pod_exec_p99_ms", percentile(times, 99), "");
    Ok(())
}

/// Over the bridge, by busybox's client and server of HTTP, as those move more at a time than its other programs.
fn network(pod: &Pod<'_>, id: &str, report: &mut Report) -> Result<()> {
    let address = pod.world.cri().pod_status(&pod.id)?.network.context("the pod's network")?.ip;
    let pings = pod.sh(id, &format!("ping -q -c 20 -i 0.2 {GATEWAY}"))?;
    let average = pings.rsplit(" = ").next().and_then(|times| times.split('/').nth(1)).context(&pings)?;
    report.add("pod_round_trip_ms", average.parse().context(average)?, "ping from the pod to its host");

    let (port, served) = serve(pod.world)?;
    let began = Instant::now();
    pod.sh(id, &format!("wget -q -O /dev/null http://{GATEWAY}:{port}/"))?;
    report.add("pod_network_in_mb_s", rate(TRANSFER, began.elapsed()), "from its host to the pod");
    served.join().map_err(|_| tests::Failure::new("the server panicked"))??;

    pod.sh(id, &format!("mkdir /www && head -c {TRANSFER} /dev/zero > /www/file && httpd -p 80 -h /www"))?;
    let fetched = pod.world.on_host_network(move || fetch(&format!("{address}:80")))?;
    let (bytes, took) = fetched.join().map_err(|_| tests::Failure::new("the client panicked"))??;
    check_eq!(bytes, TRANSFER as u64, "bytes from the pod");
    report.add("pod_network_out_mb_s", rate(TRANSFER, took), "from the pod to its host");
    Ok(())
}

/// Answers one request with [`TRANSFER`] bytes.
fn serve(world: &PodWorld) -> Result<(u16, std::thread::JoinHandle<Result<()>>)> {
    let (bound, ready) = std::sync::mpsc::channel();
    let served = world.on_host_network(move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let _ = bound.send(listener.local_addr()?.port());
        let (mut asker, _) = listener.accept()?;
        let _ = asker.read(&mut [0; 4096])?;
        write!(asker, "HTTP/1.0 200 OK\r\nContent-Length: {TRANSFER}\r\n\r\n")?;
        copy(&mut std::io::repeat(0).take(TRANSFER as u64), &mut asker)?;
        Ok(())
    })?;
    Ok((ready.recv_timeout(Duration::from_secs(5))?, served))
}

/// The length of a file, and how long its body takes.
fn fetch(address: &str) -> Result<(u64, Duration)> {
    let mut server = TcpStream::connect(address).context(address)?;
    server.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(server, "GET /file HTTP/1.0\r\n\r\n")?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        server.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let began = Instant::now();
    Ok((copy(&mut server, &mut sink())?, began.elapsed()))
}

/// One more pod around what is measured, until the largest of [`CROWDS`] is there.
fn crowd(world: &PodWorld, ids: &mut Vec<String>, report: &mut Report) -> Result<()> {
    if CROWDS.contains(&ids.len()) {
        let count = ids.len();
        let all = ids.iter().map(|id| pod_pss_kib(world, id)).sum::<Result<f64>>()?;
        report.add(&format!("pods_{count}_pss_kib"), all / count as f64, "of each: shim, QEMU and helpers");
    }
    if Some(&ids.len()) == CROWDS.last() {
        return Ok(());
    }
    world.pod(world.config(), |pod| {
        pod.run(&pod.container("waits", ["sleep", "100000"]))?;
        ids.push(pod.id.clone());
        crowd(world, ids, report)
    })
}

fn pod_pss_kib(world: &PodWorld, id: &str) -> Result<f64> {
    Ok(family_pss_kib(world.shim_of(id)?))
}
