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

/// Operation codes, see the kernel's "BPF instruction set" document.
mod code {
    pub(super) const LOAD: u8 = 0x61;
    pub(super) const AND: u8 = 0x54;
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    pub(super) const COPY: u8 = 0xbc;
    pub(super) const SET: u8 = 0xb7;
    pub(super) const JUMP_IF_NOT: u8 = 0x56;
    pub(super) const JUMP_IF: u8 = 0x16;
    pub(super) const JUMP_IF_DIFFERENT: u8 = 0x5e;
    pub(super) const EXIT: u8 = 0x95;
}

/// Registers: the verdict, the context, what is asked for, and a scratch one.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: u32) -> Instruction {
    Instruction { code, registers: to | (from << 4), offset, value: value.cast_signed() }
}

/// The program. The last rule that fits decides; where none does, the answer is no.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(code::LOAD, KIND, CONTEXT, 0, 0),
        instruction(code::COPY, ACCESS, KIND, 0, 0),
        instruction(code::AND, KIND, 0, 0, 0xffff),
        instruction(code::SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(code::LOAD, MAJOR, CONTEXT, 4, 0),
        instruction(code::LOAD, MINOR, CONTEXT, 8, 0),
    ];
    rules.iter().rev().for_each(|rule| program.extend(rule_program(rule)));
    program.extend(verdict(false));
    program
}

fn verdict(allow: bool) -> [Instruction; 2] {
    [instruction(code::SET, VERDICT, 0, 0, allow.into()), instruction(code::EXIT, 0, 0, 0, 0)]
}

/// Falls through to the next rule if this one does not fit. An allowance must cover all that is asked for,
/// a denial any of it.
fn rule_program(rule: &Rule) -> Vec<Instruction> {
    let mut tests = Vec::new();
    for (register, wanted) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(value) = wanted {
            tests.push(instruction(code::JUMP_IF_NOT, register, 0, 0, value));
        }
    }
    tests.push(instruction(code::COPY, SCRATCH, ACCESS, 0, 0));
    tests.push(instruction(code::AND, SCRATCH, 0, 0, rule.access));
    tests.push(match rule.allow {
        true => instruction(code::JUMP_IF_DIFFERENT, SCRATCH, ACCESS, 0, 0),
        false => instruction(code::JUMP_IF, SCRATCH, 0, 0, 0),
    });
    tests.extend(verdict(rule.allow));
    let len = tests.len();
    for (index, test) in tests.iter_mut().enumerate() {
        if matches!(test.code, code::JUMP_IF_NOT | code::JUMP_IF | code::JUMP_IF_DIFFERENT) {
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
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            let value = step.value.cast_unsigned();
            let jump = match step.code {
                code::LOAD => {
                    registers[to] = context[usize::try_from(step.offset).unwrap() / 4];
                    false
                }
                code::AND => {
                    registers[to] &= value;
                    false
                }
                code::SHIFT_RIGHT => {
                    registers[to] >>= value;
                    false
                }
                code::COPY => {
                    registers[to] = registers[from];
                    false
                }
                code::SET => {
                    registers[to] = value;
                    false
                }
                code::JUMP_IF_NOT => registers[to] != value,
                code::JUMP_IF => registers[to] == value,
                code::JUMP_IF_DIFFERENT => registers[to] != registers[from],
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
}
