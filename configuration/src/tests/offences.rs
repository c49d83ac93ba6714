//! Configurations with any of these mistakes, and all of their keys named.

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::{Place, problems};
use crate::Origin;

/// A line of a drop-in each, and the key that is wrong in it. None hides another.
const IN_FILES: [(&str, &str); 31] = [
    ("hypervisor.qemu.path = '/no'", "hypervisor.qemu.path"),
    ("hypervisor.qemu.kernel = '/no'", "hypervisor.qemu.kernel"),
    ("hypervisor.qemu.initrd = ''\nhypervisor.qemu.image = '@DIR@/absent'", "hypervisor.qemu.image"),
    ("hypervisor.qemu.firmware = 'relative'", "hypervisor.qemu.firmware"),
    ("hypervisor.qemu.entropy_source = '/dev'", "hypervisor.qemu.entropy_source"),
    ("hypervisor.qemu.file_mem_backend = '/etc/hostname'", "hypervisor.qemu.file_mem_backend"),
    ("hypervisor.qemu.default_memory = 255", "hypervisor.qemu.default_memory"),
    (
        "hypervisor.qemu.default_vcpus = 4\nhypervisor.qemu.default_maxvcpus = 2",
        "hypervisor.qemu.default_maxvcpus",
    ),
    ("hypervisor.qemu.memory_offset = 4294967295", "hypervisor.qemu.memory_offset"),
    ("hypervisor.qemu.memory_slots = 'ten'", "hypervisor.qemu.memory_slots"),
    ("hypervisor.qemu.virtio_fs_queue_size = 1000", "hypervisor.qemu.virtio_fs_queue_size"),
    ("hypervisor.qemu.virtio_fs_extra_args = ['--sandbox=none']", "hypervisor.qemu.virtio_fs_extra_args"),
    ("hypervisor.qemu.msize_9p = 1", "hypervisor.qemu.msize_9p"),
    (
        "hypervisor.qemu.hot_plug_vfio = 'root-port'\nhypervisor.qemu.cold_plug_vfio = 'root-port'",
        "hypervisor.qemu.hot_plug_vfio",
    ),
    ("hypervisor.qemu.rootless = true\nhypervisor.qemu.shared_fs = 'virtio-9p'", "hypervisor.qemu.rootless"),
    ("hypervisor.qemu.machine_accelerators = '=on'", "hypervisor.qemu.machine_accelerators"),
    ("hypervisor.qemu.cpu_features = 'a b'", "hypervisor.qemu.cpu_features"),
    ("hypervisor.qemu.kernel_params = \"a\\u0001\"", "hypervisor.qemu.kernel_params"),
    ("hypervisor.qemu.vm_rootfs_driver = 'floppy'", "hypervisor.qemu.vm_rootfs_driver"),
    ("hypervisor.qemu.pflashes = ['/no', '/nor']", "hypervisor.qemu.pflashes"),
    ("hypervisor.qemu.guest_extension_images = [{name = 7}]", "hypervisor.qemu.guest_extension_images"),
    ("hypervisor.qemu.block_device_driver = 'ide'", "hypervisor.qemu.block_device_driver"),
    ("hypervisor.qemu.queue_size = 100", "hypervisor.qemu.queue_size"),
    (
        "hypervisor.qemu.enable_numa = true\nhypervisor.qemu.numa_mapping = ['x']",
        "hypervisor.qemu.numa_mapping",
    ),
    ("hypervisor.qemu.vsock = 'vhost'", "hypervisor.qemu.vsock"),
    ("hypervisor.qemu.accelerator = 'kvm'", "hypervisor.qemu.accelerator"),
    ("hypervisor.qemu.valid_ctlpaths = ['[']", "hypervisor.qemu.valid_ctlpaths"),
    ("agent.kata.kernel_modules = ['--all']", "agent.kata.kernel_modules"),
    ("runtime.disable_new_netns = true", "runtime.disable_new_netns"),
    ("runtime.emptydir_mode = 'block-encrypted'", "runtime.emptydir_mode"),
    ("runtime.nonsense = 1", "runtime.nonsense"),
];

