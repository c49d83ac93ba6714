//! `process`: what runs, as whom and with which privileges.

use std::collections::BTreeSet;

use oci_spec::runtime::{
    self as spec, BoxBuilder, Capabilities, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder,
};
use protobuf::MessageField;

use super::{
    error::{ConvertError, Within},
    value::{Result, absolute_path, list, list_to_wire, name, nonzero, number, optional_text, texts},
};
use crate::oci;

/// The process as it travels; infallible, see the module's head for what has no field.
pub fn process_to_wire(process: &spec::Process) -> oci::Process {
    oci::Process {
        terminal: process.terminal().unwrap_or_default(),
        console_size: process.console_size().as_ref().map(box_to_wire).into(),
        user: MessageField::some(user_to_wire(process.user())),
        args: process.args().clone().unwrap_or_default(),
        env: process.env().clone().unwrap_or_default(),
        cwd: process.cwd().to_string_lossy().into_owned(),
        capabilities: process.capabilities().as_ref().map(capabilities_to_wire).into(),
        rlimits: list_to_wire(process.rlimits().as_ref(), rlimit_to_wire),
        no_new_privileges: process.no_new_privileges().unwrap_or_default(),
        apparmor_profile: process.apparmor_profile().clone().unwrap_or_default(),
        oom_score_adj: process.oom_score_adj().map(i64::from).unwrap_or_default(),
        selinux_label: process.selinux_label().clone().unwrap_or_default(),
        ..Default::default()
    }
}

/// A process from the wire.
///
/// # Errors
///
/// Names the field that holds an unknown limit, a number out of range, a NUL byte, or a working directory that
/// is not absolute. Unknown capabilities are left out: see [`unknown_capabilities`].
pub fn process_from_wire(wire: &oci::Process) -> Result<spec::Process> {
    let mut process = spec::Process::default();
    process
        .set_terminal(nonzero(wire.terminal))
        .set_console_size(wire.console_size.as_ref().map(box_from_wire).transpose()?)
        .set_user(wire.user.as_ref().map(user_from_wire).transpose().within("user")?.unwrap_or_default())
        .set_args(texts("args", &wire.args)?)
        .set_env(texts("env", &wire.env)?)
        .set_cwd(absolute_path("cwd", &wire.cwd)?)
        .set_capabilities(wire.capabilities.as_ref().map(capabilities_from_wire))
        .set_rlimits(list("rlimits", &wire.rlimits, rlimit_from_wire)?)
        .set_no_new_privileges(nonzero(wire.no_new_privileges))
        .set_apparmor_profile(optional_text("apparmor_profile", &wire.apparmor_profile)?)
        .set_oom_score_adj(Some(oom_score_adj(wire.oom_score_adj)?))
        .set_selinux_label(optional_text("selinux_label", &wire.selinux_label)?);
    Ok(process)
}

/// The kernel's range, see proc(5).
fn oom_score_adj(value: i64) -> Result<i32> {
    match i32::try_from(value) {
        Ok(score @ -1000..=1000) => Ok(score),
        _ => Err(ConvertError::new("oom_score_adj", value, "between -1000 and 1000")),
    }
}

/// A terminal counts its cells in 16 bits (`struct winsize`); more is cut to that.
fn box_to_wire(size: &spec::Box) -> oci::Box {
    let narrow = |cells: u64| u32::from(u16::try_from(cells).unwrap_or(u16::MAX));
    oci::Box { height: narrow(size.height()), width: narrow(size.width()), ..Default::default() }
}

fn box_from_wire(wire: &oci::Box) -> Result<spec::Box> {
    let height = number::<u32, u16>("console_size.height", wire.height, "a number of rows below 65536")?;
    let width = number::<u32, u16>("console_size.width", wire.width, "a number of columns below 65536")?;
    let size = BoxBuilder::default().height(height).width(width).build();
    size.map_err(|error| ConvertError::new("console_size", error, "a console size"))
}

fn user_to_wire(user: &spec::User) -> oci::User {
    oci::User {
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        username: user.username().clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn user_from_wire(wire: &oci::User) -> Result<spec::User> {
    let mut user = spec::User::default();
    user.set_uid(wire.uid)
        .set_gid(wire.gid)
        .set_additional_gids(nonzero(wire.additional_gids.clone()))
        .set_username(optional_text("username", &wire.username)?);
    Ok(user)
}

fn capabilities_to_wire(sets: &LinuxCapabilities) -> oci::LinuxCapabilities {
    oci::LinuxCapabilities {
        bounding: capability_names(sets.bounding().as_ref()),
        effective: capability_names(sets.effective().as_ref()),
        inheritable: capability_names(sets.inheritable().as_ref()),
        permitted: capability_names(sets.permitted().as_ref()),
        ambient: capability_names(sets.ambient().as_ref()),
        ..Default::default()
    }
}

/// Sorted, so that equal configurations make equal messages.
fn capability_names(set: Option<&Capabilities>) -> Vec<String> {
    let mut names: Vec<String> = set.into_iter().flatten().map(|cap| format!("CAP_{cap}")).collect();
    names.sort_unstable();
    names
}

fn capabilities_from_wire(wire: &oci::LinuxCapabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(capability_set(&wire.bounding))
        .set_effective(capability_set(&wire.effective))
        .set_inheritable(capability_set(&wire.inheritable))
        .set_permitted(capability_set(&wire.permitted))
        .set_ambient(capability_set(&wire.ambient));
    sets
}

fn capability_set(names: &[String]) -> Option<Capabilities> {
    let known: Capabilities = names.iter().filter_map(|name| capability(name)).collect();
    (!known.is_empty()).then_some(known)
}

fn capability(name: &str) -> Option<Capability> {
    name.strip_prefix("CAP_")?.parse().ok()
}

/// The names in a process's capabilities that are no capability's, each once, sorted. By the OCI runtime
/// specification it runs without them, and somebody is to be told.
#[must_use]
pub fn unknown_capabilities(wire: &oci::Process) -> Vec<&str> {
    let sets = wire.capabilities.iter().flat_map(|sets| {
        [&sets.bounding, &sets.effective, &sets.inheritable, &sets.permitted, &sets.ambient]
    });
    let names = sets.flatten().map(String::as_str).filter(|name| capability(name).is_none());
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

fn rlimit_to_wire(limit: &PosixRlimit) -> oci::POSIXRlimit {
    oci::POSIXRlimit {
        type_: limit.typ().to_string(),
        hard: limit.hard(),
        soft: limit.soft(),
        ..Default::default()
    }
}

fn rlimit_from_wire(wire: &oci::POSIXRlimit) -> Result<PosixRlimit> {
    let limit = PosixRlimitBuilder::default()
        .typ(name::<spec::PosixRlimitType>("type", &wire.type_, "a limit such as \"RLIMIT_NOFILE\"")?)
        .hard(wire.hard)
        .soft(wire.soft)
        .build();
    limit.map_err(|error| ConvertError::new("", error, "a resource limit"))
}
