//! `linux`: namespaces, devices and the rest of what only Linux containers have.

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxIdMappingBuilder, LinuxIntelRdt,
    LinuxNamespace, LinuxNamespaceType,
};

use super::{
    error::{ConvertError, Within},
    resources::{resources_from_wire, resources_to_wire},
    seccomp::{seccomp_from_wire, seccomp_to_wire},
    value::{
        Result, absolute_path, list, list_to_wire, map, name, nonzero, optional_path, optional_path_to_wire,
        optional_text, path_to_wire, texts,
    },
};
use crate::oci;

pub(super) fn linux_to_wire(linux: &Linux) -> oci::Linux {
    oci::Linux {
        uid_mappings: list_to_wire(linux.uid_mappings().as_ref(), mapping_to_wire),
        gid_mappings: list_to_wire(linux.gid_mappings().as_ref(), mapping_to_wire),
        sysctl: linux.sysctl().clone().unwrap_or_default(),
        resources: linux.resources().as_ref().map(resources_to_wire).into(),
        cgroups_path: optional_path_to_wire(linux.cgroups_path().as_ref()),
        namespaces: list_to_wire(linux.namespaces().as_ref(), namespace_to_wire),
        devices: list_to_wire(linux.devices().as_ref(), device_to_wire),
        seccomp: linux.seccomp().as_ref().map(seccomp_to_wire).into(),
        rootfs_propagation: linux.rootfs_propagation().clone().unwrap_or_default(),
        masked_paths: linux.masked_paths().clone().unwrap_or_default(),
        readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
        mount_label: linux.mount_label().clone().unwrap_or_default(),
        intel_rdt: linux.intel_rdt().as_ref().map(intel_rdt_to_wire).into(),
        ..Default::default()
    }
}

pub(super) fn linux_from_wire(wire: &oci::Linux) -> Result<Linux> {
    let resources = wire.resources.as_ref().map(resources_from_wire).transpose();
    let seccomp = wire.seccomp.as_ref().map(seccomp_from_wire).transpose();
    let mut linux = Linux::default();
    linux
        .set_uid_mappings(list("uid_mappings", &wire.uid_mappings, mapping_from_wire)?)
        .set_gid_mappings(list("gid_mappings", &wire.gid_mappings, mapping_from_wire)?)
        .set_sysctl(map("sysctl", &wire.sysctl)?)
        .set_resources(resources.within("resources")?)
        .set_cgroups_path(optional_path("cgroups_path", &wire.cgroups_path)?)
        .set_namespaces(list("namespaces", &wire.namespaces, namespace_from_wire)?)
        .set_devices(list("devices", &wire.devices, device_from_wire)?)
        .set_seccomp(seccomp.within("seccomp")?)
        .set_rootfs_propagation(optional_text("rootfs_propagation", &wire.rootfs_propagation)?)
        .set_masked_paths(texts("masked_paths", &wire.masked_paths)?)
        .set_readonly_paths(texts("readonly_paths", &wire.readonly_paths)?)
        .set_mount_label(optional_text("mount_label", &wire.mount_label)?)
        .set_intel_rdt(wire.intel_rdt.as_ref().map(intel_rdt_from_wire).transpose()?);
    Ok(linux)
}

fn mapping_to_wire(mapping: &LinuxIdMapping) -> oci::LinuxIDMapping {
    oci::LinuxIDMapping {
        host_id: mapping.host_id(),
        container_id: mapping.container_id(),
        size: mapping.size(),
        ..Default::default()
    }
}

fn mapping_from_wire(wire: &oci::LinuxIDMapping) -> Result<LinuxIdMapping> {
    let mapping = LinuxIdMappingBuilder::default()
        .host_id(wire.host_id)
        .container_id(wire.container_id)
        .size(wire.size)
        .build();
    mapping.map_err(|error| ConvertError::new("", error, "a mapping of ids"))
}

fn namespace_to_wire(namespace: &LinuxNamespace) -> oci::LinuxNamespace {
    oci::LinuxNamespace {
        type_: namespace_name(namespace.typ()).to_owned(),
        path: optional_path_to_wire(namespace.path().as_ref()),
        ..Default::default()
    }
}

/// The configuration's names; the type's own `Display` gives those of `/proc/<pid>/ns`.
fn namespace_name(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn namespace_from_wire(wire: &oci::LinuxNamespace) -> Result<LinuxNamespace> {
    let typ = LinuxNamespaceType::try_from(wire.type_.as_str())
        .map_err(|_| ConvertError::new("type", &wire.type_, "a namespace such as \"mount\""))?;
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ).set_path(optional_path("path", &wire.path)?);
    Ok(namespace)
}

fn device_to_wire(device: &LinuxDevice) -> oci::LinuxDevice {
    oci::LinuxDevice {
        path: path_to_wire(device.path()),
        type_: device.typ().as_str().to_owned(),
        major: device.major(),
        minor: device.minor(),
        file_mode: device.file_mode().unwrap_or_default(),
        uid: device.uid().unwrap_or_default(),
        gid: device.gid().unwrap_or_default(),
        ..Default::default()
    }
}

fn device_from_wire(wire: &oci::LinuxDevice) -> Result<LinuxDevice> {
    let expected = "one of \"b\", \"c\", \"u\" and \"p\"";
    let typ = match name::<LinuxDeviceType>("type", &wire.type_, expected)? {
        LinuxDeviceType::A => return Err(ConvertError::new("type", &wire.type_, expected)),
        typ => typ,
    };
    let mut device = LinuxDevice::default();
    device
        .set_path(absolute_path("path", &wire.path)?)
        .set_typ(typ)
        .set_major(wire.major)
        .set_minor(wire.minor)
        .set_file_mode(nonzero(wire.file_mode))
        .set_uid(nonzero(wire.uid))
        .set_gid(nonzero(wire.gid));
    Ok(device)
}

fn intel_rdt_to_wire(rdt: &LinuxIntelRdt) -> oci::LinuxIntelRdt {
    let l3_cache_schema = rdt.l3_cache_schema().clone().unwrap_or_default();
    oci::LinuxIntelRdt { l3_cache_schema, ..Default::default() }
}

fn intel_rdt_from_wire(wire: &oci::LinuxIntelRdt) -> Result<LinuxIntelRdt> {
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_l3_cache_schema(optional_text("intel_rdt.l3_cache_schema", &wire.l3_cache_schema)?);
    Ok(rdt)
}
