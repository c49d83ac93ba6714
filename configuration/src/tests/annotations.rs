//! What pods may ask for.

use std::fs;
use std::os::unix::fs::symlink;

use sha2::{Digest, Sha512};
use vmm::spec::Boot;

use super::{Place, problems, texts, words};
use crate::annotations::kernel_params::REFUSED;
use crate::annotations::{GROUPS, Group, Known, Target};
use crate::keys::{Key, Kind};
use crate::{Configuration, Finding, LoadError, Loaded, Origin, survey};

const ALL: &str = "hypervisor.qemu.enable_annotations = ['.*']\n";

fn full(name: &str) -> String {
    format!("io.katacontainers.config.{name}")
}

fn every() -> impl Iterator<Item = (&'static Group, &'static Known)> {
    GROUPS.iter().flat_map(|group| group.known.iter().map(move |known| (group, known)))
}

/// The one problem there is with a sandbox that has this annotation, and nothing but everything allowed.
#[track_caller]
fn problem_of(place: &Place, name: &str, value: &str) -> String {
    only_problem(place.load_for(ALL, &[(&full(name), value)]), name)
}

#[track_caller]
fn only_problem(result: Result<Loaded, LoadError>, name: &str) -> String {
    let found = problems(result);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].origin, Origin::Annotation(full(name)));
    let text = found[0].to_string();
    assert!(text.starts_with(&format!("annotation io.katacontainers.config.{name}: ")), "{text}");
    text
}

#[track_caller]
fn allowed(place: &Place, text: &str, name: &str, value: &str) -> Configuration {
    place.load_for(&format!("{ALL}{text}"), &[(&full(name), value)]).unwrap().configuration
}

/// A place whose lists have whatever is in it, and something for every annotation to name.
fn permissive() -> (Place, String) {
    let place = Place::new();
    for program in ["other-qemu", "other-virtiofsd"] {
        place.file(program, "#!");
        place.mode(program, 0o755);
    }
    for file in ["other", "directory/file"] {
        place.file(file, &"y".repeat(65536));
    }
    let lists = ["hypervisor", "jailer", "ctl", "virtio_fs_daemon", "vhost_user_store"].map(|what| {
        let list = if what == "ctl" { "valid_ctlpaths".into() } else { format!("valid_{what}_paths") };
        format!("hypervisor.qemu.{list} = ['@DIR@/*']\n")
    });
    let more = "hypervisor.qemu.valid_entropy_sources = ['@DIR@/*']\n\
        hypervisor.qemu.valid_file_mem_backends = ['@DIR@/*']\n\
        hypervisor.qemu.vhost_user_store_path = '/usr'\n\
        hypervisor.qemu.firmware = '@DIR@/kernel'\n\
        hypervisor.qemu.virtio_fs_daemon = '@DIR@/virtiofsd'\n";
    (place, format!("{ALL}{}{more}", lists.concat()))
}

/// Keys that mean nothing without another one, or without an image.
const NOT_ALONE: &[&str] = &[
    "numa_mapping",
    "sev_snp_guest",
    "snp_guest_policy",
    "snp_id_auth",
    "snp_id_block",
    "tdx_quote_generation_service_socket_port",
    "vhost_user_reconnect_timeout_sec",
    "vm_rootfs_driver",
    "vhost_user_store_path",
    "block_device_cache_direct",
    "block_device_cache_noflush",
    "disable_image_nvdimm",
    "kernel_verity_params",
];

/// A value that no default has.
fn unusual(known: &Known, key: &Key) -> String {
    match (known.target, known.name) {
        (_, "path") => "@DIR@/other-qemu".to_owned(),
        (_, "virtio_fs_daemon") => "@DIR@/other-virtiofsd".to_owned(),
        (_, "file_mem_backend") => "@DIR@/directory".to_owned(),
        (Target::Path(..) | Target::Instead(..), _) | (_, "kernel" | "firmware" | "firmware_volume") => {
            "@DIR@/other".to_owned()
        }
        (_, "block_device_driver") => "virtio-blk".to_owned(),
        (_, "hot_plug_vfio" | "cold_plug_vfio") => "root-port".to_owned(),
        (_, "block_device_aio") => "threads".to_owned(),
        (_, "block_device_queue_size") => "64".to_owned(),
        (_, "blk_logical_sector_size" | "blk_physical_sector_size") => "4096".to_owned(),
        (_, "msize_9p") => "16384".to_owned(),
        (_, "rx_rate_limiter_max_rate" | "tx_rate_limiter_max_rate") => "8000".to_owned(),
        (_, "guest_hook_path") => "/hooks".to_owned(),
        (_, "guest_selinux_label") => "u:r:t:s0".to_owned(),
        (Target::Key(_, Some(Kind::Integer { min, .. })), _) => min.to_string(),
        (Target::Key(_, Some(Kind::Choice(words))), _) => words[0].to_owned(),
        _ => match key.kind {
            Kind::Flag => (key.default.value() == Some(false.into())).to_string(),
            Kind::Integer { .. } | Kind::Number => "7".to_owned(),
            Kind::Choice(words) => words[words.len() - 1].to_owned(),
            Kind::Text | Kind::Texts | Kind::Tables => "unusual".to_owned(),
        },
    }
}