/// Annotations that are allowed by name and wrong.
const IN_ANNOTATIONS: [(&str, &str); 12] = [
    ("io.katacontainers.config.hypervisor.nonsense", "1"),
    ("io.katacontainers.config.hypervisor.path", "/no"),
    ("io.katacontainers.config.hypervisor.kernel_hash", "abc"),
    ("io.katacontainers.config.hypervisor.kernel_params", "init=/bin/sh"),
    ("io.katacontainers.config.hypervisor.enable_iommu", "perhaps"),
    ("io.katacontainers.config.hypervisor.machine_type", "pc"),
    ("io.katacontainers.config.hypervisor.pcie_root_port", "-1"),
    ("io.katacontainers.config.hypervisor.virtio_fs_extra_args", "[]"),
    ("io.katacontainers.config.runtime.disable_guest_seccomp", "2"),
    ("io.katacontainers.config.runtime.create_container_timeout", "1s"),
    ("io.katacontainers.config.agent.policy", ""),
    ("io.katacontainers.asset_hash_type", "md5"),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_refused_configuration_names_every_offending_key_and_annotation_at_once(
        lines in subsequence(IN_FILES.to_vec(), 0..=IN_FILES.len()),
        annotations in subsequence(IN_ANNOTATIONS.to_vec(), 0..=IN_ANNOTATIONS.len()),
    ) {
        prop_assume!(!lines.is_empty() || !annotations.is_empty());
        let place = Place::bare();
        let text: Vec<_> = lines.iter().map(|(line, _)| *line).collect();
        let text = format!("hypervisor.qemu.enable_annotations = ['.*']\n{}\n", text.join("\n"));
        let found = problems(place.load_for(&text, &annotations));
        for (_, key) in &lines {
            prop_assert!(found.iter().any(|finding| finding.concerns(key)), "{} in {:?}", key, found);
        }
        for (name, _) in &annotations {
            let by = Origin::Annotation((*name).to_owned());
            prop_assert!(found.iter().any(|finding| finding.origin == by), "{} in {:?}", name, found);
        }
        prop_assert_eq!(found.len(), lines.len() + annotations.len(), "{:?}", found);
    }
}

#[test]
fn what_is_wrong_with_several_values_of_one_key_is_all_told() {
    let place = Place::new();
    for (text, expected) in [
        ("pflashes = ['/no', '/nor']", ["/no: ", "/nor: "]),
        ("kernel_params = \"a\\u0001 b c\\u0002\"", ["a\\u{1}", "c\\u{2}"]),
        ("guest_extension_images = [{name = 7}, {size = 1}]", ["not a string", "\"size\" is unknown"]),
        ("virtio_fs_extra_args = ['--fd=3', '-o']", ["\"--fd=3\"", "\"-o\""]),
        (
            "guest_extension_images = [{name = '', path = '/no', verity_params = 'x=1'}]",
            ["path: /no", "verity_params: "],
        ),
    ] {
        let found = problems(place.load_with(&format!("hypervisor.qemu.{text}")));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(expected.iter().all(|part| found[0].what.contains(part)), "{found:?}");
    }
    // Neither which of the two is right nor its type keeps the rest from being told.
    for (text, keys) in [
        (
            "{initrd = '/no1', image = '/no2', vm_rootfs_driver = 'y', kernel_verity_params = 'x=1'}",
            &["initrd", "image", "vm_rootfs_driver", "kernel_verity_params"][..],
        ),
        (
            "{initrd = '/no1', image = 5, vm_rootfs_driver = 'y', kernel_verity_params = 'x=1'}",
            &["image", "vm_rootfs_driver", "kernel_verity_params", "initrd"],
        ),
    ] {
        let found = problems(place.load_with(&format!("hypervisor.qemu = {text}")));
        assert_eq!(found.len(), keys.len(), "{found:?}");
        for key in keys {
            assert!(
                found.iter().any(|one| one.concerns(&format!("hypervisor.qemu.{key}"))),
                "{key}: {found:?}"
            );
        }
    }
    let image = "hypervisor.qemu = {initrd = '', image = '@DIR@/image', kernel_verity_params = 'x=1', vm_rootfs_driver = 'y'}";
    assert_eq!(problems(place.load_with(image)).len(), 2);
    // Firmware that is not there is no reason to ask for some.
    let flashes = "hypervisor.qemu = {confidential_guest = true, pflashes = ['/no', '/no', '/no']}";
    assert_eq!(problems(place.load_with(flashes)).len(), 1);
}

#[test]
fn one_mistake_does_not_hide_another_that_depends_on_the_same() {
    let place = Place::new();
    place.sparse("big", 3 << 30);
    let images = "guest_extension_images = [{name = 'a', path = '/no'}, {name = 'b', path = '@DIR@/image'}, {name = 'c', path = '@DIR@/image'}]";
    for (text, keys) in [
        (
            "enable_hugepages = true, enable_numa = true, default_memory = 257, numa_mapping = ['x']"
                .to_owned(),
            ["default_memory", "numa_mapping"],
        ),
        (
            format!(
                "default_bridges = 5, pcie_root_port = 16, pcie_switch_port = 4, {images}, use_legacy_serial = false, reclaim_guest_freed_memory = true, enable_virtio_mem = true"
            ),
            ["guest_extension_images", "pcie_root_port"],
        ),
        ("default_memory = 255, initrd = '@DIR@/big'".to_owned(), ["default_memory", "initrd"]),
    ] {
        let found = problems(place.load_with(&format!("hypervisor.qemu = {{{text}}}")));
        assert_eq!(found.len(), keys.len(), "{found:?}");
        for key in keys {
            assert!(
                found.iter().any(|one| one.concerns(&format!("hypervisor.qemu.{key}"))),
                "{key}: {found:?}"
            );
        }
    }
}
