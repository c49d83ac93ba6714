//! A part of a volume of the pod's, mounted where no container reaches it.
//!
//! Containers write into the volume while others are made, and may put links where a directory is looked for. So the way
//! is gone from one open directory to the next and never out of the volume, and what is mounted is what was opened.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MsFlags, mount},
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, mkdirat},
    unistd::{Gid, Uid, fchownat},
};

use super::options;

/// Where it is and what is made of it where it is not there yet, as kubelet makes it on the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SubPath {
    volume: PathBuf,
    inner: PathBuf,
    mode: Mode,
    owner: (Uid, Gid),
}

impl SubPath {
    /// Of what a storage says: the volume is its source, the part the one option of its driver.
    ///
    /// # Errors
    /// What makes no sense of it.
    pub(super) fn parse(volume: &str, driver_options: &[String], options: &[String]) -> Result<Self, String> {
        let [inner] = driver_options else {
            return Err("wants one driver option, the path in the volume".into());
        };
        let inner = PathBuf::from(inner);
        if !inner.components().all(|part| matches!(part, Component::Normal(_)))
            || inner.as_os_str().is_empty()
        {
            return Err(format!("driver option {inner:?}: wants a path in the volume"));
        }
        let number = |key: &str, radix: u32, otherwise: u32| {
            let text = options::value(options, key);
            let number = text.map_or(Ok(otherwise), |text| u32::from_str_radix(text, radix));
            number.map_err(|error| format!("{key} {:?}: {error}", text.unwrap_or_default()))
        };
        Ok(Self {
            volume: PathBuf::from(volume),
            inner,
            mode: Mode::from_bits_truncate(number("mode", 8, 0o755)?),
            owner: (Uid::from_raw(number("uid", 10, 0)?), Gid::from_raw(number("gid", 10, 0)?)),
        })
    }

    pub(super) fn volume(&self) -> &Path {
        &self.volume
    }

    /// Mounts it on `target`.
    pub(super) fn mount_on(&self, target: &Path) -> io::Result<()> {
        let part = self.open().map_err(|error| {
            let what = format!("{} in {}: {}", self.inner.display(), self.volume.display(), error.desc());
            io::Error::new(io::Error::from(error).kind(), what)
        })?;
        if is_directory(&part)? {
            fs::create_dir_all(target)?;
        } else {
            target.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::options().create(true).append(true).open(target)?;
        }
        let opened = name_of(&part);
        mount(Some(opened.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    }

    fn open(&self) -> Result<OwnedFd, Errno> {
        let volume =
            open(&self.volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        match inside(&volume, &self.inner) {
            Err(Errno::ENOENT) => self.make(&volume),
            opened => opened,
        }
    }

    /// Makes the directories that are missing on the way.
    fn make(&self, volume: &OwnedFd) -> Result<OwnedFd, Errno> {
        let mut here =
            volume.try_clone().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        let mut way = PathBuf::new();
        for part in self.inner.components().map(Component::as_os_str) {
            way.push(part);
            // By its whole path: a link of the volume's own may lead back up in it.
            here = match inside(volume, &way) {
                Err(Errno::ENOENT) => self.make_one(&here, part)?,
                opened => opened?,
            };
        }
        Ok(here)
    }

    fn make_one(&self, parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
        match mkdirat(parent, name, Mode::S_IRWXU) {
            // Another container's may be made at the same time.
            Err(Errno::EEXIST) => return inside(parent, Path::new(name)),
            made => made?,
        }
        let directory = inside(parent, Path::new(name))?;
        let (uid, gid) = self.owner;
        fchownat(&directory, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
        let opened = name_of(&directory);
        fchmodat(AT_FDCWD, opened.as_str(), self.mode, FchmodatFlags::FollowSymlink)?;
        Ok(directory)
    }
}

fn inside(directory: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let within =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(directory, path, OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(within))
}

fn name_of(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn is_directory(file: &OwnedFd) -> Result<bool, Errno> {
    let kind = SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT;
    Ok(kind == SFlag::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use nix::{
        mount::umount,
        sched::{CloneFlags, unshare},
    };

    use super::*;

    fn part(volume: &Path, inner: &str) -> Result<SubPath, String> {
        let options = ["mode=2770", "uid=7", "gid=4242"].map(str::to_owned);
        SubPath::parse(volume.to_str().unwrap(), &[inner.to_owned()], &options)
    }

    /// On a thread with mounts of its own.
    fn on_a_volume(test: impl FnOnce(&Path, &Path) + Send + 'static) {
        let whole = move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let (volume, target) = (dir.path().join("volume"), dir.path().join("target"));
            fs::create_dir(&volume).unwrap();
            test(&volume, &target);
        };
        std::thread::spawn(whole).join().unwrap();
    }

    #[test]
    fn d15_a_part_that_is_missing_is_made_as_the_host_has_it() {
        on_a_volume(|volume, target| {
            fs::create_dir(volume.join("one")).unwrap();
            part(volume, "one/two/three").unwrap().mount_on(target).unwrap();
            fs::write(target.join("file"), "seen").unwrap();
            assert_eq!(fs::read_to_string(volume.join("one/two/three/file")).unwrap(), "seen");
            for made in ["one/two", "one/two/three"] {
                let made = fs::metadata(volume.join(made)).unwrap();
                assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o2770, 7, 4242));
            }
            assert_eq!(fs::metadata(volume.join("one")).unwrap().gid(), 0, "what was there stays as it is");
            umount(target).unwrap();
        });
    }

    #[test]
    fn d15_a_part_may_be_a_file_and_links_within_the_volume_are_followed() {
        on_a_volume(|volume, target| {
            fs::create_dir(volume.join("real")).unwrap();
            fs::write(volume.join("real/file"), "of the volume").unwrap();
            symlink("real", volume.join("link")).unwrap();
            part(volume, "link/file").unwrap().mount_on(target).unwrap();
            assert_eq!(fs::read_to_string(target).unwrap(), "of the volume");
            umount(target).unwrap();
        });
    }

    #[test]
    fn no_way_leads_out_of_the_volume() {
        on_a_volume(|volume, target| {
            for link in ["/", "..", "../target", "/proc/self/root"] {
                let _ = fs::remove_file(volume.join("link"));
                symlink(link, volume.join("link")).unwrap();
                for inner in ["link", "link/etc"] {
                    let error = part(volume, inner).unwrap().mount_on(target).unwrap_err().to_string();
                    assert!(error.contains("link"), "{link} {inner}: {error}");
                    assert!(!target.exists());
                }
            }
        });
    }

    #[test]
    fn parts_that_make_no_sense_are_refused() {
        let volume = Path::new("/run/kata-containers/sandbox/ephemeral/cache");
        for inner in ["", "/etc", "..", "a/../..", "."] {
            assert!(part(volume, inner).is_err(), "{inner:?}");
        }
        assert!(SubPath::parse("/x", &[], &[]).is_err());
        assert!(SubPath::parse("/x", &["a".into()], &["mode=9".into()]).unwrap_err().contains("mode"));
    }
}
