//! What keys may say.

use std::fs;

use vmm::spec::{Boot, ExtraArgs};

use super::{Place, problems, texts};
use crate::{KernelModule, LoadError, SharedFs};

/// Each drop-in gives exactly one problem: with this key and this text.
#[track_caller]
pub(super) fn refused(place: &Place, cases: &[(&str, &str, &str)]) {
    for (text, key, what) in cases {
        let found = problems(place.load_with(text));
        assert_eq!(found.len(), 1, "{text:?}: {found:?}");
        assert!(found[0].concerns(key), "{text:?}: {found:?}");
        let what = place.placed(what);
        assert!(found[0].what.contains(&what), "{text:?}: {} should contain {what}", found[0].what);
    }
}

#[test]
fn e6_files_that_are_missing_or_unusable_are_named_with_their_keys() {
    let place = Place::new();
    place.file("plain", "not a program");
    place.file("empty", "");
    place.mode("empty", 0o755);
    refused(
        &place,
        &[
            (
                "hypervisor.qemu.path = '/no/qemu'",
                "hypervisor.qemu.path",
                "/no/qemu: no such file or directory",
            ),
            ("hypervisor.qemu.path = '@DIR@/plain'", "hypervisor.qemu.path", "@DIR@/plain is not executable"),
            ("hypervisor.qemu.path = 'qemu'", "hypervisor.qemu.path", "qemu is not an absolute path"),
            ("hypervisor.qemu.path = ''", "hypervisor.qemu.path", "is empty"),
            ("hypervisor.qemu.path = '/usr'", "hypervisor.qemu.path", "/usr is not a regular file"),
            ("hypervisor.qemu.kernel = '/no'", "hypervisor.qemu.kernel", "/no: no such file"),
            ("hypervisor.qemu.kernel = '@DIR@/empty'", "hypervisor.qemu.kernel", "@DIR@/empty is empty"),
            ("hypervisor.qemu.kernel = '@DIR@/plain/x'", "hypervisor.qemu.kernel", "not a directory"),
            ("hypervisor.qemu.initrd = '/no'", "hypervisor.qemu.initrd", "/no: no such file"),
            ("hypervisor.qemu = {initrd = '', image = '/no'}", "hypervisor.qemu.image", "/no: no such file"),
            ("hypervisor.qemu.firmware = '/no'", "hypervisor.qemu.firmware", "/no: no such file"),
            ("hypervisor.qemu.entropy_source = '/no'", "hypervisor.qemu.entropy_source", "/no: no such file"),
            ("hypervisor.qemu.entropy_source = '/dev'", "hypervisor.qemu.entropy_source", "use /dev/urandom"),
        ],
    );
}

#[test]
fn more_places_for_devices_than_the_board_has_are_as_many_as_it_has_with_a_warning() {
    let loaded = Place::new()
        .load_with("hypervisor.qemu = {default_bridges = 9, pcie_root_port = 17, pcie_switch_port = 18}")
        .unwrap();
    let hypervisor = loaded.configuration.hypervisor;
    assert_eq!((hypervisor.default_bridges, hypervisor.pcie_root_port), (5, 16));
    assert!(loaded.warnings[0].concerns("hypervisor.qemu.default_bridges"));
    assert!(loaded.warnings[1].concerns("hypervisor.qemu.pcie_root_port"));
    assert!(loaded.warnings[2].concerns("hypervisor.qemu.pcie_switch_port"));
    assert_eq!(hypervisor.pcie_switch_port, 16);
}

#[test]
fn exactly_one_of_initrd_and_image_is_wanted() {
    let place = Place::new();
    refused(
        &place,
        &[
            ("hypervisor.qemu.image = '@DIR@/image'", "hypervisor.qemu.initrd", "set exactly one of the two"),
            (
                "hypervisor.qemu.initrd = ''",
                "hypervisor.qemu.initrd",
                "is not set, and neither is hypervisor.qemu.image",
            ),
        ],
    );
    let loaded = place.load_with("hypervisor.qemu = {initrd = '', image = '@DIR@/image'}").unwrap();
    assert!(matches!(loaded.configuration.hypervisor.boot, Boot::Image { .. }));
}

