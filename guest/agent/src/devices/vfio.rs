//! Devices of the host that the machine has: a driver of the guest's has them, or a container itself, by VFIO.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_protocol::agent::Device;
use oci_spec::runtime::LinuxDeviceType;
use tokio::time::{Instant, sleep};

use super::{
    Devices, Given, Node, PATIENCE, SYS,
    pci::{Way, is_address},
};
use crate::{error::Error, modules};

/// The driver by which programs have devices, and what keeps those from all other memory.
const DRIVER: &str = "vfio-pci";
const MODULES: [&str; 2] = ["vfio_pci", "vfio_iommu_type1"];

/// How long until the kernel is asked again. It tells of a device before it gives drivers to it, and not when it does.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the files of groups are.
const FILES: &str = "/dev/vfio";

/// Who has a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Whichever driver of the guest's kernel is for it.
    ByDriver,
    /// The container.
    ByContainer,
}

impl Use {
    /// What the host wants of a device, if it is one of these.
    pub(super) fn of(device: &Device) -> Option<Self> {
        match device.type_.as_str() {
            "vfio-pci-gk" => Some(Self::ByDriver),
            "vfio-pci" => Some(Self::ByContainer),
            _ => None,
        }
    }
}

/// Waits for all of `device`, which may be several, and has the container have them.
///
/// # Errors
///
/// [`Error::Invalid`] for what cannot be read, [`Error::State`] for what this guest cannot give to a container,
/// [`Error::Timeout`] naming the place where nothing came.
pub(super) async fn give(
    devices: &Devices,
    device: &Device,
    use_: Use,
    given: &mut Given,
) -> Result<(), Error> {
    let mut group = None;
    for option in &device.options {
        let (host, way) = parse(option).ok_or_else(|| {
            wrong(device, &format!("{option:?}: wants an address and a way, as 0000:3b:00.0=07/00"))
        })?;
        let find = || Ok(way.find(Path::new(SYS)));
        let found = devices.wait_for(&format!("wait for a PCI device at {way}"), find).await?;
        given.addresses.insert(host, name(&found));
        if use_ == Use::ByContainer {
            MODULES.iter().try_for_each(|module| modules::need(module))?;
            let its = hand_over(Path::new(SYS), &found, PATIENCE).await?;
            if group.get_or_insert_with(|| its.clone()) != &its {
                return Err(Error::state(format!(
                    "device {}: the guest has it in several IOMMU groups, and there is one file for all of it",
                    device.container_path
                )));
            }
        }
    }
    match (use_, group) {
        (Use::ByDriver, _) => Ok(()),
        (Use::ByContainer, None) => Err(wrong(device, "no options, which say where it is")),
        (Use::ByContainer, Some(group)) => {
            given.nodes.push(node(devices, device, &group).await?);
            Ok(())
        }
    }
}

fn wrong(device: &Device, what: &str) -> Error {
    Error::invalid(format!("device {}: {what}", device.container_path))
}

/// `0000:3b:00.0=07/00`.
fn parse(option: &str) -> Option<(&str, Way)> {
    let (host, way) = option.split_once('=')?;
    is_address(host).then_some(host).zip(Way::parse(way))
}

