//! Values of a specification that can be wrong, each checked when it is made.

use std::fmt;

use super::error::SpecError;

fn is_word(text: &str, max: usize) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= max && text.chars().all(letters)
}

macro_rules! text_value {
    ($name:ident) => {
        impl $name {
            /// The value as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// A machine's name: letters, digits, `-`, `_` and `.`, at most 128 of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmName(String);
text_value!(VmName);

impl VmName {
    /// Takes `name` if no option syntax of QEMU can hide in it.
    pub fn new(name: impl Into<String>) -> Result<VmName, SpecError> {
        let name = name.into();
        if is_word(&name, 128) {
            return Ok(VmName(name));
        }
        Err(SpecError::Word { what: "machine name", value: name, max: 128 })
    }
}

/// A label of SELinux: user, role, type and mostly a range, as in `system_u:system_r:container_kvm_t:s0:c1,c2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxLabel(String);
text_value!(SelinuxLabel);

impl SelinuxLabel {
    /// Takes `label` if it has the parts of one; whether the kernel's policy knows them is the kernel's to say.
    pub fn new(label: impl Into<String>) -> Result<SelinuxLabel, SpecError> {
        let label = label.into();
        let mut parts = label.splitn(4, ':');
        let all_there = (0..3).all(|_| parts.next().is_some_and(|part| !part.is_empty()));
        // The kernel takes a page at most.
        if all_there && label.len() < 4096 && label.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(SelinuxLabel(label));
        }
        Err(SpecError::SelinuxLabel(label))
    }
}

/// What the guest mounts a share by: at most 31 characters, the 9p device's limit (virtio-fs has 36).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(String);
text_value!(Tag);

impl Tag {
    /// Takes `tag` if both kinds of share can carry it.
    pub fn new(tag: impl Into<String>) -> Result<Tag, SpecError> {
        let tag = tag.into();
        if is_word(&tag, 31) {
            return Ok(Tag(tag));
        }
        Err(SpecError::Word { what: "mount tag", value: tag, max: 31 })
    }
}

/// What a guest knows an extension image by: at most 10 characters, as the serial number of a disk has 20, and
/// `extension-` before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExtensionName(String);
text_value!(ExtensionName);

impl ExtensionName {
    /// Takes `name` if it is one.
    pub fn new(name: impl Into<String>) -> Result<ExtensionName, SpecError> {
        let name = name.into();
        if is_word(&name, 10) {
            return Ok(ExtensionName(name));
        }
        Err(SpecError::Word { what: "name of an extension image", value: name, max: 10 })
    }
}

/// A UUID in its usual form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmUuid(String);
text_value!(VmUuid);

impl VmUuid {
    /// Takes `text` if it has a UUID's form.
    pub fn new(text: impl Into<String>) -> Result<VmUuid, SpecError> {
        let text = text.into();
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let hexadecimal = text.chars().all(|c| c == '-' || c.is_ascii_hexdigit());
        if hexadecimal && groups == [8, 4, 4, 4, 12] {
            return Ok(VmUuid(text));
        }
        Err(SpecError::Uuid(text))
    }

    /// A random UUID (RFC 9562, version 4). Fails only where the kernel has no random numbers to give.
    pub fn random() -> Result<VmUuid, std::io::Error> {
        let mut bytes = [0u8; 16];
        crate::random::fill(&mut bytes)?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(VmUuid(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])))
    }
}

/// Further options of `-machine`, as `name=value`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineOptions(Vec<String>);

impl MachineOptions {
    /// Reads a list separated by commas; empty means none. The short forms `smm` and `nosmm`, which QEMU stopped
    /// taking after release 7, become `smm=on` and `smm=off`.
    pub fn parse(list: &str) -> Result<MachineOptions, SpecError> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(machine_option).collect::<Result<_, _>>().map(MachineOptions)
    }

    /// The options, each `name=value`.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// What an option is set to: its last value counts, and QEMU reads `_` for `-`.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let named = |option: &&str| option.split('=').next().is_some_and(|own| own.replace('_', "-") == name);
        self.iter().filter(named).last().and_then(|option| option.split_once('=')).map(|(_, value)| value)
    }

    /// Whether an option is on or off, where it says.
    #[must_use]
    pub fn switch(&self, name: &str) -> Option<bool> {
        self.value(name).map(|value| ["on", "yes", "true", "y"].contains(&value))
    }
}

impl fmt::Display for MachineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// Options of `-machine` that other parts of a specification decide, with those below them, such as `smp.cpus`.
const DECIDED_ELSEWHERE: [&str; 18] = [
    "accel",
    "append",
    "confidential-guest-support",
    "cxl-fmw",
    "dtb",
    "dumpdtb",
    "firmware",
    "initrd",
    "kernel",
    "memory",
    "memory-backend",
    "memory-encryption",
    "nvdimm",
    "pflash0",
    "pflash1",
    "sgx-epc",
    "smp",
    "type",
];

