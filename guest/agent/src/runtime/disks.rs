//! The disks among a container's devices: the host names them by its own numbers, the guest has others.

use libc::{major, minor};
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use crate::{devices::Disk, error::Error};

/// What may be done with a disk of which nothing is said.
const EVERYTHING: &str = "rwm";
const MODE: u32 = 0o660;

/// Makes the devices at the paths of `disks`, and what may be done with them, those of the guest.
///
/// # Errors
///
/// [`Error::Invalid`] that names the device which cannot be told of.
pub(crate) fn adapt(linux: &mut Linux, disks: &[Disk]) -> Result<(), Error> {
    disks.iter().try_for_each(|disk| one(linux, disk))
}

fn one(linux: &mut Linux, disk: &Disk) -> Result<(), Error> {
    let wrong = |error| Error::invalid(format!("device {}: {error}", disk.path.display()));
    let mut devices = linux.devices_mut().take().unwrap_or_default();
    let known = devices.iter().position(|device| *device.path() == disk.path).map(|at| devices.remove(at));
    let host = known.as_ref().map(|device| (device.major(), device.minor()));
    devices.push(guests(disk, known.as_ref()).map_err(|error| wrong(error.to_string()))?);
    linux.set_devices(Some(devices));
    let resources = linux.resources_mut().get_or_insert_default();
    let mut rules = resources.devices_mut().take().unwrap_or_default();
    let is_its_own = |rule: &LinuxDeviceCgroup| host.is_some() && rule.major().zip(rule.minor()) == host;
    let its_own = rules.iter().position(is_its_own).map(|at| rules.remove(at));
    rules.push(rule(disk, its_own.as_ref()).map_err(|error| wrong(error.to_string()))?);
    resources.set_devices(Some(rules));
    Ok(())
}

fn numbers(disk: &Disk) -> (i64, i64) {
    (major(disk.numbers).into(), minor(disk.numbers).into())
}

fn guests(disk: &Disk, known: Option<&LinuxDevice>) -> Result<LinuxDevice, oci_spec::OciSpecError> {
    let (major, minor) = numbers(disk);
    LinuxDeviceBuilder::default()
        .path(&disk.path)
        .typ(LinuxDeviceType::B)
        .major(major)
        .minor(minor)
        .file_mode(known.and_then(LinuxDevice::file_mode).unwrap_or(MODE))
        .uid(known.and_then(LinuxDevice::uid).unwrap_or(0))
        .gid(known.and_then(LinuxDevice::gid).unwrap_or(0))
        .build()
}

fn rule(disk: &Disk, known: Option<&LinuxDeviceCgroup>) -> Result<LinuxDeviceCgroup, oci_spec::OciSpecError> {
    let (major, minor) = numbers(disk);
    let access = known.and_then(|rule| rule.access().clone()).unwrap_or_else(|| EVERYTHING.to_owned());
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::B)
        .major(major)
        .minor(minor)
        .access(access)
        .build()
}

#[cfg(test)]
mod tests {
    use libc::makedev;

    use super::*;

    const LINUX: &str = r#"{
        "devices": [{"path": "/dev/data", "type": "b", "major": 7, "minor": 3, "fileMode": 432, "gid": 6}],
        "resources": {"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rm"}
        ]}
    }"#;

    #[test]
    fn d17_a_disk_has_the_guests_numbers_and_what_the_host_says_of_it() {
        let mut linux: Linux = serde_json::from_str(LINUX).unwrap();
        let disks = [("/dev/data", 0), ("/dev/more", 16)];
        let disks = disks.map(|(path, minor)| Disk { path: path.into(), numbers: makedev(254, minor) });
        adapt(&mut linux, &disks).unwrap();
        let devices = linux.devices().as_ref().unwrap();
        let device =
            |at: usize| (devices[at].path().to_str().unwrap(), devices[at].major(), devices[at].minor());
        assert_eq!([device(0), device(1)], [("/dev/data", 254, 0), ("/dev/more", 254, 16)]);
        assert_eq!((devices[0].file_mode(), devices[0].gid()), (Some(432), Some(6)));
        let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
        let rules: Vec<_> = rules.iter().map(|rule| (rule.minor(), rule.access().as_deref())).collect();
        assert_eq!(rules, [(None, Some("rwm")), (Some(0), Some("rm")), (Some(16), Some("rwm"))]);
    }
}
