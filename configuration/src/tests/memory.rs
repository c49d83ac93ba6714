//! How big the machine may be, and what its memory is.

use vmm::spec::Numa;

use super::values::refused;
use super::{Place, problems};
use crate::MemoryBacking;

#[test]
fn e3_numa_nodes_are_lists_of_the_host_s() {
    let place = Place::new();
    for list in ["", "a", "1-", "3-2", "128", "0,,1"] {
        let text = format!("hypervisor.qemu = {{enable_numa = true, numa_mapping = ['0', '{list}']}}");
        refused(&place, &[(text.as_str(), "hypervisor.qemu.numa_mapping", "is no list of nodes")]);
    }
    let loaded = place.load_with("hypervisor.qemu.numa_mapping = ['0']").unwrap();
    assert!(loaded.warnings[0].concerns("hypervisor.qemu.numa_mapping"));
}

#[test]
fn e3_a_guest_has_a_node_for_each_of_the_host_s_or_those_it_is_given() {
    let place = Place::new();
    for name in ["node10", "node2", "node0", "power", "nodes"] {
        place.file(&format!("nodes/{name}/cpulist"), "");
    }
    let numa = |mapping: &str| {
        let text = format!("hypervisor.qemu = {{enable_numa = true{mapping}}}");
        place.load_with(&text).unwrap().configuration.hypervisor.numa
    };
    assert_eq!(place.load_with("").unwrap().configuration.hypervisor.numa, None);
    assert_eq!(numa(""), Numa::new(vec![vec![0], vec![2], vec![10]]).ok());
    assert_eq!(numa(", numa_mapping = ['2,0']"), Numa::new(vec![vec![2, 0]]).ok());
    let absent = "hypervisor.qemu = {enable_numa = true, numa_mapping = ['0', '1,4-5']}";
    refused(&place, &[(absent, "hypervisor.qemu.numa_mapping", "the host has no node 1, but [0, 2, 10]")]);
    for (name, table) in [("node0", "10 20 30"), ("node2", "21 10 40\n"), ("node10", "31 41 10")] {
        place.file(&format!("nodes/{name}/distance"), table);
    }
    let two = Numa::new(vec![vec![10], vec![0, 2]]).unwrap();
    let expected = two.with_distances(vec![vec![10, 31], vec![30, 10]]).unwrap();
    assert_eq!(numa(", numa_mapping = ['10', '0,2']"), Some(expected));
    for number in 11..=18 {
        place.file(&format!("nodes/node{number}/cpulist"), "");
    }
    let all = "hypervisor.qemu.enable_numa = true";
    refused(
        &place,
        &[(all, "hypervisor.qemu.numa_mapping", "11 nodes are more than the 8 a guest can have")],
    );
    // A kernel without NUMA has no nodes to divide among.
    let none = "hypervisor.qemu.enable_numa = true";
    refused(&Place::new(), &[(none, "hypervisor.qemu.numa_mapping", "1 to 128 of them")]);
}

#[test]
fn a10_memory_is_no_more_than_processors_can_address() {
    let mut place = Place::new();
    let key = "hypervisor.qemu.memory_offset";
    let tcg = "hypervisor.qemu = {accelerator = 'tcg', memory_offset = 1048576}";
    refused(&place, &[(tcg, key, "1048576 MiB on top of the 16384 of default_maxmemory")]);
    let memory = "hypervisor.qemu = {accelerator = 'tcg', default_memory = 1048576}";
    refused(&place, &[(memory, "hypervisor.qemu.default_memory", "more than the 989184 that the guest's")]);
    place.load_with(&tcg.replace("tcg", "kvm")).unwrap();
    // Too little memory, or more than may come, does not hide it.
    for also in ["default_memory = 255", "default_maxmemory = 1024"] {
        let both = format!("hypervisor.qemu = {{{also}, memory_offset = 4294967295}}");
        let found = problems(place.load_with(&both));
        let name = format!("hypervisor.qemu.{}", also.split(' ').next().unwrap());
        assert!(found.len() == 2 && found[0].concerns(&name) && found[1].concerns(key), "{found:?}");
    }
    // The host may have more than the translator's processors reach.
    place.host.memory_mib = 4 << 20;
    for (accelerator, most) in [("tcg", (1012 - 36 - 10) << 10), ("kvm", 4 << 20)] {
        let loaded = place.load_with(&format!("hypervisor.qemu.accelerator = '{accelerator}'")).unwrap();
        assert_eq!(loaded.configuration.hypervisor.default_maxmemory_mib, most, "{accelerator}");
    }
    // An image that is memory has addresses of its own, and is aligned.
    let image = "hypervisor.qemu = {accelerator = 'tcg', initrd = '', image = '@DIR@/image'}";
    let most = place.load_with(image).unwrap().configuration.hypervisor.default_maxmemory_mib;
    assert_eq!(most, (1012 - 36 - 10 - 2) << 10);
}

