//! Which devices a container may open: a small program the kernel runs at every open and mknod in its
//! cgroup. Version 2 of cgroups has no file for this.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::Error;

/// Bits of an access as the program sees them (`BPF_DEVCG_ACC_*`).
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

/// Kinds of device as the program sees them (`BPF_DEVCG_DEV_*`).
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// What every container may do, as with runc: make any node, and use those of a plain `/dev`.
const ALWAYS: &[Rule] = &[
    Rule { allow: true, kind: Some(CHAR), major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Some(BLOCK), major: None, minor: None, access: MKNOD },
    Rule::character(1, Some(3)),
    Rule::character(1, Some(5)),
    Rule::character(1, Some(7)),
    Rule::character(1, Some(8)),
    Rule::character(1, Some(9)),
    Rule::character(5, Some(0)),
    Rule::character(5, Some(2)),
    Rule::character(136, None),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    const fn character(major: u32, minor: Option<u32>) -> Self {
        Self { allow: true, kind: Some(CHAR), major: Some(major), minor, access: MKNOD | READ | WRITE }
    }

    /// A rule for devices of all kinds is for all devices, whatever its numbers.
    fn from_oci(rule: &LinuxDeviceCgroup) -> Self {
        let kind = match rule.typ() {
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHAR),
            _ => None,
        };
        let number =
            |number: Option<i64>| number.filter(|_| kind.is_some()).and_then(|n| u32::try_from(n).ok());
        let letters = rule.access().as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
        let bit = |letter, bit| if letters.contains(letter) { bit } else { 0 };
        Self {
            allow: rule.allow(),
            kind,
            major: number(rule.major()),
            minor: number(rule.minor()),
            access: bit('r', READ) | bit('w', WRITE) | bit('m', MKNOD),
        }
    }

    fn fits_all(&self) -> bool {
        let any_device = self.kind.is_none() && self.major.is_none() && self.minor.is_none();
        any_device && self.access == MKNOD | READ | WRITE
    }
}

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

/// Operation codes, see the kernel's "BPF instruction set" document. These few do: the kernel checks a program before it
/// takes it, and an emulated CPU takes a while over the checks for each kind of instruction.
mod code {
    pub(super) const LOAD: u8 = 0x61;
    pub(super) const SET: u8 = 0xb7;
    pub(super) const JUMP: u8 = 0x05;
    pub(super) const JUMP_IF_NOT: u8 = 0x56;
    pub(super) const JUMP_IF_ANY_BIT: u8 = 0x46;
    pub(super) const EXIT: u8 = 0x95;
}

/// Registers: the verdict, the context, and what is asked for, the access in the upper half of its register.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS_AND_KIND: u8 = 2;
const MAJOR: u8 = 3;
const MINOR: u8 = 4;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: u32) -> Instruction {
    Instruction { code, registers: to | (from << 4), offset, value: value.cast_signed() }
}

/// The program. The last rule that fits decides; where none does, the answer is no.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(code::LOAD, ACCESS_AND_KIND, CONTEXT, 0, 0),
        instruction(code::LOAD, MAJOR, CONTEXT, 4, 0),
        instruction(code::LOAD, MINOR, CONTEXT, 8, 0),
    ];
    let mut seen: Vec<Rule> = Vec::new();
    for rule in rules.iter().rev() {
        // Common rules come from the host once more, and most lists start with one that denies everything.
        if seen.contains(rule) {
            continue;
        }
        if rule.fits_all() {
            program.extend(verdict(rule.allow));
            return program;
        }
        seen.push(*rule);
        program.extend(rule_program(rule));
    }
    program.extend(verdict(false));
    program
}

fn verdict(allow: bool) -> [Instruction; 2] {
    [instruction(code::SET, VERDICT, 0, 0, allow.into()), instruction(code::EXIT, 0, 0, 0, 0)]
}

/// Falls through to the next rule if this one does not fit. An allowance must cover all that is asked for,
/// a denial any of it.
fn rule_program(rule: &Rule) -> Vec<Instruction> {
    let jump_if_any = |bits| instruction(code::JUMP_IF_ANY_BIT, ACCESS_AND_KIND, 0, 0, bits);
    // The kernel asks for one kind of two, each a bit of its own.
    let other_kinds = rule.kind.map_or(0, |kind| !kind & 0xffff);
    let mut tests = Vec::new();
    if rule.allow {
        tests.push(jump_if_any((!rule.access << 16) | other_kinds));
    } else {
        // Past the jump that leaves.
        tests.push(Instruction { offset: 1, ..jump_if_any(rule.access << 16) });
        tests.push(instruction(code::JUMP, 0, 0, 0, 0));
        if rule.kind.is_some() {
            tests.push(jump_if_any(other_kinds));
        }
    }
    for (register, wanted) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(value) = wanted {
            tests.push(instruction(code::JUMP_IF_NOT, register, 0, 0, value));
        }
    }
    tests.extend(verdict(rule.allow));
    let len = tests.len();
    for (index, test) in tests.iter_mut().enumerate() {
        let leaves = matches!(test.code, code::JUMP | code::JUMP_IF_NOT | code::JUMP_IF_ANY_BIT);
        if leaves && test.offset == 0 {
            test.offset = i16::try_from(len - index - 1).unwrap_or(i16::MAX);
        }
    }
    tests
}

