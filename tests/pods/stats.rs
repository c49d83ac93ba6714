//! What the containers of a pod use, as kubelet asks for it.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_cri::v1::{ContainerStats, PodSandboxStats, UInt64Value};
use tests::pods::PodWorld;
use tests::{Context, Result, check};

crate::listed![
    c13_statistics_of_a_container_are_there_and_grow,
    c13_c24_statistics_of_a_pod_are_those_of_its_cgroup_and_network,
];

fn c13_statistics_of_a_container_are_there_and_grow(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |pod| {
        let id = pod.run(&pod.container("one", ["sleep", "1000"]))?;
        let used = |stats: &ContainerStats| -> Result<(u64, u64)> {
            let cpu =
                stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref()).context("cpu")?;
            let memory = stats.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref());
            Ok((cpu.value, memory.context("memory")?.value))
        };
        let before = used(&world.cri().stats(&id)?)?;
        check!(before.0 > 0 && before.1 > 0, "an idle container: {before:?}");
        pod.sh(&id, "head -c 8m /dev/urandom > /dev/shm/file; md5sum /dev/shm/file")?;
        let after = used(&world.cri().stats(&id)?)?;
        check!(after.0 > before.0 && after.1 >= before.1 + (8 << 20), "from {before:?} to {after:?}");
        // Kubelet is not told of a container's interfaces, others are.
        pod.sh(&id, "ping -c 1 10.88.0.1")?;
        let all = world.ctr(&["tasks", "metrics", "--format", "json", &id])?;
        let all: serde_json::Value = serde_json::from_str(&all).context(&all)?;
        let sent = all["network"].as_array().into_iter().flatten().find(|one| one["name"] == "eth0");
        check!(sent.is_some_and(|one| one["tx_bytes"].as_u64() > Some(0)), "interfaces in {all}");
        Ok(())
    })
}

/// containerd reads them in the cgroup that kubelet has made for the pod, and in the pod's network namespace.
fn c13_c24_statistics_of_a_pod_are_those_of_its_cgroup_and_network(world: &PodWorld) -> Result<()> {
    let mut config = world.config();
    let parent = Parent::make()?;
    config.linux.get_or_insert_default().cgroup_parent = format!("/{}", parent.name);
    // Without, the memory of a pod is nobody's on hosts with version 1 of cgroups.
    let only = "io.katacontainers.config.runtime.sandbox_cgroup_only";
    config.annotations.insert(only.to_owned(), "true".to_owned());
    world.pod(config, |pod| {
        let id = pod.run(&pod.container("one", ["sleep", "1000"]))?;
        let before = used(&world.cri().pod_stats(&pod.id)?)?;
        check!(before.iter().all(|figure| *figure > 0), "an idle pod: {before:?}");
        pod.sh(
            &id,
            "head -c 48m /dev/urandom > /dev/shm/file; md5sum /dev/shm/file; ping -c 3 -s 1000 10.88.0.1",
        )?;
        let stats = world.cri().pod_stats(&pod.id)?;
        let after = used(&stats)?;
        check!(after[0] > before[0], "processors from {before:?} to {after:?}");
        check!(after[1] > before[1] + (32 << 20), "memory from {before:?} to {after:?}");
        check!(
            after[2] > before[2] + 3000 && after[3] > before[3] + 3000,
            "network from {before:?} to {after:?}"
        );
        let linux = stats.linux.context("what a pod uses on Linux")?;
        check!(linux.containers.len() == 1, "its containers: {:?}", linux.containers);
        check!(
            linux.process.and_then(|process| process.process_count).is_some_and(|count| count.value > 0),
            "processes"
        );
        Ok(())
    })
}

/// Nanoseconds of processors, bytes of memory, bytes received and sent.
fn used(stats: &PodSandboxStats) -> Result<[u64; 4]> {
    let linux = stats.linux.as_ref().context("what a pod uses on Linux")?;
    let number = |value: Option<&UInt64Value>, what| value.map(|value| value.value).context(what);
    let (cpu, memory) = (linux.cpu.as_ref().context("cpu")?, linux.memory.as_ref().context("memory")?);
    let network = linux.network.as_ref().and_then(|network| network.default_interface.as_ref());
    let network = network.context("network")?;
    Ok([
        number(cpu.usage_core_nano_seconds.as_ref(), "nanoseconds")?,
        number(memory.usage_bytes.as_ref().or(memory.working_set_bytes.as_ref()), "bytes")?,
        number(network.rx_bytes.as_ref(), "bytes received")?,
        number(network.tx_bytes.as_ref(), "bytes sent")?,
    ])
}

/// A pod's cgroup, as kubelet makes one in each hierarchy before there is a pod; gone with the value.
struct Parent {
    name: String,
    dirs: Vec<PathBuf>,
}

impl Parent {
    fn make() -> Result<Parent> {
        let root = Path::new("/sys/fs/cgroup");
        let mut parent = Parent { name: format!("kata-test-{}", std::process::id()), dirs: Vec::new() };
        let roots = if root.join("cgroup.controllers").exists() {
            vec![root.to_path_buf()]
        } else {
            fs::read_dir(root)?.flatten().map(|entry| entry.path()).filter(|dir| dir.is_dir()).collect()
        };
        for root in roots {
            let dir = root.join(&parent.name);
            match fs::create_dir(&dir) {
                // Two controllers may be one hierarchy.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                made => made.context(dir.display())?,
            }
            parent.dirs.push(dir.clone());
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if dir.join(file).exists() {
                    fs::write(dir.join(file), fs::read(root.join(file))?).context(dir.display())?;
                }
            }
        }
        Ok(parent)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for dir in &self.dirs {
            let _ = fs::remove_dir(dir);
        }
    }
}
