//! Block devices of the host's, made of files.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{Output, run};
use crate::{Result, check, eventually};

/// Longest time for a command about a device.
const PATIENCE: Duration = Duration::from_secs(10);

/// What programs ask about device-mapper. Its file may be there without it, and the kernel may load it for who opens that.
const CONTROL: &str = "/dev/mapper/control";

/// A file as a block device; it goes when dropped.
pub struct LoopDevice {
    /// The device's file.
    pub file: String,
}

impl LoopDevice {
    /// A new file of 8 MiB.
    pub fn blank(image: &Path) -> Result<LoopDevice> {
        File::create(image)?.set_len(8 << 20)?;
        LoopDevice::of(image)
    }

    /// That file.
    pub fn of(image: &Path) -> Result<LoopDevice> {
        let made = losetup(["--find".as_ref(), "--show".as_ref(), image.as_os_str()])?;
        Ok(LoopDevice { file: made.exits(0)?.out().trim().to_owned() })
    }

    /// Makes the file behind it, and so the device, this large.
    pub fn grow(&self, image: &Path, bytes: u64) -> Result<()> {
        OpenOptions::new().write(true).open(image)?.set_len(bytes)?;
        losetup(["--set-capacity", &self.file])?.exits(0).map(drop)
    }

    /// Fails where somebody still has it open.
    pub fn detach(mut self) -> Result<()> {
        // From now on it may be anybody's.
        let file = std::mem::take(&mut self.file);
        losetup(["--detach", &file])?.exits(0)?;
        // The kernel waits with it for the last who has it open, and tells nobody.
        eventually(PATIENCE, || {
            let there = losetup([&file])?.status == 0;
            check!(!there, "somebody has {file} open");
            Ok(())
        })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !self.file.is_empty() {
            let _ = losetup(["--detach", &self.file]);
        }
    }
}

fn losetup<T: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = T>) -> Result<Output> {
    run(Command::new("losetup").args(arguments), PATIENCE)
}

/// A device of device-mapper's, which is all of another device; it goes when dropped.
pub struct MappedDevice {
    name: String,
}

impl MappedDevice {
    /// Whether this machine can have one.
    pub fn can_be() -> bool {
        File::open(CONTROL).is_ok()
    }

    /// One of that name, which is to be the machine's only one.
    pub fn of(device: &LoopDevice, name: &str) -> Result<MappedDevice> {
        let sectors =
            run(Command::new("blockdev").args(["--getsz", &device.file]), PATIENCE)?.exits(0)?.out();
        let table = format!("0 {} linear {} 0", sectors.trim(), device.file);
        dmsetup(&["create", name, "--table", &table])?.exits(0)?;
        Ok(MappedDevice { name: name.to_owned() })
    }

    /// The device's file, as containerd names it.
    pub fn file(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// Fails where somebody still has it open.
    pub fn remove(mut self) -> Result<()> {
        let name = std::mem::take(&mut self.name);
        dmsetup(&["remove", "--retry", &name])?.exits(0).map(drop)
    }
}

impl Drop for MappedDevice {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _ = dmsetup(&["remove", "--force", &self.name]);
        }
    }
}

/// Its files are made by the program itself where no udev does.
fn dmsetup(arguments: &[&str]) -> Result<Output> {
    run(Command::new("dmsetup").args(["--noudevsync", "--verifyudev"]).args(arguments), PATIENCE)
}
