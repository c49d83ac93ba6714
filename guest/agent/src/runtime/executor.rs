//! The last steps of a process before it becomes the container's own: find the program, tell why if there
//! is none, drop what the library has left to us, execute.

use std::{
    cell::OnceCell,
    collections::HashMap,
    convert::Infallible,
    ffi::{CString, NulError},
    os::fd::{BorrowedFd, RawFd},
    path::{Path, PathBuf},
};

use libcontainer::{
    capabilities::drop_privileges,
    seccomp::initialize_seccomp,
    syscall::syscall::create_syscall,
    workload::{self, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use nix::{
    errno::Errno,
    unistd::{AccessFlags, access, execve, read, write},
};
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process, Spec};

use super::home;
use crate::error::chain;

/// libcontainer's executor of ours.
#[derive(Clone)]
pub(super) struct Executor {
    failure: RawFd,
    late: Option<Late>,
    /// Where a byte comes when the program may run.
    go: Option<RawFd>,
    /// Whether the last entry of the environment is a stand-in for a HOME that is yet to be found.
    homeless: bool,
    home: OnceCell<Option<String>>,
}

/// Privileges an exec'd process drops itself: libcontainer knows no seccomp filter for those, and without
/// `no_new_privileges` the filter has to be in place before the capability to install it is gone.
#[derive(Clone)]
pub(super) struct Late {
    seccomp: LinuxSeccomp,
    capabilities: LinuxCapabilities,
    no_new_privileges: bool,
}

impl Late {
    /// The filter of the container, if it has one, and then also the capabilities, which are taken out of
    /// `process` so that libcontainer leaves them alone.
    pub(super) fn take_from(process: &mut Process, container: &Spec) -> Option<Self> {
        let seccomp = container.linux().as_ref()?.seccomp().clone()?;
        let capabilities = process.capabilities().clone().unwrap_or_default();
        process.set_capabilities(None);
        let no_new_privileges = process.no_new_privileges().unwrap_or(false);
        Some(Self { seccomp, capabilities, no_new_privileges })
    }

    fn apply(&self) -> Result<(), String> {
        if self.no_new_privileges {
            self.drop_capabilities()?;
            self.filter()
        } else {
            self.filter()?;
            self.drop_capabilities()
        }
    }

    fn filter(&self) -> Result<(), String> {
        initialize_seccomp(&self.seccomp)
            .map(drop)
            .map_err(|error| format!("install the seccomp filter: {}", chain(&error)))
    }

    fn drop_capabilities(&self) -> Result<(), String> {
        drop_privileges(&self.capabilities, create_syscall().as_ref())
            .map_err(|error| format!("drop capabilities: {}", chain(&error)))
    }
}

impl Executor {
    /// `failure` is the writing end of [`super::Failure`], `homeless` what [`home::stand_in`] says.
    pub(super) fn new(failure: RawFd, late: Option<Late>, homeless: bool) -> Self {
        Self { failure, late, go: None, homeless, home: OnceCell::new() }
    }

    /// Has the program wait for a byte from `go`, if there is one.
    pub(super) fn waits_for(self, go: Option<RawFd>) -> Self {
        Self { go, ..self }
    }

    /// Tells the agent, through a pipe that the library's long chains of errors do not reach.
    fn tell(&self, text: String) -> String {
        // SAFETY: the pipe stays open until this process executes or ends.
        let pipe = unsafe { BorrowedFd::borrow_raw(self.failure) };
        // The agent that does not read this sees the process end.
        let _ = write(pipe, text.as_bytes());
        text
    }

    fn execute(&self, process: &Process) -> Result<Infallible, String> {
        let program = find_program(process)?;
        if let Some(go) = self.go {
            // SAFETY: the pipe stays open until this process executes or ends.
            let go = unsafe { BorrowedFd::borrow_raw(go) };
            if !matches!(read(go, &mut [0]), Ok(1)) {
                return Err("given up before its program ran".to_owned());
            }
        }
        if let Some(late) = &self.late {
            late.apply()?;
        }
        let shown = program.display().to_string();
        let refused = |error: &dyn std::fmt::Display| format!("exec: {shown:?}: {error}");
        let program = c_string(&shown).map_err(|error| refused(&error))?;
        let args = c_strings(process.args().iter().flatten()).map_err(|error| refused(&error))?;
        let env = c_strings(&self.environment(process)).map_err(|error| refused(&error))?;
        execve(&program, &args, &env).map_err(|error| refused(&describe(error)))
    }

    /// The environment as configured, in its order, and HOME.
    fn environment(&self, process: &Process) -> Vec<String> {
        let mut all: Vec<String> = process.env().iter().flatten().cloned().collect();
        if self.homeless {
            all.pop();
        }
        if let Some(Some(home)) = self.home.get()
            && !all.iter().any(|entry| home::is_home(entry))
        {
            all.push(format!("HOME={home}"));
        }
        all
    }
}

impl workload::Executor for Executor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        match self.execute(process) {
            Err(text) => Err(ExecutorError::Other(self.tell(text))),
        }
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let found = match spec.process() {
            Some(process) => find_program(process).map(drop),
            None => Err("the configuration has no process".to_owned()),
        };
        found.map_err(|text| ExecutorValidationError::ArgValidationError(self.tell(text)))
    }

    /// Not to the process' own environment, which ends with its program: only HOME is news in what the library brings.
    fn setup_envs(&self, mut envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        let home = if self.homeless { home::find() } else { envs.remove("HOME") };
        // It is called once.
        let _ = self.home.set(home);
        Ok(())
    }
}

