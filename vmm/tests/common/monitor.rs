//! A look into QEMU over a second monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use vmm::spec::{EXTRA_MONITOR, ExtraMonitor};
use vmm::{Hypervisor, Qemu, Vm};

use super::{Fixture, log};

/// A machine that runs, and the test's own conversation with its QEMU.
pub(crate) struct Machine {
    pub(crate) fixture: Fixture,
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) monitor: Monitor,
}

/// The conversation.
pub(crate) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// What QEMU returns for a command.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.0.get_mut(), "{request}").unwrap();
        loop {
            let mut answer = self.line();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if answer.get("return").is_some() {
                return answer["return"].take();
            }
        }
    }
}

impl Machine {
    pub(crate) async fn boot(mut fixture: Fixture) -> Machine {
        fixture.spec.extra_monitor = Some(ExtraMonitor::Qmp);
        let vm = Qemu::new(log()).boot(fixture.spec.clone()).await.unwrap();
        let socket = UnixStream::connect(fixture.spec.run_dir.join(EXTRA_MONITOR)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut machine = Machine { fixture, vm, monitor: Monitor(BufReader::new(socket)) };
        assert!(machine.monitor.line().get("QMP").is_some());
        machine.ask("qmp_capabilities", json!({}));
        machine
    }

    /// What QEMU returns for a command.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.monitor.ask(command, arguments)
    }

    /// A property of an object, by its path.
    pub(crate) fn property(&mut self, path: &str, property: &str) -> Value {
        self.ask("qom-get", json!({"path": path, "property": property}))
    }

    pub(crate) async fn end(self) {
        self.vm.stop(Duration::ZERO).await.unwrap();
        self.fixture.assert_nothing_left();
    }
}
