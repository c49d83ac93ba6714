//! What a file or a directory of the host's is, read whole, to be copied.
//!
//! What is below a directory is opened one name at a time, in the directory that was looked at: no link is followed.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat, readlinkat},
    sys::stat::{Mode, SFlag},
};

/// The most that one mount may have: bytes, and files with directories and links. The guest has the copy in memory.
pub(super) const MOST_BYTES: u64 = 16 << 20;
pub(super) const MOST_ENTRIES: usize = 4096;
/// How many directories may be in one another.
const DEEPEST: usize = 32;

/// The link of a Kubernetes volume to the directory that has its content.
pub(super) const DATA: &str = "..data";

/// A file, a directory or a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Below what is copied; empty for that itself.
    pub(super) path: PathBuf,
    /// Type and permissions.
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    /// What is in the file, or where the link leads.
    pub(super) data: Vec<u8>,
}

/// Everything to be copied, directories before what is in them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) entries: Vec<Entry>,
    /// Where the link `..data` leads, which is the last of the entries then.
    pub(super) current: Option<OsString>,
}

/// Why something cannot be copied.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{}: {why}", path.display())]
    Io { path: PathBuf, why: io::Error },
    #[error(
        "{} is {what}, of which a guest gets no copy: mount a directory that has none, or set shared_fs to another \
        value than none",
        path.display()
    )]
    Kind { path: PathBuf, what: &'static str },
    #[error(
        "more than {} MiB or {MOST_ENTRIES} files and directories, which is too much for a copy in a guest's memory: use \
        a volume on a block device, or set shared_fs to another value than none",
        MOST_BYTES >> 20
    )]
    TooMuch,
    #[error("{}: more than {DEEPEST} directories in one another", path.display())]
    TooDeep { path: PathBuf },
    #[error("{}: the name is not UTF-8, which the guest's agent takes alone", path.display())]
    Name { path: PathBuf },
    /// Somebody exchanged it meanwhile.
    #[error("it is changed again and again")]
    Changed,
}

/// Reads `source`, itself a link or not.
///
/// # Errors
/// What it has that cannot be copied, and what the host's kernel refused.
pub(super) fn read(source: &Path) -> Result<Content, Unreadable> {
    let mut reading = Reading { entries: Vec::new(), bytes: 0 };
    let root = openat(AT_FDCWD, source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let root = root.map_err(failed(source))?;
    let current = readlinkat(&root, DATA).ok();
    let at_top = |name: &OsStr| is_published(name, current.as_deref());
    reading.add(&root, Path::new(""), source, 0, &at_top)?;
    if readlinkat(&root, DATA).ok() != current {
        return Err(Unreadable::Changed);
    }
    let mut entries = reading.entries;
    if let Some(at) = entries.iter().position(|entry| entry.path == Path::new(DATA)) {
        let link = entries.remove(at);
        entries.push(link);
    }
    Ok(Content { entries, current })
}

/// Beside the content that the link leads to there may be what was there before, and what will be.
fn is_published(name: &OsStr, current: Option<&OsStr>) -> bool {
    let Some(current) = current else { return true };
    !name.as_bytes().starts_with(b"..") || name == DATA || name == current
}

struct Reading {
    entries: Vec<Entry>,
    bytes: u64,
}

impl Reading {
    fn add(
        &mut self,
        opened: &OwnedFd,
        path: &Path,
        source: &Path,
        depth: usize,
        takes: &dyn Fn(&OsStr) -> bool,
    ) -> Result<(), Unreadable> {
        let is_root = path.as_os_str().is_empty();
        let from = if is_root { source.to_owned() } else { source.join(path) };
        let here = format!("/proc/self/fd/{}", opened.as_raw_fd());
        // The descriptor itself, a link's too.
        let metadata = File::from(opened.try_clone().map_err(failed(&from))?).metadata();
        let metadata = metadata.map_err(failed(&from))?;
        let kind = SFlag::from_bits_truncate(metadata.mode()) & SFlag::S_IFMT;
        let data = match kind {
            SFlag::S_IFDIR => Vec::new(),
            SFlag::S_IFLNK => readlinkat(opened, "").map_err(failed(&from))?.into_encoded_bytes(),
            SFlag::S_IFREG => self.content(&here).map_err(failed(&from))?,
            kind => return Err(Unreadable::Kind { path: from, what: word(kind) }),
        };
        self.bytes += data.len() as u64;
        if self.bytes > MOST_BYTES || self.entries.len() >= MOST_ENTRIES {
            return Err(Unreadable::TooMuch);
        }
        if path.to_str().is_none() {
            return Err(Unreadable::Name { path: from });
        }
        let owner = (metadata.uid(), metadata.gid());
        self.entries.push(Entry { path: path.to_owned(), mode: metadata.mode(), owner, data });
        if kind != SFlag::S_IFDIR {
            return Ok(());
        }
        if depth == DEEPEST {
            return Err(Unreadable::TooDeep { path: from });
        }
        for name in names(&here).map_err(failed(&from))?.iter().filter(|name| takes(name)) {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let next = openat(opened, name.as_os_str(), flags, Mode::empty());
            let next = next.map_err(failed(&from.join(name)))?;
            self.add(&next, &path.join(name), source, depth + 1, &|_| true)?;
        }
        Ok(())
    }

    /// A byte more than there may be, at most.
    fn content(&self, file: &str) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        File::open(file)?.take(MOST_BYTES - self.bytes + 1).read_to_end(&mut data)?;
        Ok(data)
    }
}

