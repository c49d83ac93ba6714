//! A hypervisor whose machines are a vsock each, with the guest's agent behind it.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{copy_bidirectional, duplex},
    net::UnixStream,
    sync::{mpsc, watch},
};
use vmm::plug::{DeviceId, GuestAddress, MemorySize, Nic, PciAddress, PlugError, Pluggable, Plugged};
use vmm::spec::{Origin, PassThrough};
use vmm::{
    BootError, Connection, How, Hypervisor, Listener, Process, QmpError, StopError, Unwell, VcpuThread, Vm,
    VmExit, VmSpec, Vsock, Who,
};

/// The size of every disk that is plugged in, in bytes.
const DISK: u64 = 8 << 20;

/// What becomes of a boot.
#[derive(Clone, Copy, Default)]
pub(crate) enum Boot {
    #[default]
    Serves,
    /// QEMU ends while it boots.
    Dies,
    /// QEMU never comes to run.
    Hangs,
    /// The machine runs; its agent never says that it serves.
    Mute,
    /// QEMU ends while it boots what is not its own boot.
    CopiesDie,
    /// QEMU ends while it boots a template.
    TemplatesDie,
}

pub(crate) struct FakeHypervisor {
    /// Where the guest's agent listens.
    agent: PathBuf,
    boot: Mutex<Boot>,
    /// The guest's kernel command line of the last boot, as far as the shim makes it.
    kernel_params: Mutex<Vec<String>>,
    /// Where the first state of each machine was to come from.
    origins: Mutex<Vec<Origin>>,
    begun: watch::Sender<usize>,
    /// Sizes of the machines.
    sizes: Arc<Sizes>,
    /// The network namespace that the last machine was to be in.
    network: Mutex<Option<Arc<OwnedFd>>>,
    /// Network interfaces that are plugged in.
    nics: Arc<watch::Sender<Nics>>,
    /// Devices of the host, with their places, that the last machine has.
    host_devices: Arc<watch::Sender<Vec<String>>>,
    /// Every machine there was.
    machines: watch::Sender<Vec<Arc<Power>>>,
}

/// MiB that no guest takes long to take.
const SMALL: u64 = 1024;

/// With what is behind them.
type Nics = Vec<(DeviceId, Nic)>;

impl FakeHypervisor {
    pub(crate) fn new(agent: PathBuf) -> FakeHypervisor {
        FakeHypervisor {
            agent,
            boot: Mutex::default(),
            kernel_params: Mutex::default(),
            origins: Mutex::default(),
            begun: watch::Sender::default(),
            sizes: Arc::default(),
            network: Mutex::default(),
            nics: Arc::default(),
            host_devices: Arc::default(),
            machines: watch::Sender::default(),
        }
    }

    /// From now on, boots go like this.
    pub(crate) fn boots(&self, boot: Boot) {
        *self.boot.lock().unwrap() = boot;
    }

    pub(crate) fn kernel_params(&self) -> Vec<String> {
        self.kernel_params.lock().unwrap().clone()
    }

