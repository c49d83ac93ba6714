//! What the real QEMU makes of a specification, read back from it over a second monitor.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod absent;
mod block;
mod boards;
#[path = "../common/mod.rs"]
mod common;
mod console;
mod firmware;
mod image;
mod machine;
mod memory;
mod nic;
mod pci;
mod protection;
mod share;
mod vhost_user;
mod virtio;

use std::os::unix::fs::PermissionsExt;

use common::Fixture;
use common::monitor::Machine;
use vmm::spec::EXTRA_MONITOR;

#[tokio::test]
async fn s_c3_a13_the_second_monitor_is_for_its_owner_alone_and_goes_with_the_machine() {
    let machine = Machine::boot(Fixture::new()).await;
    let socket = machine.fixture.spec.run_dir.join(EXTRA_MONITOR);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o077, 0);
    machine.end().await;
}
