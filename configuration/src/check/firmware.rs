//! What the machine starts from.

use std::fs;
use std::path::{Path, PathBuf};

use vmm::spec::{Firmware, Machine};

use super::{Checker, is_given};
use crate::program;
use crate::raw::RawHypervisor;

const FIRMWARE: &str = "hypervisor.qemu.firmware";
const VOLUME: &str = "hypervisor.qemu.firmware_volume";
const FLASHES: &str = "hypervisor.qemu.pflashes";

/// Bytes that flash memory, and read-only memory, comes in.
const PAGE: u64 = 4096;
const BIOS: u64 = 65536;
/// Bytes of flash memory in all that the boards of x86 have room for, unless an option of theirs says otherwise.
const MOST_FLASH: u64 = 8 << 20;
const ROOM: &str = "max-fw-size";

impl Checker<'_> {
    pub(super) fn firmware(&mut self, raw: &RawHypervisor, machine: &Machine) -> Firmware {
        let firmware = self.chosen_firmware(raw);
        if let Firmware::Flash { code, variables } = &firmware {
            let size = |path: &PathBuf| fs::metadata(path).map_or(0, |found| found.len());
            let all = size(code) + variables.as_ref().map_or(0, size);
            let key = if is_given(&raw.firmware) { FIRMWARE } else { FLASHES };
            if all > MOST_FLASH && is_limited(machine) && self.sound(&[FIRMWARE, VOLUME, FLASHES]) {
                let what = format!(
                    "more than the {MOST_FLASH} bytes of flash memory that the board has for all of the firmware; \
                     choose smaller images, or set {ROOM} among machine_accelerators"
                );
                self.problem(key, what);
            }
        }
        firmware
    }

    fn chosen_firmware(&mut self, raw: &RawHypervisor) -> Firmware {
        let in_flash = is_given(&raw.firmware_volume);
        let firmware = self.given(FIRMWARE, &raw.firmware, if in_flash { PAGE } else { BIOS });
        let volume = self.given(VOLUME, &raw.firmware_volume, PAGE);
        let flashes: Vec<PathBuf> = raw.pflashes.iter().filter(|flash| is_given(flash)).cloned().collect();
        self.each(FLASHES, flashes.iter().map(|flash| program::blocks(flash, PAGE)));
        match (flashes.as_slice(), firmware, volume) {
            ([], None, None) => return Firmware::BuiltIn,
            ([], Some(firmware), None) => return Firmware::Bios(firmware),
            ([], Some(code), variables) => return Firmware::Flash { code, variables },
            ([code], None, variables) => return Firmware::Flash { code: code.clone(), variables },
            ([code, variables], None, None) => {
                return Firmware::Flash { code: code.clone(), variables: Some(variables.clone()) };
            }
            ([], None, Some(_)) => {
                self.problem(VOLUME, format!("holds the variables of no firmware; set {FIRMWARE} too"));
            }
            ([_, _], ..) | ([_], Some(_), _) => {
                self.problem(FLASHES, format!("set together with {FIRMWARE} or {VOLUME}; choose one"));
            }
            (flashes, ..) => {
                let what = format!("{} images; the board has room for two", flashes.len());
                self.problem(FLASHES, what);
            }
        }
        Firmware::BuiltIn
    }

    /// A file that is there, of whole blocks; an empty path counts as absent.
    fn given(&mut self, key: &'static str, path: &Path, block: u64) -> Option<PathBuf> {
        let given = is_given(path);
        if given {
            self.note(key, program::blocks(path, block));
        }
        given.then(|| path.to_owned())
    }
}

fn is_limited(machine: &Machine) -> bool {
    let says = |option: &str| option.split('=').next().is_some_and(|name| name.replace('_', "-") == ROOM);
    matches!(machine, Machine::Q35(options) if !options.iter().any(says))
}
