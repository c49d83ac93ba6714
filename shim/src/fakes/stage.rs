//! A shim on the fakes.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use configuration::Configuration;
use containerd_shim::ExitSignal;
use containerd_shim_protos::{
    events::task::TaskPaused,
    ttrpc::{self, Code, r#async::Server},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc::UnboundedReceiver},
    task::JoinHandle,
    time,
};

use super::{containerd, guest::Guest, machine::FakeHypervisor};
use crate::{
    error::Result,
    events::{Delivery, Events},
    factory::Ready,
    logging::Verbosity,
    sandbox::run_dir,
    service::TaskService,
};

pub(super) const NAMESPACE: &str = "tests";
/// The name of the configuration in [`Shim::dir`].
const CONFIGURATION: &str = "configuration.toml";
/// The run directories of all sandboxes.
const RUN: &str = "/run/kata";
/// Where tools look for sandboxes.
const DOORS: &str = "/run/vc/sbs";
/// What the event that ends a test is about.
const LAST: &str = "last";
/// A test that takes longer waits for something that never comes.
const PATIENCE: Duration = Duration::from_secs(90);

/// A shim and its surroundings; [`super::calls`] has containerd's calls to it.
pub(crate) struct Shim {
    pub(crate) service: Arc<TaskService>,
    pub(crate) machine: Arc<FakeHypervisor>,
    pub(crate) guest: Arc<Guest>,
    pub(crate) exit: Arc<ExitSignal>,
    /// That of the shim's log.
    pub(crate) verbosity: Verbosity,
    pub(crate) dir: TempDir,
    published: AsyncMutex<UnboundedReceiver<String>>,
    events: Events,
    delivery: Delivery,
    _servers: [Server; 2],
}

/// Runs `test` on a thread whose mounts are its own, with a `/run` of its own and no cgroups, and looks at the end for
/// what should be gone.
pub(crate) fn on_fakes(test: impl AsyncFnOnce(&Shim) + Send + 'static) {
    let body = move || {
        private_run();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let shim = Shim::new().await;
            let whole = async {
                test(&shim).await;
                shim.ends().await;
            };
            time::timeout(PATIENCE, whole).await.expect("the test waits for something that never comes");
        });
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// What the code and the words of a refusal are.
pub(crate) fn code<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> Code {
    refusal(answer).0
}

pub(crate) fn words<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> String {
    refusal(answer).1
}

fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code.unwrap(), status.message),
        other => panic!("{other}"),
    }
}

/// Has `time` pass at once. The clock runs otherwise: paused, tokio would skip to the next deadline whenever all
/// that is ready is a socket.
pub(crate) async fn later(by: Duration) {
    time::pause();
    time::advance(by).await;
    time::resume();
}

/// Lets everything happen that can without time passing.
pub(crate) async fn settled() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Has time pass until `task` is done; some of it is real, for what is done on threads.
pub(crate) async fn soon<T>(task: JoinHandle<T>) -> T {
    while !task.is_finished() {
        later(Duration::from_millis(100)).await;
        std::thread::sleep(Duration::from_millis(1));
    }
    task.await.unwrap()
}