/// Lets the processes of the cgroup at `cgroup` use what `rules` allow and what every container may, and
/// nothing else. Takes the place of earlier rules.
///
/// # Errors
///
/// [`Error::System`] if the kernel refuses, also because it knows no such programs: better no container than
/// one that can write to the guest's disks.
pub(crate) fn restrict(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), Error> {
    let rules: Vec<Rule> = rules.iter().map(Rule::from_oci).chain(ALWAYS.iter().copied()).collect();
    let what = format!("restrict devices of {}", cgroup.display());
    let loaded = load(&program(&rules)).map_err(Error::system(format!("{what}: load the program")))?;
    attach(cgroup, &loaded).map_err(Error::system(what))
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// The fields of `union bpf_attr` that loading reads; the kernel takes the rest for zero.
#[repr(C)]
struct LoadRequest {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
struct AttachRequest {
    cgroup: libc::c_int,
    program: libc::c_int,
    kind: u32,
    flags: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let request = LoadRequest {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &request)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(cgroup: &Path, program: &OwnedFd) -> io::Result<()> {
    let cgroup = File::open(cgroup)?;
    let request = AttachRequest {
        cgroup: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        kind: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    bpf(BPF_PROG_ATTACH, &request).map(drop)
}

fn bpf<T>(command: libc::c_int, request: &T) -> io::Result<libc::c_int> {
    // SAFETY: the request, and what it points to, outlives the call, and its size is told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *request, size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    use super::*;

    /// Runs a program as the kernel would.
    fn allowed(rules: &[Rule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let program = program(rules);
        let context = [kind | access << 16, major, minor];
        let mut registers = [0_u32; 8];
        let mut at = 0;
        loop {
            let step = program[at];
            let to = usize::from(step.registers & 15);
            let value = step.value.cast_unsigned();
            let jump = match step.code {
                code::LOAD => {
                    registers[to] = context[usize::try_from(step.offset).unwrap() / 4];
                    false
                }
                code::SET => {
                    registers[to] = value;
                    false
                }
                code::JUMP => true,
                code::JUMP_IF_NOT => registers[to] != value,
                code::JUMP_IF_ANY_BIT => registers[to] & value != 0,
                code::EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            };
            at += 1 + if jump { usize::try_from(step.offset).unwrap() } else { 0 };
        }
    }

    fn rule(allow: bool, kind: LinuxDeviceType, numbers: (i64, i64), access: &str) -> Rule {
        let rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
        Rule::from_oci(&rule.major(numbers.0).minor(numbers.1).build().unwrap())
    }

    #[test]
    fn nothing_is_allowed_that_no_rule_allows() {
        assert!(!allowed(&[], CHAR, READ, 1, 3));
        assert!(!allowed(ALWAYS, BLOCK, WRITE, 254, 0));
        assert!(allowed(ALWAYS, BLOCK, MKNOD, 254, 0));
        assert!(allowed(ALWAYS, CHAR, READ | WRITE, 1, 3));
        assert!(allowed(ALWAYS, CHAR, READ | WRITE, 136, 42));
        assert!(!allowed(ALWAYS, CHAR, READ, 1, 1));
    }

    #[test]
    fn the_last_rule_that_fits_decides() {
        let all = rule(true, LinuxDeviceType::A, (0, 0), "rwm");
        let no_disk = rule(false, LinuxDeviceType::B, (254, -1), "w");
        assert!(allowed(&[all], BLOCK, READ | WRITE, 254, 0));
        assert!(!allowed(&[all, no_disk], BLOCK, READ | WRITE, 254, 0));
        assert!(allowed(&[all, no_disk], BLOCK, READ, 254, 0));
        assert!(allowed(&[no_disk, all], BLOCK, WRITE, 254, 0));
        let none = rule(false, LinuxDeviceType::A, (-1, -1), "");
        assert!(!allowed(&[all, none], CHAR, READ, 10, 200));
    }

    #[test]
    fn an_allowance_must_cover_all_that_is_asked_for() {
        let read = rule(true, LinuxDeviceType::C, (10, 229), "r");
        assert!(allowed(&[read], CHAR, READ, 10, 229));
        assert!(!allowed(&[read], CHAR, READ | WRITE, 10, 229));
        assert!(!allowed(&[read], BLOCK, READ, 10, 229));
        assert!(!allowed(&[read], CHAR, READ, 10, 230));
    }

    #[test]
    fn a_denial_is_for_any_of_what_is_asked_for() {
        let all = rule(true, LinuxDeviceType::A, (0, 0), "rwm");
        let write = rule(false, LinuxDeviceType::C, (10, 229), "w");
        assert!(!allowed(&[all, write], CHAR, READ | WRITE, 10, 229));
        assert!(allowed(&[all, write], CHAR, READ, 10, 229));
        assert!(allowed(&[all, write], CHAR, WRITE, 10, 230));
        assert!(allowed(&[all, write], BLOCK, WRITE, 10, 229));
    }

    #[test]
    fn a_rule_costs_nothing_the_second_time_nor_before_one_for_everything() {
        let none = rule(false, LinuxDeviceType::A, (-1, -1), "rwm");
        let one = rule(true, LinuxDeviceType::C, (10, 229), "rw");
        let plain = program(&[one]).len();
        assert_eq!(program(&[one, none, one, one]).len(), plain);
        let all = rule(true, LinuxDeviceType::A, (-1, -1), "rwm");
        assert!(allowed(&[none, all], BLOCK, WRITE, 254, 0));
    }
}
