//! All figures of a sandbox, by the names that the dashboards of the field know: read when they are asked for.

use std::{sync::Arc, time::Duration};

use agent_protocol::agent::StatsContainerResponse;
use futures::future::join_all;
use prometheus::{Counter, Gauge, GaugeVec, Opts, Registry, TextEncoder};
use slog::warn;
use tokio::time::timeout;

use super::{
    Management, exposition,
    overhead::{self, Overhead, Used},
    process::{self, Process},
};
use crate::{
    error::{Error, Result},
    sandbox::Sandbox,
    thread,
};

/// What the text is.
pub(super) const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How long the guest has. `kata-monitor` waits 3 s for all of it, and wants the host's figures of a guest that hangs.
const GUEST: Duration = Duration::from_secs(2);

/// A process of the sandbox on the host: what its names begin with, and what it has used.
type Measured = (&'static str, Process);

/// # Errors
/// `Unavailable` when there is no machine any more. A guest that does not answer is left out.
pub(super) async fn text(management: &Management, sandbox: &Arc<Sandbox>) -> Result<String> {
    sandbox.is_up()?;
    let guest = timeout(GUEST, sandbox.ask(of_guest(management, sandbox))).await;
    let guest = match guest {
        Ok(Err(Error::Unavailable(why))) => return Err(Error::Unavailable(why)),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(guest)) => Ok(guest),
        Err(_) => Err(format!("the guest does not answer within {} s", GUEST.as_secs())),
    };
    let guest =
        guest.inspect_err(|why| warn!(management.log, "metrics without the guest's"; "why" => why)).ok();
    let processes = of_host(sandbox).await?;
    let interfaces = sandbox.network().counters().await.unwrap_or_default();
    let overhead = guest.as_ref().map(|(_, stats)| overhead::of(management, used(&processes, stats)));
    let registry = registry(management, sandbox, &processes, &interfaces, overhead.as_ref());
    let families = registry.map(|registry| registry.gather());
    let text = families.and_then(|families| TextEncoder::new().encode_to_string(&families));
    let text = text.map_err(|error| Error::Failed(format!("metrics: {error}")))?;
    Ok(text + &guest.map(|(text, _)| exposition::cleaned(&text)).unwrap_or_default())
}

/// The guest's own text, and what each container uses, as far as it can be had.
async fn of_guest(
    management: &Management,
    sandbox: &Sandbox,
) -> std::result::Result<(String, Vec<StatsContainerResponse>), agent_client::Error> {
    let agent = sandbox.agent();
    let names = management.containers.names();
    let stats = join_all(names.iter().map(|name| agent.stats_container(name)));
    let (text, stats) = tokio::join!(agent.metrics(), stats);
    // An agent that has no metrics still has containers.
    let text = match text {
        Err(error) if error.is_unsupported() => String::new(),
        text => text?.into_inner(),
    };
    Ok((text, stats.into_iter().flatten().collect()))
}

async fn of_host(sandbox: &Sandbox) -> Result<Vec<Measured>> {
    let machine = sandbox.processes().into_iter().filter(vmm::Process::is_there);
    let named = machine.filter_map(|process| match process.name.as_str() {
        "qemu" => Some(("kata_hypervisor", process.pid)),
        "virtiofsd" | "nydusd" => Some(("kata_virtiofsd", process.pid)),
        _ => None,
    });
    let mut all = vec![("kata_shim", std::process::id())];
    for (prefix, pid) in named {
        // A second one of a kind has no names of its own.
        if all.iter().all(|(known, _)| *known != prefix) {
            all.push((prefix, pid));
        }
    }
    // A large machine has much memory to be looked at.
    let read = |(prefix, pid)| Some((prefix, Process::read(pid).ok()?));
    thread::run("metrics", move || Ok(all.into_iter().filter_map(read).collect())).await
}

