//! What one container may use, as far as it decides how big its machine has to be.

use oci_spec::runtime::{LinuxResources, Spec};

use super::{Size, cpus::Cpus};
use crate::error::{Error, Result};

/// The kernel's period for a quota that comes without one, in microseconds.
const PERIOD: u64 = 100_000;

/// From here on a memory limit is none: what version 1 of cgroups shows where nothing was set.
const NO_LIMIT: i64 = i64::MAX & !0xfff;

/// What containerd says of all containers of a pod together.
const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// The limits of a container, or of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Microseconds of CPU time in each `period`; none unless positive.
    quota: i64,
    period: u64,
    /// The CPUs it may run on.
    cpus: Cpus,
    /// In bytes; none unless positive.
    memory: i64,
    /// In bytes.
    huge_pages: u64,
}

impl Limits {
    pub(crate) fn of(spec: &Spec) -> Limits {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        resources.map_or_else(Limits::default, |resources| Limits::default().updated(resources))
    }

    /// What a pod's containers will have together, as its sandbox is told.
    ///
    /// # Errors
    /// `InvalidArgument` for an annotation that is no number.
    pub(super) fn of_pod(spec: &Spec) -> Result<Limits> {
        let number = |key| {
            let text = spec.annotations().as_ref().and_then(|annotations| annotations.get(key));
            let number = text.map_or(Ok(0), |text| text.parse::<i64>());
            number.map_err(|error| Error::InvalidArgument(format!("annotation {key}: {error}")))
        };
        Ok(Limits {
            quota: number(POD_QUOTA)?,
            period: u64::try_from(number(POD_PERIOD)?).unwrap_or(0),
            memory: number(POD_MEMORY)?,
            ..Limits::default()
        })
    }

    /// The same after `update`, which leaves alone what it does not name, or names 0.
    pub(super) fn updated(self, update: &LinuxResources) -> Limits {
        let cpu = update.cpu().as_ref();
        let quota = cpu.and_then(|cpu| cpu.quota()).filter(|quota| *quota != 0);
        let period = cpu.and_then(|cpu| cpu.period()).filter(|period| *period != 0);
        let cpus = cpu.and_then(|cpu| cpu.cpus().as_deref()).filter(|list| !list.is_empty());
        let memory = update.memory().as_ref().and_then(|memory| memory.limit()).filter(|limit| *limit != 0);
        let huge_pages = update.hugepage_limits().as_ref().map(|limits| {
            let bytes = limits.iter().map(|limit| u64::try_from(limit.limit()).unwrap_or(0));
            bytes.fold(0, u64::saturating_add)
        });
        Limits {
            quota: quota.unwrap_or(self.quota),
            period: period.unwrap_or(self.period),
            cpus: cpus.map_or(self.cpus, Cpus::of_list),
            memory: memory.unwrap_or(self.memory),
            huge_pages: huge_pages.unwrap_or(self.huge_pages),
        }
        .by_files(update)
    }

    /// The same after the limits that `update` has by the names of files, which count more than others.
    fn by_files(mut self, update: &LinuxResources) -> Limits {
        let words = |file: &str| {
            let text = update.unified().as_ref().and_then(|files| files.get(file));
            text.map(|text| text.split_whitespace()).into_iter().flatten()
        };
        // What cannot be read is for the guest's kernel to refuse.
        let number = |word: &str| if word == "max" { Some(-1) } else { word.parse().ok() };
        let size = |word: &str| number(word).or_else(|| in_bytes(word));
        if let Some(memory) = words("memory.max").next().and_then(size) {
            self.memory = memory;
        }
        let mut cpu = words("cpu.max");
        if let Some(quota) = cpu.next().and_then(number) {
            self.quota = quota;
        }
        self.period = cpu.next().and_then(|word| word.parse().ok()).unwrap_or(self.period);
        self
    }

    /// Whether a machine is big enough for it whatever its size.
    pub(super) fn are_none(&self) -> bool {
        self.milli_cpus() == 0 && self.cpus.len() == 0 && self.bytes() == 0
    }

