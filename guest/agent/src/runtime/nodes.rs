//! The files of a container's devices: the host has them by its own numbers, the guest by others.

use libc::{major, minor};
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
};

use crate::{devices::Node, error::Error};

/// What may be done with a device of which nothing is said.
const EVERYTHING: &str = "rwm";
const MODE: u32 = 0o660;

/// Makes the devices at the paths of `nodes`, and what may be done with them, those of the guest.
///
/// # Errors
///
/// [`Error::Invalid`] that names the device which cannot be told of.
pub(crate) fn adapt(linux: &mut Linux, nodes: &[Node]) -> Result<(), Error> {
    // All of the host's first: the guest may call one as the host calls another.
    let known: Vec<_> = nodes.iter().map(|node| take(linux, node)).collect();
    nodes.iter().zip(known).try_for_each(|(node, known)| one(linux, node, known.as_ref()))
}

fn take(linux: &mut Linux, node: &Node) -> Option<LinuxDevice> {
    let devices = linux.devices_mut().as_mut()?;
    let at = devices.iter().position(|device| *device.path() == node.path)?;
    Some(devices.remove(at))
}

fn one(linux: &mut Linux, node: &Node, known: Option<&LinuxDevice>) -> Result<(), Error> {
    let wrong = |error| Error::invalid(format!("device {}: {error}", node.path.display()));
    let host = known.map(|device| (device.major(), device.minor()));
    let mut devices = linux.devices_mut().take().unwrap_or_default();
    // Two of the host's may be one in the guest, where a group may have more in it.
    let is_there = |device: &LinuxDevice| {
        *device.path() == node.becomes && (device.major(), device.minor()) == numbers(node)
    };
    if !devices.iter().any(is_there) {
        devices.push(guests(node, known).map_err(|error| wrong(error.to_string()))?);
    }
    linux.set_devices(Some(devices));
    let resources = linux.resources_mut().get_or_insert_default();
    let mut rules = resources.devices_mut().take().unwrap_or_default();
    let is_its_own = |rule: &LinuxDeviceCgroup| host.is_some() && rule.major().zip(rule.minor()) == host;
    let its_own = rules.iter().position(is_its_own).map(|at| rules.remove(at));
    rules.push(rule(node, its_own.as_ref()).map_err(|error| wrong(error.to_string()))?);
    resources.set_devices(Some(rules));
    Ok(())
}

fn numbers(node: &Node) -> (i64, i64) {
    (major(node.numbers).into(), minor(node.numbers).into())
}

fn guests(node: &Node, known: Option<&LinuxDevice>) -> Result<LinuxDevice, oci_spec::OciSpecError> {
    let (major, minor) = numbers(node);
    LinuxDeviceBuilder::default()
        .path(&node.becomes)
        .typ(node.kind)
        .major(major)
        .minor(minor)
        .file_mode(known.and_then(LinuxDevice::file_mode).unwrap_or(MODE))
        .uid(known.and_then(LinuxDevice::uid).unwrap_or(0))
        .gid(known.and_then(LinuxDevice::gid).unwrap_or(0))
        .build()
}

fn rule(node: &Node, known: Option<&LinuxDeviceCgroup>) -> Result<LinuxDeviceCgroup, oci_spec::OciSpecError> {
    let (major, minor) = numbers(node);
    let access = known.and_then(|rule| rule.access().clone()).unwrap_or_else(|| EVERYTHING.to_owned());
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(node.kind)
        .major(major)
        .minor(minor)
        .access(access)
        .build()
}

#[cfg(test)]
mod tests {
    use libc::makedev;
    use oci_spec::runtime::LinuxDeviceType;

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
        let disks = disks.map(|(path, minor)| Node {
            path: path.into(),
            becomes: path.into(),
            kind: LinuxDeviceType::B,
            numbers: makedev(254, minor),
        });
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

    #[test]
    fn d17_devices_of_the_host_that_are_one_in_the_guest_are_made_once() {
        let linux = r#"{"devices": [{"path": "/dev/vfio/8", "type": "c", "major": 240, "minor": 1},
                                    {"path": "/dev/vfio/1", "type": "c", "major": 240, "minor": 0}]}"#;
        let mut linux: Linux = serde_json::from_str(linux).unwrap();
        let nodes = ["/dev/vfio/8", "/dev/vfio/1", "/dev/vfio/devices/vfio0"].map(|path| Node {
            path: path.into(),
            becomes: "/dev/vfio/1".into(),
            kind: LinuxDeviceType::C,
            numbers: makedev(240, 0),
        });
        adapt(&mut linux, &nodes).unwrap();
        let devices = linux.devices().as_ref().unwrap();
        assert_eq!(devices.len(), 1, "{devices:?}");
    }

    #[test]
    fn d17_a_group_of_vfios_has_the_guests_name_and_numbers() {
        let linux = r#"{
            "devices": [{"path": "/dev/vfio/vfio", "type": "c", "major": 10, "minor": 196},
                        {"path": "/dev/vfio/7", "type": "c", "major": 240, "minor": 0, "fileMode": 432, "uid": 5}],
            "resources": {"devices": [{"allow": true, "type": "c", "major": 10, "minor": 196, "access": "rw"},
                                      {"allow": true, "type": "c", "major": 240, "minor": 0, "access": "rw"}]}
        }"#;
        let mut linux: Linux = serde_json::from_str(linux).unwrap();
        let group = Node {
            path: "/dev/vfio/7".into(),
            becomes: "/dev/vfio/1".into(),
            kind: LinuxDeviceType::C,
            numbers: makedev(511, 3),
        };
        adapt(&mut linux, &[group]).unwrap();
        let devices = linux.devices().as_ref().unwrap();
        let seen =
            |device: &LinuxDevice| (device.path().display().to_string(), device.major(), device.minor());
        assert_eq!(seen(&devices[0]), ("/dev/vfio/vfio".into(), 10, 196));
        assert_eq!(seen(&devices[1]), ("/dev/vfio/1".into(), 511, 3));
        assert_eq!((devices[1].typ(), devices[1].uid()), (LinuxDeviceType::C, Some(5)));
        let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
        let last = &rules[1];
        let rule = (last.typ(), last.major(), last.minor(), last.access().as_deref());
        assert_eq!((rules.len(), rule), (2, (Some(LinuxDeviceType::C), Some(511), Some(3), Some("rw"))));
    }
}
