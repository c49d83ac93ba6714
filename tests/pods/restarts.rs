//! Pods while containerd is down, as during its update.

use std::fs;

use k8s_cri::v1::{ContainerState, Mount, PodSandboxConfig};
use nix::sys::signal::Signal;
use tests::pods::{HANDLER, Pod, PodWorld};
use tests::shim::TaskClient;
use tests::{Context, Result, check_eq};

crate::listed![what_ends_while_containerd_is_down_keeps_its_status];

fn what_ends_while_containerd_is_down_keeps_its_status(_: &PodWorld) -> Result<()> {
    // The others' is not to end.
    let mut world = PodWorld::new()?;
    let config = world.config();
    let id = world.cri().run_pod(&config, HANDLER)?;
    let outcome = ends_apart(&mut world, &id, &config);
    world.cri().stop_pod(&id)?;
    world.cri().remove_pod(&id)?;
    outcome?;
    world.expect_nothing_of(&id)
}

/// Has two containers of a pod end without containerd, one by itself and one by a signal, and another go on.
fn ends_apart(world: &mut PodWorld, id: &str, config: &PodSandboxConfig) -> Result<()> {
    let host = world.dir().join("told");
    fs::create_dir(&host)?;
    let (task, ids) = {
        let pod = Pod::of(world, id, config);
        let run = |name, script| {
            let mut container = pod.container(name, ["sh", "-c", script]);
            let (host_path, container_path) = (host.to_string_lossy().into_owned(), "/told".to_owned());
            container.mounts = vec![Mount { host_path, container_path, ..Default::default() }];
            pod.run(&container)
        };
        let wait = "until [ -e /told/end ]; do sleep 0.1; done";
        let ids = [
            run("job", &format!("{wait}; exit 9"))?,
            run("killed", "sleep 1000")?,
            run("done", &format!("{wait}; exit 0"))?,
            run("stays", "sleep 1000")?,
        ];
        let address = pod.bundle().join("address");
        let address = fs::read_to_string(&address).context(address.display())?;
        (TaskClient::connect(address.trim(), id)?, ids)
    };
    let [job, killed, done, stays] = &ids;
    world.restart_after(Signal::SIGTERM, || {
        fs::write(host.join("end"), "")?;
        task.about(killed).kill("", 9)?;
        for (id, status) in [(job, 9), (killed, 137), (done, 0)] {
            check_eq!(task.about(id).wait("")?, status, "the shim's status of {id}");
        }
        Ok(())
    })?;
    for (id, status) in [(job, 9), (killed, 137), (done, 0)] {
        check_eq!(crate::containers::ended(world, id)?, status, "containerd's status of {id}");
    }
    check_eq!(world.cri().status(stays)?.state(), ContainerState::ContainerRunning, "one that goes on");
    check_eq!(world.cri().exec(stays, ["echo", "well"])?.exits(0)?.out().trim_end(), "well", "the same");
    Ok(())
}
