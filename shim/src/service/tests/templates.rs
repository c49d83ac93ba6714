//! Sandboxes that start as copies of a template.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use containerd_shim_protos::ttrpc::Code;
use nix::fcntl::{Flock, FlockArg};

use crate::fakes::{Boot, Shim, on_fakes};

const DIFFERENCE: [&str; 3] = ["ReseedRandomDev", "SetGuestDateTime", "CreateSandbox"];

/// Has the shim start sandboxes from templates in a directory of its own.
fn with_templates(shim: &Shim) -> PathBuf {
    let directory = shim.dir.path().join("templates");
    shim.configure(&format!(
        "[factory]\nenable_template = true\ntemplate_path = \"{}\"",
        directory.display()
    ));
    directory
}

/// What is in the directory but for the lock.
fn templates(directory: &PathBuf) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap() != "lock").collect()
}

#[test]
fn b23_the_first_sandbox_makes_the_template_and_is_a_copy_of_it_with_numbers_and_a_clock_of_its_own() {
    on_fakes(async |shim| {
        let directory = with_templates(shim);
        shim.runs("c1").await;
        assert_eq!(shim.machine.origins(), ["template", "copy"]);
        assert_eq!(shim.machine.machines_on(), 1);
        let calls = shim.guest.asked(&DIFFERENCE);
        // The first one is the template's.
        assert_eq!(calls, ["CreateSandbox", "ReseedRandomDev", "SetGuestDateTime", "CreateSandbox"]);
        // The last one is the container's.
        let life = ["CopyFile", "WaitProcess", "RemoveContainer", "DestroySandbox", "WaitProcess"];
        assert_eq!(shim.guest.asked(&life), life);
        let [template] = &*templates(&directory) else { panic!("{:?}", templates(&directory)) };
        assert_eq!(fs::read(template.join("state")).unwrap(), b"state");
    });
}

#[test]
fn b23_a_template_that_is_there_is_used() {
    on_fakes(async |shim| {
        with_templates(shim);
        shim.runs("c1").await;
        shim.service.stop().await;
        assert_eq!(shim.published(1).await, ["exit c1 137"]);
        let origins = shim.again("c2").await;
        assert_eq!(origins, ["template", "copy", "copy"]);
    });
}

#[test]
fn b23_copies_that_do_not_come_up_boot_by_themselves_and_with_the_second_the_template_is_gone() {
    on_fakes(async |shim| {
        let directory = with_templates(shim);
        shim.machine.boots(Boot::CopiesDie);
        shim.runs("c1").await;
        assert_eq!(shim.machine.origins(), ["template", "copy", "boot"]);
        assert_eq!(templates(&directory).len(), 1);
        shim.service.stop().await;
        assert_eq!(shim.published(1).await, ["exit c1 137"]);
        let origins = shim.again("c2").await;
        assert_eq!(origins, ["template", "copy", "boot", "copy", "boot"]);
        assert_eq!(templates(&directory), Vec::<PathBuf>::new());
    });
}

#[test]
fn b23_a_template_that_cannot_be_made_leaves_nothing_and_the_sandbox_boots() {
    on_fakes(async |shim| {
        let directory = with_templates(shim);
        shim.machine.boots(Boot::TemplatesDie);
        shim.runs("c1").await;
        assert_eq!(shim.machine.origins(), ["template", "boot"]);
        assert_eq!(templates(&directory), Vec::<PathBuf>::new());
    });
}

#[test]
fn b23_a_guest_that_cannot_be_warmed_is_a_template_nevertheless() {
    on_fakes(async |shim| {
        with_templates(shim);
        shim.guest.refuses("CopyFile", Code::UNIMPLEMENTED, "no files here");
        shim.runs("c1").await;
        assert_eq!(shim.machine.origins(), ["template", "copy"]);
    });
}

#[test]
fn b23_nobody_waits_for_a_template_that_somebody_else_makes() {
    on_fakes(async |shim| {
        let directory = with_templates(shim);
        fs::create_dir(&directory).unwrap();
        let file = File::create(directory.join("lock")).unwrap();
        let _held = Flock::lock(file, FlockArg::LockExclusive).unwrap();
        shim.runs("c1").await;
        assert_eq!(shim.machine.origins(), ["boot"]);
    });
}

#[test]
fn b23_what_a_killed_maker_left_goes_and_is_never_used() {
    on_fakes(async |shim| {
        let directory = with_templates(shim);
        let left = directory.join("making/template");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("memory"), "half").unwrap();
        shim.runs("c1").await;
        assert_eq!(shim.machine.origins(), ["template", "copy"]);
        assert_eq!(templates(&directory).len(), 1);
    });
}

#[test]
fn b23_a_template_of_files_that_changed_is_made_anew() {
    on_fakes(async |shim| {
        let directory = with_templates(shim);
        shim.runs("c1").await;
        let [old] = &*templates(&directory) else { panic!("{:?}", templates(&directory)) };
        shim.service.stop().await;
        assert_eq!(shim.published(1).await, ["exit c1 137"]);
        fs::write(shim.dir.path().join("program"), "another kernel").unwrap();
        assert_eq!(shim.again("c2").await, ["template", "copy", "template", "copy"]);
        let [new] = &*templates(&directory) else { panic!("{:?}", templates(&directory)) };
        assert_ne!(old, new);
    });
}

#[test]
fn b23_a_directory_that_others_can_write_to_is_not_trusted() {
    use std::os::unix::fs::PermissionsExt;
    on_fakes(async |shim| {
        let directory = with_templates(shim);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        shim.runs("c1").await;
        assert_eq!(shim.machine.origins(), ["boot"]);
    });
}

#[test]
fn b23_a_machine_that_cannot_be_saved_boots() {
    on_fakes(async |shim| {
        shim.configure("enable_iommu = true");
        let directory = with_templates(shim);
        shim.runs("c1").await;
        assert_eq!(shim.machine.origins(), ["boot"]);
        assert!(!directory.exists());
    });
}