#[test]
fn memory_is_in_one_place() {
    let place = Place::new();
    let file = "hypervisor.qemu.file_mem_backend";
    refused(
        &place,
        &[
            ("hypervisor.qemu = {file_mem_backend = '/usr', enable_hugepages = true}", file, "choose one"),
            ("hypervisor.qemu.file_mem_backend = '/no'", file, "/no: no such file or directory"),
            ("hypervisor.qemu.file_mem_backend = '@DIR@/kernel'", file, "is not a directory"),
            ("hypervisor.qemu.file_mem_backend = 'shm'", file, "not an absolute path"),
        ],
    );
    let backing = |text| place.load_with(text).unwrap().configuration.hypervisor.memory_backing;
    assert_eq!(backing(""), MemoryBacking::Anonymous);
    assert_eq!(backing("hypervisor.qemu.enable_hugepages = true"), MemoryBacking::HugePages);
    assert_eq!(backing("hypervisor.qemu.file_mem_backend = '/usr'"), MemoryBacking::Directory("/usr".into()));
}

#[test]
fn memory_follows_kata_s_rules_but_too_little_is_an_error() {
    let place = Place::new();
    let memory = |text: &str| {
        let hypervisor = place.load_with(text).unwrap().configuration.hypervisor;
        (hypervisor.default_memory_mib, hypervisor.default_maxmemory_mib)
    };
    assert_eq!(memory(""), (2048, 16384));
    assert_eq!(memory("hypervisor.qemu.default_memory = 0"), (2048, 16384));
    assert_eq!(memory("hypervisor.qemu.default_memory = 256"), (256, 16384));
    assert_eq!(memory("hypervisor.qemu.default_memory = 32768"), (32768, 32768));
    assert_eq!(memory("hypervisor.qemu.default_maxmemory = 4096"), (2048, 4096));
    assert_eq!(memory("hypervisor.qemu.default_maxmemory = 99999999"), (2048, 16384));
    refused(
        &place,
        &[
            (
                "hypervisor.qemu.default_memory = 255",
                "hypervisor.qemu.default_memory",
                "255 MiB is below the minimum; set at least 256",
            ),
            (
                "hypervisor.qemu.default_maxmemory = 1024",
                "hypervisor.qemu.default_maxmemory",
                "1024 MiB is below default_memory",
            ),
        ],
    );
}

#[test]
fn vcpus_follow_kata_s_rules() {
    let place = Place::new();
    let vcpus = |text: &str| {
        let hypervisor =
            place.load_with(&format!("[hypervisor.qemu]\n{text}")).unwrap().configuration.hypervisor;
        (hypervisor.default_vcpus, hypervisor.default_maxvcpus)
    };
    assert_eq!(vcpus(""), (1, 8));
    assert_eq!(vcpus("default_vcpus = 0"), (1, 8));
    assert_eq!(vcpus("default_vcpus = -0.0"), (1, 8));
    assert_eq!(vcpus("default_vcpus = 3"), (3, 8));
    assert_eq!(vcpus("default_vcpus = 2.5"), (3, 8));
    assert_eq!(vcpus("default_vcpus = -1"), (8, 8));
    assert_eq!(vcpus("default_vcpus = -0.5"), (8, 8));
    assert_eq!(vcpus("default_vcpus = 9"), (8, 8));
    assert_eq!(vcpus("default_vcpus = 1e300"), (8, 8));
    assert_eq!(vcpus("default_maxvcpus = 2"), (1, 2));
    assert_eq!(vcpus("default_maxvcpus = 4000000000"), (1, 8));
    let text = "hypervisor.qemu = {default_vcpus = 4, default_maxvcpus = 2}";
    refused(&place, &[(text, "hypervisor.qemu.default_maxvcpus", "2 is below default_vcpus, which is 4")]);
}