#[test]
fn a_daemon_is_checked_at_load_only_when_it_is_asked_for() {
    let place = Place::new();
    let fs = "hypervisor.qemu.virtio_fs_daemon";
    let asked_for = "hypervisor.qemu = {shared_fs = 'virtio-fs', virtio_fs_daemon = '/no'}";
    refused(&place, &[(asked_for, fs, "/no: no such file")]);
    let loaded = place.load_with("hypervisor.qemu.virtio_fs_daemon = '/no'");
    let hypervisor = loaded.unwrap().configuration.hypervisor;
    let late = hypervisor.virtio_fs_daemon.usable().unwrap_err().to_string();
    let file = place.path("config.d/10-test");
    let what = "/no: no such file or directory; install it, or set the path of an existing file";
    assert_eq!(late, format!("{}: {fs}: {what}", file.display()));
    let loaded = place.load_with("hypervisor.qemu.virtio_fs_daemon = '@DIR@/virtiofsd'").unwrap();
    assert_eq!(
        loaded.configuration.hypervisor.virtio_fs_daemon.usable(),
        Ok(place.path("virtiofsd").as_path())
    );
}

#[test]
fn choices_are_listed_when_a_word_is_none_of_them() {
    refused(
        &Place::new(),
        &[
            (
                "hypervisor.qemu.machine_type = 'pc'",
                "hypervisor.qemu.machine_type",
                "one of q35, virt, microvm, found the string \"pc\"",
            ),
            ("hypervisor.qemu.accelerator = 'xen'", "hypervisor.qemu.accelerator", "one of auto, kvm, tcg"),
            ("hypervisor.qemu.vsock = 'tcp'", "hypervisor.qemu.vsock", "one of auto, vhost, vhost-user"),
            (
                "hypervisor.qemu.shared_fs = 'nfs'",
                "hypervisor.qemu.shared_fs",
                "one of auto, virtio-fs, virtio-fs-nydus, virtio-9p, none",
            ),
            (
                "hypervisor.qemu.virtio_fs_cache = 'some'",
                "hypervisor.qemu.virtio_fs_cache",
                "one of never, metadata, auto, always",
            ),
            (
                "hypervisor.qemu.rootfs_type = 'vfat'",
                "hypervisor.qemu.rootfs_type",
                "one of ext4, xfs, erofs",
            ),
            (
                "runtime.internetworking_model = 'x'",
                "runtime.internetworking_model",
                "one of tcfilter, macvtap, none, default",
            ),
        ],
    );
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_the_type_expected() {
    refused(
        &Place::new(),
        &[
            (
                "hypervisor.qemu.kernel = 5",
                "hypervisor.qemu.kernel",
                "expected a string, found the integer 5",
            ),
            (
                "hypervisor.qemu.default_memory = '2048'",
                "hypervisor.qemu.default_memory",
                "expected an integer from 0 to 4294967295, found the string \"2048\"",
            ),
            ("hypervisor.qemu.default_memory = -1", "hypervisor.qemu.default_memory", "found the integer -1"),
            ("hypervisor.qemu.default_memory = {}", "hypervisor.qemu.default_memory", "found a table"),
            (
                "hypervisor.qemu.default_vcpus = 'two'",
                "hypervisor.qemu.default_vcpus",
                "expected a number, found the string",
            ),
            (
                "hypervisor.qemu.default_vcpus = nan",
                "hypervisor.qemu.default_vcpus",
                "expected a number, found the number NaN",
            ),
            (
                "hypervisor.qemu.memory_slots = 300",
                "hypervisor.qemu.memory_slots",
                "from 0 to 256, found the integer 300",
            ),
            (
                "hypervisor.qemu.enable_debug = 'yes'",
                "hypervisor.qemu.enable_debug",
                "expected true or false, found the string \"yes\"",
            ),
            (
                "hypervisor.qemu.enable_hugepages = 1",
                "hypervisor.qemu.enable_hugepages",
                "expected true or false, found the integer 1",
            ),
            (
                "hypervisor.qemu.virtio_fs_extra_args = '-d'",
                "hypervisor.qemu.virtio_fs_extra_args",
                "expected a list of strings, found the string",
            ),
            (
                "agent.kata.kernel_modules = ['a', 1]",
                "agent.kata.kernel_modules",
                "expected a list of strings, found a list holding the integer 1",
            ),
            ("hypervisor.qemu.kernel_params = \"a\\u0000b\"", "hypervisor.qemu.kernel_params", "NUL"),
            ("runtime.enable_debug = 2026-01-01", "runtime.enable_debug", "found the date 2026-01-01"),
            ("runtime = 1", "runtime", "expected a table"),
            ("agent = 1", "agent", "expected a table"),
        ],
    );
}

#[test]
fn unknown_keys_are_refused_and_near_ones_are_offered() {
    refused(
        &Place::new(),
        &[
            ("hypervisor.qemu.kernal = '/x'", "hypervisor.qemu.kernal", "unknown key; did you mean kernel?"),
            (
                "hypervisor.qemu.default_vcpu = 1",
                "hypervisor.qemu.default_vcpu",
                "did you mean default_vcpus?",
            ),
            ("hypervisor.qemu.zzz = 1", "hypervisor.qemu.zzz", "unknown key"),
            (
                "hypervisor.qemu.dial_timeout = 1",
                "hypervisor.qemu.dial_timeout",
                "unknown key; it belongs in [agent.kata]",
            ),
            ("hypervisor.qemu.factory.template = 1", "hypervisor.qemu.factory.template", "unknown key"),
            ("agent.kata.'a b' = 1", "agent.kata.\"a b\"", "unknown key"),
            ("agent.kat.x = 1", "agent.kat", "unknown agent; the agent is configured in [agent.kata]"),
            ("runtime.sandbox_cgroup = true", "runtime.sandbox_cgroup", "unknown key"),
            ("runtme.enable_debug = true", "runtme", "unknown table; did you mean runtime?"),
            (
                "hypervisor.qemuu.kernel = '/x'",
                "hypervisor.qemuu",
                "unknown table; did you mean hypervisor.qemu?",
            ),
            ("kernel = '/x'", "kernel", "outside of any table; it belongs in [hypervisor.qemu]"),
        ],
    );
}

#[test]
fn tables_of_others_are_ignored_with_a_warning() {
    let loaded = Place::new().load_with("[hypervisor.clh]\npath = 1\n[netmon]\nenable = true\n").unwrap();
    let keys = ["hypervisor.clh", "netmon"];
    assert_eq!(loaded.warnings.len(), keys.len());
    for (warning, key) in loaded.warnings.iter().zip(keys) {
        assert!(warning.concerns(key) && warning.what.contains("ignored"), "{warning}");
    }
}

#[test]
fn a_file_for_another_hypervisor_only_is_refused() {
    let place = Place::new();
    for (text, what) in [
        (
            "[hypervisor.clh]\npath = '/x'\n",
            "no such table, but there is [hypervisor.clh]; this runtime runs QEMU",
        ),
        ("hypervisor.qemu = 5", "expected a table"),
        ("", "no such table; this runtime runs QEMU and needs [hypervisor.qemu]"),
    ] {
        let found = problems(place.load(text));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].concerns("hypervisor.qemu") && found[0].what.contains(what), "{found:?}");
    }
}

