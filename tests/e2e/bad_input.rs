//! What is wrong in the configuration, the bundle or the request, and the words in which the user is told.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::bundle::{Bundle, spec};
use tests::command::run;
use tests::operator::{Configuration, write_text};
use tests::shim::Shim;
use tests::{Case, Result, check, check_eq};

use crate::listed;

listed! {
    all: [
        a_bundle_without_configuration_is_refused,
        a_spec_without_a_process_is_refused,
        a_command_that_is_not_in_the_image_is_reported_by_name,
    ],
    ours: [
        a_file_that_is_not_there_is_named_with_its_key,
        a_program_that_cannot_be_executed_is_named_with_its_key,
        a_choice_that_does_not_exist_is_named_with_its_key,
        a_broken_configuration_file_is_named_with_the_line,
        a_missing_configuration_file_is_named,
        an_id_that_leaves_its_directory_is_refused,
        host_networking_is_refused,
        a_user_namespace_is_refused,
    ]
}

const QEMU: &str = "hypervisor.qemu.";

/// Tries to run a container under the shipped configuration after `edit`; all of `words` must be in what ctr prints.
fn refused(case: &Case<'_>, edit: impl FnOnce(&mut Configuration), words: &[&str]) -> Result<()> {
    let file = case.configuration(edit)?;
    let output = case.container("bad").configured(&file).run(["true"])?;
    says(&output, words)?;
    case.suspects().expect_nothing()
}

/// The same with `key` of the hypervisor's table set to `value`.
fn refused_value(case: &Case<'_>, key: &str, value: impl Into<toml::Value>, words: &[&str]) -> Result<()> {
    let edit = |file: &mut Configuration| {
        file.set(&format!("{QEMU}{key}"), value);
    };
    refused(case, edit, words)
}

fn says(output: &tests::command::Output, words: &[&str]) -> Result<()> {
    let said = output.err();
    check!(output.status != 0, "it succeeded where an error with {words:?} was wanted");
    for word in words {
        check!(said.contains(word), "`{word}` is not in: {said}");
    }
    check!(!said.contains("panicked"), "the shim panicked: {said}");
    Ok(())
}

fn a_file_that_is_not_there_is_named_with_its_key(case: &Case<'_>) -> Result<()> {
    for key in ["kernel", "initrd", "path"] {
        let missing = format!("/no/such/{key}");
        refused_value(case, key, missing.as_str(), &[key, &missing])?;
    }
    let virtiofsd = |file: &mut Configuration| {
        file.set(&format!("{QEMU}shared_fs"), "virtio-fs")
            .set(&format!("{QEMU}virtio_fs_cache"), "always")
            .set(&format!("{QEMU}virtio_fs_daemon"), "/no/such/virtiofsd");
    };
    refused(case, virtiofsd, &["virtio_fs_daemon", "/no/such/virtiofsd"])
}

fn a_program_that_cannot_be_executed_is_named_with_its_key(case: &Case<'_>) -> Result<()> {
    let file = case.dir().join("not-executable");
    File::create(&file)?;
    let file = file.to_string_lossy().into_owned();
    refused_value(case, "path", file.as_str(), &["path", &file])?;
    let virtiofsd = |shipped: &mut Configuration| {
        shipped
            .set(&format!("{QEMU}shared_fs"), "virtio-fs")
            .set(&format!("{QEMU}virtio_fs_daemon"), file.clone());
    };
    refused(case, virtiofsd, &["virtio_fs_daemon", &file])
}

fn a_choice_that_does_not_exist_is_named_with_its_key(case: &Case<'_>) -> Result<()> {
    let set = |key: &str| format!("{QEMU}{key}");
    refused_value(case, "machine_type", "pc-of-1981", &["machine_type", "pc-of-1981"])?;
    refused_value(case, "default_memory", 1, &["default_memory"])?;
    refused_value(case, "default_memory", "much", &["default_memory"])?;
    refused_value(case, "no_such_key", true, &["no_such_key"])?;
    let both = |file: &mut Configuration| {
        let kernel = file.text(&set("kernel")).unwrap_or_default();
        file.set(&set("image"), kernel);
    };
    refused(case, both, &["image", "initrd"])
}

