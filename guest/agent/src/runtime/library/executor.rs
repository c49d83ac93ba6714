//! The last steps of a container's first process: find the program, tell why if there is none, execute.

use std::{
    cell::OnceCell,
    collections::HashMap,
    os::fd::{BorrowedFd, RawFd},
};

use libcontainer::workload::{self, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::unistd::write;
use oci_spec::runtime::{Process, Spec};

use crate::runtime::{
    home,
    program::{Program, look_up},
};

/// libcontainer's executor of ours.
#[derive(Clone)]
pub(super) struct Executor {
    failure: RawFd,
    /// Whether the last entry of the environment is a stand-in for a HOME that is yet to be found.
    homeless: bool,
    home: OnceCell<Option<String>>,
}

impl Executor {
    /// `failure` is the writing end of [`super::Failure`], `homeless` what [`home::stand_in`] says.
    pub(super) fn new(failure: RawFd, homeless: bool) -> Self {
        Self { failure, homeless, home: OnceCell::new() }
    }

    /// Tells the agent, through a pipe that the library's long chains of errors do not reach.
    fn tell(&self, text: String) -> String {
        // SAFETY: the pipe stays open until this process executes or ends.
        let pipe = unsafe { BorrowedFd::borrow_raw(self.failure) };
        // The agent that does not read this sees the process end.
        let _ = write(pipe, text.as_bytes());
        text
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
        // SAFETY: the pipe stays open until this process executes or ends.
        let failure = unsafe { BorrowedFd::borrow_raw(self.failure) };
        let found = Program::find(process, &self.environment(process));
        match found.and_then(|program| program.execute(failure)) {
            Err(text) => Err(ExecutorError::Other(self.tell(text))),
        }
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let found = match spec.process() {
            Some(process) => look_up(process).map(drop),
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

#[cfg(test)]
mod tests {
    use libcontainer::workload::Executor as _;

    use super::*;
    use crate::runtime::program::tests::process;

    #[test]
    fn the_environment_keeps_its_order() {
        let executor = Executor::new(-1, false);
        executor.setup_envs(HashMap::from([("HOME".to_owned(), "/other".to_owned())])).unwrap();
        let env = executor.environment(&process(&["x"], &["Z=1", "HOME=/h", "A=2"]));
        assert_eq!(env, ["Z=1", "HOME=/h", "A=2"]);
    }

    #[test]
    fn a_home_is_found_in_place_of_its_stand_in() {
        let mut process = process(&["x"], &["Z=1"]);
        let executor = Executor::new(-1, home::stand_in(&mut process));
        assert_eq!(executor.environment(&process), ["Z=1"]);
        executor.setup_envs(HashMap::new()).unwrap();
        let found = home::find().map(|home| format!("HOME={home}"));
        assert_eq!(executor.environment(&process)[1..], Vec::from_iter(found));
    }
}
