//! PCI devices: by the way to them, which the host knows, and by their addresses, which each side gives by itself.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Process;

use super::block::{ends_with, entries, is_pci};

/// The longest way, in slots.
const LONGEST: usize = 8;

/// Variables that have addresses of a container's devices, in lists or in JSON.
const VARIABLES: &str = "PCIDEVICE_";

/// Bytes of an address, `0000:01:00.0`.
const LENGTH: usize = 12;

/// The slots on the way from the root bus to a device, those of the bridges first. Each is as in an address: `02.0`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Way(Vec<String>);

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

impl Way {
    /// `02/01` or, where a slot has several functions, `02/01.1`, all of it in hexadecimal.
    pub(super) fn parse(text: &str) -> Option<Way> {
        let slot = |text: &str| {
            let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
            let number = |text: &str, below: u8| {
                let digits = text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                u8::from_str_radix(text, 16).ok().filter(|number| digits && *number < below)
            };
            Some(format!("{:02x}.{}", number(slot, 32)?, number(function, 8)?))
        };
        let slots = text.split('/').map(slot).collect::<Option<Vec<_>>>()?;
        (slots.len() <= LONGEST).then_some(Way(slots))
    }

    /// The directory of the device there, as the kernel shows it below `sys`.
    pub(super) fn find(&self, sys: &Path) -> Option<PathBuf> {
        let (first, others) = self.0.split_first()?;
        let root = sys.join(format!("bus/pci/devices/0000:00:{first}"));
        let device = others.iter().try_fold(root, |bridge, slot| {
            let end = format!(":{slot}");
            entries(&bridge).into_iter().find(|path| is_pci(path) && ends_with(path, &end))
        });
        device.filter(|device| device.exists())
    }
}

/// Whether that is an address as the kernel writes it.
pub(super) fn is_address(text: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b':',
        10 => byte == b'.',
        11 => (b'0'..=b'7').contains(&byte),
        _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
    };
    text.len() == LENGTH && text.bytes().enumerate().all(fits)
}

/// What addresses of the host are in the guest.
#[derive(Debug, Default)]
pub(crate) struct Addresses(HashMap<String, Option<String>>);

impl Addresses {
    pub(super) fn insert(&mut self, host: &str, guest: &str) {
        let known = self.0.entry(host.to_owned()).or_insert_with(|| Some(guest.to_owned()));
        // Parts of one device of the host are devices of their own here.
        if known.as_deref() != Some(guest) {
            *known = None;
        }
    }

    /// Has a process know its devices by their addresses here. Others stay what they are.
    pub(crate) fn adapt(&self, process: &mut Process) {
        if self.0.is_empty() {
            return;
        }
        for variable in process.env_mut().iter_mut().flatten() {
            if variable.starts_with(VARIABLES) {
                *variable = self.translate(variable);
            }
        }
    }

    /// From the first to the last, as an address of the host may be another one's in the guest.
    fn translate(&self, text: &str) -> String {
        let (mut translated, mut rest) = (String::with_capacity(text.len()), text);
        while let Some(first) = rest.chars().next() {
            let known = rest.get(..LENGTH).and_then(|address| self.0.get(address)?.as_ref());
            let taken = match known {
                Some(guest) => {
                    translated.push_str(guest);
                    LENGTH
                }
                None => {
                    translated.push(first);
                    first.len_utf8()
                }
            };
            rest = &rest[taken..];
        }
        translated
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use oci_spec::runtime::ProcessBuilder;

    use super::*;

    #[test]
    fn d17_a_device_is_found_behind_bridges_and_ports() {
        let sys = tempfile::tempdir().unwrap();
        let device = sys.path().join("bus/pci/devices/0000:00:09.0/0000:02:00.0/0000:03:01.0/0000:05:00.0");
        fs::create_dir_all(device.join("msi_irqs")).unwrap();
        let find = |text| Way::parse(text).unwrap().find(sys.path());
        assert_eq!(find("09/00/01/00"), Some(device));
        assert_eq!((find("09/00/02/00"), find("09/00/01/00.1"), find("0a")), (None, None, None));
        assert_eq!(Way::parse("2/1F.7").unwrap().to_string(), "02.0/1f.7");
        for text in ["", "/", "02/", "20", "02/01.8", "../01", "+1", "1/1/1/1/1/1/1/1/1"] {
            assert_eq!(Way::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn d17_a_process_knows_its_devices_by_the_guests_addresses() {
        let mut addresses = Addresses::default();
        addresses.insert("0000:3b:00.0", "0000:01:00.0");
        addresses.insert("0000:01:00.0", "0000:02:00.0");
        let env = [
            "PCIDEVICE_INTEL_COM_NIC=0000:3b:00.0,0000:01:00.0,0000:44:00.0",
            r#"PCIDEVICE_INTEL_COM_NIC_INFO={"0000:3b:00.0":{"generic":{"deviceID":"0000:3b:00.0"}}}"#,
            "OTHER=0000:3b:00.0",
            "PCIDEVICE_\u{e9}=0000:3b:00\u{e9}0000:3b:00.0",
        ];
        let mut process = ProcessBuilder::default().env(env.map(str::to_owned)).build().unwrap();
        addresses.adapt(&mut process);
        let seen = process.env().as_ref().unwrap();
        assert_eq!(seen[0], "PCIDEVICE_INTEL_COM_NIC=0000:01:00.0,0000:02:00.0,0000:44:00.0");
        let info = r#"PCIDEVICE_INTEL_COM_NIC_INFO={"0000:01:00.0":{"generic":{"deviceID":"0000:01:00.0"}}}"#;
        assert_eq!(seen[1..3], [info, "OTHER=0000:3b:00.0"]);
        assert_eq!(seen[3], "PCIDEVICE_\u{e9}=0000:3b:00\u{e9}0000:01:00.0");
    }

    #[test]
    fn an_address_that_is_several_here_stays_what_it_is() {
        let mut addresses = Addresses::default();
        for guest in ["0000:01:00.0", "0000:02:00.0", "0000:01:00.0"] {
            addresses.insert("0000:3b:00.0", guest);
        }
        assert_eq!(addresses.translate("0000:3b:00.0"), "0000:3b:00.0");
    }

    #[test]
    fn an_address_is_as_the_kernel_writes_it() {
        assert!(is_address("0000:3b:00.7") && is_address("10de:ff:1f.0"));
        for text in ["", "3b:00.0", "0000:3b:00.8", "0000:3B:00.0", "0000:3b:00.0/", "..../../../."] {
            assert!(!is_address(text), "{text}");
        }
    }
}
