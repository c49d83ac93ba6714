//! Pods while containerd is down, as during its update.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::spawn;

use k8s_cri::v1::{ContainerState, Mount, PodSandboxConfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::assets::by_sandbox_api;
use tests::case::PATIENCE;
use tests::cri::Cri;
use tests::pods::{Pod, PodWorld};
use tests::shim::TaskClient;
use tests::{Context, Failure, Result, check, check_eq, eventually};

crate::listed![
    what_ends_while_containerd_is_down_keeps_its_status,
    a_pod_in_whose_making_containerd_is_killed_leaves_nothing_when_it_is_started_again,
    a_pod_in_whose_making_containerd_is_killed_has_no_shim_even_before_it_is_started_again,
];

fn what_ends_while_containerd_is_down_keeps_its_status(_: &PodWorld) -> Result<()> {
    // The others' is not to end.
    let mut world = PodWorld::new()?;
    let config = world.config();
    let id = world.cri().run_pod(&config, world.handler())?;
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

fn a_pod_in_whose_making_containerd_is_killed_leaves_nothing_when_it_is_started_again(
    _: &PodWorld,
) -> Result<()> {
    killed_in_the_middle(|world, _| world.restart_after(Signal::SIGKILL, || Ok(())))
}

fn a_pod_in_whose_making_containerd_is_killed_has_no_shim_even_before_it_is_started_again(
    _: &PodWorld,
) -> Result<()> {
    // What CreateSandbox made, containerd remembers: the shim waits for it.
    let stays = by_sandbox_api();
    killed_in_the_middle(|world, shim| {
        world.restart_after(Signal::SIGKILL, || if stays { Ok(()) } else { gone(&[shim]) })
    })
}

/// Has containerd killed while it makes a pod, by `restart`, which is told the directory of the pod's shim in `/proc`. What
/// there is of the pod then is removed, as kubelet does.
fn killed_in_the_middle(restart: impl FnOnce(&mut PodWorld, &Path) -> Result<()>) -> Result<()> {
    let mut world = PodWorld::new()?;
    let (config, from) = (world.config(), world.log().len());
    let bundles = Pod::of(&world, "", &config).bundle();
    let cri = Cri::connect(&world.containerd_socket())?;
    let handler = world.handler().to_owned();
    let making = spawn(move || cri.run_pod(&config, &handler));
    // Its shim notes when it is asked for a machine.
    eventually(PATIENCE, || {
        check!(world.log()[from..].contains("_received"), "no machine is asked for");
        Ok(())
    })?;
    let bundle = fs::read_dir(&bundles)?.flatten().next().context("a bundle")?.path();
    let id = bundle.file_name().and_then(|id| id.to_str()).context("its name")?.to_owned();
    let address = fs::read_to_string(bundle.join("address"))?;
    let socket = PathBuf::from(address.trim().trim_start_matches("unix://"));
    check!(socket.exists(), "the shim's socket {address}");
    let shim = world.shim_of(&id)?;
    let shims = PathBuf::from(format!("/proc/{shim}"));
    let mut outcome = restart(&mut world, &shims);
    let answer = making.join().map_err(|_| Failure::new("RunPodSandbox panicked"))?;
    check!(answer.is_err(), "containerd was killed too late: {answer:?}");
    outcome = outcome.and_then(|()| removed(&world, &id)).and_then(|()| gone(&[&shims, &bundle, &socket]));
    if outcome.is_err() && world.shim_of(&id).is_ok_and(|there| there == shim) {
        kill(Pid::from_raw(shim.try_into()?), Signal::SIGKILL)?;
    }
    outcome?;
    world.expect_nothing_of(&id)
}

/// Removes a pod once containerd has found it again.
fn removed(world: &PodWorld, id: &str) -> Result<()> {
    eventually(PATIENCE, || world.cri().pod_status(id).map(drop))?;
    world.cri().stop_pod(id)?;
    world.cri().remove_pod(id)
}

/// Waits until none of `paths` is there.
fn gone(paths: &[&Path]) -> Result<()> {
    eventually(PATIENCE, || {
        let left: Vec<_> = paths.iter().filter(|path| path.exists()).collect();
        check!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    })
}
