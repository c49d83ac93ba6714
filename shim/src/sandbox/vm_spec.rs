//! From the operator's configuration to the machine to boot: every `auto` is decided here.

mod protection;
#[cfg(test)]
mod tests;
mod virtio;

use std::{fs, path::Path};

use agent_protocol::agent::Storage;
use configuration::{
    AcceleratorChoice, Configuration, Hypervisor, MemoryBacking, SharedFs, VirtioFsCache, VsockChoice,
};
use oci_spec::runtime::Spec;
use slog::{Logger, warn};
use vmm::{
    VHOST_VSOCK, VmSpec, accelerator,
    spec::{
        Accelerator, Backing, Block, BlockDriver, Capabilities, Console, ExtraMonitor, FsCache, FsServer,
        HOST_DEVICES, Memory, Origin, PanicDump, PciPlaces, SelinuxLabel, SgxEpc, Share, ShareKind,
        SpecError, Tag, Vcpus, VirtioFs, VmName, VmUuid, VsockSpec, Window,
    },
};

use super::{
    boot::Plan,
    resources::{self, Size},
    share,
    share::SharedTree,
};
use crate::{
    container::{bundle, host_devices},
    error::{Error, Result},
};

/// The annotation that asks for memory of enclaves.
const SGX_EPC: &str = "sgx.intel.com/epc";

/// Whether the host translates filters or interprets them.
const BPF_JIT: &str = "/proc/sys/net/core/bpf_jit_enable";

/// A machine, and what the guest is to mount in it.
pub(crate) struct MachinePlan {
    pub(crate) spec: VmSpec,
    pub(crate) storages: Vec<Storage>,
}

/// Plans the machine of a sandbox that has this run directory.
///
/// # Errors
/// `InvalidArgument` that names the key whose value, or whose program, cannot be used.
pub(super) fn of(
    configuration: &Configuration,
    plan: &Plan<'_>,
    run_dir: &Path,
    log: &Logger,
) -> Result<MachinePlan> {
    let hypervisor = &configuration.hypervisor;
    let accelerator = accelerator_of(hypervisor, log)?;
    let share = share_of(hypervisor, accelerator, &SharedTree::exported_of(run_dir), log)?;
    let storages = share.iter().map(|share| storage_of(share, hypervisor, shares_volumes(plan))).collect();
    let protection = hypervisor.protection.as_ref();
    let board = protection::limit(hypervisor.machine.capabilities(), protection);
    let size = resources::at_boot(configuration, plan.spec, board, log)?;
    let spec = VmSpec {
        name: VmName::new(format!("sandbox-{}", plan.id)).map_err(unusable("id"))?,
        uuid: VmUuid::random().map_err(Error::io("random UUID"))?,
        run_dir: run_dir.to_path_buf(),
        qemu: hypervisor.path.clone(),
        machine: hypervisor.machine.clone(),
        accelerator,
        cpu_features: hypervisor.cpu_features.clone(),
        vcpus: vcpus_of(hypervisor, board, size)?,
        memory: memory_of(hypervisor, board, size)?,
        numa: hypervisor.numa.clone(),
        origin: Origin::Boot,
        backing: match &hypervisor.memory_backing {
            MemoryBacking::Anonymous => Backing::Anonymous,
            MemoryBacking::HugePages => Backing::HugePages,
            MemoryBacking::Directory(directory) => Backing::Directory(directory.clone()),
        },
        iommu: hypervisor.enable_iommu,
        pci: places_of(hypervisor, board)?,
        virtio: virtio::of(hypervisor, accelerator, board),
        reclaim_freed_memory: hypervisor.reclaim_guest_freed_memory,
        nics: Vec::new(),
        network: None,
        vhost_user: Vec::new(),
        pass_through: host_devices::from_the_start(&hypervisor.pass_through, plan.spec)?,
        block: block_of(hypervisor),
        prealloc: hypervisor.enable_mem_prealloc,
        virtio_mem: hypervisor.enable_virtio_mem,
        kernel: hypervisor.kernel.clone(),
        boot: hypervisor.boot.clone(),
        extensions: hypervisor.extension_images.clone(),
        firmware: protection::firmware(&hypervisor.firmware, protection),
        protection: protection.cloned(),
        sgx_epc: sgx_epc_of(plan)?,
        panic_dump: hypervisor
            .guest_memory_dump
            .as_ref()
            .map(|dump| PanicDump { directory: dump.path.join(plan.id), paging: dump.paging }),
        kernel_params: configuration.kernel_params(),
        console: if hypervisor.use_legacy_serial { Console::Serial } else { Console::Virtio },
        entropy: hypervisor.entropy_source.clone(),
        share,
        vsock: vsock_of(hypervisor),
        seccomp: seccomp_of(hypervisor, log),
        rootless: hypervisor.rootless,
        selinux: selinux_of(hypervisor, plan.spec)?,
        extra_monitor: match hypervisor.extra_monitor {
            configuration::ExtraMonitor::None => None,
            configuration::ExtraMonitor::Hmp => Some(ExtraMonitor::Hmp),
            configuration::ExtraMonitor::Qmp => Some(ExtraMonitor::Qmp),
            configuration::ExtraMonitor::QmpPretty => Some(ExtraMonitor::QmpPretty),
        },
        debug: hypervisor.enable_debug,
    };
    spec.check().map_err(|error| Error::InvalidArgument(format!("hypervisor.qemu: {error}")))?;
    Ok(MachinePlan { spec, storages })
}

