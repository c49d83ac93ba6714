//! A container's root filesystem on its way to the guest: containerd's mounts, made inside the shared tree.

use std::path::Path;

use containerd_shim::mount::mount_rootfs;
use containerd_shim_protos::types::mount::Mount;
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::Spec;

use crate::{
    error::{Error, Result},
    sandbox::share::{Mounted, SharedTree},
    thread,
};

/// Mounts what containerd asks for (`mounts`, from the snapshotter), or binds the directory `spec` names when there
/// is nothing to mount, where the guest will find it.
///
/// # Errors
/// Names the mount, or the directory that is not there. Nothing stays mounted then.
pub(crate) async fn share(
    tree: &SharedTree,
    id: &str,
    mounts: &[Mount],
    spec: &Spec,
    bundle: &Path,
) -> Result<Mounted> {
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
