//! Block devices of the host that a container gets: disks of the machine, plugged in for it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
};

use agent_protocol::agent::Device;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use tokio::{runtime::Handle, sync::Mutex as AsyncMutex};
use vmm::plug::{DeviceId, Disk, DiskBus, GuestAddress, PlugError, Pluggable};

use super::direct::Claim;
use crate::{
    error::{Error, Result},
    sandbox::Sandbox,
};

/// Where the kernel shows block devices by their numbers.
const SYS: &str = "/sys/dev/block";

/// A block device of the host for a container.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    /// Its device file in the container.
    pub(crate) path: PathBuf,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) read_only: bool,
}

/// Takes the devices of `linux` for the guest: those that stay are the disks which the container was given. A
/// privileged one sees every device of the host, and is given none of them: no rule says what it may do with it.
pub(super) fn given(linux: &mut Linux) -> Vec<BlockDevice> {
    let devices = linux.devices_mut().take().unwrap_or_default();
    let resources = linux.resources_mut().as_mut();
    let rules = resources.and_then(|resources| resources.devices_mut().take()).unwrap_or_default();
    let (mut kept, mut its_rules, mut given) = (Vec::new(), Vec::new(), Vec::new());
    for device in devices.into_iter().filter(|device| device.typ() == LinuxDeviceType::B) {
        if let Some(rule) = rules.iter().find(|rule| is_about(rule, &device)) {
            given.push(BlockDevice {
                path: device.path().clone(),
                major: device.major(),
                minor: device.minor(),
                read_only: !rule.access().as_deref().is_none_or(|access| access.contains('w')),
            });
            its_rules.push(rule.clone());
            kept.push(device);
        }
    }
    let some = |list: Vec<_>| Some(list).filter(|list: &Vec<_>| !list.is_empty());
    linux.set_devices(Some(kept).filter(|kept| !kept.is_empty()));
    if let Some(resources) = linux.resources_mut() {
        resources.set_devices(some(its_rules));
    }
    given
}

/// Whether a rule lets the container have this device, and not all that there are.
pub(super) fn is_about(rule: &LinuxDeviceCgroup, device: &LinuxDevice) -> bool {
    let numbers = rule.major().zip(rule.minor());
    rule.allow() && rule.typ() == Some(device.typ()) && numbers == Some((device.major(), device.minor()))
}

/// A device of the machine's that goes when this does. The guest must have let go of it by then.
pub(crate) struct Plugged {
    sandbox: Arc<Sandbox>,
    id: DeviceId,
    at: GuestAddress,
    /// That it is told whose it is.
    claim: OnceLock<Claim>,
}

impl Plugged {
    pub(super) fn of(sandbox: &Arc<Sandbox>, vmm::plug::Plugged { id, at }: vmm::plug::Plugged) -> Plugged {
        Plugged { sandbox: sandbox.clone(), id, at, claim: OnceLock::new() }
    }

    pub(crate) fn id(&self) -> &DeviceId {
        &self.id
    }

    /// Keeps a claim for as long as the machine has it. The first is kept, others are the same.
    pub(super) fn keep(&self, claim: impl FnOnce() -> Claim) {
        self.claim.get_or_init(claim);
    }

    /// How the guest reaches it, in the agent's terms.
    pub(super) fn driver(&self) -> &'static str {
        if matches!(self.at, GuestAddress::Scsi(_)) { "scsi" } else { "blk" }
    }

    /// Where the guest finds it.
    pub(super) fn place(&self) -> String {
        self.at.to_string()
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        let (sandbox, id) = (self.sandbox.clone(), self.id.clone());
        // Where nothing runs any more the machine goes as a whole.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { sandbox.unplug(&id).await });
        }
    }
}

/// Disks that several containers use, by the host's names.
pub(crate) type SharedDisks = AsyncMutex<HashMap<PathBuf, Weak<Plugged>>>;

/// Plugs the device in. Returns what the agent is told of it.
///
/// # Errors
/// Names the device and what keeps the machine from having it.
pub(super) async fn plug(sandbox: &Arc<Sandbox>, device: &BlockDevice) -> Result<(Arc<Plugged>, Device)> {
    let what = format!("device {} ({}:{})", device.path.display(), device.major, device.minor);
    let path = host_file(device).map_err(|why| Error::InvalidArgument(format!("{what}: {why}")))?;
    let plugged = plug_file(sandbox, &path, device.read_only).await;
    let plugged = plugged.map_err(|why| Error::Failed(format!("{what}: {why}")))?;
    let told = Device {
        id: plugged.place(),
        type_: plugged.driver().into(),
        container_path: device.path.to_string_lossy().into_owned(),
        ..Default::default()
    };
    Ok((Arc::new(plugged), told))
}

