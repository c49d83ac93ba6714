//! The program a process is to execute, and what it is given.

use std::{
    convert::Infallible,
    ffi::{CString, NulError},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access, execve, write},
};
use oci_spec::runtime::Process;

/// A program that was there and executable when it was looked for.
pub(super) struct Program {
    shown: String,
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds it where `process` now is; it will be given `env`. The error is what people know from runc.
    pub(super) fn find(process: &Process, env: &[String]) -> Result<Self, String> {
        let shown = look_up(process)?.display().to_string();
        let refused = |error: NulError| format!("exec: {shown:?}: {error}");
        let path = CString::new(shown.clone()).map_err(refused)?;
        let args = c_strings(process.args().iter().flatten()).map_err(refused)?;
        let env = c_strings(env).map_err(refused)?;
        Ok(Self { shown, path, args, env })
    }

    /// Returns only with what went wrong. `failure`, the writing end of [`super::Failure`], has heard by then that it came to
    /// this.
    pub(super) fn execute(&self, failure: impl AsFd) -> Result<Infallible, String> {
        let _ = write(failure, &[super::EXECUTES]);
        execve(&self.path, &self.args, &self.env)
            .map_err(|error| format!("exec: {:?}: {}", self.shown, describe(error)))
    }
}

/// The file to execute, found as a shell would. The text of the error is the one people know from runc.
pub(super) fn look_up(process: &Process) -> Result<PathBuf, String> {
    let name = process.args().as_ref().and_then(|args| args.first()).map_or("", String::as_str);
    let env = process.env().as_deref().unwrap_or_default();
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let refused = |why: &str| format!("exec: {name:?}: {why}");
    if name.contains('/') {
        return check_program(Path::new(name)).map_err(|why| refused(&format!("stat {name}: {why}")));
    }
    let mut reason = "executable file not found in $PATH";
    for dir in path.split(':').filter(|_| !name.is_empty()) {
        // An empty entry means the working directory.
        let dir = if dir.is_empty() { "." } else { dir };
        match check_program(&Path::new(dir).join(name)) {
            Ok(found) => return Ok(found),
            Err("permission denied") => reason = "permission denied",
            Err(_) => {}
        }
    }
    Err(refused(reason))
}

fn check_program(path: &Path) -> Result<PathBuf, &'static str> {
    let meta = path.metadata().map_err(|error| describe_io(&error))?;
    if meta.is_dir() {
        return Err("is a directory");
    }
    access(path, AccessFlags::X_OK).map_err(describe)?;
    Ok(path.to_owned())
}

fn describe_io(error: &std::io::Error) -> &'static str {
    describe(Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

fn describe(error: Errno) -> &'static str {
    match error {
        Errno::ENOENT => "no such file or directory",
        Errno::EACCES | Errno::EPERM => "permission denied",
        Errno::ENOEXEC => "exec format error",
        Errno::ENOTDIR => "not a directory",
        other => other.desc(),
    }
}

fn c_strings<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<CString>, NulError> {
    texts.into_iter().map(|text| CString::new(text.as_str())).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use oci_spec::runtime::ProcessBuilder;

    use super::*;

    pub(in crate::runtime) fn process(args: &[&str], env: &[&str]) -> Process {
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        ProcessBuilder::default().args(strings(args)).env(strings(env)).build().unwrap()
    }

    #[test]
    fn a_program_is_found_in_the_path() {
        let found = look_up(&process(&["sh"], &["PATH=/nonexistent:/bin"])).unwrap();
        assert_eq!(found, Path::new("/bin/sh"));
    }

    #[test]
    fn a_missing_program_reads_as_with_runc() {
        let text = look_up(&process(&["no-such"], &["PATH=/bin"])).unwrap_err();
        assert_eq!(text, "exec: \"no-such\": executable file not found in $PATH");
        let text = look_up(&process(&["/no/such"], &["PATH=/bin"])).unwrap_err();
        assert_eq!(text, "exec: \"/no/such\": stat /no/such: no such file or directory");
        let text = look_up(&process(&["/"], &["PATH=/bin"])).unwrap_err();
        assert_eq!(text, "exec: \"/\": stat /: is a directory");
    }

    #[test]
    fn no_name_and_no_path_find_nothing() {
        assert!(look_up(&process(&[""], &["PATH=/bin"])).is_err());
        assert!(look_up(&process(&["sh"], &[])).is_err());
    }
}
