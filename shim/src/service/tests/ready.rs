//! Sandboxes that find their machine ready.

use std::time::Duration;

use containerd_shim_protos::ttrpc::Code;

use crate::fakes::{Boot, later, on_fakes};

#[test]
fn e3_the_machine_that_is_ready_is_the_sandboxs_with_numbers_a_clock_and_a_place_of_its_own() {
    on_fakes(async |shim| {
        let ready = shim.ready().await;
        assert_eq!(shim.again_with("c1", Some(ready)).await, ["boot"]);
        let calls = shim.guest.asked(&["ReseedRandomDev", "SetGuestDateTime", "CreateSandbox"]);
        // The first one is that of the container that it has had before.
        assert_eq!(calls, ["CreateSandbox", "ReseedRandomDev", "SetGuestDateTime", "CreateSandbox"]);
    });
}

#[test]
fn e3_a_sandbox_that_needs_another_machine_boots_it_and_the_one_that_was_ready_ends() {
    on_fakes(async |shim| {
        let ready = shim.ready().await;
        shim.configure("default_vcpus = 2");
        assert_eq!(shim.again_with("c1", Some(ready)).await, ["boot", "boot"]);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn e3_a_machine_that_is_ready_and_of_no_use_is_replaced() {
    on_fakes(async |shim| {
        let ready = shim.ready().await;
        shim.guest.refuses("ReseedRandomDev", Code::INTERNAL, "no");
        assert_eq!(shim.again_with("c1", Some(ready)).await, ["boot", "boot"]);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn e3_a_machine_that_is_ready_and_does_not_go_on_is_replaced_in_time() {
    on_fakes(async |shim| {
        let ready = shim.ready().await;
        shim.guest.never_answers("ReseedRandomDev");
        let replaced = shim.again_with("c1", Some(ready));
        let time_passes = async {
            while shim.guest.asked(&["ReseedRandomDev"]).is_empty() {
                tokio::task::yield_now().await;
            }
            later(Duration::from_secs(11)).await;
            std::future::pending::<()>().await;
        };
        let origins = tokio::select! {
            origins = replaced => origins,
            () = time_passes => unreachable!("it waits for ever"),
        };
        assert_eq!(origins, ["boot", "boot"]);
    });
}

#[test]
fn e3_a_template_of_no_use_keeps_no_machine_from_being_ready() {
    on_fakes(async |shim| {
        let directory = shim.dir.path().join("templates");
        shim.configure(&format!("[factory]\nenable_template = true\ntemplate_path = {directory:?}"));
        shim.machine.boots(Boot::CopiesDie);
        drop(shim.ready().await);
        assert_eq!(shim.machine.origins(), ["template", "copy", "boot"]);
    });
}

#[test]
fn e3_a_machine_that_nobody_has_taken_leaves_nothing() {
    on_fakes(async |shim| {
        let ready = shim.ready().await;
        assert!(!shim.nothing_is_left());
        drop(ready);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn e3_what_cannot_be_kept_ready_is_refused_by_name() {
    on_fakes(async |shim| {
        for (line, what) in [
            ("machine_type = \"microvm\"", "a board other than q35"),
            ("default_bridges = 0", "PCI bridges"),
            ("guest_memory_dump_path = \"/srv/dumps\"", "a dump of the guest's memory"),
        ] {
            shim.configured(line, async || {
                let refused = shim.try_ready().await.err().unwrap().to_string();
                assert!(refused.contains(what) && refused.contains("vm_cache_number"), "{refused}");
            })
            .await;
        }
    });
}
