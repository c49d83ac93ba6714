//! What the kernel tells of a host's devices.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, channel},
};

use nix::{
    mount::{MsFlags, mount},
    sys::stat::Mode,
    unistd::mkfifo,
};

/// A host with devices of PCI in groups of IOMMU's, as far as this thread, whose mounts are its own, looks.
pub(crate) struct Host;

impl Host {
    /// One without any.
    pub(crate) fn new() -> Host {
        mount(Some("tests"), "/sys", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Host
    }

    /// Has a device, driven by `driver`, in this group.
    pub(crate) fn pci(&self, address: &str, group: u32, driver: &str, class: &str) {
        let device = Path::new("/sys/bus/pci/devices").join(address);
        for (name, text) in [("class", class), ("vendor", "0x8086"), ("device", "0x10ed")] {
            write(&device.join(name), text);
        }
        write(&device.join("config"), &"\0".repeat(4096));
        link(&device.join("driver"), &Path::new("/sys/bus/pci/drivers").join(driver));
        self.grouped(&device, address, group);
    }

    /// Has a driver, whose files others read what is written to.
    pub(crate) fn driver(&self, name: &str) {
        let directory = Path::new("/sys/bus/pci/drivers").join(name);
        fs::create_dir_all(&directory).unwrap();
        for file in ["bind", "unbind"] {
            mkfifo(&directory.join(file), Mode::S_IRWXU).unwrap();
        }
    }

    /// Whoever has the kernel probe for drivers writes to what others read.
    pub(crate) fn probes(&self) {
        mkfifo("/sys/bus/pci/drivers_probe", Mode::S_IRWXU).unwrap();
    }

    /// Does once what the kernel does when a device is unbound from `from` and then bound to `to`, by what is written to
    /// the file `by`. Nobody who writes there goes on before that is done; what is returned tells that it is.
    pub(crate) fn rebinds(&self, address: &str, from: &str, to: &str, by: &str) -> Receiver<()> {
        let [from, to] = [from, to].map(|name| Path::new("/sys/bus/pci/drivers").join(name));
        let (driver, address) =
            (Path::new("/sys/bus/pci/devices").join(address).join("driver"), address.to_owned());
        let by = Path::new("/sys/bus/pci").join(by);
        let (done, told) = channel();
        std::thread::spawn(move || {
            assert_eq!(fs::read_to_string(from.join("unbind")).unwrap(), address);
            fs::remove_file(&driver).unwrap();
            symlink(to, driver).unwrap();
            assert_eq!(fs::read_to_string(by).unwrap(), address);
            done.send(()).unwrap();
        });
        told
    }

    /// Has a matrix of adjunct processors, in this group.
    pub(crate) fn matrix(&self, uuid: &str, group: u32) {
        let device = PathBuf::from(format!("/sys/devices/vfio_ap/matrix/{uuid}"));
        write(&device.join("mdev_type/device_api"), "vfio-ap");
        write(&device.join("matrix"), "05.0004");
        link(&Path::new("/sys/bus/mdev/devices").join(uuid), &device);
        self.grouped(&device, uuid, group);
    }

    /// Has a character device whose file is called so below `/dev`.
    pub(crate) fn file(&self, numbers: &str, name: &str) {
        write(&Path::new("/sys/dev/char").join(numbers).join("uevent"), &format!("DEVNAME={name}\n"));
    }

    fn grouped(&self, device: &Path, name: &str, group: u32) {
        let directory = PathBuf::from(format!("/sys/kernel/iommu_groups/{group}"));
        link(&device.join("iommu_group"), &directory);
        link(&directory.join("devices").join(name), device);
    }
}

fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn link(from: &Path, to: &Path) {
    fs::create_dir_all(from.parent().unwrap()).unwrap();
    fs::create_dir_all(to).unwrap();
    symlink(to, from).unwrap();
}
