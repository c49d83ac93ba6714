//! Devices, processors and memory that come to a running guest and go, seen from inside it.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use agent_client::agent::{CreateContainerRequest, Storage};
use agent_protocol::convert::spec_to_wire;
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use tests::bundle::spec;
use tests::case::PATIENCE;
use tests::command::run;
use tests::machine::{Machine, ROOTFS};
use tests::{Case, Context, Failure, Result, check, check_eq, fail};
use vmm::VmSpec;
use vmm::accelerator::{self, Accelerator};
use vmm::plug::{Disk, DiskBus, GuestAddress, MemorySize, Nic, PciAddress, Pluggable, Plugged};
use vmm::spec::{Memory, PciPlaces, Vcpus, Window};

use crate::listed;

listed!(
    all: [],
    ours: [
        devices_processors_and_memory_come_and_go,
        memory_grows_and_shrinks_by_virtio_mem,
    ]
);

/// Rounds of the same disk.
const ROUNDS: usize = 20;

/// MiB in a block of memory, and in the machine when it has all of its modules, each of one block.
const BLOCK: u64 = 128;
const MODULES: u32 = 10;
const MOST: u64 = 256 + MODULES as u64 * BLOCK;

/// A machine of one processor and 256 MiB that may become one of four and 1536 MiB.
fn small(spec: &mut VmSpec) -> Result<()> {
    spec.vcpus = Vcpus::new(1, 4)?;
    spec.memory = Memory::new(256, MODULES, MOST)?;
    spec.pci = PciPlaces::new(1, 0, Window::default())?;
    Ok(())
}

fn size(mib: u64) -> MemorySize {
    MemorySize { mib, block_mib: BLOCK }
}

/// Runs `body` with a machine, which ends in any case.
pub(crate) fn with_machine<'a, F>(
    case: &'a Case<'_>,
    edit: impl FnOnce(&mut VmSpec) -> Result<()>,
    body: impl FnOnce(&'a Case<'_>, Machine) -> F,
) -> Result<()>
where
    F: Future<Output = (Machine, Result<()>)>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut edited = Ok(());
        let machine = Machine::boot(case, Machine::share(case)?, |spec| edited = edit(spec)).await?;
        edited?;
        machine.start_shell(case).await?;
        let (machine, result) = body(case, machine).await;
        let result = result.map_err(|failure| {
            let exit = machine.vm.exit().borrow().as_ref().map(ToString::to_string).unwrap_or_default();
            Failure::new(format!("{failure}; {exit}; the console says: {}", machine.vm.console_tail()))
        });
        machine.end().await?;
        result
    })
}

fn devices_processors_and_memory_come_and_go(case: &Case<'_>) -> Result<()> {
    with_machine(case, small, |case, machine| async move {
        let steps = async {
            disk(case, &machine).await?;
            swap(case, &machine).await?;
            nic(case, &machine).await?;
            vcpus(case, &machine).await?;
            modules(case, &machine).await
        };
        let result = tokio::time::timeout(PATIENCE, steps).await;
        (machine, result.unwrap_or_else(|_| Err(Failure::new("not done in time"))))
    })
}

/// The same image twenty times over, each time in the same slot, mounted by the agent for a container that adds a line.
async fn disk(case: &Case<'_>, machine: &Machine) -> Result<()> {
    let image = image(case)?;
    for round in 1..=ROUNDS {
        // Every fifth time by the SCSI controller.
        let (bus, place) =
            if round % 5 == 0 { (DiskBus::Scsi, "0:0") } else { (DiskBus::VirtioBlk, "02/01") };
        let plugged = machine.vm.plug(disk_of(&image, bus)).await?;
        check_eq!(plugged.at.to_string(), place, "the place in round {round}");
        append(case, machine, &plugged, round).await?;
        machine.vm.unplug(&plugged.id).await?;
        let left = machine.sh(case, "ls /sys/block").await?;
        check_eq!(left, "", "disks after round {round}");
    }
    let lines = Command::new("debugfs").args(["-R", "cat log"]).arg(&image).output()?;
    let wanted: String = (1..=ROUNDS).map(|round| format!("{round}\n")).collect();
    check_eq!(String::from_utf8_lossy(&lines.stdout), wanted, "what the guest wrote");
    Ok(())
}

pub(crate) fn image(case: &Case<'_>) -> Result<PathBuf> {
    let image = case.dir().join("disk.img");
    File::create(&image)?.set_len(16 << 20)?;
    run(Command::new("mkfs.ext4").arg("-q").arg(&image), Duration::from_secs(10))?.exits(0)?;
    Ok(image)
}

pub(crate) fn disk_of(image: &Path, bus: DiskBus) -> Pluggable {
    Pluggable::Disk(Disk { path: image.to_owned(), read_only: false, bus })
}

/// Has a container write a line to the disk.
async fn append(case: &Case<'_>, machine: &Machine, disk: &Plugged, round: usize) -> Result<()> {
    let id = format!("disk-{round}");
    let mount_point = format!("/run/kata-containers/{id}-data");
    let script = format!("echo {round} >>/mnt/log && sync");
    let mut spec = spec(case.world, &case.namespace, &id, &["sh", "-c", &script]);
    spec["root"] = json!({"path": ROOTFS, "readonly": true});
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    let data =
        json!({"destination": "/mnt", "type": "bind", "source": mount_point, "options": ["bind", "rw"]});
    spec["mounts"].as_array_mut().context("mounts")?.push(data);
    let request = CreateContainerRequest {
        container_id: id.clone(),
        storages: vec![Storage {
            driver: if matches!(disk.at, GuestAddress::Scsi(_)) { "scsi" } else { "blk" }.into(),
            source: disk.at.to_string(),
            fstype: "ext4".into(),
            mount_point,
            ..Storage::default()
        }],
        oci: Some(spec_to_wire(&serde_json::from_value(spec)?)).into(),
        ..CreateContainerRequest::default()
    };
    machine.agent.create_container(request).await?;
    machine.agent.start_container(&id).await?;
    check_eq!(machine.agent.wait_process(&id, "").await?, 0, "the status of round {round}");
    Ok(machine.agent.remove_container(&id, Duration::ZERO).await?)
}

