//! Volumes that a storage driver assigns to a machine: it does not mount them on the host, but leaves a note of the block
//! device for the shim, in a directory named after the volume's path.

pub(crate) mod command;
mod note;

use std::{
    ffi::OsStr,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use agent_protocol::agent::Storage;
use containerd_shim_protos::protobuf::MessageField;

use super::disks::{self, Plugged};
use crate::{
    error::{Error, Result},
    sandbox::Sandbox,
};
use note::{NOTE, NOTES, Note, name_of};

/// Where the guest mounts the volumes.
const GUEST_DIR: &str = "/run/kata-containers/sandbox/storage";

/// A volume whose file system the guest mounts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DirectVolume {
    note: Note,
    /// The directory of the note.
    name: String,
    /// Where the guest mounts it.
    pub(crate) mount_point: String,
    read_only: bool,
}

/// The volume at `source`, if a storage driver has left a note of it.
///
/// # Errors
/// `InvalidArgument` that names the note and what is wrong with it.
pub(super) fn at(source: &Path, read_only: bool) -> Result<Option<DirectVolume>> {
    noted_in(Path::new(NOTES), source, read_only)
}

fn noted_in(notes: &Path, source: &Path, read_only: bool) -> Result<Option<DirectVolume>> {
    let name = name_of(source);
    let Some(note) = read(&notes.join(&name).join(NOTE))? else { return Ok(None) };
    let mount_point = format!("{GUEST_DIR}/{name}");
    Ok(Some(DirectVolume { note, name, mount_point, read_only }))
}

/// The note in a file, if there is one.
fn read(file: &Path) -> Result<Option<Note>> {
    let wrong = |why: &dyn std::fmt::Display| Error::InvalidArgument(format!("{}: {why}", file.display()));
    let text = match fs::read(file) {
        // A long path has no such name, and no note.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename) => {
            return Ok(None);
        }
        other => other.map_err(|error| wrong(&error))?,
    };
    Note::parse(&text).map(Some).map_err(|why| wrong(&why))
}

/// Gives the machine the volume's disk, once for all of its containers, and says what the guest is to mount.
///
/// # Errors
/// Names the volume's device and what keeps the machine from having it.
pub(super) async fn plug(sandbox: &Arc<Sandbox>, volume: &DirectVolume) -> Result<(Arc<Plugged>, Storage)> {
    let note = &volume.note;
    let plugged = disks::plug_shared(sandbox, &note.device, volume.read_only).await?;
    if may_claim(sandbox.id()) {
        plugged.keep(|| Claim::of(Path::new(NOTES), &volume.name, sandbox.id()));
    }
    let mut options = note.options.clone();
    if volume.read_only {
        options.push("ro".into());
    }
    let storage = Storage {
        driver: plugged.driver().into(),
        source: plugged.place(),
        fstype: note.file_system.clone(),
        options,
        mount_point: volume.mount_point.clone(),
        fs_group: MessageField::from_option(note.group().ok().flatten()),
        ..Default::default()
    };
    Ok((plugged, storage))
}

/// The volume that is meant by `path`, and its disk, if this sandbox has it: Kata's own tool calls a volume by its
/// device.
///
/// # Errors
/// `NotFound` if it has not.
pub(crate) async fn in_use(sandbox: &Sandbox, path: &Path) -> Result<(DirectVolume, Arc<Plugged>)> {
    let unknown =
        || Error::NotFound(format!("{}: no directly assigned volume of this sandbox", path.display()));
    let volume = match at(path, false)? {
        None => claimed_on(Path::new(NOTES), path, sandbox.id()),
        noted => noted,
    };
    let volume = volume.ok_or_else(unknown)?;
    let disk = disks::plugged(sandbox, &volume.note.device).await.ok_or_else(unknown)?;
    Ok((volume, disk))
}

/// The volume on that device that the sandbox claims. Notes that cannot be read are others'.
fn claimed_on(notes: &Path, device: &Path, sandbox: &OsStr) -> Option<DirectVolume> {
    let claimed = |dir: &PathBuf| may_claim(sandbox) && dir.join(sandbox).exists();
    let mut dirs = fs::read_dir(notes).ok()?.flatten().map(|entry| entry.path()).filter(claimed);
    dirs.find_map(|dir| {
        let note = read(&dir.join(NOTE)).ok()??;
        let name = dir.file_name()?.to_str()?.to_owned();
        let mount_point = format!("{GUEST_DIR}/{name}");
        let volume = DirectVolume { note, name, mount_point, read_only: false };
        (volume.note.device == device).then_some(volume)
    })
}

/// A sandbox may have any name, that of the note too.
fn may_claim(sandbox: &OsStr) -> bool {
    sandbox != NOTE
}

/// That a sandbox has a volume: a file beside the note, named after the sandbox, by which tools know whom to ask. It goes
/// with the value.
pub(super) struct Claim(PathBuf);

