//! A configuration must reach the guest as containerd wrote it, and the guest must refuse what no
//! configuration could say.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use agent_protocol::{
    convert::{
        not_carried, process_from_wire, process_to_wire, resources_from_wire, resources_to_wire,
        spec_from_wire, spec_to_wire, unknown_capabilities,
    },
    oci,
};
use oci_spec::runtime::{LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder, Spec};
use protobuf::{Message, MessageField};
use serde_json::Value;

fn rich() -> Spec {
    serde_json::from_str(include_str!("rich-spec.json")).unwrap()
}

fn rich_wire() -> oci::Spec {
    spec_to_wire(&rich())
}

/// Through the bytes, so that what the message cannot hold is seen to be missing.
fn through_the_wire(spec: &Spec) -> Spec {
    let bytes = spec_to_wire(spec).write_to_bytes().unwrap();
    spec_from_wire(&oci::Spec::parse_from_bytes(&bytes).unwrap()).unwrap()
}

#[test]
fn every_field_the_wire_has_arrives_as_it_was_sent() {
    let sent = rich();
    assert_eq!(not_carried(&sent), Vec::<&str>::new());
    assert_eq!(through_the_wire(&sent), sent);
}

#[test]
fn every_field_the_wire_has_is_used() {
    let wire = format!("{:#?}", rich_wire());
    // An empty list, an absent message or an empty text in the rich configuration's message means that a
    // field was forgotten. What is meant to be empty there is named here.
    let empty: Vec<&str> = wire
        .lines()
        .map(str::trim)
        .filter(|line| line.ends_with(": [],") || line.ends_with("(None),"))
        .collect();
    let expected = |line: &&str| {
        [
            "options: [],",
            "args: [],",
            "env: [],",
            "solaris: MessageField(None),",
            "windows: MessageField(None),",
        ]
        .contains(line)
    };
    assert!(empty.iter().all(expected), "{empty:?}");
}

#[test]
fn the_default_configuration_of_ctr_arrives_whole() {
    let mut json: Value = serde_json::from_str(include_str!("ctr-oci-spec.json")).unwrap();
    let sent: Spec = serde_json::from_value(json.clone()).unwrap();
    // ctr leaves the score unset, and the guest always sets one.
    json["process"]["oomScoreAdj"] = 0.into();
    let expected: Spec = serde_json::from_value(json).unwrap();
    assert_eq!(through_the_wire(&sent), expected);
}

#[test]
fn names_travel_as_the_configuration_spells_them() {
    let wire = rich_wire();
    let process = wire.process.as_ref().unwrap();
    assert_eq!(
        process.capabilities.bounding,
        ["CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_NET_BIND_SERVICE"]
    );
    assert_eq!(process.rlimits[0].type_, "RLIMIT_NOFILE");
    let linux = wire.linux.as_ref().unwrap();
    let namespaces: Vec<&str> = linux.namespaces.iter().map(|namespace| namespace.type_.as_str()).collect();
    assert_eq!(namespaces, ["mount", "network", "pid", "ipc", "uts", "user", "cgroup", "time"]);
    assert_eq!(linux.seccomp.default_action, "SCMP_ACT_ERRNO");
    assert_eq!(linux.seccomp.architectures[1], "SCMP_ARCH_MIPS64N32");
    assert_eq!(linux.seccomp.syscalls[3].args[0].op, "SCMP_CMP_MASKED_EQ");
}

#[test]
fn a_device_rule_for_any_number_is_said_in_the_agents_terms() {
    let wire = rich_wire();
    let rules: Vec<_> = wire.linux.resources.devices.iter().map(|r| (&*r.type_, r.major, r.minor)).collect();
    assert_eq!(rules, [("", 0, 0), ("a", 0, 0), ("c", 1, 3), ("c", 136, -1), ("b", -1, -1), ("b", 0, 0)]);
}

#[test]
fn a_zero_limit_is_no_limit_set_and_minus_one_is_unlimited() {
    let memory = LinuxMemoryBuilder::default().limit(0).swap(-1).swappiness(0_u64).build().unwrap();
    let sent = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
    let received = resources_from_wire(&resources_to_wire(&sent)).unwrap().memory().unwrap();
    assert_eq!((received.limit(), received.swap(), received.swappiness()), (None, Some(-1), None));
}

#[test]
fn empty_and_absent_messages_stay_apart() {
    let sent = LinuxResources::default();
    assert_eq!(resources_from_wire(&resources_to_wire(&sent)).unwrap(), sent);
    let empty = oci::LinuxResources {
        memory: MessageField::some(oci::LinuxMemory::default()),
        pids: MessageField::some(oci::LinuxPids::default()),
        ..Default::default()
    };
    assert_eq!(resources_to_wire(&resources_from_wire(&empty).unwrap()), empty);
}

