//! How fast a pod may send and receive.

use super::Checker;
use crate::choice::InternetworkingModel;
use crate::hypervisor::Hypervisor;
use crate::runtime::Runtime;

const RX: &str = "hypervisor.qemu.rx_rate_limiter_max_rate";
const TX: &str = "hypervisor.qemu.tx_rate_limiter_max_rate";

/// Bits per second. With less, a packet takes seconds; whoever asks for it meant another unit.
const LEAST: u64 = 8000;

impl Checker<'_> {
    /// What the two are limited to, where there is a network.
    pub(super) fn rates(&mut self, hypervisor: &Hypervisor, runtime: &Runtime) {
        let model = runtime.internetworking_model;
        for (key, rate) in [(RX, hypervisor.rates.rx), (TX, hypervisor.rates.tx)] {
            match (rate, model) {
                (0, _) => {}
                (_, InternetworkingModel::None) => {
                    let what = "has no effect with internetworking_model = \"none\", which joins no network";
                    self.warning(key, what.to_owned());
                }
                (..LEAST, _) => {
                    let what = format!(
                        "{rate} bits per second are no network; set at least {LEAST}, or 0 for no limit"
                    );
                    self.problem(key, what);
                }
                _ => {}
            }
        }
    }
}
