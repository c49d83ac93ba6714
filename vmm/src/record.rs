//! What a run directory says of its machine, for whoever comes after the program that booted it.
//!
//! One JSON object to a line: the machine, then each of its processes. The file is replaced as a whole, so nobody reads
//! half of it; should a crash of the host cut it all the same, what is left of it is still of use.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::identity::Process;
use crate::spec::{EXTRA_MONITOR, VmSpec};

/// The file.
pub(crate) const RECORD: &str = "processes";
/// The file that takes its place.
pub(crate) const NEXT: &str = "processes.new";
/// Of what is written here. Lines of processes stay as they are, whatever else changes: each version sweeps them all.
const VERSION: u32 = 1;

/// A machine, and what was started for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The machine; `None` if that line did not survive or is of a version that says something else.
    pub machine: Option<RecordedMachine>,
    /// Its processes in the order they were started. They need not be there any more.
    pub processes: Vec<Process>,
}

/// What is worth knowing of a machine that somebody else booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedMachine {
    /// The version of the record.
    pub version: u32,
    /// [`VmSpec::name`].
    pub name: String,
    /// [`VmSpec::uuid`].
    pub uuid: String,
    /// The guest's vsock address, where it is one of the host's.
    pub cid: Option<u32>,
    /// The socket of the second monitor in the run directory.
    pub monitor: Option<String>,
}

impl Record {
    /// Of a machine that nothing has been started for.
    pub(crate) fn of(spec: &VmSpec) -> Record {
        let machine = RecordedMachine {
            version: VERSION,
            name: spec.name.to_string(),
            uuid: spec.uuid.to_string(),
            cid: None,
            monitor: spec.extra_monitor.map(|_| EXTRA_MONITOR.to_owned()),
        };
        Record { machine: Some(machine), processes: Vec::new() }
    }

    /// Reads what `run_dir` says; `None` if nothing was started there, or all of it was stopped.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(run_dir: &Path) -> io::Result<Option<Record>> {
        let text = match fs::read(run_dir.join(RECORD)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let machine = text.lines().next().and_then(|line| serde_json::from_str::<RecordedMachine>(line).ok());
        let machine = machine.filter(|machine| machine.version == VERSION);
        let processes = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Some(Record { machine, processes }))
    }

    /// Makes it what `run_dir` says.
    pub(crate) fn write(&self, run_dir: &Path) -> io::Result<()> {
        let mut text = Vec::new();
        if let Some(machine) = &self.machine {
            serde_json::to_writer(&mut text, machine)?;
        }
        text.push(b'\n');
        for process in &self.processes {
            serde_json::to_writer(&mut text, process)?;
            text.push(b'\n');
        }
        let next = run_dir.join(NEXT);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW).open(&next)?.write_all(&text)?;
        fs::rename(next, run_dir.join(RECORD))
    }
}

/// Kills what the record in `run_dir` still finds: for whoever cleans up after a program that died. Returns the
/// processes that were there. Fails if the record is there and cannot be read; a line that is no process is passed
/// over.
pub fn sweep(run_dir: &Path) -> io::Result<Vec<Process>> {
    let Some(record) = Record::read(run_dir)? else { return Ok(Vec::new()) };
    let mut killed = Vec::new();
    for process in record.processes {
        if process.kill()? {
            killed.push(process);
        }
    }
    Ok(killed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::Sleep;

    fn process(pid: u32) -> Process {
        Process { pid, start_time: 7, name: "qemu".into() }
    }

    fn record(processes: &[Process]) -> Record {
        let (name, uuid) = ("sandbox-pod".into(), "01234567-89ab-4def-8123-456789abcdef".into());
        let machine = RecordedMachine { version: VERSION, name, uuid, cid: Some(9), monitor: None };
        Record { machine: Some(machine), processes: processes.to_vec() }
    }

    #[test]
    fn a2_b21_a_record_is_read_as_it_was_written_and_nothing_else_is_left() {
        use std::os::unix::fs::PermissionsExt;
        let run_dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(run_dir.path()).unwrap(), None);
        for record in [record(&[process(1)]), record(&[process(1), process(2)])] {
            record.write(run_dir.path()).unwrap();
            assert_eq!(Record::read(run_dir.path()).unwrap(), Some(record));
        }
        let files: Vec<_> = fs::read_dir(run_dir.path()).unwrap().flatten().collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn b21_what_is_left_of_a_record_that_was_cut_anywhere_is_of_use() {
        let run_dir = tempfile::tempdir().unwrap();
        let whole = record(&[process(1), process(2)]);
        whole.write(run_dir.path()).unwrap();
        let text = fs::read(run_dir.path().join(RECORD)).unwrap();
        let ends =
            |count: usize| text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(count).unwrap().0;
        for cut in 0..=text.len() {
            fs::write(run_dir.path().join(RECORD), &text[..cut]).unwrap();
            let read = Record::read(run_dir.path()).unwrap().unwrap();
            let expected = [1, 2].into_iter().filter(|line| cut >= ends(*line)).count();
            assert_eq!(read.processes, whole.processes[..expected], "cut at {cut}");
            assert_eq!(read.machine.is_some(), cut >= ends(0), "cut at {cut}");
        }
    }

    #[test]
    fn b21_a_record_of_another_version_still_tells_its_processes() {
        let run_dir = tempfile::tempdir().unwrap();
        let text = r#"{"version":2,"name":"x","uuid":"y","cid":null,"monitor":null,"more":1}"#;
        let line = serde_json::to_string(&process(3)).unwrap();
        for text in [format!("{text}\n{line}\n"), format!("{line}\n")] {
            fs::write(run_dir.path().join(RECORD), text).unwrap();
            let record = Record::read(run_dir.path()).unwrap().unwrap();
            assert_eq!((record.machine, record.processes), (None, vec![process(3)]));
        }
    }

    #[test]
    fn a_sweep_kills_what_is_recorded() {
        let mut sleep = Sleep::start();
        let run_dir = tempfile::tempdir().unwrap();
        let process = Process::of(sleep.0.id(), "qemu").unwrap();
        record(std::slice::from_ref(&process)).write(run_dir.path()).unwrap();
        assert_eq!(sweep(run_dir.path()).unwrap(), [process]);
        sleep.0.wait().unwrap();
        assert!(sweep(run_dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_sweep_spares_a_process_that_has_the_number_of_a_dead_one() {
        let mut sleep = Sleep::start();
        let run_dir = tempfile::tempdir().unwrap();
        let mut process = Process::of(sleep.0.id(), "qemu").unwrap();
        process.start_time -= 1;
        record(&[process]).write(run_dir.path()).unwrap();
        assert!(sweep(run_dir.path()).unwrap().is_empty());
        assert!(sleep.0.try_wait().unwrap().is_none());
    }
}