fn machine_option(entry: &str) -> Result<String, SpecError> {
    let refuse = || SpecError::MachineOption(entry.to_owned());
    let (name, value) = match entry.split_once('=') {
        Some((name, value)) => (name, value),
        None => entry.strip_prefix("no").map_or((entry, "on"), |name| (name, "off")),
    };
    // QEMU reads the one for the other.
    let whole = name.split('.').next().unwrap_or_default().replace('_', "-");
    if DECIDED_ELSEWHERE.contains(&whole.as_str()) {
        return Err(SpecError::DecidedElsewhere(name.to_owned()));
    }
    let plain = |c: char| c.is_ascii_graphic();
    if !is_word(name, 64) || value.is_empty() || !value.chars().all(plain) {
        return Err(refuse());
    }
    Ok(format!("{name}={value}"))
}

/// Further features of `-cpu`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuFeatures(Vec<String>);

impl CpuFeatures {
    /// Reads a list separated by commas; empty means none.
    pub fn parse(list: &str) -> Result<CpuFeatures, SpecError> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(cpu_feature).collect::<Result<_, _>>().map(CpuFeatures)
    }

    /// How many bits the guest's addresses have, where a feature says so.
    #[must_use]
    pub fn address_bits(&self) -> Option<u32> {
        let bits = |feature: &str| feature.replace('_', "-").strip_prefix("phys-bits=")?.parse().ok();
        self.iter().filter_map(bits).last().filter(|bits| *bits > 0)
    }

    /// The features, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

fn cpu_feature(entry: &str) -> Result<String, SpecError> {
    // A sign is a switch of its own.
    let (signed, bare) = entry.strip_prefix(['+', '-']).map_or((false, entry), |bare| (true, bare));
    let name = bare.split('=').next().unwrap_or_default();
    let is_switch = !signed || !bare.contains('=');
    // It would have QEMU list what there is.
    let is_feature = is_word(name, 64) && name != "help" && is_switch;
    if is_feature && entry.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(entry.to_owned());
    }
    Err(SpecError::CpuFeature(entry.to_owned()))
}

/// Virtual CPUs: those at boot and those at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpus {
    boot: u32,
    max: u32,
}

impl Vcpus {
    /// `boot` CPUs, growing to `max`; 255 is the most a machine without interrupt remapping can address.
    pub fn new(boot: u32, max: u32) -> Result<Vcpus, SpecError> {
        if boot >= 1 && boot <= max && max <= 255 {
            return Ok(Vcpus { boot, max });
        }
        Err(SpecError::Vcpus { boot, max })
    }

    /// CPUs at boot.
    #[must_use]
    pub fn boot(self) -> u32 {
        self.boot
    }

    /// CPUs at most.
    #[must_use]
    pub fn max(self) -> u32 {
        self.max
    }
}

/// Memory: at boot, and what it may grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    mib: u64,
    slots: u32,
    max_mib: u64,
    room_mib: u64,
}

impl Memory {
    /// `mib` MiB at boot, growing to `max_mib` MiB through `slots` slots.
    pub fn new(mib: u64, slots: u32, max_mib: u64) -> Result<Memory, SpecError> {
        if mib == 0 || mib > max_mib || max_mib.checked_mul(1 << 20).is_none() {
            return Err(SpecError::Memory { mib, max_mib });
        }
        if slots > 256 {
            return Err(SpecError::MemorySlots(slots));
        }
        Ok(Memory { mib, slots, max_mib, room_mib: 0 })
    }

    /// The same with `room_mib` MiB of address space for devices that are memory, such as NVDIMMs.
    pub fn with_room(self, room_mib: u64) -> Result<Memory, SpecError> {
        let end = self.max_mib.checked_add(room_mib).and_then(|mib| mib.checked_mul(1 << 20));
        end.map(|_| Memory { room_mib, ..self })
            .ok_or(SpecError::Memory { mib: self.mib, max_mib: self.max_mib.saturating_add(room_mib) })
    }

    /// Address space for devices that are memory, in MiB.
    #[must_use]
    pub fn room_mib(self) -> u64 {
        self.room_mib
    }

    /// Memory at boot in MiB.
    #[must_use]
    pub fn mib(self) -> u64 {
        self.mib
    }

    /// Memory at boot in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.mib << 20
    }

    /// Slots and the most memory in MiB, where the machine can grow at all: QEMU refuses slots without room and room
    /// without slots.
    #[must_use]
    pub fn growth(self) -> Option<(u32, u64)> {
        (self.slots > 0 && self.max_mib > self.mib).then_some((self.slots, self.max_mib))
    }
}

