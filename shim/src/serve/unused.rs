//! The end of a shim that has nothing and that nobody would end.
//!
//! containerd asks for the end of its shims, but not when it was killed while it made one: containerd 1.6 then forgets
//! the shim, the later ones may not be started again.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Connections;
use crate::service::TaskService;

/// How long a new shim waits for its first client, and for what it is to make.
const FIRST: Duration = Duration::from_secs(60);
/// How long a shim stays with nothing when its last client has gone, or whoever asked for its sandbox.
const LATER: Duration = Duration::from_secs(10);

/// Resolves when the shim has had nothing for long enough that nobody will ask it for anything; says why.
pub(super) async fn unused(service: &TaskService, connections: &Connections) -> &'static str {
    tokio::select! {
        () = alone(service, connections) => "no client is connected",
        () = given_up(service) => "the caller that asked for its sandbox is gone",
    }
}

/// Without a client nothing comes to be, and nothing goes but what a client had begun.
async fn alone(service: &TaskService, connections: &Connections) {
    let first = Instant::now() + FIRST;
    let mut open = connections.watch();
    loop {
        // What sends the number lives as long as the shim: this ends by the number alone.
        let _ = open.wait_for(|open| *open == 0).await;
        let until = first.max(Instant::now() + LATER);
        tokio::select! {
            _ = open.changed() => {}
            () = sleep_until(until) => {
                if service.has_nothing() {
                    return;
                }
                let _ = open.changed().await;
            }
        }
    }
}

/// containerd makes a new shim for a new attempt, so that this one is of no use even if a containerd that was started
/// meanwhile has connected to it, as 1.6 does.
async fn given_up(service: &TaskService) {
    loop {
        service.create_given_up().await;
        sleep(LATER).await;
        if service.has_nothing() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::{
        fakes::{Boot, Shim, later, on_fakes},
        sandbox::Provisions,
    };

    /// Whether it has resolved by now.
    async fn is_over(watched: &JoinHandle<&'static str>) -> bool {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        watched.is_finished()
    }

    fn watched(shim: &Shim, connections: &Connections) -> JoinHandle<&'static str> {
        let (service, connections) = (shim.service.clone(), connections.clone());
        tokio::spawn(async move { unused(&service, &connections).await })
    }

    const MOMENT: Duration = Duration::from_secs(1);

    #[test]
    fn a_shim_that_nobody_connects_to_ends_after_a_minute() {
        on_fakes(async |shim| {
            let watched = watched(shim, &Connections::default());
            assert!(!is_over(&watched).await);
            later(FIRST - MOMENT).await;
            assert!(!is_over(&watched).await);
            later(2 * MOMENT).await;
            assert!(is_over(&watched).await);
        });
    }

    #[test]
    fn a_shim_stays_while_a_client_is_connected_and_ends_soon_after_the_last_one() {
        on_fakes(async |shim| {
            let connections = Connections::default();
            let one = connections.opened();
            let watched = watched(shim, &connections);
            assert!(!is_over(&watched).await);
            later(FIRST - LATER).await;
            assert!(!is_over(&watched).await);
            let other = connections.opened();
            drop(one);
            assert!(!is_over(&watched).await);
            later(LATER + MOMENT).await;
            assert!(!is_over(&watched).await);
            drop(other);
            assert!(!is_over(&watched).await);
            later(LATER - MOMENT).await;
            // One that only looks whether there is a shim may be followed by a Create.
            drop(connections.opened());
            assert!(!is_over(&watched).await);
            later(LATER - MOMENT).await;
            assert!(!is_over(&watched).await);
            later(2 * MOMENT).await;
            assert!(is_over(&watched).await);
        });
    }

    #[test]
    fn a_shim_stays_without_clients_for_as_long_as_it_has_a_container() {
        on_fakes(async |shim| {
            let connections = Connections::default();
            let watched = watched(shim, &connections);
            shim.create("c1").await.unwrap();
            assert!(!is_over(&watched).await);
            later(FIRST + MOMENT).await;
            assert!(!is_over(&watched).await);
            let client = connections.opened();
            shim.start("c1").await.unwrap();
            shim.guest.init("c1").exits(7);
            assert_eq!(shim.published(3).await, ["create c1", "start c1", "exit c1 7"]);
            drop(client);
            assert!(!is_over(&watched).await);
            later(LATER + MOMENT).await;
            assert!(!is_over(&watched).await);
            let client = connections.opened();
            assert_eq!(shim.delete("c1").await.unwrap(), 7);
            assert_eq!(shim.published(1).await, ["delete c1 7"]);
            // containerd is killed before it asks for the end.
            drop(client);
            assert!(!is_over(&watched).await);
            later(LATER + MOMENT).await;
            assert!(is_over(&watched).await);
        });
    }

    #[test]
    fn a_shim_whose_create_was_given_up_ends_soon_whoever_is_connected() {
        on_fakes(async |shim| {
            shim.machine.boots(Boot::Hangs);
            let connections = Connections::default();
            let _client = connections.opened();
            let watched = watched(shim, &connections);
            let creating = shim.creating(shim.request("c1"));
            assert!(!is_over(&watched).await);
            later(2 * LATER).await;
            assert!(!is_over(&watched).await, "while it is made");
            creating.abort();
            assert!(!is_over(&watched).await);
            later(LATER - MOMENT).await;
            assert!(!is_over(&watched).await);
            later(2 * MOMENT).await;
            assert!(is_over(&watched).await);
        });
    }

    #[test]
    fn a_shim_whose_second_create_succeeds_stays() {
        on_fakes(async |shim| {
            shim.machine.boots(Boot::Hangs);
            let connections = Connections::default();
            let _client = connections.opened();
            let watched = watched(shim, &connections);
            let creating = shim.creating(shim.request("c1"));
            assert!(!is_over(&watched).await);
            creating.abort();
            assert!(!is_over(&watched).await);
            shim.machine.boots(Boot::Serves);
            shim.create("c1").await.unwrap();
            later(LATER + MOMENT).await;
            assert!(!is_over(&watched).await);
            assert_eq!(shim.published(1).await, ["create c1"]);
        });
    }

    #[test]
    fn a_shim_whose_sandbox_is_no_container_stays_until_its_end_is_asked_for() {
        on_fakes(async |shim| {
            let watched = watched(shim, &Connections::default());
            let (bundle, options) = (shim.dir.path().to_owned(), shim.options());
            let sandbox = shim.service.sandbox();
            let prepared =
                sandbox.prepare("p1", bundle, Spec::default(), Provisions::default(), options.as_ref());
            prepared.unwrap();
            assert!(!is_over(&watched).await);
            later(FIRST + MOMENT).await;
            assert!(!is_over(&watched).await);
        });
    }
}
