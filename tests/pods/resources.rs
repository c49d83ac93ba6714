//! A pod's machine, and its containers' limits.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use k8s_cri::v1::{
    ContainerConfig, LinuxContainerConfig, LinuxContainerResources, UpdateContainerResourcesRequest,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::pods::{Pod, PodWorld};
use tests::{Context, Result, check, check_eq, eventually};

use crate::containers::ended;

crate::listed![
    c14_a_pods_machine_is_as_big_as_its_containers_may_use,
    c24_a_pods_processors_are_in_its_cgroup_and_the_rest_is_not,
    e5_a_processor_is_bound_to_the_only_cpu_of_a_container,
];

/// How long a guest may take to let go of what is no longer needed.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a guest's kernel keeps for itself of memory that comes.
const KEPT_MIB: u64 = 16;

/// So many MiB, and microseconds of each 100 ms.
fn limits(mib: i64, quota: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: mib << 20,
        cpu_quota: quota,
        cpu_period: 100_000,
        ..Default::default()
    }
}

fn limited(pod: &Pod<'_>, name: &str, resources: LinuxContainerResources) -> ContainerConfig {
    let linux = LinuxContainerConfig { resources: Some(resources), ..Default::default() };
    ContainerConfig { linux: Some(linux), ..pod.container(name, ["sleep", "1000"]) }
}

fn update(pod: &Pod<'_>, id: &str, resources: LinuxContainerResources) -> Result<()> {
    pod.world.cri().update(UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(resources),
        ..Default::default()
    })
}

fn remove(pod: &Pod<'_>, id: &str) -> Result<()> {
    pod.world.cri().stop(id, 0)?;
    pod.world.cri().remove(id)
}

/// What the kernel holds a container to.
fn held_to(pod: &Pod<'_>, id: &str) -> Result<String> {
    let script = "cd /sys/fs/cgroup; [ -e memory.max ] || cd .$(cut -d: -f3 /proc/self/cgroup); \
        echo $(cat memory.max) $(cat cpu.max)";
    pod.sh(id, script)
}

/// MiB of memory that the guest has.
fn memory(pod: &Pod<'_>, id: &str) -> Result<u64> {
    let text = pod.sh(id, "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo")?;
    text.parse().context(text)
}

/// Waits until a shell in a container prints `wanted`.
fn becomes(pod: &Pod<'_>, id: &str, script: &str, wanted: &str) -> Result<()> {
    // Nobody tells when a guest has let go.
    eventually(PATIENCE, || {
        check_eq!(pod.sh(id, script)?, wanted, "{script}");
        Ok(())
    })
}

fn c14_a_pods_machine_is_as_big_as_its_containers_may_use(world: &PodWorld) -> Result<()> {
    let host = available_parallelism()?.get();
    world.pod(world.config(), |pod| {
        let idle = pod.run(&pod.container("idle", ["sleep", "1000"]))?;
        let (own, grown) = (memory(pod, &idle)?, |mib| -> Result<()> {
            let (has, least) = (memory(pod, &idle)?, mib - KEPT_MIB);
            check!(has >= least, "{has} MiB of memory, and not {least}");
            Ok(())
        });
        check_eq!(pod.sh(&idle, "nproc")?, "1", "processors without limits");

        let one = pod.run(&limited(pod, "one", limits(128, 50_000)))?;
        grown(own + 128)?;
        let two = pod.run(&limited(pod, "two", limits(256, 100_000)))?;
        grown(own + 384)?;
        check_eq!(
            pod.sh(&two, "nproc")?,
            host.min(3).to_string(),
            "processors for 1.5 and the machine's own"
        );
        check_eq!(held_to(pod, &one)?, "134217728 50000 100000", "limits of the first");
        check_eq!(held_to(pod, &two)?, "268435456 100000 100000", "limits of the second");

        update(pod, &one, limits(256, 150_000))?;
        update(pod, &two, limits(512, 200_000))?;
        grown(own + 768)?;
        check_eq!(
            pod.sh(&two, "nproc")?,
            host.min(5).to_string(),
            "processors for 3.5 and the machine's own"
        );
        check_eq!(held_to(pod, &one)?, "268435456 150000 100000", "higher limits of the first");
        check_eq!(held_to(pod, &two)?, "536870912 200000 100000", "higher limits of the second");

        update(pod, &one, limits(64, 25_000))?;
        remove(pod, &two)?;
        check_eq!(held_to(pod, &one)?, "67108864 25000 100000", "lower limits of the first");
        becomes(pod, &idle, "nproc", &host.min(2).to_string())?;
        remove(pod, &one)?;
        becomes(pod, &idle, "nproc", "1")?;
        // How much of the memory goes is up to the guest's kernel, which may have something on it.
        let left = memory(pod, &idle)?;
        check!((own..own + 768).contains(&left), "{left} MiB of memory in the end, and {own} at first");
        Ok(())
    })
}

