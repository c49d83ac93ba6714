//! From the OCI configuration containerd wrote for the host to the one the guest's agent can carry out.
//!
//! It says which host files the guest must see ([`Bind`]) and what it is to mount by itself, and leaves the mounting to
//! others.

use std::path::{Path, PathBuf};

use agent_protocol::agent::Storage;
use configuration::Configuration;
use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, RootBuilder, Spec,
};

use super::{
    direct::{self, DirectVolume},
    disks::{self, BlockDevice},
    volumes::{self, Keeping},
};
use crate::{
    error::{Error, Result},
    sandbox::share::GUEST_DIR,
};

/// A host file or directory a container wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    /// Its name in the shared tree.
    pub(crate) name: String,
    pub(crate) recursive: bool,
    pub(crate) read_only: bool,
}

/// What the agent is asked to create, and what must be shared with the guest first.
#[derive(Debug)]
pub(crate) struct GuestSpec {
    pub(crate) spec: Spec,
    pub(crate) binds: Vec<Bind>,
    /// What the guest mounts of its own.
    pub(crate) storages: Vec<Storage>,
    /// Volumes that it mounts from disks.
    pub(crate) direct: Vec<DirectVolume>,
    /// Disks that it gets as devices.
    pub(crate) disks: Vec<BlockDevice>,
    /// The container joins the sandbox's PID namespace instead of getting one of its own.
    pub(crate) sandbox_pidns: bool,
}

/// What of a container's confinement on a host it has in the guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Confinement {
    /// Whether the operator switched seccomp off.
    pub(crate) disables_seccomp: bool,
    pub(crate) selinux: GuestSelinux,
}

/// What becomes of the SELinux label of a process that has one.
#[derive(Debug, Clone, Default)]
pub(crate) enum GuestSelinux {
    /// It is left out.
    #[default]
    Off,
    /// It stays.
    AsOnTheHost,
    /// It is this one.
    Label(String),
}

impl Confinement {
    pub(crate) fn of(configuration: &Configuration) -> Confinement {
        let label = &configuration.runtime.guest_selinux_label;
        let selinux = match (configuration.hypervisor.disable_guest_selinux, label.is_empty()) {
            (true, _) => GuestSelinux::Off,
            (false, true) => GuestSelinux::AsOnTheHost,
            (false, false) => GuestSelinux::Label(label.clone()),
        };
        Confinement { disables_seccomp: configuration.runtime.disable_guest_seccomp, selinux }
    }
}

/// Rewrites `spec` for container `id`, whose root filesystem the guest finds at `rootfs`.
///
/// # Errors
/// `InvalidArgument` that names the mount that cannot be shared.
pub(crate) fn for_guest(
    mut spec: Spec,
    id: &str,
    rootfs: &str,
    confinement: &Confinement,
    keeping: &Keeping,
) -> Result<GuestSpec> {
    // Hooks are host programs, which the host runs.
    spec.set_hooks(None);
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let root = RootBuilder::default().path(rootfs).readonly(read_only).build();
    spec.set_root(Some(root.map_err(|error| Error::Failed(format!("root filesystem {rootfs}: {error}")))?));
    let mut volumes = Volumes::default();
    let mounts = spec.mounts_mut().take().unwrap_or_default();
    let mounts = mounts.into_iter().map(|mount| volumes.guest_mount(mount, id, keeping));
    spec.set_mounts(Some(mounts.collect::<Result<_>>()?));
    if let Some(process) = spec.process_mut() {
        with_guest_labels(process, &confinement.selinux);
    }
    let mut linux = spec.linux_mut().take().unwrap_or_default();
    let disks = disks::given(&mut linux);
    let sandbox_pidns = guest_linux(&mut linux, confinement.disables_seccomp);
    spec.set_linux(Some(linux));
    let Volumes { binds, storages, direct, .. } = volumes;
    Ok(GuestSpec { spec, binds, storages, direct, disks, sandbox_pidns })
}

/// The host's security modules know these labels, the guest's kernel knows one of SELinux's if the operator says so.
pub(crate) fn with_guest_labels(process: &mut Process, selinux: &GuestSelinux) {
    process.set_apparmor_profile(None);
    let given = process.selinux_label().clone().filter(|label| !label.is_empty());
    process.set_selinux_label(match selinux {
        GuestSelinux::Off => None,
        GuestSelinux::AsOnTheHost => given,
        GuestSelinux::Label(label) => given.map(|_| label.clone()),
    });
}

