//! The directory of templates.
//!
//! ```text
//! <key>/memory, state, made-of.json   a template: it is there whole or not at all, as it is renamed to be there
//! making/                             one that is being made, or was when its maker was killed
//! lock                                held by the one maker
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statvfs::statvfs,
};

use super::key::{Key, Made};

const LOCK: &str = "lock";
const MAKING: &str = "making";
const MADE_OF: &str = "made-of.json";

/// The files of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) memory: PathBuf,
    pub(super) state: PathBuf,
}

impl Files {
    fn in_directory(directory: &Path) -> Files {
        Files { memory: directory.join("memory"), state: directory.join("state") }
    }
}

/// A directory that only root can write to.
#[derive(Debug)]
pub(super) struct Store(PathBuf);

/// The right to make a template, and to remove any.
#[derive(Debug)]
pub(super) struct Lock<'a> {
    store: &'a Store,
    _file: Flock<File>,
}

impl Store {
    /// Makes the directory if it is not there.
    pub(super) fn open(directory: &Path) -> Result<Store, String> {
        let failed =
            |error: std::io::Error| format!("factory.template_path {}: {error}", directory.display());
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let metadata = fs::symlink_metadata(directory).map_err(failed)?;
        let owner = nix::unistd::geteuid().as_raw();
        if !metadata.is_dir() || metadata.uid() != owner || metadata.mode() & 0o022 != 0 {
            return Err(format!(
                "factory.template_path {}: others than root can write to it; a machine that starts from there would be theirs",
                directory.display()
            ));
        }
        Ok(Store(directory.to_owned()))
    }

    /// The template of that key, if there is one.
    pub(super) fn find(&self, key: &Key) -> Option<Files> {
        let files = Files::in_directory(&self.0.join(&key.name));
        (files.memory.exists() && files.state.exists()).then_some(files)
    }

    /// `None` if somebody else has it.
    pub(super) fn lock(&self) -> Result<Option<Lock<'_>>, String> {
        let path = self.0.join(LOCK);
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        match Flock::lock(file.map_err(|error| failed(&error))?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Lock { store: self, _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(failed(&error)),
        }
    }

    /// Every template there is, with whether the files it was made of are still the same.
    pub(super) fn all(&self) -> Vec<(PathBuf, bool)> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        entries
            .filter(|path| path.join(MADE_OF).exists())
            .map(|path| (path.clone(), is_current(&path)))
            .collect()
    }
}

fn is_current(template: &Path) -> bool {
    let text = fs::read_to_string(template.join(MADE_OF)).unwrap_or_default();
    let made: Option<Vec<Made>> = serde_json::from_str(&text).ok();
    made.is_some_and(|made| made.iter().all(Made::is_current))
}

/// Removes a template; copies of it that run keep what they have.
pub(super) fn remove(template: &Path) {
    // The record first: without it the rest is no template.
    let _ = fs::remove_file(template.join(MADE_OF));
    let _ = fs::remove_dir_all(template);
}

impl Lock<'_> {
    /// Removes what a maker left that was killed, and templates whose files are not what they were.
    pub(super) fn tidy(&self) {
        let _ = fs::remove_dir_all(self.store.0.join(MAKING));
        for (template, _) in self.store.all().into_iter().filter(|(_, current)| !current) {
            remove(&template);
        }
    }

    /// A directory to make a template in.
    ///
    /// # Errors
    /// Too little room, among others.
    pub(super) fn begin(&self, room: u64) -> Result<Making<'_>, String> {
        let directory = self.store.0.join(MAKING);
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", directory.display());
        let file_system = statvfs(&self.store.0).map_err(|error| failed(&error))?;
        let free = file_system.blocks_available() * file_system.fragment_size();
        if free < room {
            return Err(format!(
                "factory.template_path {}: {} MiB are free, and {} may be needed: set another directory",
                self.store.0.display(),
                free >> 20,
                room >> 20
            ));
        }
        let template = directory.join("template");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&template);
        made.map_err(|error| failed(&error))?;
        Ok(Making { lock: self, directory, files: Files::in_directory(&template) })
    }
}

/// A template that is being made; dropped, it is removed.
#[derive(Debug)]
pub(super) struct Making<'a> {
    lock: &'a Lock<'a>,
    pub(super) directory: PathBuf,
    pub(super) files: Files,
}

impl Making<'_> {
    /// Puts the template, whose files are complete, where it is found.
    pub(super) fn publish(&self, key: &Key) -> Result<Files, String> {
        let template = self.directory.join("template");
        let to = self.lock.store.0.join(&key.name);
        let publish = || {
            for file in [&self.files.memory, &self.files.state] {
                File::open(file)?.sync_all()?;
            }
            fs::write(template.join(MADE_OF), serde_json::to_vec(&key.files)?)?;
            File::open(template.join(MADE_OF))?.sync_all()?;
            match fs::remove_dir_all(&to) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::rename(&template, &to)
        };
        publish().map_err(|error: std::io::Error| format!("{}: {error}", to.display()))?;
        Ok(Files::in_directory(&to))
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
