//! Sandboxes that share no directory with their guests.

use std::{fs, os::unix::fs::symlink, path::Path};

use containerd_shim_protos::{api::CreateTaskRequest, ttrpc::Code, types::mount::Mount};
use serde_json::{Value, json};

use crate::fakes::{Shim, code, on_fakes, settled, words};

/// As a snapshotter of block devices has it.
fn on_a_disk(shim: &Shim, mut request: CreateTaskRequest) -> CreateTaskRequest {
    let image = shim.dir.path().join("image");
    fs::write(&image, "").unwrap();
    let source = image.to_str().unwrap().to_owned();
    request.rootfs = vec![Mount { type_: "ext4".into(), source, ..Default::default() }];
    request
}

/// A request to create `id` on a disk, with these mounts.
fn with(shim: &Shim, id: &str, mounts: &[(&Path, &[&str])]) -> CreateTaskRequest {
    let request = on_a_disk(shim, shim.request(id));
    let config = shim.dir.path().join(id).join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let mounts = mounts.iter().enumerate().map(|(at, (source, options))| {
        json!({"destination": format!("/v{at}"), "type": "bind", "source": source, "options": options})
    });
    spec["mounts"] = mounts.collect();
    fs::write(config, spec.to_string()).unwrap();
    request
}

#[test]
fn d11_a_root_file_system_that_is_on_no_disk_is_refused_with_what_would_be_right() {
    on_fakes(async |shim| {
        shim.shares_nothing();
        let answer = words(shim.create("c1").await);
        for word in ["shared_fs", "devmapper", "blockfile", "ext4"] {
            assert!(answer.contains(word), "{answer}");
        }
        settled().await;
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn d12_files_are_copied_and_nothing_is_mounted_for_the_guest() {
    on_fakes(async |shim| {
        shim.shares_nothing();
        let hosts = shim.dir.path().join("hosts");
        fs::write(&hosts, vec![b'x'; (1 << 20) + 1]).unwrap();
        let request = with(shim, "c1", &[(&hosts, &["rw"])]);
        shim.create_as(request).await.unwrap();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains("/run/kata/"), "{mounts}");
        shim.guest.is_asked("CopyFile /run/kata-containers/shared/containers/copy-").await;
        assert_eq!(
            shim.guest.asked(&["CopyFile", "CreateContainer"]),
            ["CopyFile", "CopyFile", "CreateContainer"]
        );
        assert_eq!(shim.delete("c1").await.unwrap(), 137);
        assert_eq!(shim.published(3).await, ["create c1", "exit c1 137", "delete c1 137"]);
    });
}

#[test]
fn d13_a_volume_that_kubelet_updates_is_copied_anew() {
    on_fakes(async |shim| {
        shim.shares_nothing();
        let volume = shim.dir.path().join("kubernetes.io~secret/token");
        fs::create_dir_all(volume.join("..1")).unwrap();
        symlink("..1", volume.join("..data")).unwrap();
        shim.create_as(with(shim, "c1", &[(&volume, &["ro"])])).await.unwrap();
        fs::create_dir(volume.join("..2")).unwrap();
        fs::write(volume.join("..2/key"), "new").unwrap();
        symlink("..2", volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        let copy = shim.guest.is_asked_about("CopyFile", "/..2/key").await;
        let place = copy.strip_suffix("/..2/key").unwrap();
        shim.guest.is_asked(&format!("{place}/..data")).await;
        shim.delete("c1").await.unwrap();
        assert_eq!(shim.published(3).await, ["create c1", "exit c1 137", "delete c1 137"]);
    });
}

#[test]
fn d12_a_directory_that_a_container_writes_to_is_refused_by_its_source() {
    on_fakes(async |shim| {
        shim.shares_nothing();
        let data = shim.dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let answer = shim.create_as(with(shim, "c1", &[(&data, &["rw"])])).await;
        let (code, words) = (code(answer.clone()), words(answer));
        assert!(
            code == Code::INVALID_ARGUMENT && words.contains("/data: ") && words.contains("shared_fs"),
            "{words}"
        );
        settled().await;
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_guest_that_takes_no_copy_fails_the_create_in_its_own_words() {
    on_fakes(async |shim| {
        shim.shares_nothing();
        let hosts = shim.dir.path().join("hosts");
        fs::write(&hosts, "x").unwrap();
        shim.guest.refuses("CopyFile", Code::INTERNAL, "No space left on device");
        let answer = words(shim.create_as(with(shim, "c1", &[(&hosts, &["ro"])])).await);
        assert!(answer.contains("/hosts to the guest: No space left on device"), "{answer}");
        settled().await;
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn machines_without_a_share_start_as_copies_and_wait_as_others_do() {
    on_fakes(async |shim| {
        shim.shares_nothing();
        let templates = shim.dir.path().join("templates");
        shim.configure(&format!("[factory]\nenable_template = true\ntemplate_path = {templates:?}"));
        let ready = shim.ready().await;
        assert_eq!(shim.machine.origins(), ["template", "copy"]);
        ready.end().await;
        shim.create_as(on_a_disk(shim, shim.request("c1"))).await.unwrap();
        assert_eq!(shim.machine.origins(), ["template", "copy", "copy"]);
        shim.delete("c1").await.unwrap();
        assert_eq!(shim.published(3).await, ["create c1", "exit c1 137", "delete c1 137"]);
    });
}
