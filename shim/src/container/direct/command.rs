//! `direct-volume add|remove|stats|resize`, for storage drivers: with the flags and files of `kata-runtime direct-volume`.
//!
//! `add` and `remove` are about the note alone. The other two ask the shim of the sandbox that has the volume.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder},
    io::ErrorKind,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::json;

use super::{NOTE, NOTES, Note, name_of, noted_in};
use crate::{
    cli,
    error::{Error, Result},
    management,
};

const VOLUME: &str = "volume-path";
const NOTED: &str = "mount-info";
const SIZE: &str = "size";
/// A volume's directory is named after it, four letters for three of its own, and a name has room for 255.
const LONGEST: usize = 189;

/// What is to be done with a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirectVolume {
    path: PathBuf,
    action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// Leave this note of it.
    Add(Vec<u8>),
    Remove,
    Stats,
    /// To so many bytes.
    Resize(u64),
}

impl DirectVolume {
    /// Reads the arguments after `direct-volume`.
    ///
    /// # Errors
    /// Names the flag that is missing or not right.
    pub(crate) fn parse(args: &[OsString]) -> Result<DirectVolume> {
        let wrong = |what: String| Error::InvalidArgument(format!("direct-volume: {what}"));
        let (action, flags) = args.split_first().ok_or_else(|| wrong(ACTIONS.into()))?;
        let mut flags = Flags::parse(flags).map_err(wrong)?;
        let path = flags.take(VOLUME).and_then(checked_path).map_err(wrong)?;
        let action = match action.to_str().unwrap_or_default() {
            "add" => flags.take(NOTED).map(|note| Action::Add(note.into_encoded_bytes())),
            "remove" => Ok(Action::Remove),
            "stats" => Ok(Action::Stats),
            "resize" => flags.take(SIZE).and_then(|size| bytes(&size)).map(Action::Resize),
            _ => Err(format!("{action:?} is no action: {ACTIONS}")),
        };
        let action = action.map_err(wrong)?;
        flags.are_used_up().map_err(wrong)?;
        Ok(DirectVolume { path, action })
    }
}

const ACTIONS: &str = "add, remove, stats or resize, with --volume-path PATH; -help says more";

/// `--name value` or `--name=value`, with one dash or two.
struct Flags(HashMap<String, OsString>);

impl Flags {
    fn parse(args: &[OsString]) -> std::result::Result<Flags, String> {
        let mut flags = HashMap::new();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let words = arg.as_bytes();
            let words = words.strip_prefix(b"--").or_else(|| words.strip_prefix(b"-"));
            let words = words.ok_or_else(|| format!("{arg:?}: a flag is expected, such as --{VOLUME}"))?;
            let mut halves = words.splitn(2, |byte| *byte == b'=');
            let name = String::from_utf8_lossy(halves.next().unwrap_or_default()).into_owned();
            let value = halves.next().map(OsStr::from_bytes).or_else(|| args.next().map(OsString::as_os_str));
            let value = value.ok_or_else(|| format!("--{name}: its value is missing"))?;
            if flags.insert(name.clone(), value.to_owned()).is_some() {
                return Err(format!("--{name}: given twice"));
            }
        }
        Ok(Flags(flags))
    }

    fn take(&mut self, name: &str) -> std::result::Result<OsString, String> {
        let value = self.0.remove(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| format!("--{name} is missing"))
    }

    fn are_used_up(&self) -> std::result::Result<(), String> {
        self.0.keys().next().map_or(Ok(()), |name| Err(format!("--{name}: no flag of this action")))
    }
}

fn checked_path(path: OsString) -> std::result::Result<PathBuf, String> {
    let length = path.len();
    if length > LONGEST {
        return Err(format!("--{VOLUME}: {length} bytes; at most {LONGEST} are possible"));
    }
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(format!(
            "--{VOLUME} {path:?}: must be the absolute path that the volume is published to"
        ));
    }
    Ok(path)
}

fn bytes(size: &OsStr) -> std::result::Result<u64, String> {
    let number = size.to_str().and_then(|size| size.parse().ok()).filter(|size| *size > 0);
    number.ok_or_else(|| format!("--{SIZE} {size:?}: must be a number of bytes"))
}

/// Does it, and tells on standard output what was asked for.
///
/// # Errors
/// The note that cannot be followed or written, or why the sandbox does not do it.
pub(crate) fn run(asked: &DirectVolume) -> Result<()> {
    let (notes, volume) = (Path::new(NOTES), asked.path.as_path());
    match &asked.action {
        Action::Add(note) => add(notes, volume, note),
        Action::Remove => remove(notes, volume),
        Action::Stats => {
            let path = percent_encode(volume.as_os_str().as_bytes(), NON_ALPHANUMERIC);
            let target = format!("/direct-volume/stats?path={path}");
            let mut stats = management::ask(&user(notes, volume)?, "GET", &target, "")?;
            stats.push(b'\n');
            cli::print(&stats)
        }
        Action::Resize(size) => {
            let path = volume.to_str().ok_or_else(|| {
                Error::InvalidArgument(format!("--{VOLUME} {volume:?}: it is no text, which JSON needs"))
            })?;
            let body = json!({"VolumePath": path, "Size": size}).to_string();
            management::ask(&user(notes, volume)?, "POST", "/direct-volume/resize", &body).map(drop)
        }
    }
}

