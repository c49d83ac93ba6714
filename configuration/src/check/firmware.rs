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
/// Bytes of flash memory in all that the board of x86 has, and how many it can have by an option of its.
const USUAL_ROOM: u64 = 8 << 20;
const MOST_ROOM: u64 = 16 << 20;
const ROOM: &str = "max-fw-size";
const OPTIONS: &str = "hypervisor.qemu.machine_accelerators";

impl Checker<'_> {
    pub(super) fn firmware(&mut self, raw: &RawHypervisor, machine: &Machine) -> Firmware {
        let firmware = self.chosen_firmware(raw);
        let room = self.room(machine);
        let size = |path: &PathBuf| fs::metadata(path).map_or(0, |found| found.len());
        let (all, most) = match &firmware {
            Firmware::BuiltIn => return firmware,
            Firmware::Bios(path) => (size(path), MOST_ROOM),
            Firmware::Flash { code, variables } => (size(code) + variables.as_ref().map_or(0, size), room),
        };
        if all > most && self.sound(&[FIRMWARE, VOLUME, FLASHES]) {
            let key = if is_given(&raw.firmware) { FIRMWARE } else { FLASHES };
            let more = if most < MOST_ROOM {
                format!(", or set {ROOM}, up to {MOST_ROOM}, among machine_accelerators")
            } else {
                String::new()
            };
            let what = format!(
                "more than the {most} bytes that the board has for all of the firmware; choose smaller images{more}"
            );
            self.problem(key, what);
        }
        firmware
    }

    /// Bytes of flash memory in all, which x86's board can be told.
    fn room(&mut self, machine: &Machine) -> u64 {
        let Machine::Q35(options) = machine else { return u64::MAX };
        let Some(told) = options.value(ROOM) else { return USUAL_ROOM };
        match bytes(told) {
            Some(room @ ..=MOST_ROOM) => room,
            _ => {
                let what = format!(
                    "{ROOM}={told} is no number of bytes up to {MOST_ROOM}; set one, or leave it out"
                );
                self.problem(OPTIONS, what);
                MOST_ROOM
            }
        }
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

/// A size as QEMU reads it in options: bytes, or with a letter for the power of 1024. Others, such as hexadecimal ones,
/// are seldom.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
