//! Files below a directory that somebody else may be changing: every path is resolved by the kernel, inside
//! that directory, whatever links lie in the way.

mod published;

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, PermissionsExt, fchown},
    },
    path::{Component, Path, PathBuf},
};

use agent_protocol::agent::CopyFileRequest;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, renameat},
    sys::stat::{Mode, SFlag, mkdirat},
    unistd::{UnlinkatFlags, symlinkat, unlinkat},
};

use crate::error::Error;

/// What a container's own files may be read up to, in bytes.
pub(crate) const MAX_TEXT: u64 = 1024 * 1024;

/// Bytes of a file's name that are in that which it has first.
const LONGEST_LABEL: usize = 200;

/// The one directory the host may write files to.
const COPY_ROOT: &str = "/run/kata-containers";

/// Opens `path` as a process with the root directory `root` would.
pub(crate) fn open_in(root: &Path, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let root = open_dir(root)?;
    open_at(&root, path, flags, Mode::empty(), ResolveFlag::RESOLVE_IN_ROOT)
}

/// The text of a regular file of a container, cut at [`MAX_TEXT`].
pub(crate) fn read_in(root: &Path, path: &Path) -> io::Result<String> {
    let file = File::from(open_in(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
    if !file.metadata()?.is_file() {
        return Err(Errno::EINVAL.into());
    }
    let mut text = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Makes the directory `path` below `root`, as far as it is missing.
pub(crate) fn make_dirs(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    let root = open_dir(root)?;
    make_dirs_at(&root, path, 0o755, ResolveFlag::RESOLVE_IN_ROOT)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn open_at(
    root: impl AsFd,
    path: &Path,
    flags: OFlag,
    mode: Mode,
    resolve: ResolveFlag,
) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, path, how)?)
}

/// Walks down one component at a time, so that each is made in the directory that was looked at.
fn make_dirs_at(root: &OwnedFd, path: &Path, mode: u32, resolve: ResolveFlag) -> io::Result<OwnedFd> {
    let mut walked = std::path::PathBuf::from(".");
    let mut dir = root.try_clone()?;
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        match mkdirat(&dir, name, Mode::from_bits_truncate(mode)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        walked.push(name);
        dir = open_at(root, &walked, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty(), resolve)?;
    }
    Ok(dir)
}

/// Writes one piece of a file the host sends, or a directory, or a symbolic link. What is no directory is written beside
/// its name, and takes it when it is whole: nobody ever reads half of it, or finds nothing where something was.
///
/// # Errors
///
/// [`Error::Invalid`] for a path that is not below the share, [`Error::System`] otherwise.
pub(crate) fn copy(request: &CopyFileRequest) -> Result<(), Error> {
    let path = Path::new(&request.path);
    let relative = below(path).ok_or_else(|| {
        Error::invalid(format!("path {:?}: not an absolute path below {COPY_ROOT}", request.path))
    })?;
    copy_below(Path::new(COPY_ROOT), relative, request)
        .map_err(Error::system(format!("copy {}", request.path)))
}

fn below(path: &Path) -> Option<&Path> {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let relative = path.strip_prefix(COPY_ROOT).ok()?;
    (plain && relative.file_name().is_some()).then_some(relative)
}

fn copy_below(root: &Path, path: &Path, request: &CopyFileRequest) -> io::Result<()> {
    let root = open_dir(root)?;
    let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let parent = path.parent().unwrap_or(Path::new(""));
    let dir = make_dirs_at(&root, parent, request.dir_mode & 0o7777, strict)?;
    let name = path.file_name().map(Path::new).ok_or(Errno::EINVAL)?;
    let owner = (request.uid.cast_unsigned(), request.gid.cast_unsigned());
    match SFlag::from_bits_truncate(request.file_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => copy_dir(&dir, name, request.file_mode, owner),
        SFlag::S_IFLNK => copy_link(&dir, name, &request.data, owner),
        kind if kind == SFlag::S_IFREG || kind.is_empty() => copy_piece(&dir, name, request, owner),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn copy_dir(dir: &OwnedFd, name: &Path, mode: u32, owner: (u32, u32)) -> io::Result<()> {
    let made = make_dirs_at(dir, name, mode & 0o7777, ResolveFlag::RESOLVE_BENEATH)?;
    // An O_PATH descriptor cannot be changed through.
    let made =
        File::from(open_at(&made, Path::new("."), OFlag::O_RDONLY, Mode::empty(), ResolveFlag::empty())?);
    made.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    fchown(&made, Some(owner.0), Some(owner.1))
}

fn copy_link(dir: &OwnedFd, name: &Path, data: &[u8], owner: (u32, u32)) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let partial = partial(name);
    remove(dir, &partial)?;
    symlinkat(std::ffi::OsStr::from_bytes(data), dir, &partial)?;
    let (uid, gid) = (owner.0.into(), owner.1.into());
    nix::unistd::fchownat(dir, &partial, Some(uid), Some(gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let before = published::led_to(dir, name);
    renameat(dir, &partial, dir, name)?;
    before.map_or(Ok(()), |before| published::tidy(dir, &before, data))
}

fn copy_piece(dir: &OwnedFd, name: &Path, request: &CopyFileRequest, owner: (u32, u32)) -> io::Result<()> {
    let (Ok(offset), Ok(size)) = (u64::try_from(request.offset), u64::try_from(request.file_size)) else {
        return Err(Errno::EINVAL.into());
    };
    let end = offset.checked_add(request.data.len() as u64).filter(|end| *end <= size).ok_or(Errno::EFBIG)?;
    let partial = partial(name);
    // A container that can write there must not have this wait at a pipe of its own, nor fill another file.
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK;
    let (flags, mode) = if offset == 0 {
        remove(dir, &partial)?;
        (flags | OFlag::O_CREAT | OFlag::O_EXCL, Mode::from_bits_truncate(0o600))
    } else {
        (flags, Mode::empty())
    };
    let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let file = File::from(open_at(dir, &partial, flags, mode, strict)?);
    if !file.metadata()?.is_file() {
        return Err(Errno::EEXIST.into());
    }
    file.write_all_at(&request.data, offset)?;
    if end < size {
        return Ok(());
    }
    fchown(&file, Some(owner.0), Some(owner.1))?;
    file.set_permissions(fs::Permissions::from_mode(request.file_mode & 0o7777))?;
    Ok(renameat(dir, &partial, dir, name)?)
}

/// What a file is called until it is whole. A name may be as long as any already.
fn partial(name: &Path) -> PathBuf {
    let text = name.to_string_lossy();
    format!(".{}.partial", &text[..text.floor_char_boundary(LONGEST_LABEL)]).into()
}

fn remove(dir: &OwnedFd, name: &Path) -> io::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    pub(super) fn request(data: &[u8], offset: i64, size: i64, mode: u32) -> CopyFileRequest {
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        CopyFileRequest {
            file_size: size,
            file_mode: mode,
            dir_mode: 0o755,
            uid: uid.cast_signed(),
            gid: gid.cast_signed(),
            offset,
            data: data.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn a_file_appears_when_its_last_piece_does() {
        let root = tempfile::tempdir().unwrap();
        let path = Path::new("c1/sub/file");
        copy_below(root.path(), path, &request(b"hello ", 0, 11, 0o100_640)).unwrap();
        assert!(!root.path().join(path).exists());
        copy_below(root.path(), path, &request(b"world", 6, 11, 0o100_640)).unwrap();
        assert_eq!(fs::read(root.path().join(path)).unwrap(), b"hello world");
        assert_eq!(fs::metadata(root.path().join(path)).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(root.path().join("c1/sub")).unwrap().count(), 1);
    }

    #[test]
    fn links_and_directories_are_made() {
        let root = tempfile::tempdir().unwrap();
        copy_below(root.path(), Path::new("d"), &request(b"", 0, 0, 0o040_711)).unwrap();
        assert_eq!(fs::metadata(root.path().join("d")).unwrap().mode() & 0o7777, 0o711);
        copy_below(root.path(), Path::new("d/l"), &request(b"../x", 0, 0, 0o120_777)).unwrap();
        assert_eq!(fs::read_link(root.path().join("d/l")).unwrap(), Path::new("../x"));
    }

    #[test]
    fn a_file_and_a_link_take_the_place_of_what_is_there_at_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let long = "x".repeat(255);
        for name in ["f", &long] {
            for (data, mode) in [("one", 0o100_644), ("two", 0o120_777), ("three", 0o100_644)] {
                let size = data.len() as i64;
                copy_below(root.path(), Path::new(name), &request(data.as_bytes(), 0, size, mode)).unwrap();
            }
        }
        assert_eq!(fs::read_to_string(path).unwrap(), "three");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("c1")).unwrap();
        assert!(copy_below(root.path(), Path::new("c1/file"), &request(b"x", 0, 1, 0o644)).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_paths_below_the_share_are_taken() {
        assert_eq!(below(Path::new("/run/kata-containers/a/b")), Some(Path::new("a/b")));
        for bad in ["/etc/passwd", "/run/kata-containers", "/run/kata-containers/../x", "a", ""] {
            assert_eq!(below(Path::new(bad)), None, "{bad}");
        }
    }

    #[test]
    fn a_piece_past_the_end_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(copy_below(root.path(), Path::new("f"), &request(b"xy", 0, 1, 0o644)).is_err());
        assert!(copy_below(root.path(), Path::new("f"), &request(b"x", -1, 1, 0o644)).is_err());
    }

    #[test]
    fn a_containers_links_lead_to_its_own_files() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/real"), "own").unwrap();
        symlink("/etc/real", root.path().join("etc/passwd")).unwrap();
        assert_eq!(read_in(root.path(), Path::new("/etc/passwd")).unwrap(), "own");
    }
}
