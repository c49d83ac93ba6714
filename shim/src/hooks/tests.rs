//! Real programs as hooks.

use std::{fs, path::Path};

use oci_spec::runtime::{HookBuilder, HooksBuilder, SpecBuilder};

use super::*;

fn sh(script: &str) -> Hook {
    let args = ["sh", "-c", script].map(str::to_owned);
    HookBuilder::default().path("/bin/sh").args(args).env(["ONE=1".to_owned()]).build().unwrap()
}

fn created(hooks: impl IntoIterator<Item = Hook>) -> Hooks {
    HooksBuilder::default().create_runtime(hooks.into_iter().collect::<Vec<_>>()).build().unwrap()
}

fn with(hooks: Hooks, bundle: &Path) -> Option<Arc<ContainerHooks>> {
    let spec = SpecBuilder::default().hooks(hooks).annotations([("a".to_owned(), "b".to_owned())]);
    let log = Logger::root(Discard, o!());
    ContainerHooks::of(&spec.build().unwrap(), "one", bundle, &log)
}

/// Waits until `is_so`, as long as a test may take.
#[track_caller]
fn eventually(or: &str, is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{or}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_hook_reads_the_state_and_has_its_own_environment_alone() {
    let bundle = tempfile::tempdir().unwrap();
    let hooks = created([sh("cat > state; echo $ONE $HOME > environment; echo $0 > name")]);
    with(hooks, bundle.path()).unwrap().create().unwrap();
    let read = |name| fs::read_to_string(bundle.path().join(name)).unwrap();
    let state: serde_json::Value = serde_json::from_str(&read("state")).unwrap();
    assert_eq!((&state["id"], &state["status"]), (&"one".into(), &"creating".into()));
    assert_eq!(state["pid"], nix::unistd::gettid().as_raw(), "a thread in the namespace");
    assert_eq!((&state["bundle"], &state["annotations"]["a"]), (&bundle.path().to_str().into(), &"b".into()));
    assert!(state["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")), "{state}");
    assert_eq!(read("environment"), "1\n");
    assert_eq!(read("name"), "sh\n");
}

#[test]
fn hooks_run_one_after_the_other_until_one_does_not_end_well() {
    let bundle = tempfile::tempdir().unwrap();
    let hooks = [sh("echo 1 >> order"), sh("echo 2 >> order; echo why >&2; exit 3"), sh("echo 3 >> order")];
    let error = with(created(hooks.clone()), bundle.path()).unwrap().create().unwrap_err().to_string();
    assert!(error.contains("hook /bin/sh: exit status: 3; it said: why"), "{error}");
    assert_eq!(fs::read_to_string(bundle.path().join("order")).unwrap(), "1\n2\n");
    // What frees something is not kept from that by another.
    let stopped = HooksBuilder::default().poststop(hooks.to_vec()).build().unwrap();
    let hooks = with(stopped, bundle.path()).unwrap();
    assert!(!hooks.at_creation());
    hooks.stop().expect("nothing has been begun");
    hooks.create().unwrap();
    hooks.stop().unwrap_err();
    hooks.stop().expect("they run once");
    assert_eq!(fs::read_to_string(bundle.path().join("order")).unwrap(), "1\n2\n1\n2\n3\n");
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_what_it_started() {
    let bundle = tempfile::tempdir().unwrap();
    let mut slow = sh("sleep 1000 & echo $! > child; wait");
    slow.set_timeout(Some(1));
    let error = with(created([slow]), bundle.path()).unwrap().create().unwrap_err();
    assert!(
        matches!(&error, crate::error::Error::DeadlineExceeded(what) if what.contains("after 1s")),
        "{error}"
    );
    let child = fs::read_to_string(bundle.path().join("child")).unwrap();
    // The signal is sent; who gets it needs a processor once more to die.
    eventually("what the hook started is still there", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}

#[test]
fn what_is_no_program_is_named() {
    let bundle = tempfile::tempdir().unwrap();
    for (path, what) in [("/no", "hook /no: No such file"), ("sh", "hook sh: not an absolute path")] {
        let hook = HookBuilder::default().path(path).build().unwrap();
        let error = with(created([hook]), bundle.path()).unwrap().create().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn hooks_of_the_containers_own_namespaces_are_none_of_the_hosts() {
    let bundle = tempfile::tempdir().unwrap();
    let inside = HooksBuilder::default().create_container([sh("true")]).start_container([sh("true")]);
    assert!(with(inside.build().unwrap(), bundle.path()).is_none());
    assert!(with(Hooks::default(), bundle.path()).is_none());
}

#[test]
fn what_a_creation_took_is_freed_when_it_comes_to_nothing_also_by_whoever_comes_later() {
    let bundle = tempfile::tempdir().unwrap();
    let freed = bundle.path().join("freed");
    let hooks = HooksBuilder::default()
        .create_runtime([sh("exit 1")])
        .poststop([sh("cat > freed.part; mv freed.part freed")])
        .build()
        .unwrap();
    let hooks_of = || with(hooks.clone(), bundle.path()).unwrap();
    hooks_of().create().unwrap_err();
    eventually("nothing is freed", || freed.exists() && !bundle.path().join(DUE).exists());
    let state: serde_json::Value = serde_json::from_slice(&fs::read(&freed).unwrap()).unwrap();
    assert_eq!((&state["status"], state.get("pid")), (&"stopped".into(), None));

    fs::remove_file(&freed).unwrap();
    let spec = SpecBuilder::default().hooks(hooks.clone()).build().unwrap();
    run_left(&spec, "one", bundle.path()).unwrap();
    assert!(!freed.exists(), "nothing was due");
    let killed = hooks_of();
    killed.create().unwrap_err();
    std::mem::forget(killed);
    run_left(&spec, "one", bundle.path()).unwrap();
    assert!(freed.exists() && !bundle.path().join(DUE).exists());
}
