//! Which files there are, and whether they can be trusted.

use std::env;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::finding::{Finding, LoadError, Origin, Place};
use crate::program::reason;

/// The text of a file, or why there is none.
pub(crate) type Text = Result<String, String>;

/// The files that are looked for where none is named, the first that is there.
pub const USUAL: [&str; 2] =
    ["/etc/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml"];

/// The variable of the environment that may name the file.
pub const FILE_VARIABLE: &str = "KATA_CONF_FILE";

/// What it names, if anything.
#[must_use]
pub fn file_of_environment() -> Option<PathBuf> {
    env::var_os(FILE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where to look for the main file.
pub(crate) struct Search {
    named: Option<Named>,
    usual: Vec<PathBuf>,
    /// Who must own a file that was named: root, and in unit tests whoever runs them.
    owner: u32,
}

struct Named {
    path: PathBuf,
    by: &'static str,
}

impl Search {
    pub(crate) fn of_this_machine(explicit: Option<&Path>) -> Self {
        let named = match (explicit, file_of_environment()) {
            (Some(path), _) => Some(Named { path: path.to_owned(), by: "the runtime's ConfigPath option" }),
            (None, Some(path)) => Some(Named { path, by: FILE_VARIABLE }),
            (None, None) => None,
        };
        Self { named, usual: USUAL.map(PathBuf::from).to_vec(), owner: 0 }
    }

    #[cfg(test)]
    pub(crate) fn named_by(path: &Path, owner: u32) -> Self {
        Self { named: Some(Named { path: path.to_owned(), by: "a test" }), usual: Vec::new(), owner }
    }

    #[cfg(test)]
    pub(crate) fn usual_in(usual: &[PathBuf]) -> Self {
        Self { named: None, usual: usual.to_vec(), owner: 0 }
    }

    /// The file named, or the first usual one that exists.
    pub(crate) fn main_file(&self) -> Result<MainFile, LoadError> {
        if let Some(named) = &self.named {
            return self.named_file(&named.path).map_err(|what| LoadError::Refused {
                path: named.path.clone(),
                named_by: named.by,
                what,
            });
        }
        let found = self.usual.iter().find_map(|path| path.canonicalize().ok());
        let path = found.ok_or_else(|| LoadError::NotFound { tried: self.usual.clone() })?;
        let text = read(&path, None);
        Ok(MainFile { path, text, owner: None })
    }

    /// Whoever can name a file must not be able to have the shim, which is root, act on somebody else's words.
    fn named_file(&self, path: &Path) -> Result<MainFile, String> {
        if !path.is_absolute() {
            return Err("not an absolute path; start it with /".to_owned());
        }
        let path =
            path.canonicalize().map_err(|error| format!("{}; name an existing file", reason(&error)))?;
        let text = read(&path, Some(self.owner))?;
        Ok(MainFile { path, text: Ok(text), owner: Some(self.owner) })
    }
}

/// The main file: its path with symbolic links resolved, and its text.
#[derive(Debug)]
pub(crate) struct MainFile {
    pub(crate) path: PathBuf,
    pub(crate) text: Text,
    /// Set when the drop-ins beside it must belong to this user.
    owner: Option<u32>,
}

impl MainFile {
    /// The entries of `config.d` beside the resolved file, in name order.
    ///
    /// # Errors
    ///
    /// The directory is there but cannot be read or trusted.
    pub(crate) fn drop_ins(&self) -> Result<Vec<(PathBuf, Text)>, Finding> {
        let directory = self.path.with_file_name("config.d");
        let paths = match self.entries(&directory) {
            Ok(paths) => paths,
            Err(what) => return Err(Finding { origin: Origin::File(directory), place: Place::Whole, what }),
        };
        Ok(paths.into_iter().map(|path| (path.clone(), read(&path, self.owner))).collect())
    }

    fn entries(&self, directory: &Path) -> Result<Vec<PathBuf>, String> {
        let said =
            |error: std::io::Error| format!("{}; make it a readable directory or remove it", reason(&error));
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(said)?,
        };
        trust(&fs::metadata(directory).map_err(said)?, self.owner)?;
        let mut paths =
            entries.map(|entry| Ok(entry.map_err(said)?.path())).collect::<Result<Vec<_>, String>>()?;
        paths.sort();
        Ok(paths)
    }
}

/// Reads a regular file. What was opened is what is judged, so a file swapped in between changes nothing; opening
/// does not wait, so neither does a FIFO.
fn read(path: &Path, owner: Option<u32>) -> Text {
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let mut file = opened.map_err(|error| format!("{}; make it a readable file", reason(&error)))?;
    let metadata = file.metadata().map_err(|error| reason(&error))?;
    if !metadata.is_file() {
        return Err("not a regular file; replace it by one or remove it".to_owned());
    }
    trust(&metadata, owner)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| reason(&error))?;
    String::from_utf8(bytes).map_err(|error| {
        format!("byte {} is not UTF-8; write the file in UTF-8", error.utf8_error().valid_up_to())
    })
}

fn trust(metadata: &Metadata, owner: Option<u32>) -> Result<(), String> {
    match owner {
        Some(owner) if metadata.uid() != owner => {
            Err(format!("owned by user {}, not by root; chown it to root", metadata.uid()))
        }
        Some(_) if metadata.mode() & 0o022 != 0 => {
            Err(format!("mode {:o} lets group or others write to it; chmod go-w", metadata.mode() & 0o7777))
        }
        _ => Ok(()),
    }
}
