//! Processors and memory that come while the guest runs.

use std::{
    fs, io,
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

/// Brings processors and, unless `cpu_only`, memory online. With `wait`, not before `cpus` more processors
/// are online.
///
/// # Errors
///
/// [`Error::Timeout`] if fewer came, [`Error::System`] if the kernel refuses one.
pub(crate) async fn bring_online(cpus: u32, cpu_only: bool, wait: bool) -> Result<(), Error> {
    let mut online = 0;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        online += set_online(Path::new(CPUS), "cpu")?;
        if !wait || online >= cpus as usize {
            break;
        }
    }
    if wait && online < cpus as usize {
        let what = format!("bring {cpus} processors online, {online} came");
        return Err(Error::Timeout { what, after: PAUSE * ATTEMPTS });
    }
    if !cpu_only {
        set_online(Path::new(MEMORY), "memory")?;
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

/// Sets every device `<kind><number>` in `dir` online that is not. Returns how many that were.
fn set_online(dir: &Path, kind: &str) -> Result<usize, Error> {
    let offline =
        offline(dir, kind).map_err(Error::system(format!("look for {kind} in {}", dir.display())))?;
    for switch in &offline {
        fs::write(switch, "1").map_err(Error::system(format!("write 1 to {}", switch.display())))?;
    }
    Ok(offline.len())
}

fn offline(dir: &Path, kind: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(kind)).unwrap_or_default();
        let switch = dir.join(&name).join("online");
        let is_device = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        // The first processor has no switch on most machines.
        if is_device && fs::read_to_string(&switch).is_ok_and(|state| state.trim() == "0") {
            found.push(switch);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offline_is_switched_on() {
        let dir = tempfile::tempdir().unwrap();
        for (name, state) in
            [("cpu0", None), ("cpu1", Some("1\n")), ("cpu2", Some("0\n")), ("cpufreq", Some("0"))]
        {
            fs::create_dir(dir.path().join(name)).unwrap();
            if let Some(state) = state {
                fs::write(dir.path().join(name).join("online"), state).unwrap();
            }
        }
        assert_eq!(set_online(dir.path(), "cpu").unwrap(), 1);
        assert_eq!(fs::read_to_string(dir.path().join("cpu2/online")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.path().join("cpufreq/online")).unwrap(), "0");
    }
}
