//! Processors that are bound to the CPUs of a machine's containers.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread::spawn,
};

use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::{Pid, gettid},
};
use serde_json::{Value, json};

use super::resources::{create, delete, pod, update};
use crate::{
    fakes::{Shim, on_fakes, settled},
    sandbox::resources::Limits,
};

/// A thread that waits until this is dropped.
struct Waiting {
    tid: u32,
    _end: Sender<()>,
}

impl Waiting {
    fn begun() -> Waiting {
        let (told, tids) = channel();
        let (end, ends): (_, Receiver<()>) = channel();
        spawn(move || {
            told.send(gettid().as_raw()).unwrap();
            let _ = ends.recv();
        });
        Waiting { tid: tids.recv().unwrap().try_into().unwrap(), _end: end }
    }

    /// The CPUs that it may run on.
    fn cpus(&self) -> Vec<usize> {
        cpus_of(self.tid.try_into().unwrap())
    }
}

fn cpus_of(thread: i32) -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(thread)).unwrap();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).collect()
}

fn set_of(cpus: &[usize]) -> Value {
    let list: Vec<_> = cpus.iter().map(ToString::to_string).collect();
    json!({"cpu": {"cpus": list.join(",")}})
}

/// A pod of a machine with two processors, where the host has as many CPUs.
fn on_two(key: &'static str, test: impl AsyncFnOnce(&Shim, &[Waiting; 2], &[usize]) + Send + 'static) {
    let host = cpus_of(std::process::id().try_into().unwrap());
    if host.len() < 2 {
        return;
    }
    on_fakes(async move |shim| {
        shim.configure(key);
        let threads = [Waiting::begun(), Waiting::begun()];
        shim.machine.runs_on(&[threads[0].tid, threads[1].tid]);
        pod(shim).await;
        test(shim, &threads, &host).await;
    });
}

const ON: &str = "[runtime]\nenable_vcpus_pinning = true";

#[test]
fn e5_processors_are_bound_to_the_cpus_of_containers_while_there_are_as_many() {
    on_two(ON, async |shim, [one, two], host| {
        let (anywhere, bound) = ([host, host], [&host[..1], &host[1..2]]);
        let are = |cpus: [&[usize]; 2]| assert_eq!([one.cpus(), two.cpus()], cpus);
        create(shim, "c1", set_of(&host[..1])).await;
        are(anywhere);
        create(shim, "c2", set_of(&host[1..2])).await;
        are(bound);
        update(shim, "c2", set_of(&host[..1])).await.unwrap();
        settled().await;
        are(anywhere);
        update(shim, "c2", set_of(&host[..2])).await.unwrap();
        are(bound);
        delete(shim, "c2").await;
        settled().await;
        are(anywhere);
    });
}

#[test]
fn e5_processors_are_bound_to_nothing_unless_the_operator_says_so() {
    on_two("", async |shim, [one, _], host| {
        create(shim, "c1", set_of(&host[..2])).await;
        assert_eq!(one.cpus(), host);
    });
}

#[test]
fn processors_that_cannot_be_bound_are_no_error_and_none_is_bound() {
    on_two(ON, async |shim, [one, two], host| {
        // A CPU that goes offline is no longer there, as this one never was.
        let resources = set_of(&[host[0], 1023]);
        let spec = json!({"ociVersion": "1.0.2", "linux": {"resources": resources}});
        let limits = Limits::of(&serde_json::from_value(spec).unwrap());
        let sandbox = shim.service.sandbox().current().unwrap();
        let _part = sandbox.admit("c1", limits).await.unwrap();
        assert_eq!([one.cpus(), two.cpus()], [host, host]);
    });
}
