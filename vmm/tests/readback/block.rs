//! What block devices are driven by.

use serde_json::json;
use vmm::spec::{Access, Block, BlockDriver, BlockOptions, IoThreads, Queues, Sectors};

use crate::Machine;
use crate::common::Fixture;

const SCSI: &str = "/machine/peripheral/scsi0";

#[tokio::test]
async fn a20_the_scsi_controller_works_on_its_thread_with_its_queues() {
    let mut fixture = Fixture::new();
    let queues = Queues::new(4, 256).unwrap();
    fixture.spec.block = Block {
        driver: BlockDriver::VirtioScsi,
        options: BlockOptions::new(Access::Threads, Sectors::default(), queues),
        threads: IoThreads::new(true, 2).unwrap(),
    };
    let mut machine = Machine::boot(fixture).await;
    let threads = machine.ask("query-iothreads", json!({}));
    let ids: Vec<_> = threads.as_array().unwrap().iter().map(|thread| thread["id"].clone()).collect();
    for id in ["iothread0", "indep-iothread0", "indep-iothread1"] {
        assert!(ids.contains(&json!(id)), "{ids:?}");
    }
    assert_eq!(machine.property(SCSI, "iothread"), "/objects/iothread0");
    assert_eq!(machine.property(SCSI, "num_queues"), 4);
    assert_eq!(machine.property(SCSI, "virtqueue_size"), 256);
    machine.end().await;
}

#[tokio::test]
async fn a20_the_least_and_the_most_of_queues_and_threads_are_ones_that_qemu_takes() {
    for (queues, independent) in [(Queues::new(1, 4).unwrap(), 0), (Queues::new(1022, 1024).unwrap(), 64)] {
        let mut fixture = Fixture::new();
        fixture.spec.block = Block {
            driver: BlockDriver::VirtioScsi,
            options: BlockOptions::new(Access::Threads, Sectors::default(), queues),
            threads: IoThreads::new(false, independent).unwrap(),
        };
        let mut machine = Machine::boot(fixture).await;
        assert_eq!(machine.property(SCSI, "num_queues"), queues.count());
        assert_eq!(machine.property(SCSI, "virtqueue_size"), queues.size());
        assert_eq!(machine.ask("query-iothreads", json!({})).as_array().unwrap().len(), independent as usize);
        machine.end().await;
    }
}

#[tokio::test]
async fn a20_without_threads_the_scsi_controller_has_none() {
    let mut machine = Machine::boot(Fixture::new()).await;
    assert_eq!(machine.ask("query-iothreads", json!({})), json!([]));
    assert_eq!(machine.property(SCSI, "iothread"), "");
    machine.end().await;
}
