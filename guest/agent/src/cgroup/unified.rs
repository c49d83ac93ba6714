//! `linux.resources.unified`: limits by the names of the cgroup's files.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use oci_spec::runtime::LinuxResources;

use super::PARENT;
use crate::error::Error;

/// Files that are no controller's, and limits all the same; others move processes, or end them.
const OF_NO_CONTROLLER: [&str; 2] = ["cgroup.max.depth", "cgroup.max.descendants"];

/// Refuses what is no limit of a container's cgroup, before anything of it is made or changed.
///
/// # Errors
///
/// [`Error::Invalid`] that names the file.
pub(crate) fn check(resources: &LinuxResources) -> Result<(), Error> {
    let Some(files) = resources.unified() else { return Ok(()) };
    let list = Path::new(PARENT).join("cgroup.controllers");
    let there = fs::read_to_string(&list).map_err(Error::system(format!("read {}", list.display())))?;
    files.keys().try_for_each(|file| check_name(file, &there))
}

fn check_name(file: &str, controllers: &str) -> Result<(), Error> {
    let refused = |why: String| Err(Error::invalid(format!("linux.resources.unified: {file:?}: {why}")));
    if file.contains('/') {
        return refused("not the name of a file: it has a slash".to_owned());
    }
    let (controller, parameter) = file.split_once('.').unwrap_or((file, ""));
    if controller.is_empty() || parameter.is_empty() {
        return refused("not of the form CONTROLLER.PARAMETER, such as memory.high".to_owned());
    }
    let there = controllers.split_whitespace().any(|name| name == controller);
    if there || OF_NO_CONTROLLER.contains(&file) {
        return Ok(());
    }
    refused(format!(
        "no controller {controller} limits this guest's containers; there are {}",
        controllers.trim()
    ))
}

/// What files had in them before.
#[derive(Debug, Default)]
pub(super) struct Before(Vec<(PathBuf, String)>);

impl Before {
    /// Writes it back. Whatever the kernel says, the error that led here is the one worth telling.
    pub(super) fn restore(&self) {
        for (path, was) in self.0.iter().rev() {
            let _ = write_lines(path, was);
        }
    }
}

/// Writes `files` into the cgroup at `dir`: all of them, or none.
///
/// # Errors
///
/// [`Error::Invalid`] for a file that is not there, [`Error::System`] for a value that the kernel refuses.
pub(super) fn write(dir: &Path, files: &HashMap<String, String>) -> Result<Before, Error> {
    let files: BTreeMap<_, _> = files.iter().collect();
    let mut before = Before::default();
    for (file, value) in files {
        let path = dir.join(file);
        // What can only be written to is no limit, and has nothing to go back to.
        let was = fs::read_to_string(&path);
        if let Err(error) = write_lines(&path, value) {
            before.restore();
            return Err(refusal(file, value, error));
        }
        before.0.extend(was.ok().map(|was| (path, was)));
    }
    Ok(before)
}

fn refusal(file: &str, value: &str, error: io::Error) -> Error {
    let what = format!("linux.resources.unified: {file:?}");
    if error.kind() == ErrorKind::NotFound {
        return Error::invalid(format!(
            "{what}: a container's cgroup has no such file in this guest's kernel"
        ));
    }
    Error::system(format!("{what}: write {value:?}"))(error)
}

/// A line at a time, as files for several devices want it.
fn write_lines(path: &Path, text: &str) -> io::Result<()> {
    for line in text.lines() {
        // Not created: only the kernel makes files here.
        fs::OpenOptions::new().write(true).open(path)?.write_all(line.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files<const N: usize>(files: [(&str, &str); N]) -> HashMap<String, String> {
        files.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_limits_of_controllers_that_are_there_are_taken() {
        let there = "cpu memory pids hugetlb\n";
        for file in ["memory.high", "hugetlb.2MB.max", "cpu.weight.nice", "cgroup.max.depth"] {
            check_name(file, there).unwrap();
        }
        for (file, word) in [
            ("../memory.max", "slash"),
            ("memory/../../cgroup.procs", "slash"),
            ("..", "CONTROLLER.PARAMETER"),
            (".memory", "CONTROLLER.PARAMETER"),
            ("memory", "CONTROLLER.PARAMETER"),
            ("memory.", "CONTROLLER.PARAMETER"),
            ("", "CONTROLLER.PARAMETER"),
            ("io.max", "no controller io"),
            ("mem.max", "there are cpu memory pids hugetlb"),
            ("cgroup.procs", "no controller cgroup"),
            ("cgroup.kill", "no controller cgroup"),
        ] {
            let error = check_name(file, there).expect_err(file).to_string();
            assert!(error.contains(&format!("{file:?}")) && error.contains(word), "{error}");
        }
    }

    #[test]
    fn all_files_are_written_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let text = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        fs::write(dir.path().join("cpu.weight"), "100\n").unwrap();
        fs::write(dir.path().join("memory.high"), "max\n").unwrap();
        write(dir.path(), &files([("memory.high", "123\n"), ("cpu.weight", "200")])).unwrap();
        assert_eq!((text("cpu.weight").as_str(), text("memory.high").as_str()), ("200\n", "123\n"));
        fs::create_dir(dir.path().join("pids.max")).unwrap();
        let error = write(dir.path(), &files([("memory.high", "456"), ("pids.max", "many")])).unwrap_err();
        assert!(error.to_string().contains("\"pids.max\": write \"many\""), "{error}");
        assert_eq!(text("memory.high"), "123\n");
    }

    #[test]
    fn a_file_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(dir.path(), &files([("memory.higher", "1")])).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)) && error.to_string().contains("memory.higher"), "{error}");
        assert!(!dir.path().join("memory.higher").exists());
    }
}
