//! A pod and the containers in it.

use std::fs;
use std::thread::scope;
use std::time::Duration;

use k8s_cri::v1::{
    ContainerState, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxSandboxSecurityContext, NamespaceMode,
};
use nix::sys::signal::Signal;
use tests::assets::by_sandbox_api;
use tests::memory::family_pss_kib;
use tests::pods::{NAMESPACE, Pod, PodWorld, containers_of_the_page, namespaces};
use tests::{Result, check, check_eq, eventually, fail};

use crate::resources::signal_qemu_of;

crate::listed![
    c1_c4_containers_of_a_pod_share_its_machine_and_nothing_else,
    c5_c9_a_container_that_ends_is_made_anew_in_its_pod,
    containers_see_each_others_processes_when_the_pod_says_so,
    the_pod_of_the_page_runs,
    c18_a_pod_whose_guest_hangs_can_be_stopped,
    c19_a_container_that_runs_out_of_memory_is_told_of_and_the_others_live,
    e7_a_pods_annotation_that_is_not_allowed_fails_it_by_name,
];

/// What leaves others no processor to be in time with.
pub(crate) fn crowds() -> Vec<crate::Listed> {
    vec![("ten_pods_at_once_all_come_up_and_go", ten_pods_at_once_all_come_up_and_go)]
}

/// How long an end may take to be seen by CRI.
const SEEN: Duration = Duration::from_secs(30);

fn c1_c4_containers_of_a_pod_share_its_machine_and_nothing_else(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |pod| {
        let one = pod.run(&pod.container("one", ["sleep", "1000"]))?;
        let serve = "echo two > /tmp/own; while :; do echo hello | nc -l -p 7777; done";
        let two = pod.run(&pod.container("two", ["sh", "-c", serve]))?;
        let boot = |id| pod.sh(id, "cat /proc/sys/kernel/random/boot_id");
        check_eq!(boot(&one)?, boot(&two)?, "the machine");
        check_eq!(pod.sh(&two, "cat /tmp/own")?, "two", "a file of its own");
        check!(pod.sh(&one, "ls /tmp")?.is_empty(), "the other's file");
        check_eq!(pod.sh(&one, "hostname")?, pod.sh(&two, "hostname")?, "the pod's name");
        let namespaces = |id| pod.sh(id, "for kind in net ipc uts; do readlink /proc/self/ns/$kind; done");
        check_eq!(namespaces(&one)?, namespaces(&two)?, "network, interprocess communication and host name");
        let ask = "for i in $(seq 100); do nc 127.0.0.1 7777 </dev/null && exit; sleep 0.1; done; exit 1";
        check_eq!(pod.sh(&one, ask)?, "hello", "the other by the pod's loopback");
        check_eq!(pod.sh(&one, "pidof nc || echo none")?, "none", "the other's processes");
        Ok(())
    })
}

/// What hangs in a guest ends with its machine alone, and containerd ends a pod's containers before the pod.
fn c18_a_pod_whose_guest_hangs_can_be_stopped(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |pod| {
        let id = pod.run(&pod.container("one", ["sleep", "1000"]))?;
        signal_qemu_of(pod, Signal::SIGSTOP)?;
        world.cri().stop_pod(&pod.id)?;
        check_eq!(ended(world, &id)?, 137, "its container's status");
        Ok(())
    })
}

/// Waits for a container's end; returns its exit status.
pub(crate) fn ended(world: &PodWorld, id: &str) -> Result<i32> {
    // kubelet polls, too.
    eventually(SEEN, || {
        let status = world.cri().status(id)?;
        check_eq!(status.state(), ContainerState::ContainerExited, "{id}");
        Ok(status.exit_code)
    })
}

fn c5_c9_a_container_that_ends_is_made_anew_in_its_pod(world: &PodWorld) -> Result<()> {
    let mut config = world.config();
    let logs = world.dir().join("logs");
    fs::create_dir_all(&logs)?;
    config.log_directory = logs.to_string_lossy().into_owned();
    world.pod(config, |pod| {
        let mut first = pod.container("first", ["sh", "-c", "echo said; echo complained >&2; exit 7"]);
        first.log_path = "first.log".to_owned();
        let id = pod.run(&first)?;
        check_eq!(ended(world, &id)?, 7, "its exit status");
        let log = fs::read_to_string(logs.join("first.log"))?;
        check!(log.contains("stdout F said") && log.contains("stderr F complained"), "its log: {log:?}");
        world.cri().remove(&id)?;
        let trap = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
        let again = pod.run(&pod.container("first", ["sh", "-c", trap]))?;
        let deaf =
            pod.run(&pod.container("deaf", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]))?;
        world.cri().stop(&again, 30)?;
        check_eq!(ended(world, &again)?, 3, "the status of one that is asked to end");
        world.cri().stop(&deaf, 1)?;
        check_eq!(ended(world, &deaf)?, 137, "the status of one that does not listen");
        let missing = pod.run(&pod.container("missing", ["/no/such/program"]));
        let said = missing.err().map(|failure| failure.to_string()).unwrap_or_default();
        check!(said.contains("/no/such/program"), "what is said of a program that is not there: {said:?}");
        check_eq!(
            pod.sh(&pod.run(&pod.container("last", ["sleep", "1000"]))?, "echo well")?,
            "well",
            "the pod"
        );
        Ok(())
    })
}

