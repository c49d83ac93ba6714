//! `[runtime]`.

use super::{Key, Kind, Preset, U32, choice, flag, integer, text, texts};
use crate::choice::{EmptyDirMode, InternetworkingModel, VfioMode};

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    flag("enable_debug", false, "the shim logs at debug level"),
    integer("create_container_timeout", 60, U32, "seconds to create a container inside the guest; 0 means 60"),
    flag("disable_guest_seccomp", true, "do not apply containers' seccomp profiles inside the guest"),
    text("guest_selinux_label", "", "SELinux label of containers inside the guest, where those have one; empty means their own"),
    flag("sandbox_cgroup_only", false, "run everything of a pod in the pod's own cgroup"),
    choice("internetworking_model", InternetworkingModel::WORDS, "tcfilter", "how the pod's network reaches the guest; default is tcfilter"),
    flag("enable_vcpus_pinning", false, "bind each virtual CPU to one of the CPUs that the containers' cpusets have, if there are as many"),
    flag("enable_tracing", false, "the shim sends trace spans").later(),
    text("jaeger_endpoint", "", "where trace spans go").later(),
    text("jaeger_user", "", "user name for that place").later(),
    text("jaeger_password", "", "password for that place").later(),
    flag("enable_port_forward", true, "localhost of the pod's network namespace on the host is the guest's: kubectl port-forward reaches the pod"),
    flag("disable_new_netns", false, "QEMU stays in the host's network namespace, as it does for pods anyway; takes internetworking_model none"),
    flag("static_sandbox_resource_mgmt", false, "size the virtual machine once, before it starts, by what is known of its containers then"),
    texts("sandbox_bind_mounts", &[], "paths of the host that every guest sees in sandbox-mounts of the share; read-only, unless one ends in :rw"),
    choice("vfio_mode", VfioMode::WORDS, "guest-kernel", "who has a device of the host: a driver of the guest, or the container, by VFIO, which needs enable_iommu"),
    flag("disable_guest_empty_dir", true, "keep emptyDir volumes of disks on the host, where kubelet has them, rather than with the pod's own container"),
    choice("emptydir_mode", EmptyDirMode::WORDS, "shared-fs", "what emptyDir volumes of disks are in the guest; shared-fs alone is possible"),
    texts("experimental", &[], "names of features on trial").later(),
    flag("enable_pprof", false, "offer Go profiles").later(),
    text("dan_conf", "", "directory of directly attached networks").later().also(&[Preset::Text("/run/kata-containers/dans")]),
    text("kubelet_root_dir", "", "kubelet's directory").later().also(&[Preset::Text("/var/lib/kubelet")]),
    text("pod_resource_api_sock", "", "kubelet's socket that tells a pod's devices").later().also(&[Preset::Text("/var/lib/kubelet/pod-resources/kubelet.sock")]),
    flag("experimental_force_guest_pull", false, "the guest pulls images itself").later(),
    text("name", "virt_container", "Kata's Rust runtime: which runtime").later(),
    text("hypervisor_name", "qemu", "Kata's Rust runtime: which hypervisor").later(),
    text("agent_name", "kata", "Kata's Rust runtime: which agent").later(),
    flag("keep_abnormal", false, "leave a virtual machine that misbehaves").later(),
    text("log_level", "info", "how much the shim logs (Kata's Rust runtime)").later(),
    Key::new("shared_mounts", Kind::Tables, Preset::Unset, "mounts shared between a pod's containers").later(),
    flag("use_passfd_io", false, "containers' output bypasses the agent").later(),
    integer("passfd_listener_port", 1027, U32, "vsock port for that").later(),
];