#[test]
fn e6_an_empty_image_is_refused() {
    let place = Place::new();
    place.file("empty", "");
    let text = "hypervisor.qemu = {initrd = '', image = '@DIR@/empty'}";
    refused(
        &place,
        &[(text, "hypervisor.qemu.image", "@DIR@/empty is empty; set the path of a complete file")],
    );
}

#[test]
fn e3_the_words_of_kata_3_for_submounts_are_understood() {
    let key = "hypervisor.qemu.virtio_fs_extra_args";
    let place = Place::new();
    let loaded =
        place.load_with(&format!("{key} = ['--thread-pool-size=1', '-o', 'announce_submounts']")).unwrap();
    let arguments = loaded.configuration.hypervisor.virtio_fs_extra_args;
    assert_eq!(arguments.iter().collect::<Vec<_>>(), ["--thread-pool-size=1", "--announce-submounts"]);
}

#[test]
fn virtiofsd_arguments_that_are_the_shim_s_are_refused() {
    let key = "hypervisor.qemu.virtio_fs_extra_args";
    let place = Place::new();
    let daemon = "virtiofsd";
    for argument in [
        "--sandbox=none",
        "--seccomp=none",
        "--shared-dir",
        "--socket-path=/x",
        "--fd=3",
        "-o",
        "-osource=/",
        "--cache=always",
        "--uid-map=:0:0:1:",
        "--modcaps=+all",
    ] {
        let text = format!("{key} = ['--log-level=info', '{argument}']");
        refused(&place, &[(&text, key, &format!("\"{argument}\" is not for the {daemon} of a sandbox"))]);
    }
    place.load_with(&format!("{key} = ['--thread-pool-size=4', '--inode-file-handles=never']")).unwrap();
}