async fn swap(case: &Case<'_>, machine: &Machine) -> Result<()> {
    let image = case.dir().join("swap.img");
    File::create(&image)?.set_len(16 << 20)?;
    run(Command::new("mkswap").arg(&image), Duration::from_secs(10))?.exits(0)?;
    let plugged = machine.vm.plug(disk_of(&image, DiskBus::VirtioBlk)).await?;
    let GuestAddress::Pci(PciAddress { bridge, slot }) = plugged.at else {
        fail!("{} is no slot", plugged.at)
    };
    machine.agent.add_swap([bridge, slot]).await?;
    let swap = machine.sh(case, "grep -c partition /proc/swaps").await?;
    check_eq!(swap, "1", "disks that are swapped to");
    Ok(())
}

async fn nic(case: &Case<'_>, machine: &Machine) -> Result<()> {
    let mac = [0x02, 0, 0, 0, 0, 0x2a];
    let nic = Nic { queues: vec![tap()?], vhost: Vec::new(), mac };
    let plugged = machine.vm.plug(Pluggable::Nic(nic)).await?;
    let find =
        "for i in $(seq 100); do grep -h 02:00:00:00:00:2a /sys/class/net/*/address && exit; sleep 0.1; done";
    check_eq!(machine.sh(case, find).await?, "02:00:00:00:00:2a", "the address seen in the guest");
    machine.vm.unplug(&plugged.id).await?;
    check_eq!(machine.sh(case, "ls /sys/class/net").await?, "lo", "interfaces afterwards");
    Ok(())
}

/// A tap in a network of its own, which is gone with its descriptor.
fn tap() -> Result<OwnedFd> {
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let made = thread::spawn(|| -> Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let request = Request { name: [0; _], flags: flags as libc::c_short, rest: [0; _] };
        // SAFETY: the kernel reads and writes a struct ifreq, which this is one of.
        let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
        nix::errno::Errno::result(result).context("make a tap")?;
        Ok(tun.into())
    });
    made.join().map_err(|_| Failure::new("the thread that makes a tap panicked"))?
}

/// Twice, as what went must be able to come again. Emulated processors stay with the machine, where QEMU does not
/// survive their going; it is the guest that lets go of them.
async fn vcpus(case: &Case<'_>, machine: &Machine) -> Result<()> {
    let emulated = accelerator::detect(accelerator::Choice::Auto)?.accelerator == Accelerator::Tcg;
    let left = if emulated { 4 } else { 1 };
    check_eq!(machine.sh(case, "nproc").await?, "1", "processors at first");
    for _ in 0..2 {
        check_eq!(machine.vm.resize_vcpus(4).await?, 4, "processors of the machine");
        machine.agent.online_cpu_mem(4, true).await?;
        check_eq!(machine.sh(case, "nproc").await?, "4", "processors online");
        machine.agent.online_cpu_mem(1, true).await?;
        check_eq!(machine.vm.resize_vcpus(1).await?, left, "processors of the machine");
        check_eq!(machine.sh(case, "nproc").await?, "1", "processors in the end");
        check_eq!(machine.sh(case, "grep -c ^processor /proc/cpuinfo").await?, "1", "processors listed");
    }
    Ok(())
}

/// What the guest's kernel has, in MiB; some of what the machine has it keeps for itself.
async fn memory(case: &Case<'_>, machine: &Machine) -> Result<u64> {
    let text = machine.sh(case, "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo").await?;
    text.parse().context(text)
}

/// One by one until no slot is free, while the guest talks to the host.
async fn modules(case: &Case<'_>, machine: &Machine) -> Result<()> {
    let before = memory(case, machine).await?;
    for module in 1..=u64::from(MODULES) {
        let mib = 256 + module * BLOCK;
        check_eq!(machine.vm.resize_memory(size(mib)).await?, mib, "MiB of the machine");
    }
    machine.agent.online_cpu_mem(0, false).await?;
    let after = memory(case, machine).await?;
    check!(after >= before + 1200, "{before} MiB of memory became {after}");
    Ok(())
}

fn memory_grows_and_shrinks_by_virtio_mem(case: &Case<'_>) -> Result<()> {
    let edit = |spec: &mut VmSpec| {
        small(spec)?;
        spec.virtio_mem = true;
        spec.memory = Memory::new(256, MODULES, 1024)?;
        Ok(())
    };
    with_machine(case, edit, |case, machine| async move {
        let result = tokio::time::timeout(PATIENCE, virtio_mem(case, &machine)).await;
        (machine, result.unwrap_or_else(|_| Err(Failure::new("not done in time"))))
    })
}

async fn virtio_mem(case: &Case<'_>, machine: &Machine) -> Result<()> {
    let before = memory(case, machine).await?;
    check_eq!(machine.vm.resize_memory(size(1024)).await?, 1024, "MiB of the machine");
    let grown = memory(case, machine).await?;
    check!(grown >= before + 700, "{before} MiB of memory became {grown}");
    check_eq!(machine.vm.resize_memory(size(256)).await?, 256, "MiB of the machine");
    let shrunk = memory(case, machine).await?;
    check!(shrunk <= before + 8, "{before} MiB of memory became {grown} and then {shrunk}");
    Ok(())
}
