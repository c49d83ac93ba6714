//! What operators' tools ask of a pod's shim.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agent_client::{AgentClient, Timeouts};
use prometheus_parse::{Scrape, Value};
use tests::block::LoopDevice;
use tests::command::run;
use tests::http;
use tests::pods::{Pod, PodWorld};
use tests::{Context, Result, check, check_eq, eventually};
use tokio::runtime::Builder;

use crate::volumes::{Note, mount, volume, with};

crate::listed![c22_tools_are_answered_where_they_look];

fn c22_tools_are_answered_where_they_look(world: &PodWorld) -> Result<()> {
    let image = world.dir().join("grows.img");
    let disk = LoopDevice::blank(&image)?;
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", &disk.file]), Duration::from_secs(10))?.exits(0)?;
    world.pod(world.config(), |pod| {
        let address = fs::read_to_string(pod.bundle().join("monitor_address"))?;
        check_eq!(address, format!("unix://{}", pod.door().display()), "where the bundle says it is");
        let path = pod.door().to_string_lossy().replace(&pod.id, "$SANDBOX");
        check!(PAGE.contains(&format!("curl --unix-socket \"{path}\"")), "docs/metrics.md on {path}");
        metrics(pod)?;
        volumes(pod, &disk, &image)?;
        agent(pod)?;
        for (target, words) in [("/iptables", "no iptables"), ("/ip6tables", "no iptables")] {
            let (status, said) = http::ask(&pod.door(), "GET", target, "")?;
            check!(status == 501 && said.contains(words), "{target}: {status} {said}");
        }
        Ok(())
    })?;
    disk.detach()
}

/// Another program reaches the agent, by whichever way there is.
fn agent(pod: &Pod<'_>) -> Result<()> {
    let (status, url) = http::ask(&pod.door(), "GET", "/agent-url", "")?;
    check_eq!(status, 200, "the status of {url}");
    let Some(place) = url.strip_prefix("hvsock://") else {
        check!(url.starts_with("vsock://"), "{url}");
        return Ok(());
    };
    let (socket, port) = place.rsplit_once(':').context(&url)?;
    let mut stream = UnixStream::connect(socket).context(socket)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    answer.read_line(&mut line)?;
    check!(line.starts_with("OK "), "{line}");
    stream.set_nonblocking(true)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::from_std(stream)?;
        AgentClient::over(stream, Timeouts::default()).check().await.context("the agent")
    })
}

/// The operator's page about figures.
const PAGE: &str = include_str!("../../docs/metrics.md");

/// All figures, the guest's among them: they are left out when it takes longer than a dashboard waits.
fn scraped(pod: &Pod<'_>) -> Result<Scrape> {
    eventually(Duration::from_secs(60), || {
        let (status, text) = http::ask(&pod.door(), "GET", "/metrics", "")?;
        check_eq!(status, 200, "the status of {text}");
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))?;
        check!(scrape.samples.iter().any(|sample| sample.metric == "kata_guest_load"), "no guest's: {text}");
        Ok(scrape)
    })
}

/// The figure of a name with these labels.
fn figure(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    let is_it = |sample: &&prometheus_parse::Sample| {
        sample.metric == name && labels.iter().all(|(label, value)| sample.labels.get(label) == Some(value))
    };
    let sample = scrape.samples.iter().find(is_it).context(format_args!("{name} {labels:?}"))?;
    match sample.value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => Ok(value),
        _ => None.context(format_args!("{name}: a number")),
    }
}

fn metrics(pod: &Pod<'_>) -> Result<()> {
    let container = pod.run(&pod.container("one", ["sleep", "1000"]))?;
    let before = scraped(pod)?;
    let names: BTreeSet<_> = before.samples.iter().map(|sample| sample.metric.as_str()).collect();
    for name in [
        "kata_shim_threads",
        "kata_shim_proc_status",
        "kata_shim_rpc_durations_histogram_milliseconds",
        "kata_shim_agent_rpc_durations_histogram_milliseconds",
        "kata_shim_pod_overhead_memory_in_bytes",
        "kata_hypervisor_threads",
        "kata_hypervisor_io_stat",
        "kata_guest_load",
        "kata_guest_meminfo",
        "kata_agent_total_rss",
    ] {
        check!(names.contains(name), "{name} in {names:?}");
    }
    for name in &names {
        let is_there = |name: &str| PAGE.contains(&format!("`{name}`"));
        let of_histogram = name.strip_suffix("_count").or(name.strip_suffix("_sum"));
        check!(
            is_there(name) || of_histogram.is_some_and(is_there),
            "docs/metrics.md says nothing of {name}"
        );
    }
    pod.sh(&container, "head -c 16m /dev/urandom | md5sum; ping -c 3 -s 1000 10.88.0.1")?;
    let after = scraped(pod)?;
    for (name, labels) in [
        ("kata_hypervisor_proc_stat", &[("item", "utime")][..]),
        ("kata_hypervisor_netdev", &[("interface", "eth0"), ("item", "recv_bytes")]),
        ("kata_guest_netdev_stat", &[("interface", "eth0"), ("item", "sent_bytes")]),
        ("kata_guest_cpu_time", &[("cpu", "total"), ("item", "user")]),
        ("kata_agent_scrape_count", &[]),
    ] {
        let (before, after) = (figure(&before, name, labels)?, figure(&after, name, labels)?);
        check!(after > before, "{name} {labels:?} from {before} to {after}");
    }
    check!(figure(&after, "kata_shim_pod_overhead_cpu", &[])? >= 0.0, "what the pod costs");
    pod.end(&container)
}

/// A directly assigned volume is told of, and grows while it is in use.
fn volumes(pod: &Pod<'_>, disk: &LoopDevice, image: &Path) -> Result<()> {
    let dir = volume(pod.world, "kubernetes.io~csi", "grows")?;
    let note = Note::of(&dir, &disk.file)?;
    let container = with(pod, "keeper", vec![mount(&dir, "/data")])?;
    check!(note.path().join(&pod.id).exists(), "tools are told which sandbox has the volume");
    let total = || -> Result<u64> {
        let target = format!("/direct-volume/stats?path={}", dir.to_string_lossy().replace('/', "%2F"));
        let (status, said) = http::ask(&pod.door(), "GET", &target, "")?;
        check_eq!(status, 200, "the status of {said}");
        let stats: serde_json::Value = serde_json::from_str(&said)?;
        stats["usage"][0]["total"].as_u64().context(said)
    };
    let resize = |bytes: u64| {
        let body = serde_json::json!({"VolumePath": dir, "Size": bytes}).to_string();
        http::ask(&pod.door(), "POST", "/direct-volume/resize", &body)
    };
    let before = total()?;
    check!((4 << 20..8 << 20).contains(&before), "{before} bytes in all");
    let (status, said) = resize(16 << 20)?;
    check!(status == 409 && said.contains("8388608"), "a disk that has not grown: {status} {said}");
    disk.grow(image, 16 << 20)?;
    let (status, said) = resize(16 << 20)?;
    check_eq!(status, 200, "the status of {said}");
    let after = total()?;
    check!(after > before + (6 << 20), "from {before} to {after} bytes");
    pod.sh(&container, "head -c 10m /dev/zero > /data/file && sync")?;
    pod.end(&container)
}