#[test]
fn a36_nydusd_is_its_own_daemon_with_arguments_of_its_own() {
    let (daemon, args) = ("hypervisor.qemu.virtio_fs_daemon", "hypervisor.qemu.virtio_fs_extra_args");
    let place = Place::new();
    fs::copy(place.path("virtiofsd"), place.path("nydusd")).unwrap();
    let with = |more: &str| {
        let keys = format!("shared_fs = 'virtio-fs-nydus', virtio_fs_daemon = '@DIR@/nydusd'{more}");
        format!("hypervisor.qemu = {{{keys}}}")
    };
    let hypervisor = place.load_with(&with("")).unwrap().configuration.hypervisor;
    assert_eq!(hypervisor.shared_fs, SharedFs::VirtioFsNydus);
    assert_eq!(
        hypervisor.virtio_fs_extra_args,
        ExtraArgs::default(),
        "virtiofsd's arguments are not nydusd's"
    );
    let debug = with(", virtio_fs_extra_args = ['--log-level', 'debug']");
    let hypervisor = place.load_with(&debug).unwrap().configuration.hypervisor;
    assert_eq!(hypervisor.virtio_fs_extra_args.iter().collect::<Vec<_>>(), ["--log-level", "debug"]);
    for argument in ["--sock=/x", "--apisock", "-A", "--shared-dir=/", "--bootstrap", "--supervisor"] {
        let daemon = "nydusd";
        let text = with(&format!(", virtio_fs_extra_args = ['{argument}']"));
        refused(&place, &[(&text, args, &format!("\"{argument}\" is not for the {daemon} of a sandbox"))]);
    }
    let swapped = "hypervisor.qemu = {shared_fs = 'virtio-fs', virtio_fs_daemon = '@DIR@/nydusd'}";
    refused(&place, &[(swapped, daemon, "needs the path of virtiofsd")]);
    let swapped = "hypervisor.qemu = {shared_fs = 'virtio-fs-nydus', virtio_fs_daemon = '@DIR@/virtiofsd'}";
    refused(&place, &[(swapped, daemon, "needs the path of nydusd")]);
    let absent = "hypervisor.qemu = {shared_fs = 'virtio-fs-nydus', virtio_fs_daemon = '/no/nydusd'}";
    refused(&place, &[(absent, daemon, "/no/nydusd")]);
}

