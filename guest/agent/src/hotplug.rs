//! Processors and memory that come while the guest runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::error::Error;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
const POLICY: &str = "/sys/module/memory_hotplug/parameters";

/// How often and how far apart the kernel is looked at for processors that are announced but not there yet;
/// it has no event for their being ready.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Has the kernel use memory as soon as it is there, and keep as much of it as is prudent free of what cannot be moved
/// (the `auto-movable` policy), so that it can go again. Without, memory is there when the host asks for it to be
/// brought online. See the kernel's "Memory Hot(Un)Plug" document.
pub(crate) fn use_new_memory() {
    let policy = Path::new(POLICY).join("online_policy");
    let set = fs::write(policy, "auto-movable")
        .and(fs::write(Path::new(MEMORY).join("auto_online_blocks"), "online"));
    if let Err(error) = set {
        ::log::debug!("new memory waits to be brought online: {error}");
    }
}

/// Has as many as `cpus` processors online, boot's among them and no others, or all if it is 0, and, unless
/// `cpu_only`, all memory. With `wait`, not before there are that many.
///
/// # Errors
///
/// [`Error::Timeout`] if there are fewer, [`Error::System`] if the kernel refuses one.
pub(crate) async fn set_online(cpus: u32, cpu_only: bool, wait: bool) -> Result<(), Error> {
    let wanted = if cpus == 0 { usize::MAX } else { cpus as usize };
    let mut online = set_cpus(Path::new(CPUS), wanted)?;
    for _ in 1..ATTEMPTS {
        if !wait || online >= cpus as usize {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        online = set_cpus(Path::new(CPUS), wanted)?;
    }
    if wait && online < cpus as usize {
        let what = format!("have {cpus} processors online, there are {online}");
        return Err(Error::Timeout { what, after: PAUSE * ATTEMPTS });
    }
    if !cpu_only {
        for block in devices(Path::new(MEMORY), "memory")? {
            block.set(true)?;
        }
    }
    Ok(())
}

/// Makes the kernel look for memory at each of `addresses`.
pub(crate) fn probe_memory(addresses: &[u64]) -> Result<(), Error> {
    let probe = Path::new(MEMORY).join("probe");
    for address in addresses {
        fs::write(&probe, format!("{address:#x}"))
            .map_err(Error::system(format!("probe for memory at {address:#x}")))?;
    }
    Ok(())
}

/// Whether the kernel can be made to look.
pub(crate) fn can_probe_memory() -> bool {
    Path::new(MEMORY).join("probe").exists()
}

/// Size of the pieces memory comes in, in bytes; 0 if the kernel has no memory hotplug.
pub(crate) fn memory_block_size() -> u64 {
    let text = fs::read_to_string(Path::new(MEMORY).join("block_size_bytes")).unwrap_or_default();
    u64::from_str_radix(text.trim(), 16).unwrap_or(0)
}

/// Switches processors on up to `wanted`, and those after them off. Returns how many are on.
fn set_cpus(dir: &Path, wanted: usize) -> Result<usize, Error> {
    let cpus = devices(dir, "cpu")?;
    for (index, cpu) in cpus.iter().enumerate() {
        cpu.set(index < wanted)?;
    }
    Ok(cpus.len().min(wanted))
}

/// A processor or a block of memory.
struct Device {
    number: u32,
    /// The file that tells whether it is online and makes it so. The first processor has none on most machines, and is.
    switch: Option<PathBuf>,
}

impl Device {
    fn set(&self, online: bool) -> Result<(), Error> {
        let Some(switch) = &self.switch else { return Ok(()) };
        let value = if online { "1" } else { "0" };
        if fs::read_to_string(switch).is_ok_and(|state| state.trim() == value) {
            return Ok(());
        }
        fs::write(switch, value).map_err(Error::system(format!("write {value} to {}", switch.display())))
    }
}

/// Every `<kind><number>` in `dir`, in the order of their numbers.
fn devices(dir: &Path, kind: &str) -> Result<Vec<Device>, Error> {
    let doing = || format!("look for {kind} in {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::system(doing()))? {
        let path = entry.map_err(Error::system(doing()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(number) = name.strip_prefix(kind).and_then(|number| number.parse().ok()) else { continue };
        let switch = Some(path.join("online")).filter(|switch| switch.exists());
        found.push(Device { number, switch });
    }
    found.sort_by_key(|device| device.number);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four processors, of which the first has no switch, and something else.
    fn cpus(states: [&str; 3]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cpu0", "cpu1", "cpu2", "cpu10", "cpufreq"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for (name, state) in ["cpu1", "cpu2", "cpu10"].into_iter().zip(states) {
            fs::write(dir.path().join(name).join("online"), state).unwrap();
        }
        fs::write(dir.path().join("cpufreq/online"), "0").unwrap();
        dir
    }

    fn states(dir: &Path) -> [String; 4] {
        ["cpu1", "cpu2", "cpu10", "cpufreq"]
            .map(|name| fs::read_to_string(dir.join(name).join("online")).unwrap())
    }

    #[test]
    fn processors_come_online_from_the_first_on() {
        let dir = cpus(["1\n", "0\n", "0\n"]);
        assert_eq!(set_cpus(dir.path(), 3).unwrap(), 3);
        assert_eq!(states(dir.path()), ["1\n", "1", "0\n", "0"]);
        assert_eq!(set_cpus(dir.path(), usize::MAX).unwrap(), 4);
        assert_eq!(states(dir.path()), ["1\n", "1", "1", "0"]);
    }

    #[test]
    fn processors_that_are_too_many_go_offline_from_the_last_on() {
        let dir = cpus(["1\n", "1\n", "1\n"]);
        assert_eq!(set_cpus(dir.path(), 2).unwrap(), 2);
        assert_eq!(states(dir.path()), ["1\n", "0", "0", "0"]);
        assert_eq!(set_cpus(dir.path(), 1).unwrap(), 1);
        assert_eq!(states(dir.path()), ["0", "0", "0", "0"]);
    }

    #[test]
    fn fewer_processors_than_wanted_are_told() {
        let dir = cpus(["0\n", "0\n", "0\n"]);
        assert_eq!(set_cpus(dir.path(), 8).unwrap(), 4);
    }
}