/// On hosts with version 1 of cgroups, which tells threads of a process apart.
fn c24_a_pods_processors_are_in_its_cgroup_and_the_rest_is_not(world: &PodWorld) -> Result<()> {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Ok(());
    }
    let host = available_parallelism()?.get();
    world.pod(world.config(), |pod| {
        let (of_pod, overhead) = (format!("/kata_{}", pod.id), format!("/kata_overhead/{}", pod.id));
        let mut containers = Vec::new();
        for processors in [1, host.min(2)] {
            let threads = threads_of(pod)?;
            let in_pod = threads.iter().filter(|cgroup| cgroup.ends_with(&of_pod)).count();
            let wanted = if is_emulated(pod)? { 1 } else { processors };
            check_eq!(in_pod, wanted, "threads in the pod's cgroup");
            let rest = threads.iter().filter(|cgroup| **cgroup == overhead).count();
            check_eq!(rest, threads.len() - wanted, "threads that are not in the pod's cgroup");
            containers.push(pod.run(&limited(pod, &format!("c{processors}"), limits(64, 100_000)))?);
        }
        // What a shim leaves that is killed is cleared up, too.
        let status = fs::read_to_string(qemu_of(pod)?.join("status"))?;
        let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("QEMU's parent")?;
        kill(Pid::from_raw(shim.trim().parse()?), Signal::SIGKILL)?;
        // containerd removes no container that it takes to be running.
        containers.iter().try_for_each(|id| ended(world, id).map(drop))
    })
}

/// How many of QEMU's threads may run on one CPU alone, and on which.
fn bound(pod: &Pod<'_>) -> Result<Vec<String>> {
    let tasks = fs::read_dir(qemu_of(pod)?.join("task"))?.flatten();
    let status = tasks.map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default());
    let cpus = status.filter_map(|status| {
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
        (!list.contains([',', '-'])).then_some(list)
    });
    let mut cpus: Vec<_> = cpus.collect();
    cpus.sort();
    Ok(cpus)
}

/// A machine of one processor, as emulated ones share a thread.
fn e5_a_processor_is_bound_to_the_only_cpu_of_a_container(world: &PodWorld) -> Result<()> {
    let host = available_parallelism()?.get();
    if host < 2 {
        return Ok(());
    }
    let all = format!("0-{}", host - 1);
    let on = |cpus: &str| LinuxContainerResources { cpuset_cpus: cpus.to_owned(), ..limits(64, 0) };
    let mut config = world.config();
    for (key, value) in [("runtime.enable_vcpus_pinning", "true"), ("hypervisor.default_max_vcpus", "1")] {
        config.annotations.insert(format!("io.katacontainers.config.{key}"), value.to_owned());
    }
    world.pod(config, |pod| {
        check_eq!(bound(pod)?, Vec::<String>::new(), "threads of a pod without containers");
        let one = pod.run(&limited(pod, "one", on("1")))?;
        check_eq!(bound(pod)?, ["1"], "threads of a pod whose container has a CPU");
        let runs_on = |wanted: &[&str]| {
            // Nobody tells when it is done: a container's end does not wait for it.
            eventually(PATIENCE, || {
                check_eq!(bound(pod)?, wanted, "threads that are bound");
                Ok(())
            })
        };
        update(pod, &one, on(&all))?;
        runs_on(&[])?;
        update(pod, &one, on("0"))?;
        runs_on(&["0"])?;
        remove(pod, &one)?;
        runs_on(&[])
    })
}

/// A pod's QEMU in `/proc`.
pub(crate) fn qemu_of(pod: &Pod<'_>) -> Result<PathBuf> {
    let is_its = |process: &Path| {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        words.starts_with(b"/") && String::from_utf8_lossy(&words).contains(&format!("sandbox-{}", pod.id))
    };
    let process = fs::read_dir("/proc")?.flatten().map(|entry| entry.path()).find(|path| is_its(path));
    process.context("the pod's QEMU")
}

/// Whether its processors take turns on one thread.
fn is_emulated(pod: &Pod<'_>) -> Result<bool> {
    Ok(String::from_utf8_lossy(&fs::read(qemu_of(pod)?.join("cmdline"))?).contains("thread=single"))
}

/// Sends it a signal.
pub(crate) fn signal_qemu_of(pod: &Pod<'_>, signal: Signal) -> Result<()> {
    let qemu = qemu_of(pod)?;
    let pid = qemu.file_name().and_then(|pid| pid.to_str()).context("the pod's QEMU")?;
    kill(Pid::from_raw(pid.parse()?), signal)?;
    Ok(())
}

/// The cgroup of each thread of a pod's QEMU, as far as processors go.
fn threads_of(pod: &Pod<'_>) -> Result<Vec<String>> {
    let tasks = fs::read_dir(qemu_of(pod)?.join("task"))?.flatten();
    let is_of_cpu = |line: &&str| line.split([':', ',']).any(|word| word == "cpu");
    let cgroup = |task: fs::DirEntry| {
        let lines = fs::read_to_string(task.path().join("cgroup")).unwrap_or_default();
        let line = lines.lines().find(is_of_cpu).unwrap_or_default();
        line.rsplit(':').next().unwrap_or_default().to_owned()
    };
    Ok(tasks.map(cgroup).collect())
}