/// In an order that is the same each time.
fn names(directory: &str) -> io::Result<Vec<OsString>> {
    let names = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = names.take(MOST_ENTRIES + 1).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn word(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFIFO => "a FIFO",
        _ => "a device",
    }
}

fn failed<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Unreadable {
    let path = path.to_owned();
    move |error| Unreadable::Io { path, why: error.into() }
}

impl Unreadable {
    /// Whether it may be otherwise when one looks again.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Unreadable::Changed => true,
            Unreadable::Io { why, .. } => why.raw_os_error() == Some(Errno::ENOENT as i32),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    };

    use super::*;

    fn paths(content: &Content) -> Vec<&str> {
        content.entries.iter().map(|entry| entry.path.to_str().unwrap()).collect()
    }

    #[test]
    fn d13_a_published_volume_is_what_its_link_leads_to_and_the_link_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (content, text) in [("..1", "old"), ("..2", "new")] {
            fs::create_dir(at(content)).unwrap();
            fs::write(at(content).join("key"), text).unwrap();
        }
        symlink("..2", at("..data")).unwrap();
        symlink("..data/key", at("key")).unwrap();
        let content = read(dir.path()).unwrap();
        assert_eq!(paths(&content), ["", "..2", "..2/key", "key", "..data"]);
        assert_eq!(content.current.as_deref(), Some(OsStr::new("..2")));
        assert_eq!(content.entries[2].data, b"new");
        assert_eq!(content.entries[3].data, b"..data/key");
    }

    #[test]
    fn d12_links_are_kept_and_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), dir.path().join("away")).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "data").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4640)).unwrap();
        std::os::unix::fs::chown(&file, Some(7), Some(8)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4640)).unwrap();
        let content = read(dir.path()).unwrap();
        assert_eq!(paths(&content), ["", "away", "file"]);
        assert_eq!(content.entries[1].data, outside.path().as_os_str().as_bytes());
        assert_eq!((content.entries[2].mode, content.entries[2].owner), (0o104_640, (7, 8)));
        symlink(&file, outside.path().join("to-file")).unwrap();
        let content = read(&outside.path().join("to-file")).unwrap();
        assert_eq!((paths(&content), content.entries[0].data.as_slice()), (vec![""], b"data".as_slice()));
    }

    #[test]
    fn d12_what_cannot_be_copied_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("/socket is a socket") && error.contains("shared_fs"), "{error}");
        let error = read(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("/dev/null is a device"), "{error}");
        let error = read(&dir.path().join("no")).unwrap_err();
        assert!(error.is_passing() && error.to_string().contains("/no"), "{error}");
    }

    #[test]
    fn d12_copies_are_bounded_in_size_number_and_depth() {
        let dir = tempfile::tempdir().unwrap();
        let sparse = fs::File::create(dir.path().join("large")).unwrap();
        sparse.set_len(MOST_BYTES).unwrap();
        assert_eq!(read(dir.path()).unwrap().entries[1].data.len() as u64, MOST_BYTES);
        fs::write(dir.path().join("more"), "x").unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("16 MiB"));
        let many = tempfile::tempdir().unwrap();
        (0..MOST_ENTRIES).for_each(|number| drop(fs::File::create(many.path().join(number.to_string()))));
        assert!(matches!(read(many.path()), Err(Unreadable::TooMuch)));
        let deep = tempfile::tempdir().unwrap();
        fs::create_dir_all(deep.path().join("d/".repeat(DEEPEST + 1))).unwrap();
        assert!(matches!(read(deep.path()), Err(Unreadable::TooDeep { .. })));
    }
}
