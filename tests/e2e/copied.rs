//! Machines that share no directory with the host: root file systems are disks, volumes are copies.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse};
use containerd_shim_protos::protobuf::MessageField;
use serde_json::{Value, json};
use tests::bundle::{Bundle, process, spec};
use tests::shim::{Shim, TaskClient};
use tests::{Case, Context, Result, check, check_eq, eventually, operator};

use crate::listed;
use crate::shares::{blockfile, root_image, runtime_options};

listed! {
    all: [],
    ours: [
        d5_d11_d12_d13_a_pods_root_file_systems_are_disks_and_its_volumes_copies,
        d11_a_root_file_system_on_no_disk_is_refused_where_nothing_is_shared,
        machines_without_a_share_are_copies_of_a_template,
    ]
}

/// How long an update of a volume may take to be seen.
const UPDATE: Duration = Duration::from_secs(2);
/// Bytes of a file that takes more than one call.
const LARGE: usize = (1 << 20) + 17;

/// Where nothing is shared, after further changes.
fn nothing_shared(case: &Case<'_>, edit: impl FnOnce(&mut operator::Configuration)) -> Result<PathBuf> {
    case.configuration(|file| {
        file.set("hypervisor.qemu.shared_fs", "none").set("hypervisor.qemu.disable_block_device_use", false);
        edit(file);
    })
}

/// The same request, of a container on a disk of its own.
fn on_a_disk(case: &Case<'_>, mut request: CreateTaskRequest, file: &Path) -> Result<CreateTaskRequest> {
    request.rootfs = vec![blockfile(&root_image(case, &request.id)?)];
    request.options = MessageField::some(runtime_options(file));
    Ok(request)
}

