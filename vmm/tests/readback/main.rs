//! What the real QEMU makes of a specification, read back from it over a second monitor.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod block;
mod boards;
#[path = "../common/mod.rs"]
mod common;
mod firmware;
mod image;
mod memory;
mod pci;
mod protection;
mod virtio;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Fixture, log};
use serde_json::{Value, json};
use vmm::spec::{EXTRA_MONITOR, ExtraMonitor};
use vmm::{Hypervisor, Qemu, Vm};

/// A machine that runs, and the test's own conversation with its QEMU.
struct Machine {
    fixture: Fixture,
    vm: Box<dyn Vm>,
    monitor: BufReader<UnixStream>,
}

impl Machine {
    async fn boot(mut fixture: Fixture) -> Machine {
        fixture.spec.extra_monitor = Some(ExtraMonitor::Qmp);
        let vm = Qemu::new(log()).boot(fixture.spec.clone()).await.unwrap();
        let socket = UnixStream::connect(fixture.spec.run_dir.join(EXTRA_MONITOR)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut machine = Machine { fixture, vm, monitor: BufReader::new(socket) };
        assert!(machine.line().get("QMP").is_some());
        machine.ask("qmp_capabilities", json!({}));
        machine
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// What QEMU returns for a command.
    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.monitor.get_mut(), "{request}").unwrap();
        loop {
            let mut answer = self.line();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if answer.get("return").is_some() {
                return answer["return"].take();
            }
        }
    }

    /// A property of an object, by its path or its id.
    fn property(&mut self, path: &str, property: &str) -> Value {
        self.ask("qom-get", json!({"path": path, "property": property}))
    }

    async fn end(self) {
        self.vm.stop(Duration::ZERO).await.unwrap();
        self.fixture.assert_nothing_left();
    }
}

#[tokio::test]
async fn s_c3_a13_the_second_monitor_is_for_its_owner_alone_and_goes_with_the_machine() {
    let machine = Machine::boot(Fixture::new()).await;
    let socket = machine.fixture.spec.run_dir.join(EXTRA_MONITOR);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o077, 0);
    machine.end().await;
}
