//! Copies of a machine that was saved, by the real QEMU under TCG.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use common::{Fixture, boot};
use tokio::time::{sleep, timeout};
use vmm::Vm;
use vmm::plug::{Disk, DiskBus, Pluggable};
use vmm::spec::{KernelParam, Origin, PciPlaces, Restore, Window};

/// How long a guest may take to say something.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a kernel says that waits for a disk which never comes: it lives, and notices devices that come and go.
const WAITS: &str = "Waiting for root device";

fn fixture(origin: Origin) -> Fixture {
    let mut fixture = Fixture::new();
    fixture.spec.kernel_params =
        ["root=/dev/vdz", "rootwait"].map(|word| KernelParam::new(word).unwrap()).to_vec();
    fixture.spec.pci = PciPlaces::new(1, 0, Window::default()).unwrap();
    fixture.spec.origin = origin;
    fixture
}

/// Waits until the guest has said something.
async fn says(vm: &dyn Vm, wanted: &str) {
    // The console tells nobody.
    let said = async {
        while !vm.console_tail().contains(wanted) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let said = timeout(PATIENCE, said).await;
    assert!(said.is_ok(), "{wanted:?} is not on the console: {}", vm.console_tail());
}

async fn template(memory: &Path, state: &Path) {
    let fixture = fixture(Origin::Template { memory: memory.to_owned() });
    let vm = boot(&fixture).await;
    says(vm.as_ref(), WAITS).await;
    vm.save(File::create(state).unwrap()).await.unwrap();
    vm.stop(Duration::ZERO).await.unwrap();
    fixture.assert_nothing_left();
    vmm::make_sparse(memory).unwrap();
}

/// A device goes only if the guest lets go of it.
async fn lives(vm: &dyn Vm, image: &Path) {
    let disk = Disk { path: image.to_owned(), read_only: true, bus: DiskBus::VirtioBlk };
    let plugged = vm.plug(Pluggable::Disk(disk)).await.unwrap();
    vm.unplug(&plugged.id).await.unwrap();
}

#[tokio::test]
async fn a41_b17_copies_go_on_where_their_template_was_and_leave_it_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let [memory, state, image] = ["memory", "state", "image"].map(|name| dir.path().join(name));
    std::fs::write(&image, [0; 4096]).unwrap();
    template(&memory, &state).await;
    let saved = std::fs::read(&memory).unwrap();
    for restore in [Restore::Load, Restore::CopyOnWrite] {
        let copy = || fixture(Origin::Copy { memory: memory.clone(), state: state.clone(), restore });
        let fixtures = [copy(), copy()];
        let copies = [boot(&fixtures[0]).await, boot(&fixtures[1]).await];
        for (copy, fixture) in copies.iter().zip(&fixtures) {
            lives(copy.as_ref(), &image).await;
            assert!(!copy.console_tail().contains(WAITS), "{restore:?} boots: {}", copy.console_tail());
            copy.stop(Duration::ZERO).await.unwrap();
            fixture.assert_nothing_left();
        }
        assert!(std::fs::read(&memory).unwrap() == saved, "{restore:?} changed the template's memory");
    }
}