fn unusable(key: &'static str) -> impl Fn(SpecError) -> Error {
    move |error| Error::InvalidArgument(format!("hypervisor.qemu.{key}: {error}"))
}

/// QEMU's filter runs at every system call, so it should at least be translated.
fn seccomp_of(hypervisor: &Hypervisor, log: &Logger) -> Option<String> {
    let filter = Some(hypervisor.seccompsandbox.clone()).filter(|filter| !filter.is_empty())?;
    if fs::read_to_string(BPF_JIT).is_ok_and(|value| is_off(&value)) {
        warn!(log, "seccompsandbox is set, but the host interprets its filter: QEMU's system calls are slow";
            "to_be_faster" => "sysctl net.core.bpf_jit_enable=1");
    }
    Some(filter)
}

/// A number and the end of its line, as the kernel writes switches.
fn is_off(switch: &str) -> bool {
    switch.trim() == "0"
}

/// The pod's label. QEMU is on the host what the pod's processes would be.
fn selinux_of(hypervisor: &Hypervisor, spec: &Spec) -> Result<Option<SelinuxLabel>> {
    let label = spec.process().as_ref().and_then(|process| process.selinux_label().as_deref());
    let label = label.filter(|label| !label.is_empty() && !hypervisor.disable_selinux);
    let refused = |error| Error::InvalidArgument(format!("process.selinuxLabel: {error}"));
    label.map(SelinuxLabel::new).transpose().map_err(refused)
}

fn accelerator_of(hypervisor: &Hypervisor, log: &Logger) -> Result<Accelerator> {
    let choice = match hypervisor.accelerator {
        AcceleratorChoice::Auto => accelerator::Choice::Auto,
        AcceleratorChoice::Kvm => accelerator::Choice::Kvm,
        AcceleratorChoice::Tcg => accelerator::Choice::Tcg,
    };
    let detected = accelerator::detect(choice).map_err(|error| {
        Error::InvalidArgument(format!(
            "hypervisor.qemu.accelerator: kvm is asked for, but cannot be used: {error}; \
            auto or tcg would run without it"
        ))
    })?;
    match (detected.accelerator, &detected.against_kvm) {
        (Accelerator::Tcg, Some(why)) => {
            warn!(log, "no hardware virtualisation: the guest runs under TCG, several times slower"; "why" => why.to_string());
        }
        (Accelerator::Kvm, Some(why)) => {
            warn!(log, "KVM is asked for, but may not be able to run a guest"; "why" => why.to_string());
        }
        (_, None) => {}
    }
    Ok(detected.accelerator)
}

