//! A container's root filesystem on its way to the guest: containerd's mounts, made inside the shared tree, or a disk
//! that the guest mounts.

use std::{path::Path, sync::Arc};

use agent_protocol::agent::Storage;
use containerd_shim::mount::mount_rootfs;
use containerd_shim_protos::types::mount::Mount;
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::Spec;

use super::disks::{self, Plugged};
use crate::{
    error::{Error, Result},
    sandbox::{
        Sandbox,
        share::{HostFiles, Mounted, SharedTree},
    },
    thread,
};

/// Where the guest mounts root file systems that are on disks.
const GUEST_DIR: &str = "/run/kata-containers/sandbox/rootfs";
/// File systems that are on disks.
const OF_DISKS: [&str; 3] = ["ext4", "xfs", "erofs"];

/// What the guest finds it by, and what has to stay on the host meanwhile.
pub(crate) enum RootFs {
    /// In the shared tree.
    Shared(Mounted),
    /// On a disk of the machine.
    Disk { disk: Arc<Plugged>, storage: Storage },
}

impl RootFs {
    pub(super) fn guest_path(&self) -> &str {
        match self {
            RootFs::Shared(mounted) => &mounted.guest_path,
            RootFs::Disk { storage, .. } => &storage.mount_point,
        }
    }
}

/// Makes the root filesystem of container `id` ready for the guest: what containerd asks for (`mounts`, from the
/// snapshotter), or the directory `spec` names when there is nothing to mount.
///
/// # Errors
/// Names the mount, the directory or the disk. Nothing stays of it then.
pub(super) async fn prepare(
    sandbox: &Arc<Sandbox>,
    id: &str,
    mounts: &[Mount],
    spec: &Spec,
    bundle: &Path,
) -> Result<RootFs> {
    match mounts {
        [one] if sandbox.plugs_root_disks() && is_on_a_disk(one) => plug(sandbox, id, one).await,
        _ => match sandbox.host_files() {
            HostFiles::Shared(tree) => share(tree, id, mounts, spec, bundle).await.map(RootFs::Shared),
            HostFiles::Copied(_) => Err(on_no_disk(mounts)),
        },
    }
}

/// No file of the host's is shared with the guest, and the file system is some.
fn on_no_disk(mounts: &[Mount]) -> Error {
    let what = match mounts {
        [] => "a directory".to_owned(),
        [one] => format!("{} ({:?})", one.source, one.type_),
        [.., last] => format!("{} mounts, the last of {:?}", mounts.len(), last.type_),
    };
    Error::InvalidArgument(format!(
        "root filesystem: {what} is no disk, and shared_fs = \"none\" shares no files with the guest: use a snapshotter \
         that gives each container a block device or an image of {}, such as containerd's devmapper and blockfile, or \
         set hypervisor.qemu.shared_fs to another value",
        OF_DISKS.join(", ")
    ))
}

/// Whether it is a whole file system, on a block device or in a file that containerd would have mounted by one.
fn is_on_a_disk(mount: &Mount) -> bool {
    let is_file = |path: &Path| path.is_absolute() && path.exists() && !path.is_dir();
    OF_DISKS.contains(&mount.type_.as_str()) && is_file(Path::new(&mount.source))
}

async fn plug(sandbox: &Arc<Sandbox>, id: &str, mount: &Mount) -> Result<RootFs> {
    let read_only = mount.options.iter().any(|option| option == "ro");
    let disk = disks::plug_own(sandbox, Path::new(&mount.source), read_only).await?;
    let options = mount.options.iter().filter(|option| !["loop", "rw"].contains(&option.as_str()));
    // XFS refuses the second file system of one identity, and snapshots have that of what they are of.
    let more = (mount.type_ == "xfs").then(|| "nouuid".to_owned());
    let storage = Storage {
        driver: disk.driver().into(),
        source: disk.place(),
        fstype: mount.type_.clone(),
        options: options.cloned().chain(more).collect(),
        mount_point: format!("{GUEST_DIR}/{id}"),
        ..Default::default()
    };
    Ok(RootFs::Disk { disk, storage })
}

async fn share(tree: &SharedTree, id: &str, mounts: &[Mount], spec: &Spec, bundle: &Path) -> Result<Mounted> {
    let mounted = tree.rootfs_target(id)?;
    let target = mounted.target.clone();
    if mounts.is_empty() {
        let root = spec.root().as_ref().map(|root| bundle.join(root.path())).unwrap_or_default();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&root), &target, None::<&str>, flags, None::<&str>)
            .map_err(Error::os(format_args!("root filesystem {}", root.display())))?;
        return Ok(mounted);
    }
    let mounts = mounts.to_vec();
    // A mount can hang on a dead disk or server, and long overlay options change the thread's working directory.
    thread::run("rootfs", move || mounts.iter().try_for_each(|one| mount_one(one, &target))).await?;
    Ok(mounted)
}

fn mount_one(mount: &Mount, target: &Path) -> Result<()> {
    let present = |text: &str| (!text.is_empty()).then(|| text.to_string());
    mount_rootfs(present(&mount.type_).as_deref(), present(&mount.source).as_deref(), &mount.options, target)
        .map_err(|error| {
            Error::Failed(format!("root filesystem {} ({}): {error}", mount.source, mount.type_))
        })
}
