//! `[hypervisor.qemu]`.

use std::path::{Path, PathBuf};

use vmm::spec::{Boot, CpuFeatures, ExtraArgs, KernelParam};

use super::memory::Size;
use super::memory::whole;
use super::places::Places;
use super::{Checker, is_given, text};
use crate::choice::SharedFs;
use crate::hypervisor::{GuestMemoryDump, Hypervisor, MemoryBacking, Rates};
use crate::keys;
use crate::program::{self, Program};
use crate::raw::RawHypervisor;

const PATH: &str = "hypervisor.qemu.path";
const KERNEL: &str = "hypervisor.qemu.kernel";
const KERNEL_PARAMS: &str = "hypervisor.qemu.kernel_params";
const HUGE_PAGES: &str = "hypervisor.qemu.enable_hugepages";
const MEMORY_DUMP: &str = "hypervisor.qemu.guest_memory_dump_path";
const DUMP_PAGING: &str = "hypervisor.qemu.guest_memory_dump_paging";
const MEMORY_FILE: &str = "hypervisor.qemu.file_mem_backend";
const ENTROPY: &str = "hypervisor.qemu.entropy_source";
const QUEUE_SIZE: &str = "hypervisor.qemu.virtio_fs_queue_size";
const EXTRA_ARGS: &str = "hypervisor.qemu.virtio_fs_extra_args";
const CPU_FEATURES: &str = "hypervisor.qemu.cpu_features";
const SHARED_FS: &str = "hypervisor.qemu.shared_fs";
const GUEST_HOOKS: &str = "hypervisor.qemu.guest_hook_path";
const SECCOMP: &str = "hypervisor.qemu.seccompsandbox";
const DAX: &str = "hypervisor.qemu.virtio_fs_cache_size";
const MSIZE: &str = "hypervisor.qemu.msize_9p";
const VIRTIO_FS_DAEMON: &str = "hypervisor.qemu.virtio_fs_daemon";

