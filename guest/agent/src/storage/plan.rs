//! One storage: what to mount how, and doing it. The doing runs in a worker.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Component, Path, PathBuf},
};

use agent_protocol::agent::Storage;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::statfs,
};

use super::{
    group::Group,
    options::{self, Options},
    sub_path::SubPath,
};
use crate::{
    error::{Error, chain},
    modules,
    runtime::BUNDLES,
};

/// Kinds of storage this agent mounts, by the protocol's name of their driver.
pub(crate) const DRIVERS: &[&str] =
    &["9p", "virtio-fs", "ephemeral", "tmpfs", "local", "bind", "overlayfs", "blk", "scsi", "sub-path"];

/// Options of a plain directory; they are no business of a file system.
const LOCAL_MODE: &str = "mode";
const LOCAL_GROUP: &str = "fsgid";

/// A storage that makes sense.
#[derive(Debug)]
pub(super) struct Plan {
    action: Action,
    mount_point: PathBuf,
    group: Option<Group>,
    is_the_pods: bool,
}

#[derive(Debug)]
enum Action {
    /// A directory of the guest, with its file mode and, maybe, its group.
    Directory(u32, Option<u32>),
    /// Part of what is mounted already.
    SubPath(SubPath),
    /// What the kernel mounts when somebody goes there.
    Arrive,
    Mount {
        source: String,
        kind: String,
        options: Options,
        modules: &'static [&'static str],
    },
}

impl Action {
    fn is_read_only(&self) -> bool {
        matches!(self, Action::Mount { options, .. } if options.flags.contains(MsFlags::MS_RDONLY))
    }
}

impl Plan {
    pub(super) fn new(storage: &Storage) -> Result<Self, Error> {
        let refused = |what: &str| {
            Error::invalid(format!("storage {} on {:?}: {what}", storage.driver, storage.mount_point))
        };
        let mount_point = PathBuf::from(&storage.mount_point);
        if !is_allowed(&mount_point) {
            return Err(refused(&format!("the mount point is not an absolute path below {BUNDLES}")));
        }
        let action = action(storage).map_err(|what| refused(&what))?;
        // Nothing can be changed where nothing can be written.
        let group = storage.fs_group.as_ref().filter(|_| !action.is_read_only()).map(Group::of);
        Ok(Self { action, mount_point, group, is_the_pods: storage.driver == "ephemeral" })
    }

    /// A directory of a share which may be a file system of its own. The kernel mounts that for whoever comes first, in
    /// the mount namespace of that. If it were a container's, the file system would end with the container's last
    /// process, when files are still being closed: Linux 6.1 finds inodes in use then, and the process never ends.
    pub(super) fn arrive(directory: PathBuf) -> Self {
        Self { action: Action::Arrive, mount_point: directory, group: None, is_the_pods: false }
    }

    /// Whether it is there for as long as the pod, whoever of its containers uses it.
    pub(super) fn is_the_pods(&self) -> bool {
        self.is_the_pods
    }

    /// Whether it is a file system of the guest's own on something that outlives it.
    pub(super) fn is_a_disk(&self) -> bool {
        matches!(&self.action, Action::Mount { source, .. } if source.starts_with("/dev/"))
    }

    /// Whether it takes as long as the volume has files.
    pub(super) fn has_a_group(&self) -> bool {
        self.group.is_some()
    }

    pub(super) fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    fn mount(&self) -> io::Result<()> {
        match &self.action {
            Action::Directory(mode, group) => {
                fs::create_dir_all(&self.mount_point)?;
                chown(&self.mount_point, None, *group)?;
                fs::set_permissions(&self.mount_point, fs::Permissions::from_mode(*mode))?;
            }
            Action::SubPath(part) => part.mount_on(&self.mount_point)?,
            // What is no directory is no file system; what is missing is missed by whoever wants it.
            Action::Arrive => drop(fs::metadata(self.mount_point.join("."))),
            Action::Mount { source, kind, options, modules } => {
                for module in *modules {
                    modules::need(module).map_err(|error| io::Error::other(chain(&error)))?;
                }
                self.make_mount_point(source, options)?;
                attach(source, &self.mount_point, kind, options)?;
            }
        }
        Ok(())
    }