fn guest_linux(linux: &mut Linux, disable_seccomp: bool) -> bool {
    if disable_seccomp {
        linux.set_seccomp(None);
    }
    linux.set_mount_label(None).set_intel_rdt(None);
    linux.set_cgroups_path(linux.cgroups_path().as_deref().map(guest_cgroup));
    if let Some(resources) = linux.resources_mut() {
        let of_disks = resources.devices_mut().take();
        keep_guest_limits(resources);
        resources.set_devices(of_disks);
    }
    let namespaces = linux.namespaces_mut().take().unwrap_or_default();
    let sandbox_pidns =
        namespaces.iter().any(|ns| ns.typ() == LinuxNamespaceType::Pid && ns.path().is_some());
    linux.set_namespaces(Some(guest_namespaces(namespaces, sandbox_pidns)));
    sandbox_pidns
}

/// Network and cgroups are the virtual machine's own, and a path names a namespace of the host.
fn guest_namespaces(namespaces: Vec<LinuxNamespace>, sandbox_pidns: bool) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Network, Pid, Time, User};
    namespaces
        .into_iter()
        .filter(|ns| ns.typ() != Pid || !sandbox_pidns)
        .filter(|ns| !matches!(ns.typ(), Network | Cgroup | Time | User))
        .map(|mut ns| {
            ns.set_path(None);
            ns
        })
        .collect()
}

/// What files of a cgroup begin with that are about the host's CPUs, disks and devices.
const OF_THE_HOST: [&str; 3] = ["cpuset.", "io.", "rdma."];

/// Limits on what the guest has: memory, CPU time, processes. Host devices, host CPUs and host disks mean nothing
/// there.
pub(crate) fn keep_guest_limits(resources: &mut LinuxResources) {
    resources.set_devices(None).set_block_io(None).set_network(None).set_rdma(None);
    if let Some(cpu) = resources.cpu().clone() {
        let mut cpu = cpu;
        cpu.set_cpus(None).set_mems(None);
        resources.set_cpu(Some(cpu));
    }
    if let Some(mut files) = resources.unified().clone() {
        files.retain(|file, _| !OF_THE_HOST.iter().any(|controller| file.starts_with(controller)));
        resources.set_unified(Some(files).filter(|files| !files.is_empty()));
    }
}

/// systemd's `slice:prefix:name` becomes a path, as there is no systemd in the guest.
fn guest_cgroup(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    match text.split(':').collect::<Vec<_>>()[..] {
        [_slice, prefix, name] => Path::new("/").join(prefix).join(name),
        _ => path.to_path_buf(),
    }
}

/// What the guest needs for a container's mounts.
#[derive(Default)]
struct Volumes {
    /// How many names there are.
    names: usize,
    binds: Vec<Bind>,
    storages: Vec<Storage>,
    direct: Vec<DirectVolume>,
}

impl Volumes {
    /// The mount in the guest's terms.
    fn guest_mount(&mut self, mut mount: Mount, id: &str, keeping: &Keeping) -> Result<Mount> {
        let options = mount.options().clone().unwrap_or_default();
        let is_bind =
            mount.typ().as_deref() == Some("bind") || options.iter().any(|o| o == "bind" || o == "rbind");
        if !is_bind && keeping.shared_memory && volumes::is_shared_memory(mount.destination()) {
            let bound = ["rbind", "nosuid", "nodev", "noexec"].map(str::to_owned);
            mount.set_typ(Some("bind".to_owned())).set_options(Some(bound.to_vec()));
            return Ok(self.of_the_guest(mount, vec![volumes::shared_memory(Path::new(""))]));
        }
        if !is_bind {
            return Ok(mount);
        }
        let bind = bind_of(&mount, &options, id, self.names)?;
        if is_the_guests(&bind.source) {
            return Ok(mount);
        }
        check_devices(&mount, &bind.source)?;
        self.names += 1;
        if let Some(volume) = direct::at(&bind.source, bind.read_only)? {
            mount.set_source(Some(volume.mount_point.clone().into()));
            if self.direct.iter().all(|known| known.mount_point != volume.mount_point) {
                self.direct.push(volume);
            }
            return Ok(mount);
        }
        let storages = volumes::of_the_guest(&bind.source, mount.destination(), &bind.name, keeping)?;
        if storages.is_empty() {
            mount.set_source(Some(Path::new(GUEST_DIR).join(&bind.name)));
            self.binds.push(bind);
            return Ok(mount);
        }
        Ok(self.of_the_guest(mount, storages))
    }

    /// The mount of the last of the guest's `storages`, which the container needs.
    fn of_the_guest(&mut self, mut mount: Mount, storages: Vec<Storage>) -> Mount {
        mount.set_source(storages.last().map(|last| last.mount_point.clone().into()));
        for storage in storages {
            // One volume may be mounted in several places.
            if self.storages.iter().all(|known| known.mount_point != storage.mount_point) {
                self.storages.push(storage);
            }
        }
        mount
    }
}