impl Claim {
    fn of(notes: &Path, name: &str, sandbox: &OsStr) -> Claim {
        let file = notes.join(name).join(sandbox);
        // A volume works without, and the driver may have taken the note away.
        let _ = fs::write(&file, "");
        Claim(file)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes the claims of a sandbox whose shim died.
pub(crate) fn sweep(run_dir: &Path) {
    sweep_in(Path::new(NOTES), run_dir);
}

fn sweep_in(notes: &Path, run_dir: &Path) {
    let Some(sandbox) = run_dir.file_name().filter(|name| may_claim(name)) else { return };
    for volume in fs::read_dir(notes).into_iter().flatten().flatten() {
        let _ = fs::remove_file(volume.path().join(sandbox));
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE};

    use super::*;

    fn noted(text: &str) -> Result<Option<DirectVolume>> {
        let notes = tempfile::tempdir().unwrap();
        let dir = notes.path().join(URL_SAFE.encode("/var/lib/volume"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(NOTE), text).unwrap();
        noted_in(notes.path(), Path::new("/var/lib/volume"), false)
    }

    #[test]
    fn d16_a_note_is_a_volume_that_the_guest_mounts() {
        let volume = noted(
            r#"{"volume-type": "block", "device": "/dev/sdx", "fstype": "ext4", "options": ["noatime"],
                "metadata": {"fsGroup": "3000", "fsGroupChangePolicy": "OnRootMismatch"}}"#,
        );
        let volume = volume.unwrap().unwrap();
        assert_eq!(volume.mount_point, "/run/kata-containers/sandbox/storage/L3Zhci9saWIvdm9sdW1l");
        assert_eq!((volume.note.file_system.as_str(), volume.note.options.len()), ("ext4", 1));
        assert_eq!(volume.note.group().unwrap().unwrap().group_id, 3000);
    }

    #[test]
    fn d16_a_volume_is_claimed_by_a_sandbox_until_it_lets_go_or_is_cleared_up() {
        let notes = tempfile::tempdir().unwrap();
        let (volume, sandbox) = (notes.path().join("volume"), OsStr::new("pod"));
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join(NOTE), "").unwrap();
        let claim = Claim::of(notes.path(), "volume", sandbox);
        assert!(volume.join(sandbox).exists());
        drop(claim);
        assert!(!volume.join(sandbox).exists());
        std::mem::forget(Claim::of(notes.path(), "volume", sandbox));
        std::mem::forget(Claim::of(notes.path(), "volume", OsStr::new("other")));
        sweep_in(notes.path(), Path::new("/run/kata/k8s.io/pod"));
        sweep_in(notes.path(), &Path::new("/run/kata/k8s.io").join(NOTE));
        assert!(
            !volume.join(sandbox).exists() && volume.join("other").exists() && volume.join(NOTE).exists()
        );
    }

    #[test]
    fn c22_a_volume_is_found_by_its_device_by_the_sandbox_that_claims_it() {
        let notes = tempfile::tempdir().unwrap();
        for (name, device, claim) in
            [("one", "/dev/x", "other"), ("two", "/dev/x", "pod"), ("3", "/dev/y", "pod")]
        {
            let dir = notes.path().join(name);
            fs::create_dir(&dir).unwrap();
            let text = serde_json::json!({"volume-type": "block", "device": device});
            fs::write(dir.join(NOTE), text.to_string()).unwrap();
            fs::write(dir.join(claim), "").unwrap();
        }
        let on = |device: &str, sandbox: &str| {
            let volume = claimed_on(notes.path(), Path::new(device), OsStr::new(sandbox));
            volume.map(|volume| volume.name)
        };
        assert_eq!(on("/dev/x", "pod").as_deref(), Some("two"));
        assert_eq!(on("/dev/x", "other").as_deref(), Some("one"));
        assert_eq!((on("/dev/z", "pod"), on("/dev/x", NOTE)), (None, None));
    }

    #[test]
    fn d16_where_there_is_no_note_the_hosts_files_are_meant() {
        let notes = tempfile::tempdir().unwrap();
        assert_eq!(noted_in(notes.path(), Path::new("/srv"), false).unwrap(), None);
        let long = PathBuf::from("/x".repeat(200));
        assert_eq!(noted_in(notes.path(), &long, false).unwrap(), None);
    }

    #[test]
    fn d16_a_note_that_cannot_be_followed_is_refused_by_its_file() {
        for (text, named) in [
            ("{", "EOF"),
            (r#"{"volume-type": "spdkvol", "device": "/dev/x"}"#, "volume-type"),
            (r#"{"volume-type": "block", "device": "sdx"}"#, "device"),
            (r#"{"volume-type": "block", "device": "/dev/x", "metadata": {"fsGroup": "x"}}"#, "fsGroup"),
        ] {
            let error = noted(text).unwrap_err().to_string();
            assert!(error.contains(NOTE) && error.contains(named), "{error}");
        }
    }
}
