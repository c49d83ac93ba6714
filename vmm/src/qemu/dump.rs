//! The memory of a guest whose kernel has panicked, kept for whoever wants to know why.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::statvfs::statvfs;
use slog::{Logger, error, warn};
use time::OffsetDateTime;

use super::qmp::{DumpGuestMemory, Getfd, Qmp, QueryMemorySize};
use crate::error::QmpError;
use crate::record::RECORD;
use crate::spec::PanicDump;

/// How long QEMU may take to write a guest's memory.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// What QEMU knows the file by.
const FD: &str = "dump";

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
enum DumpError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} has {free_mib} MiB free, twice the guest's memory is wanted: {wanted_mib} MiB", path.display())]
    Space { path: PathBuf, free_mib: u64, wanted_mib: u64 },
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// What is told beside the memory.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// QEMU's version.
    pub(crate) version: String,
    /// The machine as it was asked for.
    pub(crate) configuration: String,
    /// The directory with the record of its processes.
    pub(crate) run_dir: PathBuf,
}

/// Writes the guest's memory, and says in the log where it is, or why there is none.
pub(crate) async fn keep(qmp: &Qmp, dump: &PanicDump, facts: &Facts, log: &Logger) {
    match write(qmp, dump, facts, log).await {
        Ok(file) => error!(log, "the guest panicked; its memory is kept"; "file" => %file.display()),
        Err(why) => error!(log, "the guest panicked; its memory is not kept"; "why" => %why),
    }
}

async fn write(qmp: &Qmp, dump: &PanicDump, facts: &Facts, log: &Logger) -> Result<PathBuf, DumpError> {
    let dir = &dump.directory;
    // A guest's memory holds its secrets.
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
    let sizes = qmp.execute(QueryMemorySize {}).await?;
    check_space(dir, sizes.base_memory.saturating_add(sizes.plugged_memory) >> 20)?;
    for (name, text) in [("hypervisor.version", &facts.version), ("hypervisor.conf", &facts.configuration)] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(at(&path))?;
    }
    let record = facts.run_dir.join(RECORD);
    // The memory is worth keeping without it.
    if let Err(why) = fs::copy(&record, dir.join("hypervisor.state")) {
        warn!(log, "the record of the machine's processes is not kept"; "file" => %record.display(), "why" => %why);
    }
    let path = dir.join(format!("vmcore-{}.elf", stamp(SystemTime::now())));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(at(&path))?;
    match memory(qmp, file, dump.paging).await {
        Ok(()) => Ok(path),
        Err(error) => {
            // Half a core helps nobody.
            let _ = fs::remove_file(&path);
            Err(error.into())
        }
    }
}

async fn memory(qmp: &Qmp, file: File, paging: bool) -> Result<(), QmpError> {
    qmp.execute_with(Getfd { fdname: FD.to_owned() }, OwnedFd::from(file)).await?;
    let command = DumpGuestMemory { paging, protocol: format!("fd:{FD}"), format: "elf" };
    qmp.execute_within(command, PATIENCE).await.map(drop)
}

fn check_space(dir: &Path, mib: u64) -> Result<(), DumpError> {
    let stats = statvfs(dir).map_err(io::Error::from).map_err(at(dir))?;
    let free_mib = (stats.blocks_available() * stats.fragment_size()) >> 20;
    let wanted_mib = mib.saturating_mul(2);
    if free_mib < wanted_mib {
        return Err(DumpError::Space { path: dir.to_owned(), free_mib, wanted_mib });
    }
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DumpError {
    move |source| DumpError::Io { path: path.to_owned(), source }
}

/// Date and time in UTC to the millisecond, all digits.
fn stamp(time: SystemTime) -> String {
    let t = OffsetDateTime::from(time);
    format!(
        "{}{:02}{:02}{:02}{:02}{:02}.{:03}",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::qmp::tests::{Peer, connected};
    use serde_json::json;
    use slog::{Discard, o};

    #[test]
    fn b6_a_dump_has_the_time_in_its_name() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_007);
        assert_eq!(stamp(time), "20231114221320.007");
    }

    fn facts(run_dir: &Path) -> Facts {
        fs::write(run_dir.join(RECORD), "a record").unwrap();
        Facts { version: "7.2.0".into(), configuration: "{}".into(), run_dir: run_dir.to_owned() }
    }

    async fn answer(peer: &mut Peer, command: &str, returned: serde_json::Value) -> serde_json::Value {
        let asked = peer.hear().await;
        assert_eq!(asked["execute"], command);
        peer.say(&json!({"return": returned, "id": asked["id"]}).to_string()).await;
        asked["arguments"].clone()
    }

    async fn tell_size(peer: &mut Peer, bytes: u64) {
        answer(peer, "query-memory-size-summary", json!({"base-memory": bytes, "plugged-memory": 0})).await;
    }

    fn files(dir: &Path) -> Vec<String> {
        let names =
            fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn b6_a_dump_lies_beside_what_it_is_a_dump_of() {
        let (qmp, mut peer) = connected(Duration::from_secs(5)).await;
        let dir = tempfile::tempdir().unwrap();
        let dump = PanicDump { directory: dir.path().join("s1"), paging: true };
        let (log, facts) = (Logger::root(Discard, o!()), facts(dir.path()));
        let script = async {
            tell_size(&mut peer, 1 << 20).await;
            assert_eq!(answer(&mut peer, "getfd", json!({})).await, json!({"fdname": "dump"}));
            let asked = answer(&mut peer, "dump-guest-memory", json!({})).await;
            assert_eq!(asked, json!({"paging": true, "protocol": "fd:dump", "format": "elf"}));
        };
        tokio::join!(keep(&qmp, &dump, &facts, &log), script);
        let names = files(&dump.directory);
        assert_eq!(names[..3], ["hypervisor.conf", "hypervisor.state", "hypervisor.version"]);
        assert!(names[3].starts_with("vmcore-") && names[3].ends_with(".elf"), "{names:?}");
        assert_eq!(fs::read_to_string(dump.directory.join("hypervisor.state")).unwrap(), "a record");
    }

    #[tokio::test]
    async fn b6_without_room_for_it_there_is_no_dump_and_no_half_of_one() {
        let (qmp, mut peer) = connected(Duration::from_secs(5)).await;
        let dir = tempfile::tempdir().unwrap();
        let dump = PanicDump { directory: dir.path().join("s1"), paging: false };
        let (log, facts) = (Logger::root(Discard, o!()), facts(dir.path()));
        let size = tell_size(&mut peer, 1 << 60);
        let (result, ()) = tokio::join!(write(&qmp, &dump, &facts, &log), size);
        let error = result.unwrap_err();
        assert!(matches!(error, DumpError::Space { .. }), "{error}");
        assert!(files(&dump.directory).is_empty());
    }
}
