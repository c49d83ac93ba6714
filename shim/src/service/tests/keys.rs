//! What keys of `[agent.kata]` and `[runtime]` do.

use std::{fs, path::Path, time::Duration};

use containerd_shim_protos::ttrpc::Code;
use serde_json::json;
use slog::Level;

use crate::fakes::{Boot, code, later, on_fakes, words};

#[test]
fn e4_the_guest_loads_the_operators_modules_first() {
    on_fakes(async |shim| {
        shim.configure("[agent.kata]\nkernel_modules = ['e1000e EEE=1 debug=2', 'i915']");
        shim.create("c1").await.unwrap();
        shim.guest.is_asked("CreateSandbox c1 [e1000e EEE=1 debug=2] [i915 ]").await;
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn d23_the_guest_is_told_where_its_hooks_are() {
    on_fakes(async |shim| {
        shim.configure("guest_hook_path = '/usr/share/oci/hooks'");
        shim.create("c1").await.unwrap();
        shim.guest.is_asked("CreateSandbox c1/usr/share/oci/hooks").await;
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn e4_an_agent_has_as_long_as_dial_timeout_says() {
    on_fakes(async |shim| {
        shim.configure("[agent.kata]\ndial_timeout = 3");
        shim.machine.boots(Boot::Mute);
        let creating = shim.creating(shim.request("c1"));
        shim.machine.has_begun(1).await;
        later(Duration::from_secs(4)).await;
        assert_eq!(code(creating.await.unwrap()), Code::DEADLINE_EXCEEDED);
    });
}

#[test]
fn e5_a_container_has_as_long_as_create_container_timeout_says() {
    on_fakes(async |shim| {
        shim.configure("[runtime]\ncreate_container_timeout = 3");
        shim.guest.never_answers("CreateContainer");
        let creating = shim.creating(shim.request("c1"));
        shim.guest.is_asked("CreateContainer c1").await;
        assert!(!creating.is_finished());
        later(Duration::from_secs(4)).await;
        // What is then asked of the guest it does answer.
        let answer = creating.await.unwrap();
        assert_eq!(code(answer.clone()), Code::DEADLINE_EXCEEDED, "{}", words(answer));
    });
}

#[test]
fn e4_the_agent_is_told_on_the_kernels_line_to_say_more_and_to_offer_a_shell() {
    on_fakes(async |shim| {
        shim.configure(
            "kernel_params = 'last'\n[agent.kata]\nenable_debug = true\ndebug_console_enabled = true",
        );
        shim.create("c1").await.unwrap();
        let told = ["agent.log=debug", "agent.debug_console", "agent.debug_console_vport=1026", "last"];
        assert_eq!(shim.machine.kernel_params(), told);
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn e5_the_shim_says_more_once_its_configuration_asks_for_it() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        assert_eq!(shim.verbosity.level(), Level::Info);
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
    on_fakes(async |shim| {
        shim.configure("[runtime]\nenable_debug = true");
        shim.create("c1").await.unwrap();
        assert_eq!(shim.verbosity.level(), Level::Debug);
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

/// What the guest is to create of a container with a label and a seccomp profile.
fn confined(keys: &'static str, asked: &'static str) {
    on_fakes(async move |shim| {
        shim.configure(keys);
        let request = shim.request("c1");
        let file = Path::new(&request.bundle).join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        spec["process"]["selinuxLabel"] = "a:b:c".into();
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        fs::write(&file, spec.to_string()).unwrap();
        shim.create_as(request).await.unwrap();
        shim.guest.is_asked(asked).await;
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn e5_d8_seccomp_and_selinux_are_the_guests_where_the_operator_says_so() {
    // Without SELinux a host refuses labels for its own processes.
    confined("disable_selinux = true", "CreateContainer c1 |");
    confined(
        "disable_selinux = true\n[runtime]\ndisable_guest_seccomp = false",
        "CreateContainer c1 seccomp |",
    );
    confined("disable_selinux = true\ndisable_guest_selinux = false", "CreateContainer c1 a:b:c|");
    let own =
        "disable_selinux = true\ndisable_guest_selinux = false\n[runtime]\nguest_selinux_label = 'd:e:f'";
    confined(own, "CreateContainer c1 d:e:f|");
}