fn name(device: &Path) -> &str {
    device.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The file of a group, which the kernel makes when it has handed over the first of its devices.
async fn node(devices: &Devices, device: &Device, group: &str) -> Result<Node, Error> {
    let file = Path::new(FILES).join(group);
    let find = || match fs::metadata(&file) {
        Ok(found) => Ok(Some(found.rdev())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system(format!("look at {}", file.display()))(error)),
    };
    let numbers = devices.wait_for(&format!("wait for {}", file.display()), find).await?;
    let path = PathBuf::from(&device.container_path);
    Ok(Node { path, becomes: file, kind: LinuxDeviceType::C, numbers })
}

/// Gives a device to VFIO, whatever driver has it or comes to it in the meantime. Returns its group.
async fn hand_over(sys: &Path, device: &Path, patience: Duration) -> Result<String, Error> {
    let address = name(device);
    let Some(group) = target(&device.join("iommu_group"))? else {
        return Err(Error::state(format!(
            "PCI device {address}: nothing of the guest's keeps it from all of its memory: set enable_iommu, or \
             vfio_mode to guest-kernel"
        )));
    };
    let deadline = Instant::now() + patience;
    while !has_come(sys, device)? {
        if Instant::now() >= deadline {
            return Err(Error::state(format!(
                "PCI device {address}: the guest's kernel does not give it to {DRIVER}"
            )));
        }
        sleep(PAUSE).await;
    }
    Ok(group)
}

/// Asks the kernel once for VFIO to have a device. Returns whether it has.
fn has_come(sys: &Path, device: &Path) -> Result<bool, Error> {
    let driver = device.join("driver");
    let is_there = || Ok(target(&driver)?.as_deref() == Some(DRIVER));
    if is_there()? {
        return Ok(true);
    }
    write(&device.join("driver_override"), DRIVER)?;
    // Only from here on no other driver comes to it: one may have until a moment ago.
    match target(&driver)?.as_deref() {
        Some(DRIVER) => return Ok(true),
        Some(_) => unbind(&driver, name(device))?,
        None => {}
    }
    write(&sys.join("bus/pci/drivers_probe"), name(device))?;
    is_there()
}

fn unbind(driver: &Path, address: &str) -> Result<(), Error> {
    let file = driver.join("unbind");
    match fs::write(&file, address) {
        // The driver has let go by itself.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        other => other.map_err(Error::system(format!("write {address} to {}", file.display()))),
    }
}

/// The last name of what a link leads to, if there is a link.
fn target(link: &Path) -> Result<Option<String>, Error> {
    match fs::read_link(link) {
        Ok(path) => Ok(Some(name(&path).to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system(format!("read {}", link.display()))(error)),
    }
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    fs::write(file, text).map_err(Error::system(format!("write {text} to {}", file.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    #[test]
    fn d17_an_option_is_an_address_of_the_host_and_a_way_in_the_guest() {
        let (host, way) = parse("0000:3b:00.0=07/00").unwrap();
        assert_eq!((host, way.to_string().as_str()), ("0000:3b:00.0", "07.0/00.0"));
        for option in ["", "0000:3b:00.0", "0000:3b:00.0=", "3b:00.0=07/00", "0000:3b:00.0=07/00=1", "a=b"] {
            assert!(parse(option).is_none(), "{option}");
        }
    }

    /// A device in a group; what its driver is, is up to the test.
    fn device(sys: &Path) -> PathBuf {
        let device = sys.join("bus/pci/devices/0000:01:00.0");
        fs::create_dir_all(&device).unwrap();
        symlink(sys.join("kernel/iommu_groups/4"), device.join("iommu_group")).unwrap();
        device
    }

    #[tokio::test]
    async fn d17_a_device_is_taken_from_its_driver_and_must_have_come_to_vfio() {
        let sys = tempfile::tempdir().unwrap();
        let (device, driver) = (device(sys.path()), sys.path().join("bus/pci/drivers/e1000e"));
        fs::create_dir_all(&driver).unwrap();
        symlink(&driver, device.join("driver")).unwrap();
        // Nobody acts on what is written here.
        let refused = hand_over(sys.path(), &device, Duration::ZERO).await.unwrap_err().to_string();
        assert!(refused.contains("0000:01:00.0: the guest's kernel does not give it"), "{refused}");
        let read = |file: PathBuf| fs::read_to_string(file).unwrap();
        assert_eq!(read(device.join("driver_override")), "vfio-pci");
        assert_eq!(read(driver.join("unbind")), "0000:01:00.0");
        assert_eq!(read(sys.path().join("bus/pci/drivers_probe")), "0000:01:00.0");
    }

    #[tokio::test]
    async fn d17_a_device_that_vfio_has_is_left_there_and_one_without_a_group_with_its_driver() {
        let sys = tempfile::tempdir().unwrap();
        let device = device(sys.path());
        symlink(sys.path().join("bus/pci/drivers/vfio-pci"), device.join("driver")).unwrap();
        assert_eq!(hand_over(sys.path(), &device, Duration::ZERO).await.unwrap(), "4");
        fs::remove_file(device.join("iommu_group")).unwrap();
        let refused = hand_over(sys.path(), &device, Duration::ZERO).await.unwrap_err().to_string();
        assert!(refused.contains("set enable_iommu"), "{refused}");
        assert!(!device.join("driver_override").exists());
    }

    async fn written(file: &Path) {
        let is_there = async {
            while !file.exists() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(2), is_there).await.unwrap_or_else(|_| panic!("{}", file.display()));
    }

    #[tokio::test]
    async fn d17_a_driver_that_comes_late_lets_go_of_a_device_again() {
        let sys = tempfile::tempdir().unwrap();
        let (device, drivers) = (device(sys.path()), sys.path().join("bus/pci/drivers"));
        let (own, vfio, link) = (drivers.join("e1000e"), drivers.join(DRIVER), device.join("driver"));
        fs::create_dir_all(&own).unwrap();
        let probe = sys.path().join("bus/pci/drivers_probe");
        let kernel = async {
            written(&probe).await;
            symlink(&own, &link).unwrap();
            written(&own.join("unbind")).await;
            fs::remove_file(&link).unwrap();
            symlink(&vfio, &link).unwrap();
        };
        let (group, ()) = tokio::join!(hand_over(sys.path(), &device, PATIENCE), kernel);
        assert_eq!(group.unwrap(), "4");
        assert_eq!(fs::read_to_string(own.join("unbind")).unwrap(), "0000:01:00.0");
    }
}
