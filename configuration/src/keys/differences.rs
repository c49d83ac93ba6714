//! Where a key means something else here than it does to Kata.

use super::{AGENT, HYPERVISOR, RUNTIME};

#[rustfmt::skip]
pub(crate) const DIFFERENCES: &[(&str, &str, &str)] = &[
    (HYPERVISOR, "machine_type", "`virt` on ARM only. `microvm` has neither ACPI nor PCI: virtio by MMIO, for which the guest's kernel needs `virtio_mmio`, and nothing comes later."),
    (HYPERVISOR, "accelerator", "Not in Kata. `auto` is KVM where it can really run a guest, otherwise TCG, which needs no hardware support, with a warning."),
    (HYPERVISOR, "vsock", "Not in Kata. `vhost-user` is a device in the shim itself, which needs nothing of the host; `auto` is it where `/dev/vhost-vsock` does not exist."),
    (HYPERVISOR, "default_memory", "Less than 256 is an error; Kata silently takes 2048."),
    (HYPERVISOR, "default_maxvcpus", "Less than `default_vcpus` is an error. The annotation's name is Kata's."),
    (HYPERVISOR, "default_maxmemory", "Less than `default_memory` is an error."),
    (HYPERVISOR, "memory_slots", "More than 256 is an error; in Kata it wraps around."),
    (HYPERVISOR, "enable_hugepages", "Memory in huge pages of the default size, without a file of `/dev/hugepages`; too few free ones are an error that says how many are needed."),
    (HYPERVISOR, "file_mem_backend", "Anything but a directory is an error, and so is one together with `enable_hugepages`; Kata logs a line."),
    (HYPERVISOR, "kernel_params", "An annotation adds words, but none that runs another program than the agent or opens a way into the guest."),
    (HYPERVISOR, "machine_accelerators", "An annotation must not name files of the host."),
    (HYPERVISOR, "shared_fs", "`auto` is not in Kata: virtio-fs with KVM, virtio-9p with TCG, as virtio-fs writes guest memory behind TCG's back, and programs started from the share crash. `virtio-fs-nydus` is an error."),
    (HYPERVISOR, "virtio_fs_daemon", "Looked at only when virtio-fs is used. There is no search for it."),
    (HYPERVISOR, "virtio_fs_extra_args", "`--sandbox`, `--seccomp`, `--shared-dir`, `--socket-path`, `--fd` and `-o` are errors: they are the shim's. Never from annotations."),
    (HYPERVISOR, "virtio_fs_queue_size", "Other than a power of two is an error."),
    (HYPERVISOR, "msize_9p", "Less than 4096 is an error: the guest's kernel would refuse it."),
    (HYPERVISOR, "enable_annotations", "Kata 4 allows `enable_iommu`, `kernel_params` and `kernel_verity_params` by default, matches parts of names, and asks about annotations of the hypervisor only."),
    (HYPERVISOR, "vm_rootfs_driver", "Kata's Rust runtime has this key, its Go runtime `disable_image_nvdimm`. `virtio-pmem` is that device, not an NVDIMM."),
    (HYPERVISOR, "pflashes", "Read-only, as one guest would change what the others start from; at most two."),
    (HYPERVISOR, "firmware_volume", "Needs no TDX: with it `firmware` is in flash memory too. Read-only: changes of the variables last as long as the guest."),
    (HYPERVISOR, "confidential_guest", "Where the host has SEV-ES, it is used rather than SEV. A host without protection is an error."),
    (HYPERVISOR, "block_device_driver", "`virtio-mmio` and `virtio-blk-ccw` are errors: nothing can be plugged into the one, the other is for s390x."),
    (HYPERVISOR, "block_device_aio", "`native` without `block_device_cache_set` and `block_device_cache_direct` is an error; QEMU would refuse each device."),
    (HYPERVISOR, "enable_iommu_platform", "Devices on PCI too, but for those that other processes serve."),
    (HYPERVISOR, "enable_vhost_user_store", "Needs no `enable_hugepages`: a guest's memory is always shared."),
    (HYPERVISOR, "rootless", "No account is made: the user is a number from 1879048192 on that nothing else has. With virtio-9p, and so with `auto` under TCG, an error. virtiofsd stays root, in namespaces of its own, as in Kata. `/dev/kvm` has to be open to its group or to all."),
    (HYPERVISOR, "virtio_fs_cache_size", "QEMU as released has no such window and refuses one."),
    (HYPERVISOR, "jailer_path", "QEMU has no jailer."),
    (HYPERVISOR, "ctlpath", "QEMU has no control program."),
    (AGENT, "create_container_timeout", "Only in `[runtime]`."),
    (AGENT, "dial_timeout", "Counts from the start of QEMU."),
    (RUNTIME, "enable_pprof", "The shim is not written in Go."),
];