fn containers_see_each_others_processes_when_the_pod_says_so(world: &PodWorld) -> Result<()> {
    let shared = || Some(namespaces(NamespaceMode::Pod));
    let mut config = world.config();
    let context = LinuxSandboxSecurityContext { namespace_options: shared(), ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(context);
    world.pod(config, |pod| {
        let run = |name: &str, command: [&str; 2]| {
            let mut container = pod.container(name, command);
            let context = LinuxContainerSecurityContext { namespace_options: shared(), ..Default::default() };
            let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
            container.linux = Some(linux);
            pod.run(&container)
        };
        let (_one, two) = (run("one", ["sleep", "1234"])?, run("two", ["sleep", "1000"])?);
        let seen = pod.sh(&two, "ps -o args")?;
        check!(seen.contains("sleep 1234"), "the other's process: {seen}");
        check_eq!(seen.contains("sleep 2147483647"), !by_sandbox_api(), "the pod's own process: {seen}");
        Ok(())
    })
}

fn the_pod_of_the_page_runs(world: &PodWorld) -> Result<()> {
    world.call_image("busybox")?;
    world.pod(world.config(), |pod| {
        let containers = containers_of_the_page(pod)?;
        check!(!containers.is_empty(), "a pod without containers");
        for container in containers {
            let id = pod.run(&container)?;
            let wanted = container.command.join(" ");
            check_eq!(pod.sh(&id, "tr '\\0' ' ' < /proc/1/cmdline")?, wanted, "what runs");
            let image = world.cri().status(&id)?.image.map(|image| image.image);
            check!(image.is_some_and(|image| image.contains("busybox")), "its image");
        }
        let (takes, said) = (family_pss_kib(world.shim_of(&pod.id)?), world.overhead_kib());
        check!(takes <= said, "the idle pod takes {takes} KiB, and podFixed is {said}");
        Ok(())
    })
}

fn c19_a_container_that_runs_out_of_memory_is_told_of_and_the_others_live(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |pod| {
        let calm = pod.run(&pod.container("calm", ["sleep", "1000"]))?;
        let mut greedy = pod.container("greedy", ["sh", "-c", "head -c 64m /dev/zero | tail -n 1"]);
        let resources = LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
        greedy.linux.get_or_insert_default().resources = Some(resources);
        let id = pod.run(&greedy)?;
        check_eq!(ended(world, &id)?, 137, "its exit status");
        check_eq!(world.cri().status(&id)?.reason, "OOMKilled", "the reason");
        check_eq!(pod.sh(&calm, "echo well")?, "well", "the other");
        Ok(())
    })
}

fn e7_a_pods_annotation_that_is_not_allowed_fails_it_by_name(world: &PodWorld) -> Result<()> {
    let mut config = world.config();
    let annotation = "io.katacontainers.config.hypervisor.default_vcpus";
    config.annotations.insert(annotation.to_owned(), "3".to_owned());
    match world.cri().run_pod(&config, world.handler()) {
        Ok(id) => {
            world.cri().stop_pod(&id).and_then(|()| world.cri().remove_pod(&id))?;
            fail!("a pod with {annotation} came up");
        }
        Err(failure) => {
            let said = failure.to_string();
            check!(said.contains(annotation) && said.contains("enable_annotations"), "{said}");
            Ok(())
        }
    }
}

fn ten_pods_at_once_all_come_up_and_go(world: &PodWorld) -> Result<()> {
    scope(|scope| {
        let pods: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| world.pod(world.config(), |pod| says_its_name(pod, world))))
            .collect();
        let outcomes =
            pods.into_iter().map(|pod| pod.join().unwrap_or_else(|_| fail!("a pod's thread panicked")));
        outcomes.collect()
    })
}

fn says_its_name(pod: &Pod<'_>, world: &PodWorld) -> Result<()> {
    let id = pod.run(&pod.container("one", ["sleep", "1000"]))?;
    let name = world.cri().pod_status(&pod.id)?.metadata.map(|metadata| metadata.name);
    check_eq!(Some(pod.sh(&id, "hostname")?), name, "the pod's name");
    let traces = pod.traces()?;
    for of in [&format!("{NAMESPACE}/{}", pod.id), &format!("{NAMESPACE}/{id}"), "addresses/pods/10.88."] {
        check!(
            traces.iter().any(|trace| trace.contains(of)),
            "what is looked for of a pod: {of} in {traces:?}"
        );
    }
    for kind in ["process", "mount", "cgroup", "socket", "namespace", "interface \"veth"] {
        check!(traces.iter().any(|trace| trace.starts_with(kind)), "{kind} in {traces:?}");
    }
    Ok(())
}