    /// Gives it to its group, if it has one. Returns what there is to say of it.
    fn give(&self) -> io::Result<Option<String>> {
        let Some(group) = self.group else { return Ok(None) };
        Ok(group.take(&self.mount_point)?.told(&self.mount_point))
    }

    /// A file can only be bound over a file.
    fn make_mount_point(&self, source: &str, options: &Options) -> io::Result<()> {
        if options.flags.contains(MsFlags::MS_BIND) && !fs::metadata(source)?.is_dir() {
            if let Some(parent) = self.mount_point.parent() {
                fs::create_dir_all(parent)?;
            }
            return File::options().create(true).append(true).open(&self.mount_point).map(drop);
        }
        fs::create_dir_all(&self.mount_point)
    }

    fn remount(&self) -> io::Result<()> {
        let Action::Mount { kind, options, .. } = &self.action else { return Ok(()) };
        let flags = options.flags | MsFlags::MS_REMOUNT;
        let data = Some(options.data.as_str());
        Ok(mount(None::<&str>, &self.mount_point, Some(kind.as_str()), flags, data)?)
    }
}

fn is_allowed(mount_point: &Path) -> bool {
    let plain =
        mount_point.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    plain && mount_point.starts_with(BUNDLES) && mount_point != Path::new(BUNDLES)
}

fn action(storage: &Storage) -> Result<Action, String> {
    let (kind, modules, wants_source): (&str, &'static [&'static str], bool) = match storage.driver.as_str() {
        "local" => return local(&storage.options),
        "sub-path" => return sub_path(storage).map(Action::SubPath),
        "9p" => ("9p", &["9pnet_virtio", "9p"], true),
        "virtio-fs" => ("virtiofs", &["virtiofs"], true),
        "ephemeral" | "tmpfs" => ("tmpfs", &[], false),
        "bind" => ("bind", &[], true),
        "overlayfs" => ("overlay", &["overlay"], false),
        "blk" => (block_kind(storage)?, &["virtio_blk", "ext4"], true),
        "scsi" => (block_kind(storage)?, &["virtio_scsi", "sd_mod", "ext4"], true),
        _ => return Err(format!("unknown driver, wants one of {}", DRIVERS.join(", "))),
    };
    if wants_source && storage.source.is_empty() {
        return Err("the source is missing".to_owned());
    }
    let kind = if storage.fstype.is_empty() { kind } else { &storage.fstype };
    let mut options = Options::parse(storage.options.iter().map(String::as_str));
    if storage.driver == "bind" {
        options.flags |= MsFlags::MS_BIND;
    }
    let source = if storage.source.is_empty() { kind } else { &storage.source };
    Ok(Action::Mount { source: source.to_owned(), kind: kind.to_owned(), options, modules })
}

/// A disk is named by its device file by now, wherever it is plugged in.
fn block_kind(storage: &Storage) -> Result<&str, String> {
    if storage.source.starts_with("/dev/") {
        return Ok("ext4");
    }
    Err(format!("source {:?}: wants a device below /dev", storage.source))
}

fn local(options: &[String]) -> Result<Action, String> {
    let text = options::value(options, LOCAL_MODE).unwrap_or("0755");
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    let mode = mode.ok_or_else(|| format!("mode {text:?}: wants an octal file mode"))?;
    let group = options::value(options, LOCAL_GROUP)
        .map(|text| text.parse().map_err(|_| format!("{LOCAL_GROUP} {text:?}: wants the number of a group")));
    Ok(Action::Directory(mode, group.transpose()?))
}

fn sub_path(storage: &Storage) -> Result<SubPath, String> {
    let part = SubPath::parse(&storage.source, &storage.driver_options, &storage.options)?;
    if !is_allowed(part.volume()) {
        return Err(format!("source {:?}: wants a volume below {BUNDLES}", storage.source));
    }
    Ok(part)
}

fn attach(source: &str, target: &Path, kind: &str, options: &Options) -> io::Result<()> {
    let data = Some(options.data.as_str()).filter(|data| !data.is_empty());
    if !options.flags.contains(MsFlags::MS_BIND) {
        return Ok(mount(Some(source), target, Some(kind), options.flags, data)?);
    }
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND | (options.flags & MsFlags::MS_REC), none)?;
    // The first call ignores all other flags.
    let rest = options.flags - MsFlags::MS_REC;
    if rest != MsFlags::MS_BIND {
        mount(none, target, none, rest | MsFlags::MS_REMOUNT, none)?;
    }
    Ok(())
}