#[test]
fn e7_no_annotation_is_allowed_that_is_not_listed_and_the_error_says_how_to_list_it() {
    let place = Place::new();
    assert!(every().count() > 80);
    for (group, known) in every() {
        let name = group.full_name(known);
        let found = problems(place.load_for("", &[(&name, "1")]));
        assert_eq!(found.len(), 1, "{found:?}");
        let text = found[0].to_string();
        assert!(text.starts_with(&format!("annotation {name}: ")) && text.contains(known.name), "{text}");
        if !matches!(known.target, Target::Refused(_)) {
            let listed = group.listed_name(known);
            assert!(
                text.contains(&format!("add {listed:?} to enable_annotations of [hypervisor.qemu]")),
                "{text}"
            );
        }
    }
}

#[test]
fn e7_every_annotation_that_sets_a_key_changes_the_checked_value_or_warns_as_the_key_does() {
    let (place, lists) = permissive();
    let before = place.load_for(&lists, &[]).unwrap();
    let usual = texts(&before.warnings);
    for (group, known) in every() {
        let name = match known.target {
            Target::Key(name, _) | Target::Instead(name, _) | Target::Path(name, _) => name,
            Target::KernelParams => "kernel_params",
            Target::Hash(_) | Target::HashType | Target::Nothing | Target::Refused(_) => continue,
        };
        let key = survey::section(group.table).unwrap().key(name).unwrap();
        let value = unusual(known, key);
        let annotation = group.full_name(known);
        let mut together = vec![(annotation.as_str(), value.as_str())];
        if key.name == "disable_new_netns" {
            // It is refused with any other model.
            together.push(("io.katacontainers.config.runtime.internetworking_model", "none"));
        }
        let loaded = place.load_for(&lists, &together).unwrap();
        if NOT_ALONE.contains(&key.name) {
            continue;
        }
        if key.honoured {
            assert_ne!(loaded.configuration, before.configuration, "{annotation} = {value}");
        } else {
            let warning = format!("annotation {annotation}: recognised, not honoured by this version");
            let mut more = texts(&loaded.warnings);
            more.retain(|warning| !usual.contains(warning));
            assert_eq!(more, [warning], "{value}");
        }
    }
}

#[test]
fn s_b1_a_listed_name_is_a_whole_name() {
    let place = Place::new();
    let with = |listed: &str, name: &str| {
        let text = format!("hypervisor.qemu.enable_annotations = ['{listed}']\n");
        place.load_for(&text, &[(&full(name), "true")])
    };
    with("enable_iommu", "hypervisor.enable_iommu").unwrap();
    with("enable_io.*", "hypervisor.enable_iommu").unwrap();
    with("x|enable_iommu|y", "hypervisor.enable_iommu").unwrap();
    with("runtime[.]enable_pprof", "runtime.enable_pprof").unwrap();
    for (listed, name) in [
        ("enable", "hypervisor.enable_iommu"),
        ("iommu", "hypervisor.enable_iommu"),
        ("enable_iommu", "hypervisor.enable_iommu_platform"),
        ("enable_pprof", "runtime.enable_pprof"),
        ("runtime", "runtime.enable_pprof"),
        ("hypervisor.*", "hypervisor.enable_iommu"),
    ] {
        only_problem(with(listed, name), name);
    }
}