    /// What each boot was: `boot`, `template` or `copy`.
    pub(crate) fn origins(&self) -> Vec<&'static str> {
        let word = |origin: &Origin| match origin {
            Origin::Boot => "boot",
            Origin::Template { .. } => "template",
            Origin::Copy { .. } => "copy",
        };
        self.origins.lock().unwrap().iter().map(word).collect()
    }

    /// Where the network namespace is that the last machine was to be in.
    pub(crate) fn network(&self) -> Option<PathBuf> {
        let network = self.network.lock().unwrap();
        network.as_ref().map(|fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()).into())
    }

    /// Waits until network interfaces of these are plugged in, by the last bytes of their addresses.
    pub(crate) async fn has_nics(&self, wanted: &[u8]) {
        let are_there = |nics: &Nics| nics.iter().map(|(_, nic)| nic.mac[5]).eq(wanted.iter().copied());
        self.nics.subscribe().wait_for(are_there).await.unwrap();
    }

    /// Waits until the machine has these devices of the host, each with its place.
    pub(crate) async fn has_host_devices(&self, wanted: &[&str]) {
        let are_there = |devices: &Vec<String>| devices.iter().map(String::as_str).eq(wanted.iter().copied());
        self.host_devices.subscribe().wait_for(are_there).await.unwrap();
    }

    /// From now on no machine can have more network interfaces or memory.
    pub(crate) fn has_no_more_room(&self) {
        self.sizes.is_full.store(true, Ordering::Relaxed);
    }

    /// From now on no guest gets to the end of taking more memory than [`SMALL`].
    pub(crate) fn is_slow(&self) {
        self.sizes.is_slow.store(true, Ordering::Relaxed);
    }

    /// Whether guests keep what is to be unplugged, from now on.
    pub(crate) fn holds_on(&self, is_held: bool) {
        self.sizes.is_held.store(is_held, Ordering::Relaxed);
    }

    /// Waits until a guest has kept something.
    pub(crate) async fn has_held(&self) {
        self.sizes.held.subscribe().wait_for(|held| *held > 0).await.unwrap();
    }

    /// From now on machines have these threads of the host as processors.
    pub(crate) fn runs_on(&self, threads: &[u32]) {
        *self.sizes.threads.lock().unwrap() = threads.to_vec();
    }

    /// Every size there was, as `<processors>` or `<MiB> MiB`, that of a boot first.
    pub(crate) fn sizes(&self) -> Vec<String> {
        self.sizes.all.borrow().clone()
    }

    /// Waits until so many sizes were asked for.
    pub(crate) async fn has_had(&self, sizes: usize) -> Vec<String> {
        self.sizes.all.subscribe().wait_for(|all| all.len() >= sizes).await.unwrap().clone()
    }

    /// Waits until so many boots have begun.
    pub(crate) async fn has_begun(&self, boots: usize) {
        self.begun.subscribe().wait_for(|begun| *begun >= boots).await.unwrap();
    }

    /// Waits for a first machine to be booted, and has the last one die, as QEMU does when it is killed.
    pub(crate) async fn dies(&self) {
        self.last().await.off(How::Killed(9));
    }

    /// Has every connection into the last machine end, as when its agent dies; the machine runs on.
    pub(crate) async fn hangs_up(&self) {
        self.last().await.wires.send_replace(false);
    }

    async fn last(&self) -> Arc<Power> {
        let mut machines = self.machines.subscribe();
        machines.wait_for(|machines| !machines.is_empty()).await.unwrap().last().cloned().unwrap()
    }

    pub(crate) fn machines_on(&self) -> usize {
        self.machines.borrow().iter().filter(|power| power.exit.borrow().is_none()).count()
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn boot(&self, spec: VmSpec) -> Result<Box<dyn Vm>, BootError> {
        *self.kernel_params.lock().unwrap() = spec.kernel_params.iter().map(ToString::to_string).collect();
        self.origins.lock().unwrap().push(spec.origin.clone());
        self.network.lock().unwrap().clone_from(&spec.network);
        self.sizes.note(spec.vcpus.boot().to_string());
        self.sizes.note(format!("{} MiB", spec.memory.mib()));
        self.host_devices.send_replace(from_the_start(&spec));
        self.begun.send_modify(|begun| *begun += 1);
        let boot = *self.boot.lock().unwrap();
        match (boot, &spec.origin) {
            (Boot::Dies, _)
            | (Boot::CopiesDie, Origin::Copy { .. })
            | (Boot::TemplatesDie, Origin::Template { .. }) => {
                return Err(BootError::Exited(exit(How::Exited(1))));
            }
            (Boot::Hangs, _) => std::future::pending().await,
            (_, Origin::Template { memory }) => File::create_new(memory).unwrap().set_len(1 << 20).unwrap(),
            (_, Origin::Copy { memory, state, .. }) => assert!(memory.exists() && state.exists()),
            (_, Origin::Boot) => {}
        }
        let power = Arc::new(Power { exit: watch::Sender::default(), wires: watch::Sender::new(true) });
        self.machines.send_modify(|machines| machines.push(power.clone()));
        let serves = !matches!(boot, Boot::Mute);
        let vsock = Arc::new(FakeVsock { agent: self.agent.clone(), serves, power: power.clone() });
        let (sizes, nics, host_devices) = (self.sizes.clone(), self.nics.clone(), self.host_devices.clone());
        Ok(Box::new(FakeVm { vsock, power, sizes, nics, host_devices }))
    }
}

