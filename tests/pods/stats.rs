//! What the containers of a pod use, as kubelet asks for it.

use k8s_cri::v1::ContainerStats;
use tests::pods::PodWorld;
use tests::{Context, Result, check};

crate::listed![c13_statistics_of_a_container_are_there_and_grow];

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
        Ok(())
    })
}
