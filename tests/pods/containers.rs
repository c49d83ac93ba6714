//! A pod and the containers in it.

use tests::pods::PodWorld;
use tests::{Result, check, check_eq};

crate::listed![c1_c4_containers_of_a_pod_share_its_machine_and_nothing_else];

fn c1_c4_containers_of_a_pod_share_its_machine_and_nothing_else(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |pod| {
        let one = pod.run(&pod.container("one", ["sleep", "1000"]))?;
        let two = pod.run(&pod.container("two", ["sh", "-c", "echo two > /tmp/own; sleep 1000"]))?;
        let boot = |id| pod.sh(id, "cat /proc/sys/kernel/random/boot_id");
        check_eq!(boot(&one)?, boot(&two)?, "the machine");
        check_eq!(pod.sh(&two, "cat /tmp/own")?, "two", "a file of its own");
        check!(pod.sh(&one, "ls /tmp")?.is_empty(), "the other's file");
        check_eq!(pod.sh(&one, "hostname")?, pod.sh(&two, "hostname")?, "the pod's name");
        Ok(())
    })
}
