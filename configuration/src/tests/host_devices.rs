//! Devices of the host.

use vmm::spec::{PassThrough, VfioPort};

use super::{Place, values::refused};
use crate::VfioMode;

#[test]
fn e6_hot_and_cold_plug_exclude_each_other() {
    let place = Place::new();
    let both = "hypervisor.qemu = {hot_plug_vfio = 'root-port', cold_plug_vfio = 'switch-port'}";
    let what = "set together with hypervisor.qemu.cold_plug_vfio; set one of the two to no-port";
    refused(&place, &[(both, "hypervisor.qemu.hot_plug_vfio", what)]);
    let both = "hypervisor.qemu = {hotplug_vfio_on_root_bus = true, cold_plug_vfio = 'switch-port'}";
    let what = "set together with hypervisor.qemu.cold_plug_vfio; set one of the two to false or no-port";
    refused(&place, &[(both, "hypervisor.qemu.hotplug_vfio_on_root_bus", what)]);
}

#[test]
fn a33_b11_rootless_and_devices_of_the_host_exclude_each_other() {
    for key in ["hot_plug_vfio", "cold_plug_vfio"] {
        let both = format!("hypervisor.qemu = {{rootless = true, {key} = 'bridge-port'}}");
        let what = "cannot be had with hypervisor.qemu.rootless";
        refused(&Place::new(), &[(&both, &format!("hypervisor.qemu.{key}"), what)]);
    }
}

#[test]
fn b11_what_keeps_devices_of_the_host_from_containers_is_said() {
    let place = Place::new();
    let hot = "hot_plug_vfio = 'root-port'";
    for (hypervisor, runtime, key, what) in [
        (hot, "", "hypervisor.qemu.hot_plug_vfio", "the machine has no such port: set pcie_root_port"),
        (
            "hotplug_vfio_on_root_bus = true",
            "",
            "hypervisor.qemu.hotplug_vfio_on_root_bus",
            "set pcie_root_port",
        ),
        (
            "cold_plug_vfio = 'switch-port'",
            "",
            "hypervisor.qemu.cold_plug_vfio",
            "the machine has no such port: set pcie_switch_port",
        ),
        (
            "pcie_root_port = 1, hot_plug_vfio = 'root-port', reclaim_guest_freed_memory = true",
            "",
            "hypervisor.qemu.reclaim_guest_freed_memory",
            "has no effect in a machine that has a device of the host",
        ),
        (
            "pcie_root_port = 1, hot_plug_vfio = 'root-port'",
            "runtime.vfio_mode = 'vfio'",
            "runtime.vfio_mode",
            "the guest has no IOMMU: set hypervisor.qemu.enable_iommu",
        ),
    ] {
        let loaded = place.load_with(&format!("hypervisor.qemu = {{{hypervisor}}}\n{runtime}")).unwrap();
        let [warning] = &*loaded.warnings else { panic!("{:?}", loaded.warnings) };
        assert!(warning.concerns(key) && warning.to_string().contains(what), "{warning}");
    }
    let whole = "hypervisor.qemu = {pcie_root_port = 1, hot_plug_vfio = 'root-port', enable_iommu = true}\n\
                 runtime.vfio_mode = 'vfio'";
    let loaded = place.load_with(whole).unwrap();
    assert_eq!((loaded.warnings.len(), loaded.configuration.runtime.vfio_mode), (0, VfioMode::Vfio));
}

#[test]
fn b11_devices_of_the_host_are_attached_when_and_where_the_keys_say() {
    let place = Place::new();
    for (keys, wanted) in [
        ("", PassThrough::Never),
        ("hot_plug_vfio = '', cold_plug_vfio = 'no-port'", PassThrough::Never),
        ("hot_plug_vfio = 'bridge-port', cold_plug_vfio = 'no-port'", PassThrough::Hot(VfioPort::Bridge)),
        ("cold_plug_vfio = 'switch-port'", PassThrough::Cold { devices: Vec::new(), port: VfioPort::Switch }),
        ("hotplug_vfio_on_root_bus = true", PassThrough::Hot(VfioPort::Root)),
        ("hotplug_vfio_on_root_bus = true, hot_plug_vfio = 'root-port'", PassThrough::Hot(VfioPort::Root)),
    ] {
        let loaded = place.load_with(&format!("hypervisor.qemu = {{{keys}}}")).unwrap();
        assert_eq!(loaded.configuration.hypervisor.pass_through, wanted, "{keys}");
        let has_port = !matches!(
            wanted,
            PassThrough::Hot(VfioPort::Root) | PassThrough::Cold { port: VfioPort::Switch, .. }
        );
        assert_eq!(loaded.warnings.len(), usize::from(!has_port), "{keys}");
    }
    let (key, older) = ("hypervisor.qemu.hot_plug_vfio", "hypervisor.qemu.hotplug_vfio_on_root_bus");
    let unknown = "\"rootport\" is unknown; use no-port, bridge-port, root-port or switch-port";
    let other = format!("set together with {key}, which has another place; remove this older key");
    refused(
        &place,
        &[
            (&format!("{key} = 'rootport'"), key, unknown),
            (&format!("{key} = 'bridge-port'\n{older} = true"), older, &other),
        ],
    );
}

/// Each of the two ways that it names, beside the shipped file.
#[test]
fn b11_what_the_page_about_clusters_says_of_devices_is_asked_for() {
    let place = Place::new();
    let page = include_str!("../../../docs/kubernetes.md");
    let mut pieces = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let said = pieces.find(|piece| piece.contains("_plug_vfio")).unwrap();
    let instead = "cold_plug_vfio = \"root-port\"";
    assert!(said.contains(&format!("# or {instead}")), "{said}");
    let otherwise = said.replace("hot_plug_vfio = \"root-port\"", instead);
    place.file("config.d/10-place", &place.base());
    let devices = |text: &str| {
        place.file("config.d/20-page", text);
        let loaded = place.load(include_str!("../../configuration.toml")).unwrap();
        assert_eq!(loaded.warnings, [], "{text}");
        loaded.configuration.hypervisor.pass_through
    };
    assert_eq!(devices(said), PassThrough::Hot(VfioPort::Root));
    assert_eq!(devices(&otherwise), PassThrough::Cold { devices: Vec::new(), port: VfioPort::Root });
}