fn from_the_start(spec: &VmSpec) -> Vec<String> {
    let PassThrough::Cold { devices, .. } = &spec.pass_through else { return Vec::new() };
    let places = spec.passed_through().unwrap();
    devices.iter().zip(places).map(|(device, plugged)| format!("{device} {}", plugged.at)).collect()
}

/// A machine's switch.
struct Power {
    exit: watch::Sender<Option<VmExit>>,
    /// Whether connections into the machine hold.
    wires: watch::Sender<bool>,
}

impl Power {
    /// Also cuts every connection into the machine.
    fn off(&self, how: How) {
        self.wires.send_replace(false);
        self.exit.send_if_modified(|known| known.is_none() && known.replace(exit(how)).is_none());
    }
}

fn exit(how: How) -> VmExit {
    VmExit { who: Who::Qemu, how, last_words: "last words".into() }
}

fn no_room() -> PlugError {
    PlugError::Full { what: "room", remedy: "it is a fake" }
}

/// Sizes that machines had.
#[derive(Default)]
struct Sizes {
    all: watch::Sender<Vec<String>>,
    is_full: AtomicBool,
    /// No guest gets to the end of taking much memory.
    is_slow: AtomicBool,
    /// Guests do not let go of what is to be unplugged.
    is_held: AtomicBool,
    /// How often they have not.
    held: watch::Sender<usize>,
    /// What the processors are.
    threads: Mutex<Vec<u32>>,
}

impl Sizes {
    fn note(&self, size: String) {
        self.all.send_modify(|all| all.push(size));
    }
}

struct FakeVm {
    vsock: Arc<FakeVsock>,
    power: Arc<Power>,
    sizes: Arc<Sizes>,
    nics: Arc<watch::Sender<Nics>>,
    host_devices: Arc<watch::Sender<Vec<String>>>,
}

/// Places for devices of the host that come later.
const PORTS: std::ops::Range<u8> = 7..9;

#[async_trait]
impl Vm for FakeVm {
    /// This process.
    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn processes(&self) -> Vec<Process> {
        vec![Process::of(std::process::id(), "qemu").unwrap()]
    }

    fn exit(&self) -> watch::Receiver<Option<VmExit>> {
        self.power.exit.subscribe()
    }

    fn vsock(&self) -> Arc<dyn Vsock> {
        self.vsock.clone()
    }

    fn console_tail(&self) -> String {
        "the console's last line".into()
    }

    async fn pause(&self) -> Result<(), QmpError> {
        Ok(())
    }

    async fn resume(&self) -> Result<(), QmpError> {
        Ok(())
    }

    async fn plug(&self, device: Pluggable) -> Result<Plugged, PlugError> {
        match device {
            Pluggable::Disk(_) => Ok(Plugged { id: DeviceId::of("disk"), at: GuestAddress::Pmem(0) }),
            Pluggable::Nic(_) if self.sizes.is_full.load(Ordering::Relaxed) => Err(no_room()),
            Pluggable::Nic(nic) => {
                let id = DeviceId::of(&format!("nic {:02x}", nic.mac[5]));
                self.nics.send_modify(|nics| nics.push((id.clone(), nic)));
                Ok(Plugged { id, at: GuestAddress::Pci(PciAddress { bridge: 2, slot: 1 }) })
            }
            Pluggable::HostDevice(device) => {
                let at = |slot| GuestAddress::Pci(PciAddress { bridge: slot, slot: 0 });
                let known = self.host_devices.borrow().clone();
                let is_free = |at: &GuestAddress| !known.iter().any(|one| one.ends_with(&format!(" {at}")));
                let at = PORTS.map(at).find(is_free).ok_or_else(no_room)?;
                let id = format!("{device} {at}");
                self.host_devices.send_modify(|devices| devices.push(id.clone()));
                Ok(Plugged { id: DeviceId::of(&id), at })
            }
            _ => Err(no_room()),
        }
    }

