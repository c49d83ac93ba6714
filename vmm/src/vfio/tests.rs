//! What is read from a sysfs that is made up.

use std::os::unix::fs::symlink;
use std::sync::LazyLock;

use tempfile::TempDir;

use super::*;

const MDEV: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

/// A sysfs with devices in it.
pub(crate) struct Sysfs(TempDir);

impl Sysfs {
    pub(crate) fn new() -> Sysfs {
        Sysfs(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, from: &str, to: &str) {
        let path = self.path().join(from);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir_all(self.path().join(to)).unwrap();
        symlink(self.path().join(to), path).unwrap();
    }

    /// A PCI device as the kernel has it; `config` is the size of its configuration space.
    pub(crate) fn pci(&self, address: &str, group: u32, driver: &str, class: &str, config: usize) {
        let device = format!("bus/pci/devices/{address}");
        self.write(&format!("{device}/class"), &format!("{class}\n"));
        self.write(&format!("{device}/vendor"), "0x10de\n");
        self.write(&format!("{device}/device"), "0x2330\n");
        self.write(&format!("{device}/config"), &"\0".repeat(config));
        if !driver.is_empty() {
            self.link(&format!("{device}/driver"), &format!("bus/pci/drivers/{driver}"));
        }
        self.grouped(&device, address, group);
    }

    /// A part of the device at `parent`, or of none that is on PCI.
    fn mediated(&self, parent: &str, api: &str, group: u32) {
        let own = format!("{parent}/{MDEV}");
        self.write(&format!("{own}/mdev_type/device_api"), &format!("{api}\n"));
        self.write(&format!("{own}/matrix"), "05.0004\n05.00ab\n");
        self.link(&format!("bus/mdev/devices/{MDEV}"), &own);
        self.grouped(&own, MDEV, group);
    }

    fn grouped(&self, device: &str, name: &str, group: u32) {
        let directory = format!("kernel/iommu_groups/{group}");
        self.link(&format!("{device}/iommu_group"), &directory);
        self.link(&format!("{directory}/devices/{name}"), device);
    }

    /// A character device, by the name that the kernel gives its file.
    fn file(&self, numbers: &str, name: &str) {
        self.write(&format!("dev/char/{numbers}/uevent"), &format!("MAJOR=1\nMINOR=1\nDEVNAME={name}\n"));
    }

    pub(crate) fn find(&self, name: &str) -> Result<Vec<HostDevice>, VfioError> {
        HostDevice::with_its_group(self.path(), name)
    }

    /// The device that [`Sysfs::mediated`] makes.
    pub(crate) fn part_of(&self, parent: &str, api: &str) -> HostDevice {
        self.mediated(parent, api, 5);
        self.find(MDEV).unwrap().remove(0)
    }

    /// A device that is by itself in a group.
    pub(crate) fn one(express: bool) -> HostDevice {
        let sysfs = Sysfs::new();
        sysfs.pci("0000:01:00.0", 1, "vfio-pci", "0x030200", if express { 4096 } else { 256 });
        sysfs.find("0000:01:00.0").unwrap().remove(0)
    }
}

/// 40 devices, every other one of PCI Express.
pub(crate) fn forty() -> &'static [HostDevice] {
    static FORTY: LazyLock<Vec<HostDevice>> = LazyLock::new(|| {
        let sysfs = Sysfs::new();
        for number in 0..40 {
            let address = format!("0000:{number:02x}:00.0");
            sysfs.pci(&address, 1, "vfio-pci", "0x020000", if number % 2 == 0 { 4096 } else { 256 });
        }
        HostDevice::group(sysfs.path(), 1).unwrap()
    });
    &FORTY
}

fn addresses(devices: &[HostDevice]) -> Vec<&str> {
    let mut addresses = Vec::new();
    for device in devices {
        let HostKind::Pci { address, .. } = device.kind() else { panic!("{device:?}") };
        addresses.push(address.as_str());
    }
    addresses
}

#[test]
fn b11_a_device_is_described_as_the_kernel_has_it() {
    let sysfs = Sysfs::new();
    sysfs.pci("0000:3b:00.0", 7, "vfio-pci", "0x030200", 4096);
    sysfs.pci("0000:3c:00.0", 8, "mlx5_vfio_pci", "0x020000", 256);
    let device = sysfs.find("3b:00.0").unwrap().remove(0);
    let (address, vendor, number, class) = ("0000:3b:00.0".to_owned(), 0x10de, 0x2330, 0x03_0200);
    assert_eq!(*device.kind(), HostKind::Pci { address, vendor, device: number, class });
    assert!(device.is_express());
    assert!(!sysfs.find("0000:3c:00.0").unwrap()[0].is_express());
}

#[test]
fn b11_all_functions_of_a_group_go_together_and_bridges_stay() {
    let sysfs = Sysfs::new();
    sysfs.pci("0000:00:01.0", 2, "pcieport", "0x060400", 4096);
    sysfs.pci("0000:01:00.1", 2, "vfio-pci", "0x040300", 4096);
    sysfs.pci("0000:01:00.0", 2, "vfio-pci", "0x030000", 4096);
    let devices = sysfs.find("0000:01:00.1").unwrap();
    assert_eq!(addresses(&devices), ["0000:01:00.0", "0000:01:00.1"]);
    assert_eq!(HostDevice::group(sysfs.path(), 2).unwrap(), devices);
}