impl Checker<'_> {
    /// What has a problem is as if it were absent, so that the rest can be checked against it all the same.
    pub(super) fn hypervisor(&mut self, raw: RawHypervisor) -> Hypervisor {
        let size = self.size(&raw);
        let boot = self.boot(&raw, size.memory_mib);
        let machine = self.machine(&raw);
        let cpu_features = self.note(CPU_FEATURES, CpuFeatures::parse(&raw.cpu_features).map_err(text));
        let kernel_params = self.kernel_params(&raw.kernel_params);
        self.host_has(&raw);
        self.seccomp(&raw.seccompsandbox);
        let extension_images = self.extension_images(&raw);
        self.files(&raw);
        let Places { bridges, root_ports, switch_ports } = self.places(&raw, &machine, boot.as_ref());
        let needs_daemon = matches!(raw.shared_fs, SharedFs::VirtioFs | SharedFs::VirtioFsNydus);
        let virtio_fs_daemon = self.program(VIRTIO_FS_DAEMON, &raw.virtio_fs_daemon, needs_daemon);
        self.daemon_serves(&raw);
        self.not_yet(&raw);
        let virtio_fs_queue_size = self.queue_size(raw.virtio_fs_queue_size);
        let virtio_fs_extra_args = self.extra_args(&raw);
        let msize_9p = self.msize(raw.msize_9p);
        let block = self.block(&raw);
        let vhost_user_store = self.vhost_user_store(&raw);
        let pass_through = self.pass_through(&raw);
        let numa = self.numa(&raw);
        let firmware = self.firmware(&raw, &machine);
        let guest_memory_dump = self.guest_memory_dump(&raw);
        let protection = self.protection(&raw, &firmware);
        let Size { vcpus, max_vcpus, memory_mib, slots, max_memory_mib } = size;
        let memory_step_mib = self.whole_huge_pages(&raw, memory_mib, numa.as_ref());
        Hypervisor {
            memory_backing: self.memory_backing(&raw),
            path: raw.path,
            kernel: raw.kernel,
            boot: boot.unwrap_or(Boot::Initrd(PathBuf::new())),
            extension_images,
            machine,
            cpu_features: cpu_features.unwrap_or_default(),
            kernel_params,
            firmware,
            protection,
            accelerator: raw.accelerator,
            vsock: raw.vsock,
            default_vcpus: vcpus,
            default_maxvcpus: max_vcpus,
            default_memory_mib: memory_mib,
            memory_slots: slots,
            default_maxmemory_mib: whole(memory_mib, max_memory_mib, memory_step_mib),
            memory_step_mib,
            memory_offset_mib: raw.memory_offset,
            numa,
            enable_iommu: raw.enable_iommu,
            enable_iommu_platform: raw.enable_iommu_platform,
            disable_nesting_checks: raw.disable_nesting_checks,
            default_bridges: bridges,
            pcie_root_port: root_ports,
            pcie_switch_port: switch_ports,
            pass_through,
            enable_mem_prealloc: raw.enable_mem_prealloc,
            reclaim_guest_freed_memory: raw.reclaim_guest_freed_memory,
            disable_block_device_use: raw.disable_block_device_use,
            guest_hook_path: raw.guest_hook_path,
            enable_virtio_mem: raw.enable_virtio_mem,
            shared_fs: raw.shared_fs,
            virtio_fs_daemon,
            virtio_fs_cache: raw.virtio_fs_cache,
            virtio_fs_cache_size_mib: raw.virtio_fs_cache_size,
            virtio_fs_queue_size,
            virtio_fs_extra_args,
            msize_9p,
            block,
            vhost_user_store,
            entropy_source: raw.entropy_source,
            seccompsandbox: raw.seccompsandbox,
            guest_memory_dump,
            disable_vhost_net: raw.disable_vhost_net,
            rates: Rates { rx: raw.rx_rate_limiter_max_rate, tx: raw.tx_rate_limiter_max_rate },
            rootless: raw.rootless,
            disable_selinux: raw.disable_selinux,
            disable_guest_selinux: raw.disable_guest_selinux,
            extra_monitor: raw.extra_monitor_socket,
            use_legacy_serial: raw.use_legacy_serial,
            enable_debug: raw.enable_debug,
        }
    }

    /// Blanks within double quotes part no words, as the kernel reads them.
    fn kernel_params(&mut self, line: &str) -> Vec<KernelParam> {
        let mut quoted = false;
        let words = line.split(|c: char| {
            quoted ^= c == '"';
            c.is_whitespace() && !quoted
        });
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        if quoted {
            self.problem(KERNEL_PARAMS, format!("{line:?} has a double quote without its other; add that"));
        }
        self.each(KERNEL_PARAMS, words.into_iter().map(|word| KernelParam::new(word).map_err(text)))
    }

    /// The directory is made when it is needed, so it need not be there.
    fn guest_memory_dump(&mut self, raw: &RawHypervisor) -> Option<GuestMemoryDump> {
        let path = &raw.guest_memory_dump_path;
        if !is_given(path) {
            if raw.guest_memory_dump_paging {
                self.warning(DUMP_PAGING, format!("means nothing without {MEMORY_DUMP}"));
            }
            return None;
        }
        if !path.is_absolute() && self.sound(&[MEMORY_DUMP]) {
            self.problem(MEMORY_DUMP, format!("{:?} is not an absolute path", path.display().to_string()));
        }
        if path.exists() {
            self.note(MEMORY_DUMP, program::directory(path));
        }
        Some(GuestMemoryDump { path: path.clone(), paging: raw.guest_memory_dump_paging })
    }

    /// The value of `-sandbox`, as QEMU's manual page has it. QEMU takes options without `on`, and has no filter then.
    fn seccomp(&mut self, text: &str) {
        let mut words = text.split(',');
        let on = matches!(words.next(), Some("on" | "enable=on"));
        let what = match words.find(|word| !is_filter_option(word)) {
            _ if ["", "off", "enable=off"].contains(&text) => return,
            None if on => return,
            Some(word) if on => format!("{word:?} is nothing QEMU's filter knows"),
            _ => format!("{text:?} does not begin with on, so that there would be no filter"),
        };
        self.problem(SECCOMP, format!("{what}; write on,obsolete=deny,spawn=deny,resourcecontrol=deny"));
    }

    fn files(&mut self, raw: &RawHypervisor) {
        self.note(PATH, program::executable(&raw.path));
        self.note(KERNEL, program::content(&raw.kernel));
        self.note(ENTROPY, program::readable_source(&raw.entropy_source));
        self.guest_hooks(&raw.guest_hook_path);
    }

    fn memory_backing(&mut self, raw: &RawHypervisor) -> MemoryBacking {
        let directory = &raw.file_mem_backend;
        match (is_given(directory), raw.enable_hugepages) {
            (false, false) => return MemoryBacking::Anonymous,
            (false, true) => return MemoryBacking::HugePages,
            (true, true) if self.sound(&[MEMORY_FILE, HUGE_PAGES]) => {
                let what =
                    format!("set together with {HUGE_PAGES}; huge pages are in no file, so choose one");
                self.problem(MEMORY_FILE, what);
            }
            (true, _) => {
                self.note(MEMORY_FILE, program::directory(directory));
            }
        }
        MemoryBacking::Directory(directory.clone())
    }

    fn program(&mut self, key: &'static str, path: &Path, needed: bool) -> Program {
        let program = Program::new(path.to_owned(), key, self.tree.origin(key).to_owned());
        if let (true, Err(finding)) = (needed, program.usable()) {
            self.problem(key, finding.what);
        }
        program
    }

    /// Warns of what is honoured, and works with no QEMU as it is released.
    fn not_yet(&mut self, raw: &RawHypervisor) {
        if raw.virtio_fs_cache_size > 0 {
            self.warning(DAX, "QEMU as released has no such window and starts with 0 only".to_owned());
        }
    }

    /// Only the guest knows whether it is there.
    fn guest_hooks(&mut self, path: &str) {
        if !path.is_empty() && !path.starts_with('/') {
            let what = format!("{path:?} is not an absolute path in the guest, such as /usr/share/oci/hooks");
            self.problem(GUEST_HOOKS, what);
        }
    }

    fn queue_size(&mut self, asked: u32) -> u16 {
        let usual = 1024;
        match u16::try_from(asked) {
            Ok(0) => usual,
            Ok(size) if size.is_power_of_two() => size,
            _ => {
                self.problem(QUEUE_SIZE, format!("{asked} is not a power of two; use one up to {usual}"));
                usual
            }
        }
    }

    /// The guest's kernel refuses to mount with smaller messages.
    fn msize(&mut self, asked: u32) -> u32 {
        if asked == 0 {
            return 8192;
        }
        if asked < 4096 {
            self.problem(MSIZE, format!("{asked} bytes are too few; set at least 4096"));
        }
        asked
    }

    /// Either daemon would end with no more than a word about arguments that it does not know; the default is virtiofsd.
    fn daemon_serves(&mut self, raw: &RawHypervisor) {
        let (wrong, needed) = match raw.shared_fs {
            SharedFs::VirtioFs => ("nydusd", "virtiofsd"),
            SharedFs::VirtioFsNydus => ("virtiofsd", "nydusd"),
            SharedFs::Auto | SharedFs::Virtio9p | SharedFs::None => return,
        };
        let is_wrong = raw.virtio_fs_daemon.file_name().is_some_and(|name| name == wrong);
        if is_wrong && self.sound(&[SHARED_FS, VIRTIO_FS_DAEMON]) {
            let (daemon, word) = (raw.virtio_fs_daemon.display(), raw.shared_fs.word());
            let what = format!("{daemon} is {wrong}; {SHARED_FS} = {word:?} needs the path of {needed}");
            self.problem(VIRTIO_FS_DAEMON, what);
        }
    }

    /// The arguments for the daemon in question. The default ones, which Kata's file spells out, are virtiofsd's.
    fn extra_args(&mut self, raw: &RawHypervisor) -> ExtraArgs {
        let arguments = modern(&raw.virtio_fs_extra_args);
        let nydus = raw.shared_fs == SharedFs::VirtioFsNydus;
        if nydus && arguments == keys::VIRTIO_FS_EXTRA_ARGS {
            return ExtraArgs::default();
        }
        let take = if nydus { ExtraArgs::of_nydusd } else { ExtraArgs::new };
        self.note(EXTRA_ARGS, take(arguments).map_err(text)).unwrap_or_default()
    }

    pub(super) fn note<T>(&mut self, key: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|what| self.problem(key, what)).ok()
    }
}

fn is_filter_option(word: &str) -> bool {
    match word.split_once('=') {
        Some(("obsolete" | "spawn" | "resourcecontrol", value)) => ["allow", "deny"].contains(&value),
        Some(("elevateprivileges", value)) => ["allow", "deny", "children"].contains(&value),
        Some(_) | None => false,
    }
}

/// Kata 3's file asks for submounts in the words of an older virtiofsd.
fn modern(arguments: &[String]) -> Vec<String> {
    let mut arguments = arguments.to_vec();
    while let Some(at) = arguments.windows(2).position(|pair| pair == ["-o", "announce_submounts"]) {
        arguments.splice(at..at + 2, ["--announce-submounts".to_owned()]);
    }
    arguments
}