/// Mounts all in order, or none. Returns what there is to say of it.
pub(super) fn mount_all(plans: &[Plan]) -> Result<String, String> {
    let mut told = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let mounted = plan.mount();
        // One that could not be given to its group is a mount, too.
        let made = if mounted.is_ok() { index + 1 } else { index };
        match mounted.and_then(|()| plan.give()) {
            Ok(words) => told.extend(words),
            Err(error) => {
                let done: Vec<PathBuf> =
                    plans[..made].iter().rev().map(|plan| plan.mount_point.clone()).collect();
                // The first error is the one to tell.
                let _ = unmount_all(&done);
                return Err(format!("mount {:?}: {error}", plan.mount_point));
            }
        }
    }
    Ok(told.join("; "))
}

/// Unmounts all, and tells the first error only then. What is no mount, such as a plain directory, stays. A share that
/// answers has closed all files that it was told to close before.
pub(super) fn unmount_all(points: &[PathBuf]) -> Result<String, String> {
    let mut first = Ok(String::new());
    for point in points {
        let _ = statfs(point);
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => first = first.and(Err(format!("unmount {}: {error}", point.display()))),
        }
    }
    first
}

pub(super) fn remount_all(plans: &[Plan]) -> Result<String, String> {
    for plan in plans {
        plan.remount().map_err(|error| format!("remount {:?}: {error}", plan.mount_point))?;
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(driver: &str, source: &str, mount_point: &str, options: &[&str]) -> Storage {
        Storage {
            driver: driver.into(),
            source: source.into(),
            mount_point: mount_point.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    const SHARED: &str = "/run/kata-containers/shared/containers";

    #[test]
    fn a_share_is_mounted_as_its_driver_says() {
        let plan = Plan::new(&storage("virtio-fs", "kataShared", SHARED, &["nodev"])).unwrap();
        let Action::Mount { source, kind, options, modules } = plan.action else { panic!("a directory") };
        assert_eq!((source.as_str(), kind.as_str(), modules), ("kataShared", "virtiofs", &["virtiofs"][..]));
        assert_eq!(options.flags, MsFlags::MS_NODEV);
    }

    #[test]
    fn a_bind_mount_is_one_even_if_no_option_says_so() {
        let plan = Plan::new(&storage("bind", "/run/x", SHARED, &["ro"])).unwrap();
        let Action::Mount { options, .. } = plan.action else { panic!("a directory") };
        assert_eq!(options.flags, MsFlags::MS_BIND | MsFlags::MS_RDONLY);
    }

    #[test]
    fn a_local_directory_has_the_mode_asked_for() {
        let plan = Plan::new(&storage("local", "", SHARED, &["mode=0777"])).unwrap();
        assert!(matches!(plan.action, Action::Directory(0o777, None)));
        let plan = Plan::new(&storage("local", "", SHARED, &["mode=2777", "fsgid=4242"])).unwrap();
        assert!(matches!(plan.action, Action::Directory(0o2777, Some(4242))));
        for wrong in ["mode=abc", "fsgid=wheel"] {
            assert!(Plan::new(&storage("local", "", SHARED, &[wrong])).is_err(), "{wrong}");
        }
    }

    #[test]
    fn storages_that_make_no_sense_are_refused() {
        for (driver, source, point) in [
            ("nfs", "x", SHARED),
            ("9p", "", SHARED),
            ("9p", "x", "/etc"),
            ("9p", "x", "/run/kata-containers/../../etc"),
            ("9p", "x", "/run/kata-containers"),
            ("blk", "02/03", SHARED),
            ("sub-path", SHARED, SHARED),
        ] {
            assert!(Plan::new(&storage(driver, source, point, &[])).is_err(), "{driver} {source} {point}");
        }
    }

    #[test]
    fn d16_a_volume_that_cannot_be_written_to_is_given_to_no_group() {
        for (options, given) in [(&["ro"][..], false), (&["noatime"], true)] {
            let mut volume = storage("blk", "/dev/vdb", SHARED, options);
            volume.fs_group =
                Some(agent_protocol::agent::FSGroup { group_id: 7, ..Default::default() }).into();
            assert_eq!(Plan::new(&volume).unwrap().has_a_group(), given, "{options:?}");
        }
    }
}