/// One word of the kernel's command line: `name` or `name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelParam(String);
text_value!(KernelParam);

impl KernelParam {
    /// Takes `word` if the guest's kernel will read it as one parameter: blanks only within double quotes.
    pub fn new(word: impl Into<String>) -> Result<KernelParam, SpecError> {
        let word = word.into();
        let mut quoted = false;
        let whole = word.chars().all(|c| {
            quoted ^= c == '"';
            !c.is_control() && (quoted || !c.is_whitespace())
        });
        if whole && !quoted && !word.is_empty() {
            return Ok(KernelParam(word));
        }
        Err(SpecError::KernelParam(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_hold_options() {
        for name in ["", "a,b", "a=b", "a/b", "a b", "a\n", "\u{e4}", &"x".repeat(129)] {
            assert!(VmName::new(name).is_err(), "{name:?}");
            assert!(Tag::new(name).is_err(), "{name:?}");
        }
        assert_eq!(VmName::new("k8s_pod-1.x").unwrap().as_str(), "k8s_pod-1.x");
        assert!(Tag::new("x".repeat(32)).is_err());
    }

    #[test]
    fn uuids_have_their_form() {
        let random = VmUuid::random().unwrap();
        assert_eq!(VmUuid::new(random.as_str()).unwrap(), random);
        assert_eq!(&random.as_str()[14..15], "4");
        assert_ne!(VmUuid::random().unwrap(), random);
        for text in ["", "0123456789ab4def8123456789abcdef", "01234567-89ab-4def-8123-456789abcdeg"] {
            assert!(VmUuid::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn machine_options_are_switches_or_assignments() {
        let options = MachineOptions::parse("smm,nosmbus, kernel_irqchip=split,").unwrap();
        assert_eq!(options.iter().collect::<Vec<_>>(), ["smm=on", "smbus=off", "kernel_irqchip=split"]);
        for list in ["=on", "a=", "a b=on", "no"] {
            assert!(MachineOptions::parse(list).is_err(), "{list:?}");
        }
        for list in [
            "accel=kvm",
            "smp.cpus=9",
            "memory.size=9G",
            "firmware=x",
            "nonvdimm",
            "pflash0=x",
            "type=pc",
            "memory_backend=ram",
            "memory_encryption=sev0",
            "confidential_guest-support=sev0",
            "sgx_epc.0.memdev=epc0",
        ] {
            let error = MachineOptions::parse(list).unwrap_err();
            assert!(matches!(error, SpecError::DecidedElsewhere(_)), "{list}: {error}");
        }
    }

    #[test]
    fn cpu_features_have_names() {
        let features = CpuFeatures::parse("pmu=off,+avx,-avx2, x2apic,").unwrap();
        assert_eq!(features.iter().collect::<Vec<_>>(), ["pmu=off", "+avx", "-avx2", "x2apic"]);
        for list in ["+", "-", "=on", "+=on", "pmu=off,-", "a b", "+pmu=off", "help", "?", "host-phys-bits,?"]
        {
            assert!(CpuFeatures::parse(list).is_err(), "{list:?}");
        }
        for (list, bits) in
            [("pmu=off", None), ("phys-bits=36", Some(36)), ("phys_bits=36,phys-bits=0", None)]
        {
            assert_eq!(CpuFeatures::parse(list).unwrap().address_bits(), bits, "{list}");
        }
    }

    #[test]
    fn numbers_that_make_no_machine_are_refused() {
        assert!(Vcpus::new(0, 1).is_err());
        assert!(Vcpus::new(2, 1).is_err());
        assert!(Vcpus::new(1, 256).is_err());
        assert!(Memory::new(0, 0, 1).is_err());
        assert!(Memory::new(2, 0, 1).is_err());
        assert!(Memory::new(1, 0, u64::MAX).is_err());
        assert!(Memory::new(1, 0, 1).unwrap().with_room(u64::MAX).is_err());
        assert!(Memory::new(1, 0, 1).unwrap().with_room(1 << 43).is_ok());
        assert_eq!(Memory::new(1, 257, 2), Err(SpecError::MemorySlots(257)));
        assert_eq!(Memory::new(1, 0, 2).unwrap().growth(), None);
        assert_eq!(Memory::new(1, 3, 2).unwrap().growth(), Some((3, 2)));
    }

    #[test]
    fn a_kernel_parameter_is_one_word() {
        for word in ["", "a b", "a\tb", "a\nb", "a=\"b c", "a\0"] {
            assert!(KernelParam::new(word).is_err(), "{word:?}");
        }
        assert_eq!(KernelParam::new("a=\"b c\"").unwrap().as_str(), "a=\"b c\"");
    }
}