    fn milli_cpus(&self) -> u64 {
        let period = if self.period == 0 { PERIOD } else { self.period };
        u64::try_from(self.quota).unwrap_or(0).saturating_mul(1000) / period
    }

    pub(super) fn bytes(&self) -> u64 {
        let memory = if self.memory >= NO_LIMIT { 0 } else { u64::try_from(self.memory).unwrap_or(0) };
        memory.saturating_add(self.huge_pages)
    }
}

/// How big a machine is that has `own` for itself and the rest for containers of these limits. CPUs of sets count where
/// no container has a quota.
pub(super) fn needed(own: Size, containers: &[Limits]) -> Size {
    let sum = |what: fn(&Limits) -> u64| containers.iter().map(what).fold(0, u64::saturating_add);
    let cpus = match sum(Limits::milli_cpus) {
        0 => sum(|limits| limits.cpus.len()),
        milli => milli.div_ceil(1000),
    };
    Size {
        vcpus: own.vcpus.saturating_add(u32::try_from(cpus).unwrap_or(u32::MAX)),
        mib: own.mib.saturating_add(sum(Limits::bytes).div_ceil(1 << 20)),
    }
}

/// The CPUs that any of these may run on.
pub(super) fn cpus(containers: impl Iterator<Item = Limits>) -> Cpus {
    containers.map(|limits| limits.cpus).fold(Cpus::default(), Cpus::or)
}