#[test]
fn huge_pages_are_whole_in_every_node() {
    let mut place = Place::new();
    for node in 0..3 {
        place.file(&format!("nodes/node{node}/cpulist"), "");
    }
    let (key, pages) = ("hypervisor.qemu.default_memory", "hypervisor.qemu = {enable_hugepages = true");
    refused(
        &place,
        &[
            (
                &format!("{pages}, default_memory = 2047}}"),
                key,
                "of 2 MiB, in each of 1 NUMA nodes; set a multiple of 2,",
            ),
            (&format!("{pages}, enable_numa = true}}"), key, "in each of 3 NUMA nodes; set a multiple of 6,"),
        ],
    );
    for (right, step, most) in [
        ("default_memory = 2050", 2, 4096),
        ("default_memory = 2052, enable_numa = true", 6, 2052 + 340 * 6),
        ("default_memory = 2050, file_mem_backend = ''", 2, 4096),
    ] {
        // More memory, too, is whole pages.
        let loaded = place.load_with(&format!("{pages}, {right}, default_maxmemory = 4097}}")).unwrap();
        let hypervisor = loaded.configuration.hypervisor;
        assert_eq!((hypervisor.memory_step_mib, hypervisor.default_maxmemory_mib), (step, most), "{right}");
    }
    place.load_with("hypervisor.qemu = {default_memory = 2047}").unwrap();
    place.host.huge_page_kib = 1 << 20;
    refused(&place, &[(&format!("{pages}, default_memory = 1536}}"), key, "of 1024 MiB")]);
    // A host that has none is told so when a guest is to start.
    place.host.huge_page_kib = 0;
    place.load_with(&format!("{pages}, default_memory = 2047}}")).unwrap();
}

#[test]
fn memory_that_the_host_cannot_give_at_the_start_gives_a_warning() {
    let place = Place::new();
    let warnings = |memory: u32| {
        let text = format!("hypervisor.qemu = {{enable_mem_prealloc = true, default_memory = {memory}}}");
        place.load_with(&text).unwrap().warnings
    };
    assert_eq!(warnings(16384), []);
    let [warning] = &*warnings(16385) else { panic!() };
    assert!(warning.concerns("hypervisor.qemu.enable_mem_prealloc"), "{warning}");
    assert!(warning.what.contains("all 16385 MiB of default_memory at the start, and the host has 16384"));
    assert_eq!(place.load_with("hypervisor.qemu.default_memory = 16385").unwrap().warnings, []);
}

const TOO_BIG: &str = "does not fit into default_memory, which is 2048 MiB";

#[test]
fn e6_an_initrd_as_big_as_the_memory_is_refused() {
    let place = Place::new();
    let key = "hypervisor.qemu.initrd";
    place.sparse("big", 255 << 20);
    place.sparse("fits", (255 << 20) - 1);
    place.sparse("huge", 2047 << 20);
    refused(
        &place,
        &[
            (
                "hypervisor.qemu = {initrd = '@DIR@/big', default_memory = 256}",
                key,
                "default_memory, which is 256 MiB",
            ),
            ("hypervisor.qemu.initrd = '@DIR@/huge'", key, "larger than the 2047 MiB that QEMU takes"),
            (
                "hypervisor.qemu = {initrd = '@DIR@/huge', default_memory = 8192}",
                key,
                "set the path of a smaller one",
            ),
        ],
    );
    place.load_with("hypervisor.qemu = {initrd = '@DIR@/fits', default_memory = 256}").unwrap();
    place.load_with("hypervisor.qemu = {initrd = '@DIR@/big', default_memory = 257}").unwrap();
}

#[test]
fn e6_an_image_as_big_as_the_memory_gives_a_warning() {
    let place = Place::new();
    place.sparse("big", 2048 << 20);
    let loaded = place.load_with("hypervisor.qemu = {initrd = '', image = '@DIR@/big'}").unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].concerns("hypervisor.qemu.image"));
    assert!(loaded.warnings[0].what.contains(TOO_BIG));
}
