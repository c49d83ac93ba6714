//! The directory of templates.
//!
//! ```text
//! <key>/memory, state, made-of.json   a template: it is there whole or not at all, as it is renamed to be there
//! <key>/doubted                       its last copy did not come up
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
const DOUBTED: &str = "doubted";

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
        if !metadata.is_dir() {
            return Err(format!(
                "factory.template_path {}: not a directory; symbolic links are not followed",
                directory.display()
            ));
        }
        if metadata.uid() != owner || metadata.mode() & 0o022 != 0 {
            return Err(format!(
                "factory.template_path {}: others than root can write to it; a machine that starts from there would be theirs",
                directory.display()
            ));
        }
        Ok(Store(directory.to_owned()))
    }

    /// The template of that key, if there is one.
    pub(super) fn find(&self, key: &Key) -> Option<Files> {
        let template = self.0.join(&key.name);
        let files = Files::in_directory(&template);
        let is_whole = template.join(MADE_OF).exists() && files.memory.exists() && files.state.exists();
        is_whole.then_some(files)
    }

    /// Where a template is being made, or was when its maker was killed.
    pub(super) fn making(&self) -> Option<PathBuf> {
        Some(self.0.join(MAKING)).filter(|making| making.exists())
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

    /// What is left of templates whose removal did not come to its end.
    fn remains(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_left = |path: &PathBuf| {
            let Files { memory, state } = Files::in_directory(path);
            !path.join(MADE_OF).exists() && (memory.exists() || state.exists())
        };
        entries.filter(is_left).collect()
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

/// What is thought of a template one of whose copies did not come up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was removed meanwhile.
    Gone,
    /// The copy may have had a reason of its own: the next one shows.
    Doubted,
    /// Two in a row: it is removed.
    Useless,
}

/// Says of the template with this memory that a copy of it did not come up.
pub(super) fn doubt(memory: &Path) -> Verdict {
    let Some(template) = memory.parent().filter(|template| template.join(MADE_OF).exists()) else {
        return Verdict::Gone;
    };
    let mark = OpenOptions::new().write(true).create_new(true).mode(0o600).open(template.join(DOUBTED));
    match mark {
        Ok(_) => Verdict::Doubted,
        // A directory that takes no mark cannot say that it has had one.
        Err(_) => {
            remove(template);
            Verdict::Useless
        }
    }
}

/// Says of the template with this memory that a copy of it came up.
pub(super) fn trust(memory: &Path) {
    // Hardly ever there.
    let _ = fs::remove_file(memory.with_file_name(DOUBTED));
}

impl Lock<'_> {
    /// Removes what was left by who was killed, and templates whose files are not what they were.
    pub(super) fn tidy(&self) {
        let _ = fs::remove_dir_all(self.store.0.join(MAKING));
        self.store.remains().iter().for_each(|left| remove(left));
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key() -> Key {
        Key { name: "k1".into(), files: Vec::new() }
    }

    /// A directory with one template.
    fn made() -> (tempfile::TempDir, Store, Files) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let lock = store.lock().unwrap().unwrap();
        let making = lock.begin(0).unwrap();
        fs::write(&making.files.memory, "m").unwrap();
        fs::write(&making.files.state, "s").unwrap();
        let files = making.publish(&key()).unwrap();
        drop(making);
        drop(lock);
        (directory, store, files)
    }

    #[test]
    fn b17_a_template_is_removed_when_two_copies_in_a_row_do_not_come_up() {
        let (_directory, store, files) = made();
        assert_eq!(doubt(&files.memory), Verdict::Doubted);
        assert_eq!(store.find(&key()), Some(files.clone()));
        trust(&files.memory);
        trust(&files.memory);
        assert_eq!(doubt(&files.memory), Verdict::Doubted);
        assert_eq!(doubt(&files.memory), Verdict::Useless);
        assert_eq!((store.find(&key()), store.all().len()), (None, 0));
        assert_eq!(doubt(&files.memory), Verdict::Gone);
    }

    #[test]
    fn b17_what_is_left_of_a_removal_is_no_template_and_goes() {
        let (directory, store, files) = made();
        fs::remove_file(files.memory.with_file_name(MADE_OF)).unwrap();
        assert_eq!((store.find(&key()), store.all().len()), (None, 0));
        fs::create_dir_all(directory.path().join("somebody's")).unwrap();
        fs::create_dir_all(directory.path().join(MAKING)).unwrap();
        assert!(store.making().is_some());
        store.lock().unwrap().unwrap().tidy();
        assert!(store.making().is_none() && !files.memory.exists());
        assert!(directory.path().join("somebody's").exists());
    }

    #[test]
    fn b17_a_path_that_is_no_directory_is_told_from_one_that_others_write_to() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert!(Store::open(&link).unwrap_err().contains("symbolic links are not followed"));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Store::open(directory.path()).unwrap_err().contains("others than root"));
    }
}
