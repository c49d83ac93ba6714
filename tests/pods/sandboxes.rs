//! What pods of containerd's Sandbox API have, or have not, that others do not.

use std::collections::HashMap;

use k8s_cri::v1::{ContainerConfig, ContainerMetadata, DnsConfig, PodSandboxState};
use nix::sys::signal::Signal;
use tests::case::IMAGE;
use tests::cri::image_of;
use tests::pods::PodWorld;
use tests::{Result, check, check_eq};

use crate::resources::signal_qemu_of;

crate::listed![
    a_pod_has_no_pause_container,
    what_containerd_makes_for_a_pause_container_the_pod_has_without_one,
    a_pod_whose_machine_dies_is_not_ready,
    a_pod_outlives_containerd,
];

fn a_pod_has_no_pause_container(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |pod| {
        check_eq!(state_of(world, &pod.id)?, PodSandboxState::SandboxReady, "before it has a container");
        let id = pod.run(&pod.container("one", ["sleep", "1000"]))?;
        let (containers, tasks) = (world.ctr(&["containers", "list", "-q"])?, world.ctr(&["tasks", "list"])?);
        check!(containers.contains(&id) && tasks.contains(&id), "the pod's container: {containers}{tasks}");
        check!(!containers.contains(&pod.id) && !tasks.contains(&pod.id), "the pod: {containers}{tasks}");
        Ok(())
    })
}

fn what_containerd_makes_for_a_pause_container_the_pod_has_without_one(world: &PodWorld) -> Result<()> {
    let mut config = world.config();
    let dns = DnsConfig {
        servers: vec!["192.0.2.53".to_owned()],
        searches: vec!["pods.example".to_owned()],
        options: vec!["ndots:5".to_owned()],
    };
    config.dns_config = Some(dns);
    let sysctls = [("net.core.somaxconn", "1234"), ("kernel.shm_rmid_forced", "1")];
    let sysctls = sysctls.map(|(key, value)| (key.to_owned(), value.to_owned()));
    config.linux.get_or_insert_default().sysctls = HashMap::from(sysctls);
    let name = config.hostname.clone();
    world.pod(config, |pod| {
        let one = pod.run(&pod.container("one", ["sleep", "1000"]))?;
        check_eq!(pod.sh(&one, "cat /etc/hostname")?, name, "the file of the name");
        check!(pod.sh(&one, "cat /etc/hosts")?.contains("localhost"), "the file of names");
        let resolver = "search pods.example\nnameserver 192.0.2.53\noptions ndots:5";
        check_eq!(pod.sh(&one, "cat /etc/resolv.conf")?, resolver, "the file of name servers");
        check_eq!(
            pod.sh(&one, "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced")?,
            "1234\n1",
            "settings"
        );
        check_eq!(pod.sh(&one, "df -m /dev/shm | tail -n 1 | awk '{print $2}'")?, "64", "shared memory, MiB");
        pod.sh(&one, "echo 192.0.2.7 seven >> /etc/hosts")?;
        let two = pod.run(&pod.container("two", ["sleep", "1000"]))?;
        check!(pod.sh(&two, "cat /etc/hosts")?.contains("seven"), "what another container has written");
        Ok(())
    })
}

fn a_pod_whose_machine_dies_is_not_ready(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |pod| {
        let id = pod.run(&pod.container("one", ["sleep", "1000"]))?;
        signal_qemu_of(pod, Signal::SIGKILL)?;
        check_eq!(crate::containers::ended(world, &id)?, 137, "its container's status");
        check_eq!(state_of(world, &pod.id)?, PodSandboxState::SandboxNotready, "after its machine's end");
        Ok(())
    })
}

fn a_pod_outlives_containerd(_: &PodWorld) -> Result<()> {
    // The others' is not to end.
    let mut world = PodWorld::new()?;
    let config = world.config();
    let pod = world.cri().run_pod(&config, world.handler())?;
    let create = |world: &PodWorld, name: &str| {
        let metadata = Some(ContainerMetadata { name: name.to_owned(), attempt: 0 });
        let command = ["sleep", "1000"].map(str::to_owned).to_vec();
        let container =
            ContainerConfig { metadata, command, image: Some(image_of(IMAGE)), ..Default::default() };
        let id = world.cri().create(&pod, &container, &config)?;
        world.cri().start(&id).map(|()| id)
    };
    let mut outlives = || {
        let one = create(&world, "one")?;
        world.restart()?;
        check_eq!(state_of(&world, &pod)?, PodSandboxState::SandboxReady, "the pod");
        let two = create(&world, "two")?;
        for id in [&one, &two] {
            check_eq!(
                world.cri().exec(id, ["echo", "well"])?.exits(0)?.out().trim_end(),
                "well",
                "a container"
            );
        }
        Ok(())
    };
    let outcome = outlives();
    world.cri().stop_pod(&pod)?;
    let ended = state_of(&world, &pod)?;
    world.cri().remove_pod(&pod)?;
    outcome?;
    check_eq!(ended, PodSandboxState::SandboxNotready, "after its end");
    world.expect_nothing_of(&pod)
}

fn state_of(world: &PodWorld, pod: &str) -> Result<PodSandboxState> {
    Ok(world.cri().pod_status(pod)?.state())
}