/// What a pod's annotation asks for.
fn sgx_epc_of(plan: &Plan<'_>) -> Result<Option<SgxEpc>> {
    let annotations = plan.spec.annotations().as_ref();
    let asked = annotations.and_then(|annotations| annotations.get(SGX_EPC)).map(|text| SgxEpc::parse(text));
    asked.transpose().map_err(|error| Error::InvalidArgument(format!("annotation {SGX_EPC}: {error}")))
}

/// The kernel's own where it is asked for, or where it may be chosen and is there.
fn vsock_of(hypervisor: &Hypervisor) -> VsockSpec {
    match hypervisor.vsock {
        VsockChoice::Vhost => VsockSpec::Vhost,
        VsockChoice::Auto if Path::new(VHOST_VSOCK).exists() => VsockSpec::Vhost,
        VsockChoice::Auto | VsockChoice::VhostUser => VsockSpec::VhostUser,
    }
}

/// Disks of containers are devices of virtio-blk, and a controller that nobody needs takes a tenth of a cold start.
fn block_of(hypervisor: &Hypervisor) -> Block {
    let block = hypervisor.block.clone();
    match block.driver {
        BlockDriver::VirtioScsi => Block { driver: BlockDriver::VirtioBlk, ..block },
        BlockDriver::VirtioBlk | BlockDriver::Nvdimm => block,
    }
}

fn share_of(
    hypervisor: &Hypervisor,
    accelerator: Accelerator,
    source: &Path,
    log: &Logger,
) -> Result<Option<Share>> {
    let kind = match (hypervisor.shared_fs, accelerator) {
        (SharedFs::Virtio9p, _) | (SharedFs::Auto, Accelerator::Tcg) => ShareKind::Virtio9p,
        (SharedFs::None, _) => return Ok(None),
        (SharedFs::VirtioFs, _) | (SharedFs::Auto, Accelerator::Kvm) => {
            let server = FsServer::Virtiofsd(cache_of(hypervisor, accelerator, log));
            ShareKind::VirtioFs(virtio_fs_of(hypervisor, server)?)
        }
        (SharedFs::VirtioFsNydus, accelerator) => {
            warn_of_nydusd(accelerator, log);
            ShareKind::VirtioFs(virtio_fs_of(hypervisor, FsServer::Nydusd)?)
        }
    };
    let tag = Tag::new(share::TAG).map_err(unusable("shared_fs"))?;
    Ok(Some(Share { source: source.to_path_buf(), tag, kind }))
}

fn virtio_fs_of(hypervisor: &Hypervisor, server: FsServer) -> Result<VirtioFs> {
    let daemon =
        hypervisor.virtio_fs_daemon.usable().map_err(|found| Error::InvalidArgument(found.to_string()))?;
    Ok(VirtioFs {
        daemon: daemon.to_path_buf(),
        server,
        queue_size: hypervisor.virtio_fs_queue_size,
        dax_mib: hypervisor.virtio_fs_cache_size_mib,
        extra_args: hypervisor.virtio_fs_extra_args.clone(),
    })
}

fn cache_of(hypervisor: &Hypervisor, accelerator: Accelerator, log: &Logger) -> FsCache {
    match (hypervisor.virtio_fs_cache, accelerator) {
        (configured, Accelerator::Tcg) => {
            warn!(log, "virtio-fs under TCG: programs from the share may crash when the guest runs short of memory, \
                as virtiofsd writes behind the translator; cache=always is used, virtio-9p is safe";
                "configured_cache" => configured.word());
            FsCache::Always
        }
        (VirtioFsCache::Never, _) => FsCache::Never,
        (VirtioFsCache::Metadata, _) => FsCache::Metadata,
        (VirtioFsCache::Auto, _) => FsCache::Auto,
        (VirtioFsCache::Always, _) => FsCache::Always,
    }
}