/// Plugs in a device that other containers may use as well: who comes first says whether it may be written to.
///
/// # Errors
/// As [`plug`].
pub(super) async fn plug_shared(
    sandbox: &Arc<Sandbox>,
    path: &Path,
    read_only: bool,
) -> Result<Arc<Plugged>> {
    let mut disks = sandbox.shared_disks().lock().await;
    if let Some(plugged) = disks.get(path).and_then(Weak::upgrade) {
        return Ok(plugged);
    }
    let plugged = plug_own(sandbox, path, read_only).await?;
    disks.retain(|_, disk| disk.strong_count() > 0);
    disks.insert(path.to_owned(), Arc::downgrade(&plugged));
    Ok(plugged)
}

/// The disk that several containers may use, if the machine has it.
pub(super) async fn plugged(sandbox: &Sandbox, path: &Path) -> Option<Arc<Plugged>> {
    sandbox.shared_disks().lock().await.get(path).and_then(Weak::upgrade)
}

/// Plugs in a device or an image that nobody else uses.
///
/// # Errors
/// As [`plug`].
pub(super) async fn plug_own(sandbox: &Arc<Sandbox>, path: &Path, read_only: bool) -> Result<Arc<Plugged>> {
    let plugged = plug_file(sandbox, path, read_only).await;
    plugged.map(Arc::new).map_err(|why| Error::Failed(format!("device {}: {why}", path.display())))
}

async fn plug_file(
    sandbox: &Arc<Sandbox>,
    path: &Path,
    read_only: bool,
) -> std::result::Result<Plugged, PlugError> {
    let disk = Disk { path: path.to_owned(), read_only, bus: DiskBus::VirtioBlk };
    Ok(Plugged::of(sandbox, sandbox.plug(Pluggable::Disk(disk)).await?))
}

/// The device file that the host has for it.
fn host_file(device: &BlockDevice) -> std::result::Result<PathBuf, String> {
    let directory = Path::new(SYS).join(format!("{}:{}", device.major, device.minor));
    let event = fs::read_to_string(directory.join("uevent"))
        .map_err(|error| format!("the host has no such block device: {}: {error}", directory.display()))?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(|name| Path::new("/dev").join(name)).ok_or_else(|| "the host has no file for it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX: &str = r#"{
        "devices": [
            {"path": "/dev/data", "type": "b", "major": 7, "minor": 3},
            {"path": "/dev/fixed", "type": "b", "major": 7, "minor": 4},
            {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
        ],
        "resources": {"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": 4, "access": "rm"}
        ]}
    }"#;

    #[test]
    fn d17_a_container_is_given_the_disks_that_a_rule_is_about() {
        let mut linux: Linux = serde_json::from_str(LINUX).unwrap();
        let given = given(&mut linux);
        let seen: Vec<_> = given
            .iter()
            .map(|device| (device.path.to_str().unwrap(), device.minor, device.read_only))
            .collect();
        assert_eq!(seen, [("/dev/data", 3, false), ("/dev/fixed", 4, true)]);
        assert_eq!(linux.devices().as_ref().unwrap().len(), 2);
        assert_eq!(linux.resources().as_ref().unwrap().devices().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn d17_a_privileged_container_is_not_given_all_the_hosts_disks() {
        let privileged = r#"{"devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}],
            "resources": {"devices": [{"allow": true, "access": "rwm"}]}}"#;
        let mut linux: Linux = serde_json::from_str(privileged).unwrap();
        assert_eq!(given(&mut linux), []);
        assert!(linux.devices().is_none());
        assert!(linux.resources().as_ref().unwrap().devices().is_none());
    }

    #[test]
    fn a_device_that_the_host_has_not_is_told_by_its_numbers() {
        let device = BlockDevice { path: "/dev/x".into(), major: 4095, minor: 1, read_only: false };
        assert!(host_file(&device).unwrap_err().contains("4095:1"));
    }
}
