//! Where devices of the host are plugged in.

use super::Checker;
use crate::keys::HYPERVISOR;
use crate::survey;

/// What says that no place is kept for them.
const NOWHERE: [&str; 2] = ["no-port", ""];

impl Checker<'_> {
    /// A device is either there from the start or comes later, and Kata refuses a file that wants both.
    pub(super) fn plugs(&mut self) {
        let (hot, cold) = ("hot_plug_vfio", "cold_plug_vfio");
        if self.keeps_a_place(hot) && self.keeps_a_place(cold) {
            let what = format!("set together with {HYPERVISOR}.{cold}; set one of the two to no-port");
            self.problem(&format!("{HYPERVISOR}.{hot}"), what);
        }
    }

    fn keeps_a_place(&self, name: &str) -> bool {
        let key = survey::section(HYPERVISOR).and_then(|section| section.key(name));
        let value = key.and_then(|key| survey::value(self.tree, HYPERVISOR, key));
        value.as_ref().and_then(toml::Value::as_str).is_some_and(|place| !NOWHERE.contains(&place))
    }
}