fn warn_of_nydusd(accelerator: Accelerator, log: &Logger) {
    if accelerator == Accelerator::Tcg {
        warn!(
            log,
            "virtio-fs-nydus under TCG: programs from the share may crash, as nydusd writes behind the \
            translator and has no cache=always; virtio-9p is safe"
        );
    }
}

/// What the agent is asked to mount. A root filesystem is nobody's but the guest's, so a 9p guest may keep what it
/// has read (`loose`, as fast as a local disk); volumes change on the host, so with them it must ask (`mmap`).
fn storage_of(share: &Share, hypervisor: &Hypervisor, with_volumes: bool) -> Storage {
    let (driver, fstype, options) = match &share.kind {
        ShareKind::VirtioFs(fs) => {
            ("virtio-fs", "virtiofs", (fs.dax_mib > 0).then(|| "dax".to_owned()).into_iter().collect())
        }
        ShareKind::Virtio9p => {
            let cache = if with_volumes { "cache=mmap" } else { "cache=loose" };
            let msize = format!("msize={}", hypervisor.msize_9p);
            (
                "9p",
                "9p",
                ["trans=virtio", "version=9p2000.L", cache, "nodev", &msize].map(String::from).to_vec(),
            )
        }
    };
    Storage {
        driver: driver.into(),
        source: share.tag.to_string(),
        fstype: fstype.into(),
        options,
        mount_point: format!("{}/", mount_point_of(share)),
        ..Default::default()
    }
}

/// Where the guest mounts the share, so that it finds the directory at [`share::GUEST_DIR`]: nydusd has that further
/// below.
fn mount_point_of(share: &Share) -> &'static str {
    match &share.kind {
        ShareKind::VirtioFs(VirtioFs { server: FsServer::Nydusd, .. }) => {
            share::GUEST_DIR.strip_suffix(vmm::NYDUSD_MOUNT_POINT).unwrap_or(share::GUEST_DIR)
        }
        ShareKind::VirtioFs(_) | ShareKind::Virtio9p => share::GUEST_DIR,
    }
}

/// The containers of a pod come with their volumes when the guest has mounted the share long since.
fn shares_volumes(plan: &Plan<'_>) -> bool {
    let mounts = plan.spec.mounts().as_ref();
    bundle::is_pod(plan.spec)
        || mounts.is_some_and(|mounts| mounts.iter().any(|mount| mount.typ().as_deref() == Some("bind")))
}

/// A board that takes no more processors later has those it starts with, and nodes are divided among those.
fn vcpus_of(hypervisor: &Hypervisor, board: Capabilities, size: Size) -> Result<Vcpus> {
    let boot = size.vcpus;
    let max =
        if board.cpu_hot_plug && hypervisor.numa.is_none() { hypervisor.default_maxvcpus } else { boot };
    Vcpus::new(boot, max).map_err(unusable("default_vcpus"))
}

fn memory_of(hypervisor: &Hypervisor, board: Capabilities, size: Size) -> Result<Memory> {
    let mib = size.mib;
    if !board.memory_devices {
        return Memory::new(mib, 0, mib).map_err(unusable("default_memory"));
    }
    let memory = Memory::new(mib, hypervisor.memory_slots, hypervisor.default_maxmemory_mib)
        .map_err(unusable("default_memory"))?;
    memory.with_room(hypervisor.memory_offset_mib.into()).map_err(unusable("memory_offset"))
}

fn places_of(hypervisor: &Hypervisor, board: Capabilities) -> Result<PciPlaces> {
    if !board.pci {
        return PciPlaces::new(0, 0, Window::default()).map_err(unusable("default_bridges"));
    }
    let window = match hypervisor.pcie_root_port + hypervisor.pcie_switch_port {
        0 => Window::default(),
        _ => Window::for_host(Path::new(HOST_DEVICES)),
    };
    let places = PciPlaces::new(hypervisor.default_bridges, hypervisor.pcie_root_port, window)
        .map_err(unusable("default_bridges"))?;
    places.with_switch(hypervisor.pcie_switch_port).map_err(unusable("pcie_switch_port"))
}