#[test]
fn sizes_that_qemu_or_the_guest_would_refuse_are_refused_first() {
    refused(
        &Place::new(),
        &[
            (
                "hypervisor.qemu.virtio_fs_queue_size = 1000",
                "hypervisor.qemu.virtio_fs_queue_size",
                "1000 is not a power of two",
            ),
            (
                "hypervisor.qemu.virtio_fs_queue_size = 2048",
                "hypervisor.qemu.virtio_fs_queue_size",
                "from 0 to 1024",
            ),
            ("hypervisor.qemu.msize_9p = 4095", "hypervisor.qemu.msize_9p", "set at least 4096"),
        ],
    );
}

#[test]
fn kernel_modules_are_a_name_and_parameters() {
    let place = Place::new();
    let loaded = place.load_with("agent.kata.kernel_modules = ['e1000e EEE=1 debug=2', ' i915']").unwrap();
    let module = |name: &str, parameters: &[&str]| KernelModule {
        name: name.to_owned(),
        parameters: parameters.iter().map(|parameter| (*parameter).to_owned()).collect(),
    };
    assert_eq!(
        loaded.configuration.agent.kernel_modules,
        [module("e1000e", &["EEE=1", "debug=2"]), module("i915", &[])]
    );
    let key = "agent.kata.kernel_modules";
    refused(
        &place,
        &[
            ("agent.kata.kernel_modules = ['ok', ' ']", key, "\" \" names no module"),
            ("agent.kata.kernel_modules = ['--all']", key, "\"--all\" names no module"),
        ],
    );
}

#[test]
fn a_timeout_of_0_means_the_default() {
    let loaded = Place::new()
        .load_with("agent.kata.dial_timeout = 0\nruntime.create_container_timeout = 0\n")
        .unwrap();
    assert_eq!(loaded.configuration.agent.dial_timeout.as_secs(), 45);
    assert_eq!(loaded.configuration.runtime.create_container_timeout.as_secs(), 60);
}

#[test]
fn all_problems_are_reported_at_once() {
    let place = Place::new();
    fs::remove_file(place.path("kernel")).unwrap();
    place.file("config.d/20", "[agent.kata]\nkernel_modules = ['-x']\n");
    let error = place
        .load_with("[hypervisor.qemu]\nmachine_type = 'pc'\ndefault_memory = 1\nfoo = 1\nimage = 1\n[runtime]\nbar = 1\n")
        .unwrap_err();
    let text = error.to_string();
    let LoadError::Invalid { problems } = error else { panic!("{text}") };
    for key in ["kernel", "machine_type", "default_memory", "foo", "image"] {
        assert!(
            problems.iter().any(|found| found.concerns(&format!("hypervisor.qemu.{key}"))),
            "{key}: {text}"
        );
    }
    assert!(text.contains("runtime.bar: ") && text.contains("agent.kata.kernel_modules: "), "{text}");
    assert_eq!(problems.len(), 7, "{text}");
    assert!(text.starts_with("7 problems in the configuration:\n"), "{text}");
    assert_eq!(texts(&problems).len(), text.lines().count() - 1);
}

#[test]
fn e5_what_every_guest_sees_is_there_and_has_a_name_of_its_own() {
    let place = Place::new();
    let key = "runtime.sandbox_bind_mounts";
    let loaded = place.load_with(&format!("{key} = ['/usr', '@DIR@/kernel:rw', '/etc:ro']")).unwrap();
    let mounts = loaded.configuration.runtime.bind_mounts;
    let found: Vec<_> = mounts.iter().map(|mount| (mount.name.as_str(), mount.read_only)).collect();
    assert_eq!(found, [("usr", true), ("kernel", false), ("etc", true)]);
    for (paths, what) in [
        ("['usr']", "not an absolute path"),
        ("['/']", "no name at its end"),
        ("['/no:rw']", "/no: no such file"),
        ("['/dev/null']", "neither a file nor a directory"),
        ("['/usr', '/usr:rw']", "another one is called"),
    ] {
        refused(&place, &[(&format!("{key} = {paths}"), key, what)]);
    }
}