#[test]
fn e7_an_expression_or_a_pattern_that_is_none_is_a_problem_of_the_file_even_without_annotations() {
    let place = Place::new();
    for (key, entry, reason) in [
        ("enable_annotations", "a(", "is not a regular expression: unclosed group"),
        ("enable_annotations", "a)|(b", "is not a regular expression: unopened group"),
        ("valid_hypervisor_paths", "/usr/[", "is not a pattern"),
        ("valid_entropy_sources", "dev/*", "is no pattern for absolute paths; start it with /"),
        ("valid_ctlpaths", "/usr/**/x", "has **, which would cross directories"),
    ] {
        let found = problems(place.load_with(&format!("hypervisor.qemu.{key} = ['/ok', '{entry}']")));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].concerns(&format!("hypervisor.qemu.{key}")), "{found:?}");
        assert!(found[0].what.starts_with(&format!("{entry:?} {reason}")), "{found:?}");
    }
}

#[test]
fn e7_a_name_nobody_knows_is_refused_and_a_near_one_offered() {
    let place = Place::new();
    let near = problem_of(&place, "hypervisor.defaultmemory", "512");
    assert!(near.ends_with("did you mean io.katacontainers.config.hypervisor.default_memory?"), "{near}");
    for name in [
        "hypervisor.",
        "memory",
        "",
        "hypervisor.kernel.x",
        "runtime.kernel",
        "hypervisor.accelerator",
        &"x".repeat(1 << 20),
    ] {
        let text = problem_of(&place, name, "1");
        assert!(text.contains("unknown annotation"), "{text}");
    }
    place.load_for("", &[("io.katacontainers.container.resource.swappiness", "60"), ("other", "x")]).unwrap();
}