#[test]
fn nothing_of_oci_specs_own_defaults_leaks_into_an_empty_message() {
    let spec = spec_from_wire(&oci::Spec::default()).unwrap();
    assert_eq!(serde_json::to_value(&spec).unwrap(), serde_json::json!({ "ociVersion": "" }));
    let wire = oci::Spec {
        linux: MessageField::some(oci::Linux::default()),
        process: MessageField::some(oci::Process { cwd: "/".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let spec = serde_json::to_value(spec_from_wire(&wire).unwrap()).unwrap();
    assert_eq!(spec["linux"], serde_json::json!({}));
    assert_eq!(
        spec["process"],
        serde_json::json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/", "oomScoreAdj": 0 })
    );
}

#[test]
fn an_absurd_console_is_cut_to_what_a_terminal_can_have() {
    let mut spec = rich();
    let huge = serde_json::json!({ "height": 1_u64 << 40, "width": 80 });
    let process = spec.process_mut().as_mut().unwrap();
    process.set_console_size(Some(serde_json::from_value(huge).unwrap()));
    let wire = process_to_wire(process);
    assert_eq!((wire.console_size.height, wire.console_size.width), (65535, 80));
    process_from_wire(&wire).unwrap();
}

#[test]
fn what_the_wire_has_no_field_for_is_named() {
    let mut json: Value = serde_json::from_str(include_str!("rich-spec.json")).unwrap();
    json["domainname"] = "example.org".into();
    json["process"]["user"]["umask"] = 18.into();
    json["linux"]["resources"]["rdma"] = serde_json::json!({});
    json["linux"]["resources"]["cpu"]["burst"] = 1000.into();
    json["linux"]["seccomp"]["defaultErrnoRet"] = 38.into();
    let spec: Spec = serde_json::from_value(json).unwrap();
    assert_eq!(
        not_carried(&spec),
        [
            "domainname",
            "process.user.umask",
            "linux.seccomp.defaultErrnoRet",
            "linux.resources.rdma",
            "linux.resources.cpu.burst",
        ]
    );
}

#[test]
fn a_process_does_without_capabilities_that_nobody_knows() {
    let mut wire = rich_wire();
    let process = process(&mut wire);
    let known = process_from_wire(process).unwrap();
    assert!(unknown_capabilities(process).is_empty());
    let sets = process.capabilities.as_mut().unwrap();
    sets.bounding.extend(["CAP_FUTURE".to_owned(), "CHOWN".to_owned(), "CAP_FUTURE\0".to_owned()]);
    sets.ambient.push("CAP_FUTURE".to_owned());
    assert_eq!(process_from_wire(process).unwrap(), known);
    assert_eq!(unknown_capabilities(process), ["CAP_FUTURE", "CAP_FUTURE\0", "CHOWN"]);
    process.capabilities.as_mut().unwrap().bounding = vec!["CAP_FUTURE".to_owned()];
    let none = process_from_wire(process).unwrap();
    assert_eq!(none.capabilities().as_ref().unwrap().bounding(), &None);
}

type Damage = fn(&mut oci::Spec);

/// What a hostile or broken host could send, and the field the refusal must name.
const REFUSED: &[(&str, Damage)] = &[
    ("hostname", |spec| spec.hostname = "a\0b".to_owned()),
    ("root.path", |spec| process_root(spec).path.clear()),
    ("process.args[1]", |spec| process(spec).args[1] = "a\0b".to_owned()),
    ("process.env[0]", |spec| process(spec).env[0] = "A=\0".to_owned()),
    ("process.cwd", |spec| process(spec).cwd.clear()),
    ("process.cwd", |spec| process(spec).cwd = "srv".to_owned()),
    ("process.oom_score_adj", |spec| process(spec).oom_score_adj = 1001),
    ("process.oom_score_adj", |spec| process(spec).oom_score_adj = i64::MIN),
    ("process.console_size.height", |spec| console(spec).height = 65536),
    ("process.console_size.width", |spec| console(spec).width = u32::MAX),
    ("process.user.username", |spec| user(spec).username = "\0".to_owned()),
    ("process.rlimits[1].type", |spec| process(spec).rlimits[1].type_ = "NOFILE".to_owned()),
    ("mounts[2].destination", |spec| spec.mounts[2].destination.clear()),
    ("mounts[0].options[1]", |spec| spec.mounts[0].options[1] = "a\0".to_owned()),
    ("hooks.create_runtime[0].timeout", |spec| hooks(spec).create_runtime[0].timeout = -1),
    ("hooks.poststop[0].path", |spec| hooks(spec).poststop[0].path.clear()),
    ("annotations", |spec| drop(spec.annotations.insert("a\0".to_owned(), String::new()))),
    ("linux.sysctl", |spec| drop(linux(spec).sysctl.insert("a".to_owned(), "\0".to_owned()))),
    ("linux.namespaces[0].type", |spec| linux(spec).namespaces[0].type_ = "CLONE_NEWNS".to_owned()),
    ("linux.devices[0].type", |spec| linux(spec).devices[0].type_ = "a".to_owned()),
    ("linux.devices[1].type", |spec| linux(spec).devices[1].type_.clear()),
    ("linux.devices[0].path", |spec| linux(spec).devices[0].path = "dev/fuse".to_owned()),
    ("linux.intel_rdt.l3_cache_schema", |spec| {
        linux(spec).intel_rdt.as_mut().unwrap().l3_cache_schema = "\0".to_owned();
    }),
    ("linux.seccomp.default_action", |spec| seccomp(spec).default_action.clear()),
    ("linux.seccomp.architectures[0]", |spec| seccomp(spec).architectures[0] = "x86_64".to_owned()),
    ("linux.seccomp.flags[1]", |spec| seccomp(spec).flags[1] = "LOG".to_owned()),
    ("linux.seccomp.syscalls[0].names", |spec| seccomp(spec).syscalls[0].names.clear()),
    ("linux.seccomp.syscalls[1].action", |spec| seccomp(spec).syscalls[1].action = "ALLOW".to_owned()),
    ("linux.seccomp.syscalls[3].args[1].index", |spec| seccomp(spec).syscalls[3].args[1].index = 6),
    ("linux.seccomp.syscalls[3].args[0].op", |spec| seccomp(spec).syscalls[3].args[0].op = "==".to_owned()),
    ("linux.resources.devices[2].type", |spec| resources(spec).devices[2].type_ = "p".to_owned()),
    ("linux.resources.devices[2].access", |spec| resources(spec).devices[2].access = "rwx".to_owned()),
    ("linux.resources.unified", |spec| {
        drop(resources(spec).unified.insert("memory.high".to_owned(), "\0".to_owned()));
    }),
    ("linux.resources.cpu.cpus", |spec| resources(spec).cpu.as_mut().unwrap().cpus = "0\0".to_owned()),
    ("linux.resources.block_io.weight", |spec| block_io(spec).weight = 65536),
    ("linux.resources.block_io.weight_device[0].leaf_weight", |spec| {
        block_io(spec).weight_device[0].leaf_weight = 65536;
    }),
    ("linux.resources.hugepage_limits[0].limit", |spec| resources(spec).hugepage_limits[0].limit = u64::MAX),
    ("linux.resources.network.priorities[0].name", |spec| {
        resources(spec).network.as_mut().unwrap().priorities[0].name = "\0".to_owned();
    }),
];

#[test]
fn a_value_no_configuration_could_hold_is_refused_by_its_name() {
    for (field, damage) in REFUSED {
        let mut wire = rich_wire();
        damage(&mut wire);
        let error = spec_from_wire(&wire).expect_err(field);
        assert_eq!(error.field(), *field);
        assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
    }
}

#[test]
fn a_refusal_shows_a_long_or_binary_value_short_and_escaped() {
    let mut wire = rich_wire();
    process(&mut wire).cwd = format!("\u{1b}[31m{}", "x".repeat(1 << 20));
    let text = spec_from_wire(&wire).unwrap_err().to_string();
    assert!(text.len() < 200, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text}");
}

fn process(spec: &mut oci::Spec) -> &mut oci::Process {
    spec.process.as_mut().unwrap()
}

fn process_root(spec: &mut oci::Spec) -> &mut oci::Root {
    spec.root.as_mut().unwrap()
}

fn console(spec: &mut oci::Spec) -> &mut oci::Box {
    process(spec).console_size.as_mut().unwrap()
}

fn user(spec: &mut oci::Spec) -> &mut oci::User {
    process(spec).user.as_mut().unwrap()
}

fn hooks(spec: &mut oci::Spec) -> &mut oci::Hooks {
    spec.hooks.as_mut().unwrap()
}

fn linux(spec: &mut oci::Spec) -> &mut oci::Linux {
    spec.linux.as_mut().unwrap()
}

fn seccomp(spec: &mut oci::Spec) -> &mut oci::LinuxSeccomp {
    linux(spec).seccomp.as_mut().unwrap()
}

fn resources(spec: &mut oci::Spec) -> &mut oci::LinuxResources {
    linux(spec).resources.as_mut().unwrap()
}

fn block_io(spec: &mut oci::Spec) -> &mut oci::LinuxBlockIO {
    resources(spec).block_io.as_mut().unwrap()
}