fn private_run() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("tests"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    // A test is not to be moved about.
    mount(Some("tests"), "/sys/fs/cgroup", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// A configuration that needs nothing of the host.
fn configure(dir: &Path) {
    let program = dir.join("program");
    fs::write(&program, "x").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let program = program.display();
    let text = format!(
        r#"
[hypervisor.qemu]
path = "{program}"
kernel = "{program}"
initrd = "{program}"
accelerator = "tcg"
vsock = "vhost-user"
shared_fs = "virtio-9p"
default_memory = 256
"#
    );
    let file = dir.join(CONFIGURATION);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
}

impl Shim {
    async fn new() -> Shim {
        let dir = tempfile::tempdir().unwrap();
        configure(dir.path());
        let events = dir.path().join("containerd.sock");
        let (containerd, published) = containerd::serve(&events).await;
        let agent = dir.path().join("agent.sock");
        let (guest, agents) = Guest::serve(&agent).await;
        let machine = Arc::new(FakeHypervisor::new(agent));
        let log = Logger::root(Discard, o!());
        let (events, delivery) = Events::to(events.to_str().unwrap(), NAMESPACE, log.clone());
        let exit = Arc::new(ExitSignal::default());
        let verbosity = Verbosity::default();
        let service = TaskService::new(
            NAMESPACE,
            machine.clone(),
            None,
            events.clone(),
            exit.clone(),
            log,
            verbosity.clone(),
        );
        Shim {
            service: Arc::new(service),
            machine,
            guest,
            exit,
            verbosity,
            dir,
            published: AsyncMutex::new(published),
            events,
            delivery,
            _servers: [containerd, agents],
        }
    }

    pub(super) fn configuration(&self) -> PathBuf {
        self.dir.path().join(CONFIGURATION)
    }

    /// Adds a line to `[hypervisor.qemu]`.
    pub(crate) fn configure(&self, line: &str) {
        let text = fs::read_to_string(self.configuration()).unwrap();
        fs::write(self.configuration(), format!("{text}{line}\n")).unwrap();
    }

    /// Has sandboxes share no directory with their guests.
    pub(crate) fn shares_nothing(&self) {
        let text = fs::read_to_string(self.configuration()).unwrap();
        let nothing = "shared_fs = \"none\"\ndisable_block_device_use = false";
        fs::write(self.configuration(), text.replace("shared_fs = \"virtio-9p\"", nothing)).unwrap();
    }

    /// Runs `id` in a shim of its own on the same host. Returns what every boot of the host was.
    pub(crate) async fn again(&self, id: &str) -> Vec<&'static str> {
        self.again_with(id, None).await
    }

    /// The same, where a machine may be ready.
    pub(crate) async fn again_with(&self, id: &str, ready: Option<Ready>) -> Vec<&'static str> {
        self.meanwhile(id, ready, async || ()).await;
        self.machine.origins()
    }

    /// Runs `body` while the machine that is ready is a sandbox's.
    pub(crate) async fn uses(&self, ready: Ready, id: &str, body: impl AsyncFnOnce()) {
        self.meanwhile(id, Some(ready), body).await;
    }

    async fn meanwhile(&self, id: &str, ready: Option<Ready>, body: impl AsyncFnOnce()) {
        let log = Logger::root(Discard, o!());
        let exit = Arc::new(ExitSignal::default());
        let (machine, events, verbosity) = (self.machine.clone(), self.events.clone(), Verbosity::default());
        let service = TaskService::new(NAMESPACE, machine, ready, events, exit, log, verbosity);
        self.create_with(&service, self.request(id)).await.unwrap();
        assert_eq!(self.published(1).await, [format!("create {id}")]);
        body().await;
        service.stop().await;
        assert_eq!(self.published(1).await, [format!("exit {id} 255")]);
    }

    /// A machine that is ready, of the configuration as it is.
    pub(crate) async fn ready(&self) -> Ready {
        self.try_ready().await.unwrap()
    }

    pub(crate) async fn try_ready(&self) -> Result<Ready> {
        let loaded = Configuration::load(Some(&self.configuration()), &HashMap::new()).unwrap();
        let log = Logger::root(Discard, o!());
        Ready::make(self.machine.as_ref(), &loaded.configuration, run_dir::ready().join("1"), &log).await
    }

    /// Runs `body` while the configuration has another line.
    pub(crate) async fn configured(&self, line: &str, body: impl AsyncFnOnce()) {
        let before = fs::read_to_string(self.configuration()).unwrap();
        self.configure(line);
        body().await;
        fs::write(self.configuration(), before).unwrap();
    }

    /// The next `count` events.
    pub(crate) async fn published(&self, count: usize) -> Vec<String> {
        let mut published = self.published.lock().await;
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(published.recv().await.unwrap());
        }
        events
    }

    /// Whether nothing on the host speaks of a sandbox: no machine, no directory, no mount.
    pub(crate) fn nothing_is_left(&self) -> bool {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let directories =
            [RUN, DOORS].iter().any(|dir| fs::read_dir(dir).is_ok_and(|mut all| all.next().is_some()));
        self.machine.machines_on() == 0 && !directories && !mounts.contains(RUN)
    }

    /// Ends the shim. The test has looked at every event there was; what still runs has its exit told once.
    async fn ends(mut self) {
        self.events.publish(TaskPaused { container_id: LAST.into(), ..Default::default() });
        assert_eq!(self.published(1).await, [format!("paused {LAST}")], "an event nobody expected");
        self.service.stop().await;
        assert!(self.nothing_is_left());
        self.delivery.finish().await;
        let mut exits = Vec::new();
        while let Ok(event) = self.published.get_mut().try_recv() {
            assert!(event.starts_with("exit ") && !exits.contains(&event), "{event}");
            exits.push(event);
        }
    }
}