/// A pod's own container or one of others, by what CRI says of it.
pub(crate) fn of_a_pod(case: &Case<'_>, id: &str, kind: &str, args: &[&str]) -> Value {
    let mut spec = spec(case.world, &case.namespace, id, args);
    spec["annotations"] =
        json!({"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "pod"});
    spec
}

fn bind(source: &Path, destination: &str, option: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", option]})
}

/// A pod with a container that has these mounts, which waits.
fn pod(case: &Case<'_>, file: &Path, mounts: Vec<Value>) -> Result<(Shim, TaskClient)> {
    let shim = case.shim("pod", &of_a_pod(case, "pod", "sandbox", &["sleep", "1000"]))?;
    let request = on_a_disk(case, shim.create_request(None), file)?;
    shim.task.call::<CreateTaskResponse>("Create", &request).context("Create of the pod")?;
    shim.task.start("").context("Start of the pod")?;
    let mut spec = of_a_pod(case, "c", "container", &["sleep", "1000"]);
    spec["mounts"].as_array_mut().context("mounts")?.extend(mounts);
    let bundle = Bundle::new(case.world, case.dir().join("c"))?;
    bundle.write(&spec)?;
    let request = CreateTaskRequest {
        id: "c".to_owned(),
        bundle: bundle.dir.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let task = shim.task.about("c");
    let request = on_a_disk(case, request, file)?;
    task.call::<CreateTaskResponse>("Create", &request).context("Create of the container")?;
    task.start("").context("Start of the container")?;
    Ok((shim, task))
}

/// What a shell in the container prints; it has to end well.
fn sh(case: &Case<'_>, task: &TaskClient, name: &str, script: &str) -> Result<String> {
    let spec = spec(case.world, &case.namespace, "c", &[]);
    let (status, out, err) = task.exec_to_end(&case.dir(), name, &process(&spec, &["sh", "-c", script]))?;
    check_eq!((status, err.as_str()), (0, ""), "{script}: status and errors, after {out}");
    Ok(out.trim_end().to_owned())
}

fn d5_d11_d12_d13_a_pods_root_file_systems_are_disks_and_its_volumes_copies(case: &Case<'_>) -> Result<()> {
    let file = nothing_shared(case, |_| {})?;
    let volumes = ["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected"];
    let volumes = volumes.map(|plugin| case.dir().join("volumes").join(plugin).join("settings"));
    volumes.iter().try_for_each(|volume| publish(volume, "old"))?;
    let (data, hosts) = (case.dir().join("data"), case.dir().join("hosts"));
    fs::create_dir_all(data.join("sub"))?;
    fs::write(data.join("sub/large"), vec![b'x'; LARGE])?;
    chown(data.join("sub/large"), Some(7), Some(8))?;
    fs::set_permissions(data.join("sub/large"), Permissions::from_mode(0o640))?;
    symlink("sub/large", data.join("link"))?;
    symlink(&hosts, data.join("away"))?;
    fs::write(&hosts, "of the host")?;
    let scratch = case.dir().join("kubernetes.io~empty-dir/scratch");
    fs::create_dir_all(&scratch)?;
    let mut mounts =
        vec![bind(&data, "/data", "ro"), bind(&hosts, "/etc/hosts", "rw"), bind(&scratch, "/scratch", "rw")];
    mounts.extend(volumes.iter().enumerate().map(|(at, dir)| bind(dir, &format!("/volumes/{at}"), "ro")));

    let (shim, task) = pod(case, &file, mounts)?;
    let root =
        sh(case, &task, "root", "grep ' / ' /proc/mounts; grep -cE ' (9p|virtiofs) ' /proc/mounts || true")?;
    check!(root.contains(" ext4 ") && root.ends_with("\n0"), "the file systems: {root}");
    let seen = "wc -c < /data/link; stat -c '%a %u %g' /data/sub/large; readlink /data/away; cat /etc/hosts";
    let wanted = format!("{LARGE}\n640 7 8\n{}\nof the host", hosts.display());
    check_eq!(sh(case, &task, "copies", seen)?, wanted, "what is copied");
    sh(
        case,
        &task,
        "writes",
        "echo inside > /etc/hosts; echo x > /scratch/file; ! touch /data/new 2>/dev/null",
    )?;
    check_eq!(fs::read_to_string(&hosts)?, "of the host", "the host's file after a write to the copy");
    check!(fs::read_dir(&scratch)?.next().is_none(), "an emptyDir is the guest's");
    updates(case, &task, &volumes)?;

    task.kill("", 9).context("Kill")?;
    task.wait("").context("Wait")?;
    task.delete("").context("Delete")?;
    shim.task.kill("", 9).context("Kill of the pod")?;
    shim.task.wait("").context("Wait for the pod")?;
    shim.end()
}

/// Whoever looks meanwhile always finds a link to all of a volume's files.
fn updates(case: &Case<'_>, task: &TaskClient, volumes: &[PathBuf]) -> Result<()> {
    let all = "cat /volumes/*/key-* | sort | uniq -c | tr -s ' '";
    check_eq!(sh(case, task, "before", all)?.trim(), "36 old", "the first content");
    let looking = "while [ ! -e /scratch/enough ]; do [ -L /volumes/0/..data ] || exit 3; done";
    let spec = spec(case.world, &case.namespace, "c", &[]);
    task.exec("looks", &process(&spec, &["sh", "-c", looking]), None).context("Exec")?;
    task.start("looks").context("Start of an exec")?;
    for value in ["one", "two", "new"] {
        volumes.iter().try_for_each(|volume| publish(volume, value))?;
        let mut looks = 0;
        eventually(UPDATE, || {
            looks += 1;
            let name = format!("{value}-{looks}");
            check_eq!(sh(case, task, &name, all)?.trim(), format!("36 {value}"), "the content");
            Ok(())
        })?;
    }
    sh(case, task, "enough", "touch /scratch/enough")?;
    check_eq!(task.wait("looks").context("Wait for an exec")?, 0, "whether the link was always there");
    task.delete("looks").context("Delete of an exec")?;
    let left = sh(case, task, "left", "ls -A /volumes/0 | grep -v key")?;
    check_eq!(left, "..data\n..new", "directories of the volume");
    Ok(())
}

/// Twelve keys of that value, as kubelet writes them.
fn publish(volume: &Path, value: &str) -> Result<()> {
    let content = volume.join(format!("..{value}"));
    fs::create_dir_all(&content)?;
    for key in 0..12 {
        fs::write(content.join(format!("key-{key}")), format!("{value}\n"))?;
    }
    let before = fs::read_link(volume.join("..data"));
    symlink(format!("..{value}"), volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    for key in 0..12 {
        let link = volume.join(format!("key-{key}"));
        if fs::symlink_metadata(&link).is_err() {
            symlink(format!("..data/key-{key}"), link)?;
        }
    }
    before.map_or(Ok(()), |before| Ok(fs::remove_dir_all(volume.join(before))?))
}

fn d11_a_root_file_system_on_no_disk_is_refused_where_nothing_is_shared(case: &Case<'_>) -> Result<()> {
    let file = nothing_shared(case, |_| {})?;
    let refused = case.container("overlay").configured(&file).run(["true"])?;
    for word in ["\"overlay\"", "shared_fs", "devmapper", "blockfile"] {
        check!(refused.status != 0 && refused.err().contains(word), "{word}: {refused:?}");
    }
    let on_a_share = case.configuration(|file| {
        file.set("hypervisor.qemu.shared_fs", "none");
    })?;
    let refused = case.container("on-a-share").configured(&on_a_share).run(["true"])?;
    check!(refused.err().contains("hypervisor.qemu.disable_block_device_use"), "{refused:?}");
    Ok(())
}

fn machines_without_a_share_are_copies_of_a_template(case: &Case<'_>) -> Result<()> {
    let templates = case.dir().join("templates");
    let file = nothing_shared(case, |file| {
        file.set("factory.enable_template", true)
            .set("factory.template_path", operator::path(&templates))
            .set("hypervisor.qemu.default_memory", 256);
    })?;
    for (id, status) in [("first", 5), ("second", 6)] {
        let shim =
            case.shim(id, &spec(case.world, &case.namespace, id, &["sh", "-c", &format!("exit {status}")]))?;
        let request = on_a_disk(case, shim.create_request(None), &file)?;
        shim.task.call::<CreateTaskResponse>("Create", &request).context("Create")?;
        shim.task.start("").context("Start")?;
        check_eq!(shim.task.wait("").context("Wait")?, status, "the exit status of the {id}");
        let log = shim.bundle.log();
        check!(!log.contains("boots by itself"), "{log}");
        check!(log.contains("made a template") == (id == "first"), "{log}");
        shim.end()?;
    }
    Ok(())
}