    async fn unplug(&self, id: &DeviceId) -> Result<(), PlugError> {
        if self.sizes.is_held.load(Ordering::Relaxed) {
            self.sizes.held.send_modify(|held| *held += 1);
            return Err(PlugError::Refused(id.to_string()));
        }
        let mut was_there = false;
        self.nics.send_modify(|nics| {
            let place = nics.iter().position(|(other, _)| other == id);
            was_there = place.map(|place| nics.remove(place)).is_some();
        });
        self.host_devices.send_if_modified(|devices| {
            let place = devices.iter().position(|other| *other == id.to_string());
            let is_it = place.map(|place| devices.remove(place)).is_some();
            was_there |= is_it;
            is_it
        });
        if was_there { Ok(()) } else { Err(PlugError::Unknown(id.clone())) }
    }

    async fn resize_disk(&self, _: &DeviceId) -> Result<u64, PlugError> {
        Ok(DISK)
    }

    async fn resize_vcpus(&self, count: u32) -> Result<u32, PlugError> {
        self.sizes.note(count.to_string());
        Ok(count)
    }

    async fn resize_memory(&self, size: MemorySize) -> Result<u64, PlugError> {
        if self.sizes.is_full.load(Ordering::Relaxed) {
            return Err(no_room());
        }
        self.sizes.note(format!("{} MiB", size.mib));
        if self.sizes.is_slow.load(Ordering::Relaxed) && size.mib > SMALL {
            std::future::pending::<()>().await;
        }
        Ok(size.mib)
    }

    async fn save(&self, mut state: File) -> Result<(), PlugError> {
        state.write_all(b"state").unwrap();
        Ok(())
    }

    async fn stop(&self, _grace: Duration) -> Result<(), StopError> {
        self.power.off(How::Exited(0));
        Ok(())
    }

    async fn check(&self) -> Result<(), Unwell> {
        Ok(())
    }

    async fn vcpu_threads(&self) -> Result<Vec<VcpuThread>, QmpError> {
        let threads = self.sizes.threads.lock().unwrap();
        Ok((0..).zip(threads.iter()).map(|(vcpu, tid)| VcpuThread { vcpu, tid: *tid }).collect())
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.power.off(How::Killed(9));
    }
}

/// Passes connections on to the agent.
struct FakeVsock {
    agent: PathBuf,
    serves: bool,
    power: Arc<Power>,
}

impl std::fmt::Debug for FakeVsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeVsock").field("agent", &self.agent).finish_non_exhaustive()
    }
}

#[async_trait]
impl Vsock for FakeVsock {
    async fn connect(&self, port: u32) -> io::Result<Connection> {
        if !self.serves || port != agent_client::AGENT_PORT {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (host, mut guest) = duplex(64 * 1024);
        let mut agent = UnixStream::connect(&self.agent).await?;
        let mut wires = self.power.wires.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = copy_bidirectional(&mut guest, &mut agent) => {}
                _ = wires.wait_for(|hold| !hold) => {}
            }
        });
        Ok(Connection { stream: Box::new(host), local_port: 1 << 30 })
    }

    fn listen(&self, _: u32) -> Option<Listener> {
        let (notice, listener) = mpsc::channel(1);
        if self.serves {
            let (host, _) = duplex(1);
            notice.try_send(Connection { stream: Box::new(host), local_port: 1025 }).unwrap();
        }
        Some(listener)
    }
}