/// The file to execute, found as a shell would. The text of the error is the one people know from runc.
fn find_program(process: &Process) -> Result<PathBuf, String> {
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

fn c_string(text: &str) -> Result<CString, NulError> {
    CString::new(text)
}

fn c_strings<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<CString>, NulError> {
    texts.into_iter().map(|text| c_string(text)).collect()
}

#[cfg(test)]
mod tests {
    use libcontainer::workload::Executor as _;
    use oci_spec::runtime::ProcessBuilder;

    use super::*;

    fn process(args: &[&str], env: &[&str]) -> Process {
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        ProcessBuilder::default().args(strings(args)).env(strings(env)).build().unwrap()
    }

    #[test]
    fn a_program_is_found_in_the_path() {
        let found = find_program(&process(&["sh"], &["PATH=/nonexistent:/bin"])).unwrap();
        assert_eq!(found, Path::new("/bin/sh"));
    }

    #[test]
    fn a_missing_program_reads_as_with_runc() {
        let text = find_program(&process(&["no-such"], &["PATH=/bin"])).unwrap_err();
        assert_eq!(text, "exec: \"no-such\": executable file not found in $PATH");
        let text = find_program(&process(&["/no/such"], &["PATH=/bin"])).unwrap_err();
        assert_eq!(text, "exec: \"/no/such\": stat /no/such: no such file or directory");
        let text = find_program(&process(&["/"], &["PATH=/bin"])).unwrap_err();
        assert_eq!(text, "exec: \"/\": stat /: is a directory");
    }

    #[test]
    fn no_name_and_no_path_find_nothing() {
        assert!(find_program(&process(&[""], &["PATH=/bin"])).is_err());
        assert!(find_program(&process(&["sh"], &[])).is_err());
    }

    #[test]
    fn the_environment_keeps_its_order() {
        let executor = Executor::new(-1, None, false);
        executor.setup_envs(HashMap::from([("HOME".to_owned(), "/other".to_owned())])).unwrap();
        let env = executor.environment(&process(&["x"], &["Z=1", "HOME=/h", "A=2"]));
        assert_eq!(env, ["Z=1", "HOME=/h", "A=2"]);
    }

    #[test]
    fn a_home_is_found_in_place_of_its_stand_in() {
        let mut process = process(&["x"], &["Z=1"]);
        let executor = Executor::new(-1, None, home::stand_in(&mut process));
        assert_eq!(executor.environment(&process), ["Z=1"]);
        executor.setup_envs(HashMap::new()).unwrap();
        let found = home::find().map(|home| format!("HOME={home}"));
        assert_eq!(executor.environment(&process)[1..], Vec::from_iter(found));
    }
}
