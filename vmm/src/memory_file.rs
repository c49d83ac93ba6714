//! Memory of templates and their copies: files that QEMU is given open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::error::BootError;
use crate::spec::{Origin, Restore, VmSpec};

/// What is read and written at once, in bytes: little enough to stay in a processor's cache.
const PIECE: usize = 256 << 10;

/// The smallest hole worth having, in bytes: each costs two system calls when the file is read.
const HOLE: usize = 32 << 10;

/// A file with a guest's memory.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    pub(crate) fd: OwnedFd,
    pub(crate) filling: Filling,
}

/// What reads the memory of a template into that of its copy, if it is to be read.
#[derive(Debug)]
pub(crate) struct Filling(Option<JoinHandle<Result<(), BootError>>>);

impl Filling {
    /// Waits until the memory is that of the template.
    pub(crate) async fn done(self) -> Result<(), BootError> {
        let Some(filling) = self.0 else { return Ok(()) };
        filling.await.unwrap_or_else(|error| {
            let source = io::Error::other(error);
            Err(BootError::Io { doing: "read the template's memory".to_owned(), source })
        })
    }
}

impl MemoryFile {
    /// The file of a machine that is a template or a copy of one.
    ///
    /// # Errors
    /// What cannot be made or opened, and a template of another size.
    pub(crate) fn of(spec: &VmSpec) -> Result<Option<MemoryFile>, BootError> {
        let bytes = spec.memory.bytes();
        match &spec.origin {
            Origin::Boot => Ok(None),
            Origin::Template { memory } => {
                let made = new(memory, bytes).map_err(failed("make", memory))?;
                Ok(Some(MemoryFile { fd: made.into(), filling: Filling(None) }))
            }
            Origin::Copy { memory, restore, .. } => {
                let template = open(memory, bytes, *restore).map_err(failed("open", memory))?;
                match restore {
                    Restore::CopyOnWrite => {
                        Ok(Some(MemoryFile { fd: template.into(), filling: Filling(None) }))
                    }
                    Restore::Load => load(memory, template, bytes).map(Some),
                }
            }
        }
    }
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> BootError + 'a {
    move |source| BootError::Io { doing: format!("{what} {}", path.display()), source }
}

fn new(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    file.set_len(bytes)?;
    Ok(file)
}

/// QEMU opens the file of a copy that shares pages with the template anew, for writing, and does not write to it.
fn open(path: &Path, bytes: u64, restore: Restore) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(restore == Restore::CopyOnWrite).open(path)?;
    let found = file.metadata()?.len();
    if found == bytes {
        return Ok(file);
    }
    Err(io::Error::other(format!("it has {found} bytes, and the machine {bytes}")))
}

fn load(path: &Path, template: File, bytes: u64) -> Result<MemoryFile, BootError> {
    let made = || {
        let memory = File::from(memfd_create(c"memory", MFdFlags::MFD_CLOEXEC)?);
        memory.set_len(bytes)?;
        Ok((memory.try_clone()?, memory))
    };
    let (to, memory) = made().map_err(failed("make memory for the content of", path))?;
    let path = path.to_owned();
    let filling = spawn_blocking(move || copy(&template, &to).map_err(failed("read", &path)));
    Ok(MemoryFile { fd: memory.into(), filling: Filling(Some(filling)) })
}

/// Copies what is not a hole.
fn copy(from: &File, to: &File) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while let Some((start, end)) = data(from, at)? {
        at = start;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let read = from.read_at(&mut piece[..most], at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.write_all_at(&piece[..read], at)?;
            at += read as u64;
        }
    }
    Ok(())
}

/// Makes holes of what a template's memory has of zeros, so that it takes no room and its copies need not read it: what
/// a guest does not use is zero once it was taken from it, as its kernel clears what it gives.
///
/// # Errors
/// The file's; it has its content in any case.
pub fn make_sparse(memory: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(memory)?;
    let mut piece = vec![0; HOLE];
    let mut at = 0;
    while let Some((start, end)) = data(&file, at)? {
        // Whole pieces, which lie at multiples of their size.
        at = start.next_multiple_of(HOLE as u64);
        while at + HOLE as u64 <= end {
            file.read_exact_at(&mut piece, at)?;
            if piece.iter().all(|byte| *byte == 0) {
                punch(&file, at)?;
            }
            at += HOLE as u64;
        }
        at = at.max(end);
    }
    Ok(())
}

fn punch(file: &File, at: u64) -> io::Result<()> {
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
    Ok(fallocate(file, how, at, HOLE as i64)?)
}

/// The first bytes from `at` on that are no hole.
fn data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file, at, whence).map(i64::unsigned_abs)
    };
    match seek(at, Whence::SeekData) {
        Ok(start) => Ok(Some((start, seek(start, Whence::SeekHole)?))),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[7; 5000], 1 << 20).unwrap();
        file.write_all_at(&vec![9; PIECE + 1], 4 << 20).unwrap();
        file
    }

    #[test]
    fn a_copy_has_the_content_and_the_holes() {
        let (from, to) = (sparse(), tempfile::tempfile().unwrap());
        to.set_len(8 << 20).unwrap();
        copy(&from, &to).unwrap();
        let content = |file: &File| {
            let mut all = vec![0; 8 << 20];
            file.read_exact_at(&mut all, 0).unwrap();
            all
        };
        assert!(content(&from) == content(&to));
        assert_eq!(data(&to, 0).unwrap().unwrap().0, 1 << 20);
        let (start, end) = data(&to, 2 << 20).unwrap().unwrap();
        assert_eq!((start, end > (4 << 20) + PIECE as u64), (4 << 20, true));
        assert_eq!(data(&to, end).unwrap(), None);
    }

    #[test]
    fn zeros_become_holes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let file = File::create_new(&path).unwrap();
        file.write_all_at(&vec![0; 8 << 20], 0).unwrap();
        file.write_all_at(&[7; 5000], (1 << 20) + 100).unwrap();
        file.sync_all().unwrap();
        let before = std::fs::read(&path).unwrap();
        make_sparse(&path).unwrap();
        assert!(std::fs::read(&path).unwrap() == before);
        let file = File::open(&path).unwrap();
        let (start, end) = data(&file, 0).unwrap().unwrap();
        assert!((start, end) == (1 << 20, (1 << 20) + HOLE as u64), "{start:#x} to {end:#x}");
        assert_eq!(data(&file, end).unwrap(), None);
    }

    #[test]
    fn a_template_of_another_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        new(&path, 4096).unwrap();
        assert_eq!(new(&path, 4096).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let error = open(&path, 8192, Restore::Load).unwrap_err();
        assert_eq!(error.to_string(), "it has 4096 bytes, and the machine 8192");
    }
}