fn used(processes: &[Measured], containers: &[StatsContainerResponse]) -> Used {
    let mut used = Used::now();
    for (_, process) in processes {
        used.host_cpu += process.cpu;
        used.host_memory += process.share;
    }
    for stats in containers {
        let cgroup = &stats.cgroup_stats;
        used.guest_cpu += Duration::from_nanos(cgroup.cpu_stats.cpu_usage.total_usage).as_secs_f64();
        used.guest_memory += cgroup.memory_stats.usage.usage as f64;
    }
    used
}

fn registry(
    management: &Management,
    sandbox: &Sandbox,
    processes: &[Measured],
    interfaces: &str,
    overhead: Option<&Overhead>,
) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(management.calls.clone()))?;
    registry.register(Box::new(sandbox.agent().durations().clone()))?;
    for (prefix, process) in processes {
        of_process(&registry, prefix, process)?;
    }
    if let Some((_, shim)) = processes.iter().find(|(prefix, _)| *prefix == "kata_shim") {
        of_shim(&registry, shim)?;
    }
    let opts =
        Opts::new("kata_hypervisor_netdev", "Counters of the interfaces in the pod's network namespace.");
    let netdev = GaugeVec::new(opts, &["interface", "item"])?;
    for (interface, item, value) in process::interfaces(interfaces) {
        netdev.with_label_values(&[interface.as_str(), item]).set(value);
    }
    registry.register(Box::new(netdev))?;
    if let Some(overhead) = overhead {
        let help = "Bytes of the host's memory that the pod uses beyond what its containers use.";
        gauge(&registry, "kata_shim_pod_overhead_memory_in_bytes", help, overhead.memory)?;
        if let Some(cpu) = overhead.cpu {
            let help = "Percent of a processor that the pod used beyond what its containers used.";
            gauge(&registry, "kata_shim_pod_overhead_cpu", help, cpu)?;
        }
    }
    Ok(registry)
}

fn of_process(registry: &Registry, prefix: &str, process: &Process) -> prometheus::Result<()> {
    gauge(registry, &format!("{prefix}_threads"), "Threads of the process.", process.threads)?;
    gauge(registry, &format!("{prefix}_fds"), "Open descriptors of the process.", process.fds)?;
    for (name, help, items) in [
        ("proc_stat", "Processor time of the process by kind, in ticks.", &process.times),
        ("proc_status", "Memory of the process, in bytes, and its switches of context.", &process.status),
        ("io_stat", "Input and output of the process.", &process.io),
    ] {
        let family = GaugeVec::new(Opts::new(format!("{prefix}_{name}"), help), &["item"])?;
        for (item, value) in items {
            family.with_label_values(&[item]).set(*value);
        }
        registry.register(Box::new(family))?;
    }
    Ok(())
}

/// What the Prometheus libraries tell of the process they are in.
fn of_shim(registry: &Registry, shim: &Process) -> prometheus::Result<()> {
    let seconds =
        Counter::new("kata_shim_process_cpu_seconds_total", "Processor time of the shim, in seconds.")?;
    seconds.inc_by(shim.cpu);
    registry.register(Box::new(seconds))?;
    for (name, help, value) in [
        ("open_fds", "Open descriptors of the shim.", shim.fds),
        ("max_fds", "Most descriptors that the shim may have open.", shim.most_fds),
        ("resident_memory_bytes", "Resident memory of the shim, in bytes.", shim.resident),
        ("virtual_memory_bytes", "Address space of the shim, in bytes.", shim.address_space),
        ("start_time_seconds", "When the shim started, in seconds since 1970.", shim.started),
    ] {
        gauge(registry, &format!("kata_shim_process_{name}"), help, value)?;
    }
    Ok(())
}

fn gauge(registry: &Registry, name: &str, help: &str, value: f64) -> prometheus::Result<()> {
    let gauge = Gauge::new(name, help)?;
    gauge.set(value);
    registry.register(Box::new(gauge))
}
