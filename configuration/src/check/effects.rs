//! Keys that change nothing where others say what they do.

use vmm::spec::Machine;

use super::Checker;
use crate::choice::SharedFs;
use crate::keys::HYPERVISOR;
use crate::raw::RawHypervisor;
use crate::survey;

const PLACES: [&str; 3] = ["default_bridges", "pcie_root_port", "pcie_switch_port"];
const LATER: [&str; 3] = ["memory_slots", "memory_offset", "enable_virtio_mem"];
const STORE: [&str; 2] = ["vhost_user_store_path", "vhost_user_reconnect_timeout_sec"];
const PLUGGED: [&str; 5] = [
    "indep_iothreads",
    "num_queues",
    "queue_size",
    "block_device_logical_sector_size",
    "block_device_physical_sector_size",
];
const VIRTIO_FS: [&str; 3] = ["virtio_fs_cache", "virtio_fs_queue_size", "virtio_fs_extra_args"];
const MAX_MEMORY: &str = "default_maxmemory";
const MAX_VCPUS: &str = "default_maxvcpus";

impl Checker<'_> {
    /// Warns of those that are set.
    pub(super) fn changes_nothing(&mut self, machine: &Machine, raw: &RawHypervisor) {
        let (can, board) = (machine.capabilities(), raw.machine_type.word());
        if !can.pci {
            self.no_effect(&PLACES, &format!("on the board {board}, which has no PCI"));
        }
        if !can.memory_devices {
            self.no_effect(&LATER, &format!("on the board {board}, whose memory stays as it is"));
            self.only_limits_pods(MAX_MEMORY, &format!("the board {board} gets no memory later"));
        } else if raw.confidential_guest {
            self.no_effect(&LATER, "with confidential_guest, whose memory stays as it is measured");
            self.only_limits_pods(MAX_MEMORY, "a confidential_guest gets no memory later");
        }
        if !can.cpu_hot_plug {
            self.only_limits_pods(MAX_VCPUS, &format!("the board {board} gets no processors later"));
        } else if raw.confidential_guest {
            self.only_limits_pods(MAX_VCPUS, "a confidential_guest gets no processors later");
        } else if raw.enable_numa {
            self.only_limits_pods(MAX_VCPUS, "enable_numa divides the processors there are from the start");
        }
        if !raw.enable_vhost_user_store {
            self.no_effect(&STORE, "without enable_vhost_user_store");
        }
        if !raw.confidential_guest || raw.sev_snp_guest {
            self.no_effect(&["tdx_quote_generation_service_socket_port"], "without TDX");
        }
        if !can.pci {
            self.no_effect(&PLUGGED, &format!("on the board {board}, which gets no disks later"));
        }
        match raw.shared_fs {
            SharedFs::Virtio9p => self.no_effect(&VIRTIO_FS, "with shared_fs = \"virtio-9p\""),
            SharedFs::VirtioFs | SharedFs::VirtioFsNydus => {
                self.no_effect(&["msize_9p"], &format!("with shared_fs = {:?}", raw.shared_fs.word()));
            }
            SharedFs::None => {
                self.no_effect(&VIRTIO_FS, "with shared_fs = \"none\"");
                self.no_effect(&["msize_9p"], "with shared_fs = \"none\"");
            }
            SharedFs::Auto => {}
        }
        if !raw.confidential_guest || !raw.sev_snp_guest {
            self.no_effect(&["snp_guest_policy"], "without confidential_guest and sev_snp_guest");
        }
    }

    fn no_effect(&mut self, names: &[&str], where_: &str) {
        for name in names.iter().filter(|name| asks(self, name)).collect::<Vec<_>>() {
            self.warning(&format!("{HYPERVISOR}.{name}"), format!("has no effect {where_}"));
        }
    }

    fn only_limits_pods(&mut self, name: &str, why: &str) {
        if asks(self, name) {
            let what = format!("only limits what a pod may ask for from the start, as {why}");
            self.warning(&format!("{HYPERVISOR}.{name}"), what);
        }
    }
}

/// Whether a key says more than its default does; 0 asks for nothing.
fn asks(checker: &Checker<'_>, name: &str) -> bool {
    let key = survey::section(HYPERVISOR).and_then(|section| section.key(name));
    let value = key.and_then(|key| survey::value(checker.tree, HYPERVISOR, key));
    let usual =
        |value: &toml::Value| value.as_integer() == Some(0) || key.is_none_or(|key| key.is_stock(value));
    value.is_some_and(|value| !usual(&value))
}
