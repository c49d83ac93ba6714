//! How a container comes by the host's files: they are mounted in the shared tree, or the guest gets copies.

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use agent_protocol::agent::Storage;

use super::{
    spec::{Bind, GuestSpec},
    volumes,
};
use crate::{
    error::{Error, Result},
    sandbox::{
        Sandbox,
        share::{
            GUEST_DIR, HostFiles, Mounted,
            copies::{Copied, Copies, is_published},
        },
    },
};

/// What stays on the host while a container sees its files.
pub(crate) enum Shown {
    Mounted { _mounted: Mounted },
    Copied { _copied: Arc<Copied> },
}

impl From<Mounted> for Shown {
    fn from(mounted: Mounted) -> Shown {
        Shown::Mounted { _mounted: mounted }
    }
}

/// What stands for a bind mount where no directory is shared.
#[derive(Debug, PartialEq)]
enum Instead {
    Copy,
    Storage(Storage),
}

/// Gives the guest what `guest` has of the host's, and says so there.
///
/// # Errors
/// Names the source, and what would be right.
pub(super) async fn show(sandbox: &Sandbox, guest: &mut GuestSpec) -> Result<Vec<Shown>> {
    match sandbox.host_files() {
        HostFiles::Shared(tree) => {
            let attach = |bind: &Bind| tree.attach(&bind.source, &bind.name, bind.recursive, bind.read_only);
            guest.binds.iter().map(|bind| attach(bind).map(Shown::from)).collect()
        }
        HostFiles::Copied(copies) => copy(copies, guest).await,
    }
}

async fn copy(copies: &Copies, guest: &mut GuestSpec) -> Result<Vec<Shown>> {
    let mut shown = Vec::with_capacity(guest.binds.len());
    for bind in std::mem::take(&mut guest.binds) {
        let place = match instead(&bind)? {
            Instead::Copy => {
                let copied = copies.of(&bind.source).await?;
                let place = copied.guest_path.clone();
                shown.push(Shown::Copied { _copied: copied });
                place
            }
            Instead::Storage(storage) => {
                let place = storage.mount_point.clone();
                if guest.storages.iter().all(|known| known.mount_point != place) {
                    guest.storages.push(storage);
                }
                place
            }
        };
        let shared = Path::new(GUEST_DIR).join(&bind.name);
        let mounts = guest.spec.mounts_mut().iter_mut().flatten();
        mounts.filter(|mount| mount.source().as_ref() == Some(&shared)).for_each(|mount| {
            mount.set_source(Some(place.clone().into()));
        });
    }
    Ok(shown)
}

/// A copy is what a container only reads, or what is small and its own. What it writes to a volume is to last.
fn instead(bind: &Bind) -> Result<Instead> {
    let source = &bind.source;
    let wrong = |why: &dyn std::fmt::Display| {
        Error::InvalidArgument(format!("mount source {}: {why}", source.display()))
    };
    let metadata = fs::metadata(source).map_err(|error| wrong(&error))?;
    if let Some(name) = volumes::name_of_empty_dir(source).filter(|_| metadata.is_dir()) {
        let options = [
            format!("mode={:o}", metadata.mode() & 0o7777),
            format!("uid={}", metadata.uid()),
            format!("gid={}", metadata.gid()),
        ];
        let storage = volumes::memory(&format!("ephemeral/{name}"), "tmpfs", options.to_vec());
        return Ok(Instead::Storage(storage));
    }
    if volumes::is_part_of_empty_dir(source) {
        return Err(wrong(
            &"it is a subPath of an emptyDir, which with shared_fs = \"none\" the guest has and the host has not: mount \
             the whole volume",
        ));
    }
    if metadata.is_dir() && !bind.read_only && !is_published(source) {
        return Err(wrong(
            &"with shared_fs = \"none\" a guest has no more than copies of directories, and what is written to this one \
             would be lost: mount it read-only, use a volume on a block device or an emptyDir, or set another shared_fs",
        ));
    }
    Ok(Instead::Copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &Path, read_only: bool) -> Bind {
        Bind { source: source.to_owned(), name: "c1-0-x".into(), recursive: true, read_only }
    }

    #[test]
    fn d12_a_directory_that_is_written_to_is_refused_and_others_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let error = instead(&bind(dir.path(), false)).unwrap_err().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()) && error.contains("shared_fs"), "{error}");
        assert_eq!(instead(&bind(dir.path(), true)).unwrap(), Instead::Copy);
        let file = dir.path().join("hosts");
        fs::write(&file, "").unwrap();
        assert_eq!(instead(&bind(&file, false)).unwrap(), Instead::Copy);
        let secret = dir.path().join("kubernetes.io~secret/token");
        fs::create_dir_all(&secret).unwrap();
        assert_eq!(instead(&bind(&secret, false)).unwrap(), Instead::Copy);
        let error = instead(&bind(&dir.path().join("no"), true)).unwrap_err().to_string();
        assert!(error.contains("/no: "), "{error}");
    }

    #[test]
    fn d15_an_empty_dir_on_a_disk_is_memory_of_the_guests() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("kubernetes.io~empty-dir/scratch");
        fs::create_dir_all(&volume).unwrap();
        std::os::unix::fs::chown(&volume, None, Some(4242)).unwrap();
        let Instead::Storage(storage) = instead(&bind(&volume, false)).unwrap() else { panic!("a copy") };
        assert_eq!((storage.driver.as_str(), storage.fstype.as_str()), ("ephemeral", "tmpfs"));
        assert!(storage.options.contains(&"gid=4242".to_owned()), "{:?}", storage.options);
        assert_eq!(storage.mount_point, "/run/kata-containers/sandbox/ephemeral/scratch");
    }
}
