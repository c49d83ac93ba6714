//! Kernel modules the initramfs brings along: some for every boot, some for when they are needed.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};

use crate::error::Error;

/// Paths of uncompressed modules, one per line, each after those it depends on.
const AT_BOOT: &str = "/lib/modules/load";

/// One such list per module that is loaded when something asks for it.
const ON_DEMAND: &str = "/lib/modules/on-demand";

/// Names of modules that the kernel has built in, one per line. Few of them show in [`KNOWN`].
const BUILT_IN: &str = "/lib/modules/builtin";

/// Where the kernel shows what it has, built in or loaded.
const KNOWN: &str = "/sys/module";

/// QEMU's device for a kernel that panicked, as ACPI has it.
const PANIC_DEVICE: &str = "/sys/bus/acpi/devices/QEMU0001:00";

/// The first virtio device of a board without PCI, as ACPI has it. Debian's kernel reads of none on its command line.
const MMIO_DEVICE: &str = "/sys/bus/acpi/devices/LNRO0005:00";

/// Drivers by the device ids of the virtio specification, section 5.
const VIRTIO_DRIVERS: &[(&str, &str)] = &[
    ("0x0001", "virtio_net"),
    ("0x0002", "virtio_blk"),
    ("0x0004", "virtio_rng"),
    ("0x0005", "virtio_balloon"),
    ("0x0008", "virtio_scsi"),
    ("0x0018", "virtio_mem"),
    ("0x001a", "virtiofs"),
];

/// Loads what every guest needs, before it can serve. A module that is refused is logged and skipped: the
/// kernel may have it built in, or the guest may do without. Loaded files are removed, to save their memory.
pub(crate) fn load_at_boot() {
    let text = match fs::read_to_string(AT_BOOT) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return ::log::warn!("read {AT_BOOT}: {error}"),
    };
    for path in paths(&text) {
        match insert(Path::new(path), c"") {
            Ok(()) => drop(fs::remove_file(path)),
            Err(error) => ::log::warn!("load module {path}: {error}"),
        }
    }
}

/// Makes sure the kernel has `name`, with what it depends on. No file for it in the initramfs is no error:
/// it may be built in without showing, and what needs it will say so best.
///
/// # Errors
///
/// [`Error::System`] if the kernel refuses a module.
pub(crate) fn need(name: &str) -> Result<(), Error> {
    if is_known(Path::new(name)) {
        return Ok(());
    }
    let Ok(text) = fs::read_to_string(Path::new(ON_DEMAND).join(name)) else { return Ok(()) };
    for path in paths(&text).map(Path::new).filter(|path| !is_known(path)) {
        insert(path, c"").map_err(Error::system(format!("load module {}", path.display())))?;
    }
    Ok(())
}

/// Loads a module the host names, with its parameters if it is not there yet.
///
/// # Errors
///
/// [`Error::Invalid`] for what is no name, [`Error::NotFound`] if neither kernel nor initramfs has it,
/// [`Error::System`] if the kernel refuses it.
pub(crate) fn ask_for(name: &str, parameters: &[String]) -> Result<(), Error> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
        return Err(Error::invalid(format!("kernel module {name:?}: not a name")));
    }
    if is_known(Path::new(name)) || is_built_in(name) {
        return Ok(());
    }
    let not_found = || Error::NotFound { kind: "kernel module", id: name.to_owned() };
    let text = fs::read_to_string(Path::new(ON_DEMAND).join(name)).map_err(|_| not_found())?;
    let mut files = paths(&text).map(Path::new).collect::<Vec<_>>();
    let last = files.pop().ok_or_else(not_found)?;
    let what = |path: &Path| format!("load module {}", path.display());
    for path in files.into_iter().filter(|path| !is_known(path)) {
        insert(path, c"").map_err(Error::system(what(path)))?;
    }
    let parameters = CString::new(parameters.join(" ")).map_err(|error| Error::invalid(error.to_string()))?;
    insert(last, &parameters).map_err(Error::system(what(last)))
}

/// Whether the kernel has the module in the file `path`, or of that bare name.
pub(crate) fn is_known(path: &Path) -> bool {
    known_as(path).is_some_and(|known| known.exists())
}

fn is_built_in(name: &str) -> bool {
    fs::read_to_string(BUILT_IN).is_ok_and(|names| lists(&names, name))
}

/// Whether `names` has `name`, in which `-` and `_` are the same.
fn lists(names: &str, name: &str) -> bool {
    let same = |byte: u8| if byte == b'-' { b'_' } else { byte };
    names.lines().any(|line| line.bytes().map(same).eq(name.bytes().map(same)))
}

/// Loads the driver by which the kernel tells the host that it panicked, where the host wants to know.
pub(crate) fn drive_panic_device() {
    need_for(PANIC_DEVICE, "pvpanic-mmio");
}

/// Loads the driver that finds virtio devices where there is no PCI to find them on.
pub(crate) fn find_mmio_devices() {
    need_for(MMIO_DEVICE, "virtio_mmio");
}

fn need_for(device: &str, driver: &str) {
    if Path::new(device).exists()
        && let Err(error) = need(driver)
    {
        ::log::warn!("{}", crate::error::chain(&error));
    }
}

/// Loads the drivers of the virtio devices that have none yet, as far as the initramfs has them.
pub(crate) fn drive_virtio_devices() {
    let Ok(devices) = fs::read_dir("/sys/bus/virtio/devices") else { return };
    for device in devices.flatten().map(|entry| entry.path()).filter(|path| !path.join("driver").exists()) {
        let id = fs::read_to_string(device.join("device")).unwrap_or_default();
        if let Some(driver) = virtio_driver(&id)
            && let Err(error) = need(driver)
        {
            ::log::warn!("{}", crate::error::chain(&error));
        }
    }
}

fn virtio_driver(id: &str) -> Option<&'static str> {
    VIRTIO_DRIVERS.iter().find(|(known, _)| *known == id.trim()).map(|(_, driver)| *driver)
}

fn known_as(path: &Path) -> Option<PathBuf> {
    let name = path.file_stem()?.to_str()?.replace('-', "_");
    Some(Path::new(KNOWN).join(name))
}

fn paths(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn insert(path: &Path, parameters: &CStr) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_a_list_is_kept() {
        let list = "# dependencies first\n/lib/modules/virtio.ko\n\n  /lib/modules/vsock.ko  \n";
        assert_eq!(paths(list).collect::<Vec<_>>(), ["/lib/modules/virtio.ko", "/lib/modules/vsock.ko"]);
    }

    #[test]
    fn the_kernel_spells_modules_with_underscores() {
        assert_eq!(known_as(Path::new("/lib/modules/virtio-rng.ko")), Some("/sys/module/virtio_rng".into()));
        assert_eq!(known_as(Path::new("overlay")), Some("/sys/module/overlay".into()));
    }

    #[test]
    fn a_built_in_module_goes_by_its_whole_name_with_either_dash() {
        let names = "virtio_net\npvpanic-mmio\n";
        assert!(lists(names, "virtio-net") && lists(names, "pvpanic_mmio") && lists(names, "pvpanic-mmio"));
        assert!(!lists(names, "virtio") && !lists(names, "net") && !lists(names, ""));
    }

    #[test]
    fn a_virtio_device_is_known_by_its_id() {
        assert_eq!(virtio_driver("0x0004\n"), Some("virtio_rng"));
        assert_eq!(virtio_driver("0x0013"), None);
    }
}
