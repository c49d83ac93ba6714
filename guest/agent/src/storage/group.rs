//! A volume's files as a group's, the way kubelet does it on a host: all of them, unless the policy says to look at the
//! volume's root first.
//!
//! What is in a volume is nobody's we trust. Links are given to the group themselves, and not followed; what is mounted
//! inside stays as it is.

use std::{
    ffi::CStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use agent_protocol::{agent::FSGroup, types::FSGroupChangePolicy};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat},
    unistd::{Gid, fchownat},
};

/// What a group may do with a file, and with a directory, whose new files are the group's too.
const FILE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR).union(Mode::S_IRGRP).union(Mode::S_IWGRP);
const DIRECTORY: Mode = FILE.union(Mode::S_IXUSR).union(Mode::S_IXGRP).union(Mode::S_ISGID);

/// Files that the kernel keeps as they are, such as immutable ones, and those of file systems without groups. As for
/// kubelet, they are no reason not to have the volume.
#[derive(Debug, Default)]
pub(super) struct Kept {
    count: u64,
    first: Option<(PathBuf, Errno)>,
}

impl Kept {
    fn note(&mut self, path: &Path, taken: Result<(), Errno>) {
        if let Err(error) = taken {
            self.count += 1;
            self.first.get_or_insert_with(|| (path.to_owned(), error));
        }
    }

    /// In words, if there are any.
    pub(super) fn told(&self, root: &Path) -> Option<String> {
        let (path, error) = self.first.as_ref()?;
        let (path, why) = (root.join(path), error.desc());
        Some(format!("{} files of a volume are not its group's, first {}: {why}", self.count, path.display()))
    }
}

/// Whom a volume's files are to belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    id: Gid,
    /// A volume whose root is right is right.
    trusts_root: bool,
}

impl Group {
    pub(super) fn of(asked: &FSGroup) -> Self {
        // A policy of tomorrow's is the careful one.
        let trusts_root = asked.group_change_policy.enum_value() == Ok(FSGroupChangePolicy::OnRootMismatch);
        Self { id: Gid::from_raw(asked.group_id), trusts_root }
    }

