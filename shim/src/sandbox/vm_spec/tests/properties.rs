//! Whatever the configuration takes, a machine can be made of: nothing that is wrong with it is left to be found later.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Keys with values, most of which go with most others.
const KEYS: [(&str, &[&str]); 30] = [
    ("machine_type", &["'q35'", "'microvm'", "'virt'"]),
    ("machine_accelerators", &["'nosmm,vmport=off'", "'=on'"]),
    ("cpu_features", &["'avx2=off,+sse4.2'"]),
    ("kernel_params", &["'a=1 b=\"c d\"'", "'LONG'"]),
    ("accelerator", &["'auto'", "'kvm'", "'tcg'"]),
    ("vsock", &["'auto'", "'vhost'", "'vhost-user'"]),
    ("shared_fs", &["'auto'", "'virtio-fs'", "'virtio-9p'", "'none'"]),
    ("default_vcpus", &["-1", "0.5", "1", "300"]),
    ("default_maxvcpus", &["0", "1", "240"]),
    ("default_memory", &["0", "256", "300"]),
    ("default_maxmemory", &["0", "512", "400000"]),
    ("memory_slots", &["0", "1", "256"]),
    ("memory_offset", &["0", "1", "4294967295"]),
    ("enable_hugepages", &["true"]),
    ("file_mem_backend", &["'/dev'"]),
    ("enable_virtio_mem", &["true"]),
    ("reclaim_guest_freed_memory", &["true"]),
    ("enable_numa", &["true"]),
    ("enable_iommu", &["true"]),
    ("enable_iommu_platform", &["true"]),
    ("default_bridges", &["0", "5", "9"]),
    ("pcie_root_port", &["0", "16", "40"]),
    ("pcie_switch_port", &["0", "16", "40"]),
    ("hot_plug_vfio", &["'root-port'", "'bridge-port'", "'no-port'"]),
    ("cold_plug_vfio", &["'switch-port'", "'root-port'"]),
    ("block_device_driver", &["'virtio-blk'", "'nvdimm'"]),
    ("guest_memory_dump_path", &["'/var/crash'"]),
    ("use_legacy_serial", &["true"]),
    ("rootless", &["true"]),
    ("confidential_guest", &["true"]),
];

/// As many as there can be.
const MANY_IMAGES: &str = "image = '@DIR@/image'\nguest_extension_images = [\
    {name = 'a', path = '@DIR@/image'}, {name = 'b', path = '@DIR@/image'}, \
    {name = 'c', path = '@DIR@/image'}, {name = 'd', path = '@DIR@/image'}, \
    {name = 'e', path = '@DIR@/image'}, {name = 'f', path = '@DIR@/image'}, \
    {name = 'g', path = '@DIR@/image'}, {name = 'h', path = '@DIR@/image'}, \
    {name = 'i', path = '@DIR@/image'}, {name = 'j', path = '@DIR@/image'}, \
    {name = 'k', path = '@DIR@/image'}, {name = 'l', path = '@DIR@/image'}, \
    {name = 'm', path = '@DIR@/image'}, {name = 'n', path = '@DIR@/image'}, \
    {name = 'o', path = '@DIR@/image'}, {name = 'p', path = '@DIR@/image'}]";

/// What the guest starts from, and files beside it.
const FILES: [&str; 8] = [
    "initrd = '@DIR@/initrd'",
    "image = '@DIR@/image'",
    "image = '@DIR@/image'\nvm_rootfs_driver = 'virtio-pmem'",
    "image = '@DIR@/image'\ndisable_image_nvdimm = true",
    "image = '@DIR@/image'\nguest_extension_images = [{name = 'a', path = '@DIR@/image'}]",
    MANY_IMAGES,
    "pflashes = ['@DIR@/firmware', '@DIR@/image']",
    "firmware = '@DIR@/firmware'",
];

fn any_keys() -> impl Strategy<Value = String> {
    let line = |(key, values): (&'static str, &'static [&'static str])| {
        prop::option::weighted(0.25, select(values).prop_map(move |value| format!("{key} = {value}")))
    };
    let lines: Vec<_> = KEYS.into_iter().map(line).collect();
    (lines, select(&FILES)).prop_map(|(lines, files)| {
        lines.into_iter().flatten().chain([files.to_owned()]).collect::<Vec<_>>().join("\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_the_configuration_takes_a_machine_can_be_made_of(keys in any_keys(), long in 1200..2048_usize) {
        // About as long as the kernel's command line has room for.
        let keys = keys.replace("LONG", &"x".repeat(long));
        let (_dir, loaded) = load(&format!("virtio_fs_daemon = '/bin/true'\n{keys}"));
        if let Ok(configuration) = loaded {
            let planned = planned(&configuration, &Spec::default());
            prop_assert!(planned.is_ok(), "{keys}\n{}", planned.err().map_or(String::new(), |error| error.to_string()));
        }
    }
}