fn a_broken_configuration_file_is_named_with_the_line(case: &Case<'_>) -> Result<()> {
    let file = case.dir().join("broken.toml");
    write_text(&file, "[hypervisor.qemu]\nkernel = \"/unfinished\n")?;
    let output = case.container("bad").configured(&file).run(["true"])?;
    says(&output, &[&format!("{}:2:", file.display())])
}

fn a_missing_configuration_file_is_named(case: &Case<'_>) -> Result<()> {
    let file = case.dir().join("no-such-file.toml");
    let output = case.container("bad").configured(&file).run(["true"])?;
    says(&output, &[&file.to_string_lossy()])
}

fn an_id_that_leaves_its_directory_is_refused(case: &Case<'_>) -> Result<()> {
    let socket = case.world.containerd().socket();
    let dir = case.dir().join("bundle");
    fs::create_dir(&dir)?;
    fs::write(dir.join("config.json"), spec(case.world, &case.namespace, "x", &["true"]).to_string())?;
    for id in ["../escape", "a/b", "..", ".", "", "new\nline", "\u{4e2d}", &"x".repeat(4096)] {
        let mut command = Command::new(&case.world.assets().shim);
        command.args(["-namespace", &case.namespace, "-address"]).arg(&socket).args(["-id", id, "start"]);
        let output = run(command.current_dir(&dir), Duration::from_secs(10))?;
        says(&output, &["id"])?;
        check_eq!(output.out(), "", "what it prints for an address with id {id:?}");
    }
    // containerd checks ids before the shim is asked, and its words are its own.
    let output = case.container("../escape").run(["true"])?;
    check!(output.status != 0, "ctr accepted an id with a slash");
    Ok(())
}

fn host_networking_is_refused(case: &Case<'_>) -> Result<()> {
    let output = case.container("hostnet").flags(["--net-host"]).run(["true"])?;
    says(&output, &["network", "host"])
}

fn a_user_namespace_is_refused(case: &Case<'_>) -> Result<()> {
    let mappings = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let output = case.container("mapped").flags(mappings).run(["true"])?;
    says(&output, &["user namespace", "--uidmap"])
}

fn a_bundle_without_configuration_is_refused(case: &Case<'_>) -> Result<()> {
    let said = refusal_of(case, "bare", None)?;
    check!(said.contains("config.json"), "config.json is not named: {said}");
    Ok(())
}

/// What the shim says to a bundle with `spec`: as soon as it is started, or when the container is created.
fn refusal_of(case: &Case<'_>, id: &str, spec: Option<&Value>) -> Result<String> {
    case.adopt(id);
    let bundle = Bundle::new(case.world, case.dir().join(id))?;
    if let Some(spec) = spec {
        bundle.write(spec)?;
    }
    match Shim::start(case, id, bundle) {
        Ok(shim) => Ok(shim.create(None).err().map(|refusal| refusal.message).unwrap_or_default()),
        Err(failure) => Ok(failure.to_string()),
    }
}

fn a_spec_without_a_process_is_refused(case: &Case<'_>) -> Result<()> {
    let mut spec = spec(case.world, &case.namespace, "unborn", &["true"]);
    spec["process"] = json!(null);
    let said = refusal_of(case, "unborn", Some(&spec))?;
    check!(said.to_lowercase().contains("process"), "the missing process is not named: {said}");
    Ok(())
}

fn a_command_that_is_not_in_the_image_is_reported_by_name(case: &Case<'_>) -> Result<()> {
    let output = case.container("missing").run(["no-such-command"])?;
    says(&output, &["exec: \"no-such-command\": executable file not found in $PATH"])
}
