//! Templates and their copies.

use super::*;

/// A machine whose first state comes from there, with what QEMU inherits of it.
fn of_origin(origin: Origin) -> Vec<String> {
    let spec = VmSpec { origin, ..spec() };
    assert_eq!(spec.check(), Ok(()));
    lines(&spec, &Inherited { vsock: None, memory: Some(9), ..inherited() })
}

#[test]
fn a21_a_template_has_its_memory_in_a_file_and_ports_for_what_its_copies_get() {
    let all = of_origin(Origin::Template { memory: "/template/memory".into() });
    let file =
        r#""id":"memory0","size":2147483648,"mem-path":"/proc/self/fd/9","share":true,"readonly":false}"#;
    assert!(has(&all, &format!(r#"-object {{"qom-type":"memory-backend-file",{file}"#)));
    for (id, slot) in [("late0", 29), ("late1", 30)] {
        let port = format!(r#"{{"driver":"pcie-root-port","id":"{id}","bus":"pcie.0","addr":"{slot:x}""#);
        assert!(all.iter().any(|line| line.contains(&port)), "{all:?}");
    }
    assert!(!all.iter().any(|line| line.contains("vsock")), "{all:?}");
    assert!(!all.iter().any(|line| line.starts_with("-incoming")));
}

#[test]
fn a21_a_copy_waits_for_its_state_and_has_memory_of_its_own() {
    let of = |restore| {
        of_origin(Origin::Copy {
            memory: "/template/memory".into(),
            state: "/template/state".into(),
            restore,
        })
    };
    for (restore, share) in [(Restore::Load, true), (Restore::CopyOnWrite, false)] {
        let all = of(restore);
        assert!(has(&all, "-incoming defer"));
        assert!(
            all.iter().any(|line| line.contains(&format!(r#""mem-path":"/proc/self/fd/9","share":{share}"#)))
        );
        assert!(!all.iter().any(|line| line.contains("vsock")), "{all:?}");
    }
}

#[test]
fn a21_what_cannot_be_saved_is_no_template() {
    let template = Origin::Template { memory: "/template/memory".into() };
    let huge = VmSpec { origin: template.clone(), backing: Backing::HugePages, ..spec() };
    let refused = "memory in huge pages or in a file of its own cannot be had with a template";
    assert_eq!(huge.check().unwrap_err().to_string(), refused);
    let machine = Machine::Microvm(MachineOptions::default());
    assert_eq!(VmSpec { machine, ..spec() }.against_template(), Some("a board other than q35"));
    assert_eq!(spec().against_template(), None);
}
