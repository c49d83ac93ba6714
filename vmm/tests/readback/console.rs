//! What goes in and out of QEMU by sockets: the guest's console and the monitors.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;
use vmm::spec::{Console, EXTRA_MONITOR, ExtraMonitor};
use vmm::{Hypervisor, Qemu};

use crate::Machine;
use crate::common::{Fixture, log};

#[tokio::test]
async fn a16_the_console_is_a_port_of_virtio_or_a_serial_one() {
    for (console, kind) in [(Console::Virtio, "virtconsole"), (Console::Serial, "isa-serial")] {
        let mut fixture = Fixture::new();
        fixture.spec.console = console;
        let mut machine = Machine::boot(fixture).await;
        let device = "/machine/peripheral/console0";
        assert_eq!(machine.property(device, "type"), kind);
        assert_eq!(machine.property(device, "chardev"), "charconsole0");
        if console == Console::Virtio {
            let bus = machine.property(device, "parent_bus");
            assert_eq!(bus, "/machine/peripheral/serial0/virtio-backend/serial0.0");
        }
        let chardevs = machine.ask("query-chardev", json!({}));
        let of_console = chardevs.as_array().unwrap().iter().find(|one| one["label"] == "charconsole0");
        let file = of_console.unwrap()["filename"].as_str().unwrap();
        // Where nobody is at the other end, it begins with `disconnected`.
        assert!(file.starts_with("unix:"), "{file}");
        machine.end().await;
    }
}

/// A machine with a second monitor of this kind, and what that says first.
async fn greeting(kind: ExtraMonitor, bytes: usize) -> String {
    let mut fixture = Fixture::new();
    fixture.spec.extra_monitor = Some(kind);
    let vm = Qemu::new(log()).boot(fixture.spec.clone()).await.unwrap();
    let socket = UnixStream::connect(fixture.spec.run_dir.join(EXTRA_MONITOR)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut text = String::new();
    BufReader::new(socket).take(bytes as u64).read_line(&mut text).unwrap();
    vm.stop(Duration::ZERO).await.unwrap();
    fixture.assert_nothing_left();
    text
}

#[tokio::test]
async fn a13_a_second_monitor_speaks_as_it_is_asked_to() {
    let hmp = greeting(ExtraMonitor::Hmp, 200).await;
    assert!(hmp.contains("QEMU") && hmp.contains("monitor - type 'help'"), "{hmp}");
    let qmp = greeting(ExtraMonitor::Qmp, 4096).await;
    assert!(qmp.starts_with(r#"{"QMP": {"#), "{qmp}");
    // Its first line is no more than this.
    assert_eq!(greeting(ExtraMonitor::QmpPretty, 4096).await.trim_end(), "{");
}