#[test]
fn s_b1_virtiofsd_s_arguments_and_policies_are_refused_whatever_is_listed() {
    let place = Place::new();
    for (name, why) in [
        ("hypervisor.virtio_fs_extra_args", "only the configuration file may set them"),
        ("hypervisor.cc_init_data", "the pod counts on it"),
        ("agent.policy", "applies no policy"),
    ] {
        let text = problem_of(&place, name, "[]");
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn s_b2_a_pod_does_not_choose_its_configuration_file() {
    let place = Place::new();
    let loaded = place.load_for("", &[("io.katacontainers.config_path", "/tmp/mine.toml")]).unwrap();
    let expected =
        "annotation io.katacontainers.config_path: ignored: a pod does not choose its configuration file";
    assert_eq!(texts(&loaded.warnings), [expected]);
}

#[test]
fn s_b1_paths_are_existing_ones_that_the_list_has_wherever_links_lead() {
    let place = Place::new();
    for program in ["bin/qemu-8", "bin/deeper/qemu-9", "other/qemu"] {
        place.file(program, "#!");
        place.mode(program, 0o755);
    }
    symlink(place.path("other/qemu"), place.path("bin/qemu-link")).unwrap();
    symlink(place.path("bin"), place.path("linked")).unwrap();
    let name = full("hypervisor.path");
    let load = |list: &str, value: &str| {
        let text = format!("{ALL}hypervisor.qemu.valid_hypervisor_paths = ['{list}']\n");
        place.load_for(&text, &[(&name, value)])
    };
    let path = |list: &str, value: &str| load(list, value).unwrap().configuration.hypervisor.path;
    assert_eq!(path("@DIR@/bin/*", "@DIR@/bin/qemu-8"), place.path("bin/qemu-8"));
    assert_eq!(path("@DIR@/bin/qemu-[0-9]", "@DIR@/bin/../bin/./qemu-8"), place.path("bin/qemu-8"));
    assert_eq!(path("@DIR@/linked/*", "@DIR@/linked/qemu-8"), place.path("bin/qemu-8"));
    assert_eq!(path("@DIR@/bin/qemu-link", "@DIR@/bin/qemu-link"), place.path("other/qemu"));
    let refused = |list: &str, value: &str| only_problem(load(list, value), "hypervisor.path");
    for (list, value) in [
        ("@DIR@/bin/*", "@DIR@/bin/qemu-link"),
        ("@DIR@/bin/*", "@DIR@/bin/deeper/qemu-9"),
        ("@DIR@/bin?deeper/qemu-9", "@DIR@/bin/deeper/qemu-9"),
        ("@DIR@/bin[!x]deeper/qemu-9", "@DIR@/bin/deeper/qemu-9"),
        ("@DIR@/bin/*", "@DIR@/bin/../other/qemu"),
        ("@DIR@/bin/*", "@DIR@/bin/absent"),
        ("", "@DIR@/bin/qemu-8"),
    ] {
        let text = refused(list, value);
        let expected = "is no existing file that valid_hypervisor_paths of [hypervisor.qemu] has";
        assert!(text.contains(expected), "{text}");
    }
    for relative in ["bin/qemu-8", ""] {
        let text = refused("@DIR@/bin/*", relative);
        assert!(text.contains("is not an absolute path"), "{text}");
    }
}

#[test]
fn e7_a_hash_is_that_of_the_file_in_the_end() {
    let place = Place::new();
    place.file("other", "other content");
    let hash_of = |content: &str| -> String {
        Sha512::digest(content).iter().map(|byte| format!("{byte:02X}")).collect()
    };
    let (kernel, hash) = (full("hypervisor.kernel"), full("hypervisor.kernel_hash"));
    place.load_for(ALL, &[(&hash, &hash_of(&"x".repeat(65536)))]).unwrap();
    let both = |hash_value: &str| place.load_for(ALL, &[(&kernel, "@DIR@/other"), (&hash, hash_value)]);
    assert_eq!(both(&hash_of("other content")).unwrap().configuration.hypervisor.kernel, place.path("other"));
    let text = only_problem(both(&hash_of(&"x".repeat(65536))), "hypervisor.kernel_hash");
    assert!(
        text.contains("other has another SHA-512")
            && !text.contains(&hash_of("other content").to_lowercase()),
        "{text}"
    );
    let text = only_problem(both("abc"), "hypervisor.kernel_hash");
    assert!(text.contains("write 128 hexadecimal digits"), "{text}");
    let text = problem_of(&place, "hypervisor.firmware_hash", &hash_of(""));
    assert!(text.contains("firmware is not set"), "{text}");
}

#[test]
fn e7_the_only_kind_of_hash_is_sha_512() {
    let place = Place::new();
    for name in ["io.katacontainers.asset_hash_type", "io.katacontainers.config.hypervisor.asset_hash_type"] {
        place.load_for(ALL, &[(name, "sha512")]).unwrap();
        let found = texts(&problems(place.load_for(ALL, &[(name, "md5")])));
        assert_eq!(found, [format!("annotation {name}: \"md5\" is not supported; set sha512")]);
    }
}

#[test]
fn e7_kernel_parameters_are_added_to_the_operator_s() {
    let text = "hypervisor.qemu.kernel_params = 'quiet panic=1'\n";
    let configuration = allowed(&Place::new(), text, "hypervisor.kernel_params", "a.b=c  audit=0");
    assert_eq!(words(&configuration.hypervisor.kernel_params), ["quiet", "panic=1", "a.b=c", "audit=0"]);
}

#[test]
fn s_b1_kernel_parameters_that_open_a_way_into_the_guest_are_refused() {
    let place = Place::new();
    for word in [
        "init=/bin/sh",
        "rdinit=/bin/sh",
        "KATA_AGENT_SERVER_ADDR=vsock://1",
        "LD_PRELOAD=/run/x.so",
        "SYSTEMD_UNIT_PATH=/x",
        "rescue",
        "single",
        "-b",
        "1",
        "agent.debug_console",
        "agent.debug-console",
        "agent.debug_console_vport=1026",
        "agent.log_vport=1025",
        "systemd.unit=rescue.target",
        "rd.systemd.debug_shell",
        "--",
    ] {
        let text = problem_of(&place, "hypervisor.kernel_params", &format!("quiet {word}"));
        assert!(text.contains(&format!("{word} may only be set in the configuration file")), "{text}");
    }
    for odd in
        ["a=\"b init=/bin/sh\"", "a='b'", "a\tinit=/bin/sh", "a\ninit=/bin/sh", "a\u{a0}b", "a\\b", "ä"]
    {
        let text = problem_of(&place, "hypervisor.kernel_params", odd);
        assert!(text.contains("write plain words parted by spaces"), "{text}");
    }
}

#[test]
fn the_page_about_the_configuration_names_every_word_that_is_refused() {
    let page = include_str!("../../../docs/configuration.md");
    for word in REFUSED {
        assert!(page.contains(&format!("`{word}`")), "{word}");
    }
}

#[test]
fn e7_values_are_what_the_key_may_hold_and_no_more_than_the_operator_gives() {
    let place = Place::new();
    for (name, value, what) in [
        ("hypervisor.enable_iommu", "yes", "expected true or false, found the string \"yes\""),
        ("hypervisor.default_memory", "255", "expected an integer from 256"),
        ("hypervisor.default_memory", "512M", "expected an integer"),
        ("hypervisor.default_memory", "99999", "99999 MiB is above default_maxmemory, which is 16384"),
        ("hypervisor.default_vcpus", "9", "9 is not within 0 and default_maxvcpus, which is 8"),
        ("hypervisor.default_vcpus", "-1", "-1 is not within 0"),
        ("hypervisor.default_vcpus", "NaN", "expected a number"),
        ("hypervisor.default_max_vcpus", "9", "9 is more than the 8 there can be"),
        ("hypervisor.memory_slots", "257", "from 0 to 256"),
        ("hypervisor.shared_fs", "none", "expected one of virtio-fs, virtio-9p"),
        ("hypervisor.machine_type", "pc", "expected one of q35, virt, microvm"),
        ("hypervisor.machine_accelerators", "firmware=/etc/shadow", "names a file of the host"),
        ("hypervisor.kernel", "a\0b", "NUL"),
        ("hypervisor.kernel_params", &"a ".repeat(5000), "10000 bytes long; no value has more than 8192"),
        ("hypervisor.kernel", "/no", "no such file or directory"),
        ("hypervisor.msize_9p", "5", "set at least 4096"),
        ("runtime.create_container_timeout", "soon", "expected an integer"),
        ("agent.kernel_modules", "e1000e; --all", "names no module"),
    ] {
        let text = problem_of(&place, name, value);
        assert!(text.contains(what), "{text} should contain {what}");
    }
}

#[test]
fn e7_the_operator_s_limits_hold_for_pods() {
    let place = Place::new();
    let limits =
        format!("{ALL}hypervisor.qemu.default_maxmemory = 4096\nhypervisor.qemu.default_maxvcpus = 2\n");
    let load = |name: &str, value: &str| place.load_for(&limits, &[(&full(name), value)]);
    load("hypervisor.default_memory", "4096").unwrap();
    load("hypervisor.default_vcpus", "2").unwrap();
    only_problem(load("hypervisor.default_memory", "4097"), "hypervisor.default_memory");
    only_problem(load("hypervisor.default_vcpus", "3"), "hypervisor.default_vcpus");
}

#[test]
fn e7_lists_are_written_in_one_string() {
    let configuration =
        allowed(&Place::new(), "", "agent.kernel_modules", "e1000e EEE=1 debug=2; i915 enable_ppgtt=0;");
    let names: Vec<_> =
        configuration.agent.kernel_modules.iter().map(|module| module.name.as_str()).collect();
    assert_eq!(names, ["e1000e", "i915"]);
    assert_eq!(configuration.agent.kernel_modules[0].parameters, ["EEE=1", "debug=2"]);
}

#[test]
fn e7_an_image_takes_the_place_of_the_files_initrd_but_a_pod_cannot_have_both() {
    let place = Place::new();
    let configuration = allowed(&place, "", "hypervisor.image", "@DIR@/image");
    assert!(matches!(configuration.hypervisor.boot, Boot::Image { .. }));
    let both = [full("hypervisor.image"), full("hypervisor.initrd")];
    let found = problems(place.load_for(ALL, &[(&both[0], "@DIR@/image"), (&both[1], "@DIR@/initrd")]));
    assert!(found[0].what.contains("set exactly one of the two"), "{found:?}");
}

#[test]
fn all_problems_of_files_and_annotations_are_reported_at_once() {
    let place = Place::new();
    fs::remove_file(place.path("kernel")).unwrap();
    let names =
        ["hypervisor.enable_iommu", "hypervisor.default_memory", "hypervisor.nonsense", "agent.policy"]
            .map(full);
    let annotations = [(&*names[0], "maybe"), (&*names[1], "1"), (&*names[2], ""), (&*names[3], "")];
    let found = problems(place.load_for(&format!("{ALL}runtime.bar = 1\n"), &annotations));
    for name in names {
        let by = |finding: &&Finding| finding.origin == Origin::Annotation(name.clone());
        assert_eq!(found.iter().filter(by).count(), 1, "{name}: {found:?}");
    }
    assert!(found.iter().any(|finding| finding.concerns("hypervisor.qemu.kernel")), "{found:?}");
    assert!(found.iter().any(|finding| finding.concerns("runtime.bar")), "{found:?}");
    assert_eq!(found.len(), 6, "{found:?}");
}
