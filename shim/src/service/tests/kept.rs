//! What a shim has of containers that are gone: nothing.

use serde_json::json;
use tokio::runtime::Handle;

use super::resources::{create, pod};
use crate::fakes::{Shim, on_fakes, settled};

/// Tasks there are when all is done that can be.
async fn tasks() -> usize {
    settled().await;
    Handle::current().metrics().num_alive_tasks()
}

/// A container that runs, ends and is deleted, as one that crashes again and again.
async fn crashes(shim: &Shim) {
    create(shim, "c1", json!({})).await;
    shim.start("c1").await.unwrap();
    shim.guest.init("c1").exits(1);
    assert_eq!(shim.published(2).await, ["start c1", "exit c1 1"]);
    shim.delete("c1").await.unwrap();
    assert_eq!(shim.published(1).await, ["delete c1 1"]);
}

/// One that is deleted before it has run.
async fn is_given_up(shim: &Shim) {
    create(shim, "c1", json!({})).await;
    super::resources::delete(shim, "c1").await;
}

#[test]
fn r22_a_pod_has_no_task_of_containers_that_are_gone() {
    on_fakes(async |shim| {
        pod(shim).await;
        shim.start("pod").await.unwrap();
        assert_eq!(shim.published(1).await, ["start pod"]);
        let before = tasks().await;
        for _ in 0..5 {
            crashes(shim).await;
            is_given_up(shim).await;
        }
        assert_eq!(tasks().await, before);
    });
}