/// Leaves a note of a volume, instead of the one there is.
fn add(notes: &Path, volume: &Path, note: &[u8]) -> Result<()> {
    Note::parse(note).map_err(|why| Error::InvalidArgument(format!("--{NOTED}: {why}")))?;
    let dir = notes.join(name_of(volume));
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io(dir.display()))?;
    // Beside the directory, whose other files name sandboxes; nobody reads half a note.
    let new = notes.join(format!(".{}", std::process::id()));
    let written = fs::write(&new, note).and_then(|()| fs::rename(&new, dir.join(NOTE)));
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        Error::io(dir.join(NOTE).display())(error)
    })
}

/// Takes the note away, and with it who has the volume. That there is none is what was asked for.
fn remove(notes: &Path, volume: &Path) -> Result<()> {
    let dir = notes.join(name_of(volume));
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io(dir.display())),
    }
}

/// The sandbox that has a volume. A volume is one sandbox's at a time.
fn user(notes: &Path, volume: &Path) -> Result<String> {
    let name = volume.display();
    let noted = noted_in(notes, volume, false)?;
    let noted = noted.ok_or_else(|| Error::NotFound(format!("{name}: no volume of that path was added")))?;
    let dir = notes.join(&noted.name);
    let files = fs::read_dir(&dir).map_err(Error::io(dir.display()))?.flatten();
    let mut sandboxes = files.map(|file| file.file_name()).filter(|file| *file != NOTE);
    let sandbox = sandboxes.find_map(|sandbox| sandbox.into_string().ok());
    sandbox.ok_or_else(|| Error::FailedPrecondition(format!("{name}: no sandbox has this volume in use")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"volume-type":"block","device":"/dev/sdx","fstype":"ext4","options":[]}"#;

    fn parse(args: &[&str]) -> std::result::Result<Action, String> {
        let args: Vec<_> = args.iter().map(OsString::from).collect();
        let parsed = DirectVolume::parse(&args).map_err(|error| error.to_string())?;
        assert_eq!(parsed.path, Path::new("/srv/data"));
        Ok(parsed.action)
    }

    #[test]
    fn d16_what_kata_s_own_tool_is_called_with_is_understood() {
        let volume = ["--volume-path", "/srv/data"];
        let with =
            |before: &[&'static str], after: &[&'static str]| parse(&[before, &volume, after].concat());
        assert_eq!(with(&["add"], &["--mount-info", JSON]), Ok(Action::Add(JSON.into())));
        assert_eq!(with(&["remove"], &[]), Ok(Action::Remove));
        assert_eq!(with(&["resize", "--size", "1048576"], &[]), Ok(Action::Resize(1 << 20)));
        assert_eq!(parse(&["stats", "-volume-path=/srv/data"]), Ok(Action::Stats));
    }

    #[test]
    fn what_is_not_right_is_named() {
        let long = format!("/{}", "x".repeat(189));
        for (args, named) in [
            (&[][..], "add, remove, stats or resize"),
            (&["mount", "--volume-path", "/srv"], "\"mount\""),
            (&["add", "--volume-path", "/srv"], "--mount-info is missing"),
            (&["stats"], "--volume-path is missing"),
            (&["stats", "--volume-path", ""], "--volume-path is missing"),
            (&["stats", "--volume-path"], "its value is missing"),
            (&["stats", "--volume-path", "srv"], "absolute"),
            (&["stats", "--volume-path", &long], "190 bytes"),
            (&["stats", "/srv"], "\"/srv\""),
            (&["stats", "--volume-path", "/srv", "--size", "1"], "--size"),
            (&["stats", "--volume-path", "/srv", "--volume-path=/x"], "twice"),
            (&["resize", "--volume-path", "/srv", "--size", "1G"], "\"1G\""),
            (&["resize", "--volume-path", "/srv", "--size", "0"], "\"0\""),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.starts_with("direct-volume: ") && error.contains(named), "{args:?}: {error}");
        }
        for path in [&long[..189], "/x"] {
            assert!(name_of(Path::new(path)).len() <= 255);
        }
    }

    #[test]
    fn d16_a_note_is_there_from_add_to_remove() {
        let dir = tempfile::tempdir().unwrap();
        let (notes, volume) = (dir.path().join("notes"), Path::new("/srv/data"));
        assert!(matches!(user(&notes, volume), Err(Error::NotFound(_))));
        add(&notes, volume, JSON.as_bytes()).unwrap();
        let noted = notes.join("L3Nydi9kYXRh");
        assert_eq!(fs::read_to_string(noted.join(NOTE)).unwrap(), JSON);
        assert_eq!(fs::read_dir(&notes).unwrap().count(), 1, "nothing else");
        assert!(matches!(user(&notes, volume), Err(Error::FailedPrecondition(_))));
        fs::write(noted.join("pod"), "").unwrap();
        assert_eq!(user(&notes, volume).unwrap(), "pod");
        let error = add(&notes, volume, b"{}").unwrap_err().to_string();
        assert!(error.contains("--mount-info") && error.contains("volume-type"), "{error}");
        for _ in 0..2 {
            remove(&notes, volume).unwrap();
            assert!(!noted.exists());
        }
    }
}