/// An amount as the kernel reads it (`memparse`): `64M`.
fn in_bytes(amount: &str) -> Option<i64> {
    let (number, suffix) = amount.split_at_checked(amount.len().checked_sub(1)?)?;
    let power = "KMGTPE".find(&suffix.to_uppercase())? + 1;
    number.parse::<i64>().ok()?.checked_mul(1 << (10 * power))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OWN: Size = Size { vcpus: 1, mib: 256 };

    fn resources(json: Value) -> LinuxResources {
        serde_json::from_value(json).unwrap()
    }

    fn limits(json: Value) -> Limits {
        Limits::default().updated(&resources(json))
    }

    fn cpu(quota: i64, period: u64) -> Limits {
        limits(json!({"cpu": {"quota": quota, "period": period}}))
    }

    fn need(containers: &[Limits]) -> (u32, u64) {
        let size = needed(OWN, containers);
        (size.vcpus, size.mib)
    }

    #[test]
    fn c14_quotas_add_up_before_they_are_rounded() {
        assert_eq!(need(&[cpu(50_000, 100_000), cpu(50_000, 100_000)]), (2, 256));
        assert_eq!(need(&[cpu(50_000, 100_000), cpu(100_000, 100_000)]), (3, 256));
        assert_eq!(need(&[cpu(25_000, 50_000), cpu(51_000, 100_000)]), (3, 256));
        assert_eq!(need(&[limits(json!({"cpu": {"quota": 200_000}}))]), (3, 256), "the kernel's period");
    }

    #[test]
    fn c14_memory_by_the_name_of_a_file_is_read_as_the_kernel_does() {
        let memory = |amount: &str| limits(json!({"unified": {"memory.max": amount}})).memory;
        assert_eq!([memory("64M"), memory("1g"), memory("max")], [64 << 20, 1 << 30, -1]);
        assert_eq!(["", "M", "x", "9999999P", "1é"].map(memory), [0; 5], "the kernel is to refuse these");
    }

    #[test]
    fn c14_sets_of_cpus_count_where_there_is_no_quota() {
        let set = |list: &str| limits(json!({"cpu": {"cpus": list}}));
        assert_eq!(need(&[set("0-1"), set("4,6")]), (5, 256));
        assert_eq!(need(&[set("0-63"), cpu(1000, 100_000)]), (2, 256));
        assert_eq!(cpus([set("0-1"), set("1,4")].into_iter()), Cpus::of_list("0,1,4"));
    }

    #[test]
    fn c14_memory_and_huge_pages_add_up() {
        let memory = |bytes: i64| limits(json!({"memory": {"limit": bytes}}));
        assert_eq!(need(&[memory(128 << 20), memory((256 << 20) + 1)]), (1, 256 + 385));
        let huge = limits(json!({"memory": {"limit": 1 << 20}, "hugepageLimits": [
            {"pageSize": "2MB", "limit": 4 << 20}, {"pageSize": "1GB", "limit": 0}]}));
        assert_eq!(need(&[huge]), (1, 261));
    }

    #[test]
    fn what_is_no_limit_asks_for_nothing() {
        for none in [
            json!({}),
            json!({"cpu": {"quota": -1, "period": 100_000, "shares": 2}, "memory": {"limit": -1}}),
            json!({"cpu": {"quota": 0, "period": 0, "cpus": ""}, "memory": {"limit": 0}}),
            json!({"memory": {"limit": i64::MAX}, "hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}),
            json!({"memory": {"limit": i64::MAX & !4095}}),
        ] {
            assert!(limits(none.clone()).are_none(), "{none}");
        }
        assert_eq!(need(&[]), (1, 256));
    }

    #[test]
    fn limits_beyond_all_bounds_do_not_wrap_around() {
        let most =
            limits(json!({"cpu": {"quota": i64::MAX, "period": 1}, "memory": {"limit": NO_LIMIT - 1}}));
        let size = needed(OWN, &[most; 4]);
        assert!(size.vcpus == u32::MAX && size.mib > 1 << 40);
    }

    #[test]
    fn c14_an_update_leaves_alone_what_it_does_not_name() {
        let before = limits(json!({"cpu": {"quota": 50_000, "period": 100_000, "cpus": "0-1"},
            "memory": {"limit": 1 << 20}, "hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]}));
        let update = |json: Value| before.updated(&resources(json));
        assert_eq!(
            update(json!({"cpu": {"shares": 5, "quota": 0, "cpus": ""}, "memory": {"limit": 0}})),
            before
        );
        assert_eq!(update(json!({"cpu": {"quota": 200_000}})).milli_cpus(), 2000);
        assert_eq!(update(json!({"cpu": {"quota": -1}})).milli_cpus(), 0);
        assert_eq!(update(json!({"memory": {"limit": 3 << 20}})).bytes(), 5 << 20);
        assert_eq!(update(json!({"memory": {"limit": -1}, "hugepageLimits": []})).bytes(), 0);
    }

    #[test]
    fn limits_by_the_names_of_files_count_more_than_others() {
        let before = limits(json!({"cpu": {"quota": 50_000}, "memory": {"limit": 1 << 20}}));
        let update = |json: Value| before.updated(&resources(json));
        let files = |json: Value| update(json!({"memory": {"limit": 2 << 20}, "unified": json}));
        assert_eq!(files(json!({"memory.max": "3145728\n"})).bytes(), 3 << 20);
        assert_eq!(files(json!({"memory.max": "max"})).bytes(), 0);
        for other in [json!({"memory.max": "much"}), json!({"memory.max": ""}), json!({"memory.high": "1"})] {
            assert_eq!(files(other).bytes(), 2 << 20);
        }
        assert_eq!(files(json!({"cpu.max": "100000 50000"})).milli_cpus(), 2000);
        assert_eq!(files(json!({"cpu.max": "200000"})).milli_cpus(), 2000);
        assert_eq!(files(json!({"cpu.max": "max 50000"})).milli_cpus(), 0);
    }

    #[test]
    fn e5_a_pods_limits_are_in_its_sandboxs_annotations() {
        let pod = |annotations: &[(&str, &str)]| {
            let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string()));
            let mut spec = Spec::default();
            spec.set_annotations(Some(annotations.collect()));
            Limits::of_pod(&spec)
        };
        assert!(pod(&[]).unwrap().are_none());
        let all = [(POD_PERIOD, "100000"), (POD_QUOTA, "150000"), (POD_MEMORY, "402653184")];
        assert_eq!(need(&[pod(&all).unwrap()]), (3, 256 + 384));
        assert!(pod(&[(POD_PERIOD, "100000"), (POD_QUOTA, "-1"), (POD_MEMORY, "0")]).unwrap().are_none());
        let error = pod(&[(POD_MEMORY, "1Gi")]).unwrap_err().to_string();
        assert!(error.contains(POD_MEMORY), "{error}");
    }
}