/// Bytes of a mount's name that are from its destination.
const LONGEST_LABEL: usize = 64;

/// What tells of processes, of the kernel and of devices is the guest's own, as that is what a container is on.
fn is_the_guests(source: &Path) -> bool {
    source == Path::new("/dev") || ["/proc", "/sys"].iter().any(|dir| source.starts_with(dir))
}

/// A volume has no devices of the guest's, and whoever makes the container would make links and files in it.
fn check_devices(mount: &Mount, source: &Path) -> Result<()> {
    if mount.destination() != Path::new("/dev") {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "mount {} on /dev: it would hide the guest's devices: mount it elsewhere, or single files of it below /dev; a mount \
         of /dev itself is of the guest's, and devices of the host come by VFIO",
        source.display()
    )))
}

fn bind_of(mount: &Mount, options: &[String], id: &str, index: usize) -> Result<Bind> {
    let destination = mount.destination();
    let source = mount.source().clone().unwrap_or_default();
    if !source.is_absolute() {
        return Err(Error::InvalidArgument(format!(
            "mount {}: source {:?} must be an absolute path on the host",
            destination.display(),
            source.display().to_string(),
        )));
    }
    let last =
        destination.file_name().map_or_else(|| "root".into(), |name| name.to_string_lossy().into_owned());
    // For whoever looks; a name may be long, and a longer one made of it would be no name any more.
    let last = &last[..last.floor_char_boundary(LONGEST_LABEL)];
    Ok(Bind {
        name: format!("{id}-{index}-{last}"),
        recursive: options.iter().any(|option| option == "rbind"),
        read_only: options.iter().any(|option| option == "ro"),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(config: &str) -> GuestSpec {
        for_guest(
            serde_json::from_str(config).unwrap(),
            "c1",
            "/guest/rootfs",
            &Confinement { disables_seccomp: true, ..Confinement::default() },
            &Keeping::default(),
        )
        .unwrap()
    }

    const CONFIG: &str = r#"{
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"], "apparmorProfile": "docker-default",
                    "selinuxLabel": "a:b:c", "noNewPrivileges": true},
        "root": {"path": "rootfs", "readonly": true},
        "hooks": {"prestart": [{"path": "/bin/hook"}]},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]},
            {"destination": "/sys/fs", "type": "bind", "source": "/sys/fs", "options": ["bind"]},
            {"destination": "/host/proc", "type": "bind", "source": "/proc", "options": ["rbind", "ro"]},
            {"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/var/hosts", "options": ["bind", "rw"]}
        ],
        "linux": {
            "cgroupsPath": "kubepods.slice:cri:c1",
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
            "devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}],
            "resources": {
                "memory": {"limit": 67108864}, "pids": {"limit": 10},
                "cpu": {"quota": 50000, "period": 100000, "cpus": "0-7", "mems": "0"},
                "blockIO": {"weight": 10}, "devices": [{"allow": false, "access": "rwm"}]
            },
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"},
                           {"type": "network", "path": "/var/run/netns/x"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}],
            "maskedPaths": ["/proc/kcore"]
        }
    }"#;

    #[test]
    fn host_files_are_shared_and_named_in_the_guests_terms() {
        let guest = guest(CONFIG);
        let data =
            Bind { source: "/srv/data".into(), name: "c1-0-data".into(), recursive: true, read_only: true };
        let hosts = Bind {
            source: "/var/hosts".into(),
            name: "c1-1-hosts".into(),
            recursive: false,
            read_only: false,
        };
        assert_eq!(guest.binds, [data, hosts]);
        let mounts = guest.spec.mounts().as_ref().unwrap();
        assert_eq!(
            mounts[1].source().as_deref(),
            Some(Path::new("/run/kata-containers/shared/containers/c1-0-data"))
        );
    }

    #[test]
    fn d12_what_tells_of_the_kernel_and_of_devices_is_the_guests_own() {
        let guest = guest(CONFIG);
        let mounts = guest.spec.mounts().as_ref().unwrap();
        let given: Spec = serde_json::from_str(CONFIG).unwrap();
        assert_eq!(mounts.len(), 6);
        assert_eq!(&mounts[2..5], &given.mounts().as_ref().unwrap()[2..5]);
        assert!(!is_the_guests(Path::new("/sysroot")) && !is_the_guests(Path::new("/dev/shm")));
    }

    #[test]
    fn d12_a_volume_instead_of_devices_is_refused() {
        let config = CONFIG.replace(r#""source": "/dev""#, r#""source": "/srv/dev""#);
        let spec = serde_json::from_str(&config).unwrap();
        let refused = for_guest(spec, "c1", "/r", &Confinement::default(), &Keeping::default());
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("/srv/dev on /dev") && error.contains("VFIO"), "{error}");
    }

    #[test]
    fn d14_shared_memory_of_a_containers_own_is_the_pods_where_the_pod_has_some() {
        let config = CONFIG.replace(
            "\"mounts\": [",
            r#""mounts": [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"]},"#,
        );
        let with = |shared_memory| {
            let keeping = Keeping { shared_memory, ..Keeping::default() };
            let spec = serde_json::from_str(&config).unwrap();
            for_guest(spec, "c1", "/r", &Confinement::default(), &keeping).unwrap()
        };
        let (alone, of_a_pod) = (with(false), with(true));
        let first = |guest: &GuestSpec| guest.spec.mounts().as_ref().unwrap()[0].clone();
        assert_eq!((first(&alone).typ().as_deref(), alone.storages.len()), (Some("tmpfs"), 0));
        let storage = &of_a_pod.storages[0];
        assert_eq!(first(&of_a_pod).source().as_deref(), Some(Path::new(&storage.mount_point)));
        assert_eq!(first(&of_a_pod).typ().as_deref(), Some("bind"));
        assert!(storage.options.contains(&"size=67108864".to_owned()), "{:?}", storage.options);
        assert!(first(&of_a_pod).options().iter().flatten().all(|option| !option.starts_with("size")));
    }

    #[test]
    fn d8_a_selinux_label_is_the_guests_only_where_the_operator_says_so() {
        let labelled = |config: &str, selinux: GuestSelinux| {
            let confinement = Confinement { selinux, ..Confinement::default() };
            let guest = for_guest(
                serde_json::from_str(config).unwrap(),
                "c1",
                "/r",
                &confinement,
                &Keeping::default(),
            )
            .unwrap();
            guest.spec.process().as_ref().unwrap().selinux_label().clone()
        };
        let own = || GuestSelinux::Label("d:e:f".into());
        assert_eq!(labelled(CONFIG, GuestSelinux::Off), None);
        assert_eq!(labelled(CONFIG, GuestSelinux::AsOnTheHost).as_deref(), Some("a:b:c"));
        assert_eq!(labelled(CONFIG, own()).as_deref(), Some("d:e:f"));
        let unlabelled = CONFIG.replace("\"a:b:c\"", "\"\"");
        assert_eq!(labelled(&unlabelled, own()), None);
    }

    #[test]
    fn what_belongs_to_the_host_stays_there() {
        let spec = guest(CONFIG).spec;
        assert!(spec.hooks().is_none());
        let process = spec.process().as_ref().unwrap();
        assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.devices().is_none() && linux.seccomp().is_none());
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/cri/c1")));
        let resources = linux.resources().as_ref().unwrap();
        assert!(resources.block_io().is_none() && resources.devices().is_none());
        assert!(resources.cpu().as_ref().unwrap().cpus().is_none());
        let namespaces = linux.namespaces().as_ref().unwrap();
        assert!(namespaces.iter().all(|ns| ns.path().is_none()) && namespaces.len() == 3);
    }

    #[test]
    fn what_the_container_was_promised_reaches_the_guest() {
        let spec = guest(CONFIG).spec;
        let root = spec.root().as_ref().unwrap();
        assert_eq!((root.path().as_path(), root.readonly()), (Path::new("/guest/rootfs"), Some(true)));
        assert_eq!(spec.process().as_ref().unwrap().no_new_privileges(), Some(true));
        let linux = spec.linux().as_ref().unwrap();
        let resources = linux.resources().as_ref().unwrap();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(67_108_864));
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 10);
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(50_000));
        assert_eq!(linux.masked_paths().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn a_shared_pid_namespace_is_the_sandboxs_business() {
        let shared = CONFIG.replace(r#"{"type": "pid"}"#, r#"{"type": "pid", "path": "/proc/7/ns/pid"}"#);
        let guest = guest(&shared);
        assert!(guest.sandbox_pidns);
        let namespaces = guest.spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert!(namespaces.iter().all(|ns| ns.typ() != LinuxNamespaceType::Pid));
    }

    #[test]
    fn a_mount_without_a_host_path_is_refused_by_its_destination() {
        let config = CONFIG.replace("/srv/data", "srv");
        let error = for_guest(
            serde_json::from_str(&config).unwrap(),
            "c1",
            "/r",
            &Confinement::default(),
            &Keeping::default(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("/data") && error.contains("absolute"), "{error}");
    }
}
