//! When and where devices of the host are plugged in.

use vmm::spec::{PassThrough, VfioPort};

use super::Checker;
use crate::choice::VfioMode;
use crate::hypervisor::Hypervisor;
use crate::raw::RawHypervisor;
use crate::runtime::Runtime;

const HOT: &str = "hypervisor.qemu.hot_plug_vfio";
const COLD: &str = "hypervisor.qemu.cold_plug_vfio";
const RECLAIM: &str = "hypervisor.qemu.reclaim_guest_freed_memory";
const MODE: &str = "runtime.vfio_mode";
const ON_ROOT_BUS: &str = "hypervisor.qemu.hotplug_vfio_on_root_bus";

impl Checker<'_> {
    /// A device is either there from the start or comes later, and Kata refuses a file that wants both.
    pub(super) fn pass_through(&mut self, raw: &RawHypervisor) -> PassThrough {
        let hot = self.port(HOT, &raw.hot_plug_vfio);
        let cold = self.port(COLD, &raw.cold_plug_vfio);
        let hot = self.hot(raw.hotplug_vfio_on_root_bus, hot);
        if let Some(key) = hot.map(|(key, _)| key).or(cold.map(|_| COLD)) {
            self.beside_devices(raw, key);
        }
        match (hot, cold) {
            (None, None) => PassThrough::Never,
            (None, Some(port)) => {
                self.made_with_port(raw, COLD, port);
                PassThrough::Cold { devices: Vec::new(), port }
            }
            (Some((key, port)), None) => {
                self.made_with_port(raw, key, port);
                PassThrough::Hot(port)
            }
            (Some((key, port)), Some(_)) => {
                self.problem(
                    key,
                    format!("set together with {COLD}; set one of the two to {}", without(key)),
                );
                PassThrough::Hot(port)
            }
        }
    }

    /// What does not go with devices, which `key` asks for.
    fn beside_devices(&mut self, raw: &RawHypervisor, key: &str) {
        if raw.rootless {
            let what = "cannot be had with hypervisor.qemu.rootless: root alone may open devices of the host, and \
                        keep all of a guest's memory where it is";
            self.problem(key, what.to_owned());
        }
        if raw.reclaim_guest_freed_memory {
            let what = "has no effect in a machine that has a device of the host, which may reach all of its \
                        memory at any time";
            self.warning(RECLAIM, what.to_owned());
        }
    }

    /// A port that the machine has none of is no place for a device.
    fn made_with_port(&mut self, raw: &RawHypervisor, key: &str, port: VfioPort) {
        let (ports, count) = match port {
            VfioPort::Root => ("pcie_root_port", raw.pcie_root_port),
            VfioPort::Switch => ("pcie_switch_port", raw.pcie_switch_port),
            VfioPort::Bridge => ("default_bridges", raw.default_bridges),
        };
        if count == 0 {
            let what = format!("no device finds a place, as the machine has no such port: set {ports}");
            self.warning(key, what);
        }
    }

    /// VFIO hands out what an IOMMU keeps apart, in a guest, too.
    pub(super) fn vfio_in_the_guest(&mut self, hypervisor: &Hypervisor, runtime: &Runtime) {
        let needs_one = runtime.vfio_mode == VfioMode::Vfio && hypervisor.pass_through != PassThrough::Never;
        if needs_one && !hypervisor.enable_iommu {
            let what =
                "no container gets a device, as the guest has no IOMMU: set hypervisor.qemu.enable_iommu";
            self.warning(MODE, what.to_owned());
        }
    }

    /// Where a device goes that comes later, and which key has it so. Kata 2 has a switch instead of the port.
    fn hot(&mut self, on_root_bus: bool, hot: Option<VfioPort>) -> Option<(&'static str, VfioPort)> {
        match (on_root_bus, hot) {
            (false, hot) => hot.map(|port| (HOT, port)),
            (true, None) => Some((ON_ROOT_BUS, VfioPort::Root)),
            (true, Some(VfioPort::Root)) => Some((HOT, VfioPort::Root)),
            (true, Some(other)) => {
                let what = format!("set together with {HOT}, which has another place; remove this older key");
                self.problem(ON_ROOT_BUS, what);
                Some((HOT, other))
            }
        }
    }

    fn port(&mut self, key: &'static str, word: &str) -> Option<VfioPort> {
        match word {
            "no-port" | "" => return None,
            "bridge-port" => return Some(VfioPort::Bridge),
            "root-port" => return Some(VfioPort::Root),
            "switch-port" => return Some(VfioPort::Switch),
            _ => {}
        }
        self.problem(key, format!("{word:?} is unknown; use no-port, bridge-port, root-port or switch-port"));
        None
    }
}

/// What a key is set to that wants nothing.
fn without(key: &str) -> &'static str {
    if key == ON_ROOT_BUS { "false or no-port" } else { "no-port" }
}
