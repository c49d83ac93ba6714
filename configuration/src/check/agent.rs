//! `[agent.kata]`.

use super::{Checker, seconds};
use crate::agent::{Agent, KernelModule};
use crate::raw::RawAgent;

impl Checker<'_> {
    pub(super) fn agent(&mut self, raw: RawAgent) -> Agent {
        Agent {
            debug: raw.enable_debug,
            kernel_modules: raw
                .kernel_modules
                .iter()
                .filter_map(|module| self.kernel_module(module))
                .collect(),
            debug_console: raw.debug_console_enabled,
            dial_timeout: seconds(raw.dial_timeout, 45),
        }
    }

    fn kernel_module(&mut self, text: &str) -> Option<KernelModule> {
        let mut words = text.split_whitespace().map(str::to_owned);
        // The guest hands the name to modprobe, which would take a leading dash for an option.
        let Some(name) = words.next().filter(|name| !name.starts_with('-')) else {
            let what = format!("{text:?} names no module; write \"name parameter=value ...\"");
            self.problem("agent.kata.kernel_modules", what);
            return None;
        };
        Some(KernelModule { name, parameters: words.collect() })
    }
}