    /// Gives it what is at `root`.
    ///
    /// # Errors
    /// Names the file or directory that could not be opened.
    pub(super) fn take(self, root: &Path) -> io::Result<Kept> {
        let mut kept = Kept::default();
        let told = |path: &Path, error: Errno| {
            let what = format!("give {} to group {}: {}", path.display(), self.id, error.desc());
            io::Error::new(io::Error::from(error).kind(), what)
        };
        let of_root = |error| told(root, error);
        let file = open(root, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let file = file.map_err(of_root)?;
        let state = fstat(&file).map_err(of_root)?;
        if self.trusts_root && self.has(&state) {
            return Ok(kept);
        }
        let mut left: Vec<PathBuf> = is(&state, SFlag::S_IFDIR).then(PathBuf::new).into_iter().collect();
        while let Some(directory) = left.pop() {
            let inner = self.take_inside(&file, &directory, &mut kept);
            left.extend(inner.map_err(|(path, error)| told(&root.join(path), error))?);
        }
        // The last, so that a volume whose change was interrupted does not look right.
        kept.note(Path::new(""), self.take_one(&file, &state));
        Ok(kept)
    }

    /// Gives it what is in a directory below `root`; returns the directories there.
    fn take_inside(
        self,
        root: &OwnedFd,
        directory: &Path,
        kept: &mut Kept,
    ) -> Result<Vec<PathBuf>, (PathBuf, Errno)> {
        let of_directory = |error| (directory.to_owned(), error);
        let here = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let listed = inside(root, here, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let mut entries = listed.and_then(Dir::from_fd).map_err(of_directory)?;
        let names: Result<Vec<_>, _> =
            entries.iter().map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect();
        let mut directories = Vec::new();
        for name in
            names.map_err(of_directory)?.iter().filter(|name| ![c".", c".."].contains(&name.as_c_str()))
        {
            let path = directory.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            match opened(&entries, name) {
                Ok((file, state)) => {
                    kept.note(&path, self.take_one(&file, &state));
                    directories.extend(is(&state, SFlag::S_IFDIR).then_some(path));
                }
                // What is mounted there is not the volume's.
                Err(Errno::EXDEV) => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(directories)
    }

    fn take_one(self, file: &OwnedFd, state: &FileStat) -> Result<(), Errno> {
        if self.has(state) {
            return Ok(());
        }
        fchownat(file, c"", None, Some(self.id), AtFlags::AT_EMPTY_PATH)?;
        if is(state, SFlag::S_IFLNK) {
            return Ok(());
        }
        // Bits that a change of the group takes away come back with it. A file that is not opened has this name only.
        let mode = Mode::from_bits_truncate(state.st_mode) | wanted(state);
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        fchmodat(AT_FDCWD, name.as_str(), mode, FchmodatFlags::FollowSymlink)
    }

    /// Whether nothing is left to do for a file of that state.
    fn has(self, state: &FileStat) -> bool {
        state.st_gid == self.id.as_raw() && Mode::from_bits_truncate(state.st_mode).contains(wanted(state))
    }
}

fn wanted(state: &FileStat) -> Mode {
    if is(state, SFlag::S_IFDIR) { DIRECTORY } else { FILE }
}

fn is(state: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(state.st_mode) & SFlag::S_IFMT == kind
}

fn opened(directory: &Dir, name: &CStr) -> Result<(OwnedFd, FileStat), Errno> {
    let file = inside(directory, name, OFlag::O_PATH)?;
    let state = fstat(&file)?;
    Ok((file, state))
}

/// Opens what is at `path` in a directory, itself if it is a link, if no link and no other mount is on the way.
fn inside<P: nix::NixPath + ?Sized>(directory: impl AsFd, path: &P, how: OFlag) -> Result<OwnedFd, Errno> {
    let flags = how | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let within =
        ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
    openat2(directory, path, OpenHow::new().flags(flags).resolve(within))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    use tempfile::TempDir;

    use super::*;

    fn group(policy: FSGroupChangePolicy) -> Group {
        Group::of(&FSGroup { group_id: 4242, group_change_policy: policy.into(), ..Default::default() })
    }

    /// A volume with a few files of nobody's group.
    fn volume() -> TempDir {
        let volume = tempfile::tempdir().unwrap();
        let at = |name: &str| volume.path().join(name);
        fs::create_dir_all(at("one/two/three")).unwrap();
        ["top", "one/two/three/deep", "one/tool"].iter().for_each(|file| fs::write(at(file), "").unwrap());
        for (file, mode) in [
            ("", 0o700),
            ("one", 0o755),
            ("one/two/three", 0o755),
            ("top", 0o600),
            ("one/two/three/deep", 0o400),
            ("one/tool", 0o4711),
        ] {
            fs::set_permissions(at(file), fs::Permissions::from_mode(mode)).unwrap();
        }
        volume
    }

    fn state(path: &Path) -> (u32, u32) {
        let file = fs::symlink_metadata(path).unwrap();
        (file.gid(), file.mode() & 0o7777)
    }

    #[test]
    fn d16_all_of_a_volume_is_the_groups() {
        let volume = volume();
        group(FSGroupChangePolicy::Always).take(volume.path()).unwrap();
        for (name, mode) in [
            ("", 0o2770),
            ("one", 0o2775),
            ("one/two/three", 0o2775),
            ("top", 0o660),
            ("one/two/three/deep", 0o660),
            ("one/tool", 0o4771),
        ] {
            assert_eq!(state(&volume.path().join(name)), (4242, mode), "{name:?}");
        }
    }

    #[test]
    fn d16_a_volume_whose_root_is_right_is_left_alone_where_the_policy_says_so() {
        let volume = volume();
        let root = |gid: u32, mode: u32| {
            std::os::unix::fs::chown(volume.path(), None, Some(gid)).unwrap();
            fs::set_permissions(volume.path(), fs::Permissions::from_mode(mode)).unwrap();
        };
        root(4242, 0o2770);
        group(FSGroupChangePolicy::OnRootMismatch).take(volume.path()).unwrap();
        assert_eq!(state(&volume.path().join("top")), (0, 0o600));
        for (gid, mode) in [(4242, 0o770), (0, 0o2770)] {
            root(gid, mode);
            fs::set_permissions(volume.path().join("top"), fs::Permissions::from_mode(0o600)).unwrap();
            group(FSGroupChangePolicy::OnRootMismatch).take(volume.path()).unwrap();
            assert_eq!(state(&volume.path().join("top")), (4242, 0o660), "{gid} {mode:o}");
            assert_eq!(state(volume.path()), (4242, 0o2770));
        }
        root(4242, 0o2770);
        fs::set_permissions(volume.path().join("top"), fs::Permissions::from_mode(0o600)).unwrap();
        group(FSGroupChangePolicy::Always).take(volume.path()).unwrap();
        assert_eq!(state(&volume.path().join("top")), (4242, 0o660), "the other policy looks at all");
    }

    #[test]
    fn links_are_the_groups_and_what_they_lead_to_is_not() {
        let (volume, outside) = (volume(), volume());
        symlink(outside.path(), volume.path().join("directory")).unwrap();
        symlink(outside.path().join("top"), volume.path().join("file")).unwrap();
        symlink("nowhere", volume.path().join("one/nothing")).unwrap();
        group(FSGroupChangePolicy::Always).take(volume.path()).unwrap();
        for name in ["directory", "file", "one/nothing"] {
            assert_eq!(state(&volume.path().join(name)).0, 4242, "{name}");
        }
        assert_eq!(state(&outside.path().join("top")), (0, 0o600));
        assert_eq!(state(outside.path()).0, 0);
    }

    #[test]
    fn what_is_mounted_in_a_volume_is_none_of_it() {
        let in_mounts_of_its_own = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let (volume, outside) = (volume(), volume());
            let bind = |from: &Path, to: &Path| mount(Some(from), to, none, MsFlags::MS_BIND, none).unwrap();
            bind(outside.path(), &volume.path().join("one/two"));
            bind(&outside.path().join("one/tool"), &volume.path().join("one/tool"));
            group(FSGroupChangePolicy::Always).take(volume.path()).unwrap();
            assert_eq!(state(&volume.path().join("one")).0, 4242);
            for name in ["", "top", "one/tool"] {
                assert_eq!(state(&outside.path().join(name)).0, 0, "{name:?}");
            }
            for mounted in ["one/two", "one/tool"] {
                nix::mount::umount(&volume.path().join(mounted)).unwrap();
            }
        });
        in_mounts_of_its_own.join().unwrap();
    }

    #[test]
    fn what_the_kernel_keeps_as_it_is_is_counted_and_told() {
        let mut kept = Kept::default();
        kept.note(Path::new("one"), Ok(()));
        assert_eq!(kept.told(Path::new("/volume")), None);
        kept.note(Path::new("two"), Err(Errno::EPERM));
        kept.note(Path::new("three"), Err(Errno::EROFS));
        let told = kept.told(Path::new("/volume")).unwrap();
        assert!(
            told.starts_with("2 files") && told.contains("/volume/two: Operation not permitted"),
            "{told}"
        );
    }

    #[test]
    fn a_volume_that_is_a_file_or_is_not_there() {
        let volume = volume();
        group(FSGroupChangePolicy::Always).take(&volume.path().join("top")).unwrap();
        assert_eq!(state(&volume.path().join("top")), (4242, 0o660));
        let error = group(FSGroupChangePolicy::Always).take(&volume.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}
