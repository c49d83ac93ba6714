//! A machine to boot with whatever this host offers, and a look at what is left of it.

#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod backend;
pub(crate) mod monitor;
pub(crate) mod storage;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use slog::{Drain, Logger, OwnedKVList, Record, o};
use tempfile::TempDir;
use vmm::spec::{
    Boot, Console, CpuFeatures, ExtraArgs, FsCache, FsServer, KernelParam, Machine, MachineOptions, Memory,
    Share, ShareKind, Tag, Vcpus, VirtioFs, VmName, VmUuid,
};
use vmm::{Hypervisor, Process, Qemu, Vm, VmSpec};

/// A specification in a directory of its own, removed in the end.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) spec: VmSpec,
}

fn cache() -> PathBuf {
    let named = std::env::var_os("KATA_CACHE_DIR").map(PathBuf::from);
    let base = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"))
    };
    named.unwrap_or_else(|| base().join("containerd-shim-kata-v2"))
}

fn asset(variable: &str, default: PathBuf) -> PathBuf {
    let path = std::env::var_os(variable).map_or(default, PathBuf::from);
    assert!(path.exists(), "{} is not there: `make guest` makes it, or set {variable}", path.display());
    path
}

pub(crate) fn virtiofsd() -> PathBuf {
    asset("KATA_TEST_VIRTIOFSD", cache().join("bin/virtiofsd"))
}

fn qemu() -> PathBuf {
    asset("KATA_TEST_QEMU", PathBuf::from("/usr/bin/qemu-system-x86_64"))
}

impl Fixture {
    /// A guest without an operating system worth the name: its initial file system is empty, so that its kernel ends
    /// in a panic some seconds after it starts.
    pub(crate) fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let (run_dir, share, initrd) =
            (dir.path().join("run"), dir.path().join("share,readonly=on"), dir.path().join("initrd"));
        std::fs::create_dir(&run_dir).unwrap();
        std::fs::create_dir(&share).unwrap();
        std::fs::write(&initrd, [0; 512]).unwrap();
        let (name, uuid) = (VmName::new("test").unwrap(), VmUuid::random().unwrap());
        let kernel = asset("KATA_TEST_KERNEL", cache().join("guest/vmlinuz"));
        let share = Share { source: share, tag: Tag::new("kataShared").unwrap(), kind: ShareKind::Virtio9p };
        let spec = VmSpec {
            machine: Machine::Q35(MachineOptions::parse("nosmm").unwrap()),
            cpu_features: CpuFeatures::parse("pmu=off").unwrap(),
            vcpus: Vcpus::new(1, 2).unwrap(),
            memory: Memory::new(256, 4, 1024).unwrap(),
            kernel_params: vec![KernelParam::new("vmm.test=1").unwrap()],
            console: Console::Serial,
            share: Some(share),
            seccomp: Some("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into()),
            debug: true,
            ..VmSpec::plain(name, uuid, run_dir, qemu(), kernel, Boot::Initrd(initrd)).unwrap()
        };
        Fixture { dir, spec }
    }

    pub(crate) fn with_virtiofs(mut self) -> Fixture {
        let daemon = virtiofsd();
        let fs = VirtioFs {
            daemon,
            server: FsServer::Virtiofsd(FsCache::Always),
            queue_size: 1024,
            dax_mib: 0,
            extra_args: ExtraArgs::default(),
        };
        if let Some(share) = &mut self.spec.share {
            share.kind = ShareKind::VirtioFs(fs);
        }
        self
    }

    /// The same for a QEMU that is nobody in particular, who has to find the files.
    pub(crate) fn rootless(mut self) -> Fixture {
        use std::os::unix::fs::PermissionsExt;
        let kernel = self.dir.path().join("vmlinuz");
        std::fs::copy(&self.spec.kernel, &kernel).unwrap();
        std::fs::set_permissions(self.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&self.spec.run_dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        self.spec.kernel = kernel;
        // One that `make matrix` has fetched is a directory in root's home.
        if !self.spec.qemu.starts_with("/usr") {
            let (from, to) = (self.spec.qemu.parent().unwrap(), self.dir.path().join("qemu"));
            let copied = std::process::Command::new("cp").arg("-a").args([from, &to]).status().unwrap();
            assert!(copied.success());
            self.spec.qemu = to.join(self.spec.qemu.file_name().unwrap());
        }
        self.spec.rootless = true;
        self
    }

    /// The processes that work in the run directory or name it, told by `/proc`.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let run_dir = self.spec.run_dir.to_str().unwrap();
        let numbers = std::fs::read_dir("/proc").unwrap().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        numbers.filter(|pid| works_in(*pid, run_dir)).collect()
    }

    /// Fails unless every process is gone within a second and the run directory is empty.
    pub(crate) fn assert_nothing_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        while !self.processes().is_empty() {
            assert!(Instant::now() < deadline, "still there: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(5));
        }
        let left: Vec<_> =
            std::fs::read_dir(&self.spec.run_dir).unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "left in the run directory: {left:?}");
    }
}

/// The fixture's machine.
pub(crate) async fn boot(fixture: &Fixture) -> Box<dyn Vm> {
    Qemu::new(log()).boot(fixture.spec.clone()).await.unwrap()
}

fn works_in(pid: u32, run_dir: &str) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == Path::new(run_dir))
}

/// One line of `/proc/<pid>/status`.
pub(crate) fn status(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

pub(crate) fn named<'a>(processes: &'a [Process], name: &str) -> &'a Process {
    processes.iter().find(|process| process.name == name).unwrap()
}

/// A logger whose lines are seen when a test fails.
pub(crate) fn log() -> Logger {
    Logger::root(Print.fuse(), o!())
}

struct Print;

impl Drain for Print {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), slog::Never> {
        println!("{} {}", record.level(), record.msg());
        Ok(())
    }
}