#[test]
fn b11_a_device_in_use_by_the_host_says_how_to_let_it_go() {
    let sysfs = Sysfs::new();
    sysfs.pci("0000:01:00.0", 2, "vfio-pci", "0x030000", 4096);
    sysfs.pci("0000:01:00.1", 2, "nouveau", "0x040300", 4096);
    sysfs.pci("0000:02:00.0", 3, "", "0x030000", 4096);
    let refused = |name| sysfs.find(name).unwrap_err().to_string();
    assert_eq!(
        refused("0000:01:00.0"),
        "0000:01:00.1, which the guest is to have, is driven by nouveau: bind it to vfio-pci by 'driverctl \
         set-override 0000:01:00.1 vfio-pci'"
    );
    assert!(refused("0000:02:00.0").contains("is driven by nothing: bind it"));
}

#[test]
fn d18_a_device_that_is_to_be_vfios_is_known_before_unless_the_host_uses_another_of_its_group() {
    let sysfs = Sysfs::new();
    sysfs.pci("0000:00:01.0", 2, "pcieport", "0x060400", 4096);
    sysfs.pci("0000:01:00.0", 2, "ixgbe", "0x020000", 4096);
    let once_bound = |address| HostDevice::once_bound(sysfs.path(), address);
    assert_eq!(addresses(&[once_bound("0000:01:00.0").unwrap()]), ["0000:01:00.0"]);
    sysfs.pci("0000:01:00.1", 2, "ixgbe", "0x020000", 4096);
    let refused = once_bound("0000:01:00.0").unwrap_err().to_string();
    assert!(refused.starts_with("0000:01:00.1, which the guest is to have, is driven by ixgbe"), "{refused}");
    fs::remove_file(sysfs.path().join("bus/pci/devices/0000:01:00.0/iommu_group")).unwrap();
    assert!(matches!(once_bound("0000:01:00.0"), Err(VfioError::NoGroup(_))));
}

#[test]
fn b11_without_an_iommu_or_a_device_the_error_says_so() {
    let sysfs = Sysfs::new();
    sysfs.pci("0000:01:00.0", 2, "vfio-pci", "0x030000", 4096);
    fs::remove_file(sysfs.path().join("bus/pci/devices/0000:01:00.0/iommu_group")).unwrap();
    assert!(matches!(sysfs.find("0000:01:00.0"), Err(VfioError::NoGroup(_))));
    assert!(matches!(sysfs.find("0000:09:00.0"), Err(VfioError::Unreadable { .. })));
    assert!(matches!(HostDevice::group(sysfs.path(), 9), Err(VfioError::Unreadable { .. })));
    for name in ["", "../x", "0000:01:00.8", "0000:01:00.0/..", "1:0.0", MDEV.trim_end_matches('1')] {
        assert!(matches!(sysfs.find(name), Err(VfioError::Name(_))), "{name}");
    }
}

#[test]
fn b11_a_mediated_device_is_on_the_bus_of_its_parent_and_a_matrix_on_none() {
    let sysfs = Sysfs::new();
    sysfs.pci("0000:00:02.0", 1, "i915", "0x030000", 4096);
    sysfs.mediated("bus/pci/devices/0000:00:02.0", "vfio-pci", 5);
    let directory = sysfs.path().join("bus/mdev/devices").join(MDEV);
    let [device] = &sysfs.find(MDEV).unwrap()[..] else { panic!() };
    assert_eq!(*device.kind(), HostKind::Mediated { directory, parent: "0000:00:02.0".into() });
    assert_eq!(device.address(), Some("0000:00:02.0"));
    assert!(device.is_express());

    let sysfs = Sysfs::new();
    sysfs.mediated("devices/vfio_ap/matrix", "vfio-ap", 5);
    let directory = sysfs.path().join("bus/mdev/devices").join(MDEV);
    let queues = ["05.0004", "05.00ab"].map(str::to_owned).to_vec();
    assert_eq!(*sysfs.find(MDEV).unwrap()[0].kind(), HostKind::Ap { directory, queues });

    let sysfs = Sysfs::new();
    sysfs.mediated("devices/css0/0.0.0313", "vfio-ccw", 5);
    let refused = sysfs.find(MDEV).unwrap_err().to_string();
    assert!(refused.ends_with("mdev_type/device_api: \"vfio-ccw\" is not known"), "{refused}");
}

#[test]
fn d17_a_device_file_stands_for_a_group_or_for_one_of_it() {
    let sysfs = Sysfs::new();
    sysfs.pci("0000:01:00.0", 7, "vfio-pci", "0x030000", 4096);
    sysfs.pci("0000:01:00.1", 7, "vfio-pci", "0x040300", 4096);
    // The minor number is none of the group's.
    sysfs.file("243:0", "vfio/7");
    sysfs.file("244:1", "vfio/devices/vfio1");
    sysfs.link("class/vfio-dev/vfio1/device", "bus/pci/devices/0000:01:00.1");
    sysfs.file("10:196", "vfio/vfio");
    sysfs.file("1:3", "null");
    let of = |major, minor| DeviceFile::of(sysfs.path(), major, minor);
    let found = |major, minor| match of(major, minor).unwrap() {
        Some(DeviceFile::Devices { name, devices }) => (name, addresses(&devices).join(" ")),
        other => panic!("{other:?}"),
    };
    assert_eq!(found(243, 0), ("7".into(), "0000:01:00.0 0000:01:00.1".into()));
    assert_eq!(found(244, 1), ("vfio1".into(), "0000:01:00.1".into()));
    assert_eq!(of(10, 196).unwrap(), Some(DeviceFile::Container));
    assert_eq!((of(1, 3).unwrap(), of(1, 4).unwrap()), (None, None));
    sysfs.file("243:1", "vfio/noiommu-0");
    let refused = of(243, 1).unwrap_err().to_string();
    assert!(refused.starts_with("/dev/vfio/noiommu-0 is in no IOMMU group"), "{refused}");
}
