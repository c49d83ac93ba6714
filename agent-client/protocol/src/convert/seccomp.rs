//! `linux.seccomp`: which system calls the container may make.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::{
    error::ConvertError,
    value::{Result, list, list_to_wire, name, nonzero, texts},
};
use crate::oci::{self, linux_syscall};

const ACTION: &str = "an action such as \"SCMP_ACT_ERRNO\"";

pub(super) fn seccomp_to_wire(seccomp: &LinuxSeccomp) -> oci::LinuxSeccomp {
    oci::LinuxSeccomp {
        default_action: seccomp.default_action().to_string(),
        architectures: list_to_wire(seccomp.architectures().as_ref(), ToString::to_string),
        flags: list_to_wire(seccomp.flags().as_ref(), ToString::to_string),
        syscalls: list_to_wire(seccomp.syscalls().as_ref(), syscall_to_wire),
        ..Default::default()
    }
}

pub(super) fn seccomp_from_wire(wire: &oci::LinuxSeccomp) -> Result<LinuxSeccomp> {
    let architecture = |value: &String| name::<Arch>("", value, "a machine such as \"SCMP_ARCH_X86_64\"");
    let flag = |value: &String| {
        name::<LinuxSeccompFilterFlag>("", value, "a flag such as \"SECCOMP_FILTER_FLAG_LOG\"")
    };
    let mut seccomp = LinuxSeccomp::default();
    seccomp
        .set_default_action(name::<LinuxSeccompAction>("default_action", &wire.default_action, ACTION)?)
        .set_architectures(list("architectures", &wire.architectures, architecture)?)
        .set_flags(list("flags", &wire.flags, flag)?)
        .set_syscalls(list("syscalls", &wire.syscalls, syscall_from_wire)?);
    Ok(seccomp)
}

fn syscall_to_wire(syscall: &LinuxSyscall) -> oci::LinuxSyscall {
    oci::LinuxSyscall {
        names: syscall.names().clone(),
        action: syscall.action().to_string(),
        errno_ret: syscall.errno_ret().map(linux_syscall::Errno_ret::Errnoret),
        args: list_to_wire(syscall.args().as_ref(), arg_to_wire),
        ..Default::default()
    }
}

fn syscall_from_wire(wire: &oci::LinuxSyscall) -> Result<LinuxSyscall> {
    let names = texts("names", &wire.names)?;
    let mut syscall = LinuxSyscall::default();
    syscall
        .set_names(names.ok_or_else(|| ConvertError::new("names", "", "a list of system calls"))?)
        .set_action(name::<LinuxSeccompAction>("action", &wire.action, ACTION)?)
        .set_errno_ret(wire.errno_ret.as_ref().map(|linux_syscall::Errno_ret::Errnoret(errno)| *errno))
        .set_args(list("args", &wire.args, arg_from_wire)?);
    Ok(syscall)
}

fn arg_to_wire(arg: &LinuxSeccompArg) -> oci::LinuxSeccompArg {
    oci::LinuxSeccompArg {
        index: arg.index() as u64,
        value: arg.value(),
        value_two: arg.value_two().unwrap_or_default(),
        op: arg.op().to_string(),
        ..Default::default()
    }
}

fn arg_from_wire(wire: &oci::LinuxSeccompArg) -> Result<LinuxSeccompArg> {
    let index = match wire.index {
        // System calls take at most six arguments.
        index @ 0..=5 => index as usize,
        index => return Err(ConvertError::new("index", index, "between 0 and 5")),
    };
    let operator = name::<LinuxSeccompOperator>("op", &wire.op, "a comparison such as \"SCMP_CMP_EQ\"")?;
    let mut arg = LinuxSeccompArgBuilder::default().index(index).value(wire.value).op(operator);
    if let Some(second) = nonzero(wire.value_two) {
        arg = arg.value_two(second);
    }
    arg.build().map_err(|error| ConvertError::new("", error, "a comparison of an argument"))
}
