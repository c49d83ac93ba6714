//! The whole configuration: root, mounts, hooks, annotations, and the parts in the sibling modules.

use oci_spec::runtime::{Hook, Hooks, Mount, Root, Spec};

use super::{
    error::{ConvertError, Within},
    linux::{linux_from_wire, linux_to_wire},
    process::{process_from_wire, process_to_wire},
    value::{
        Result, list, list_to_wire, map, nonzero, optional_path, optional_path_to_wire, optional_text, path,
        path_to_wire, text, texts,
    },
};
use crate::oci;

/// The configuration as it travels; see the module's head for zero and for what has no field.
pub fn spec_to_wire(spec: &Spec) -> oci::Spec {
    oci::Spec {
        version: spec.version().clone(),
        process: spec.process().as_ref().map(process_to_wire).into(),
        root: spec.root().as_ref().map(root_to_wire).into(),
        hostname: spec.hostname().clone().unwrap_or_default(),
        mounts: list_to_wire(spec.mounts().as_ref(), mount_to_wire),
        hooks: spec.hooks().as_ref().map(hooks_to_wire).into(),
        annotations: spec.annotations().clone().unwrap_or_default(),
        linux: spec.linux().as_ref().map(linux_to_wire).into(),
        ..Default::default()
    }
}

/// A configuration from the wire.
///
/// # Errors
///
/// Names the field that holds an unknown name, a number out of range, a NUL byte, or no path where one
/// must be.
pub fn spec_from_wire(wire: &oci::Spec) -> Result<Spec> {
    let process = wire.process.as_ref().map(process_from_wire).transpose().within("process");
    let linux = wire.linux.as_ref().map(linux_from_wire).transpose().within("linux");
    let mut spec = Spec::default();
    spec.set_version(text("version", &wire.version)?)
        .set_process(process?)
        .set_root(wire.root.as_ref().map(root_from_wire).transpose()?)
        .set_hostname(optional_text("hostname", &wire.hostname)?)
        .set_mounts(list("mounts", &wire.mounts, mount_from_wire)?)
        .set_hooks(wire.hooks.as_ref().map(hooks_from_wire).transpose().within("hooks")?)
        .set_annotations(map("annotations", &wire.annotations)?)
        .set_linux(linux?);
    Ok(spec)
}

fn root_to_wire(root: &Root) -> oci::Root {
    oci::Root {
        path: path_to_wire(root.path()),
        readonly: root.readonly().unwrap_or_default(),
        ..Default::default()
    }
}

fn root_from_wire(wire: &oci::Root) -> Result<Root> {
    let mut root = Root::default();
    root.set_path(path("root.path", &wire.path)?).set_readonly(nonzero(wire.readonly));
    Ok(root)
}

fn mount_to_wire(mount: &Mount) -> oci::Mount {
    oci::Mount {
        destination: path_to_wire(mount.destination()),
        source: optional_path_to_wire(mount.source().as_ref()),
        type_: mount.typ().clone().unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn mount_from_wire(wire: &oci::Mount) -> Result<Mount> {
    let mut mount = Mount::default();
    mount
        .set_destination(path("destination", &wire.destination)?)
        .set_source(optional_path("source", &wire.source)?)
        .set_typ(optional_text("type", &wire.type_)?)
        .set_options(texts("options", &wire.options)?);
    Ok(mount)
}

#[allow(deprecated, reason = "configurations with prestart hooks are still written")]
fn hooks_to_wire(hooks: &Hooks) -> oci::Hooks {
    oci::Hooks {
        prestart: list_to_wire(hooks.prestart().as_ref(), hook_to_wire),
        poststart: list_to_wire(hooks.poststart().as_ref(), hook_to_wire),
        poststop: list_to_wire(hooks.poststop().as_ref(), hook_to_wire),
        create_runtime: list_to_wire(hooks.create_runtime().as_ref(), hook_to_wire),
        create_container: list_to_wire(hooks.create_container().as_ref(), hook_to_wire),
        start_container: list_to_wire(hooks.start_container().as_ref(), hook_to_wire),
        ..Default::default()
    }
}

#[allow(deprecated, reason = "as in hooks_to_wire")]
fn hooks_from_wire(wire: &oci::Hooks) -> Result<Hooks> {
    let mut hooks = Hooks::default();
    hooks
        .set_prestart(list("prestart", &wire.prestart, hook_from_wire)?)
        .set_poststart(list("poststart", &wire.poststart, hook_from_wire)?)
        .set_poststop(list("poststop", &wire.poststop, hook_from_wire)?)
        .set_create_runtime(list("create_runtime", &wire.create_runtime, hook_from_wire)?)
        .set_create_container(list("create_container", &wire.create_container, hook_from_wire)?)
        .set_start_container(list("start_container", &wire.start_container, hook_from_wire)?);
    Ok(hooks)
}

fn hook_to_wire(hook: &Hook) -> oci::Hook {
    oci::Hook {
        path: path_to_wire(hook.path()),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: hook.timeout().unwrap_or_default(),
        ..Default::default()
    }
}

fn hook_from_wire(wire: &oci::Hook) -> Result<Hook> {
    if wire.timeout < 0 {
        return Err(ConvertError::new("timeout", wire.timeout, "a number of seconds"));
    }
    let mut hook = Hook::default();
    hook.set_path(path("path", &wire.path)?)
        .set_args(texts("args", &wire.args)?)
        .set_env(texts("env", &wire.env)?)
        .set_timeout(nonzero(wire.timeout));
    Ok(hook)
}
