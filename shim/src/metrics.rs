//! A container's resource use: from the guest agent's terms to those containerd decodes, which are its host's cgroup
//! version's (`io.containerd.cgroups.v1.Metrics` or `.v2.Metrics`).

use std::collections::HashMap;

use agent_protocol::agent::{BlkioStatsEntry, CgroupStats, MemoryData, NetworkStats, StatsContainerResponse};
use containerd_shim::util::convert_to_any;
use containerd_shim_protos::{
    cgroups::metrics as v1,
    cgroups_v2::metrics as v2,
    protobuf::{MessageDyn, MessageField, well_known_types::any::Any},
};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::error::{Error, Result};

/// Which cgroup version containerd's own accounting on this host uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

impl Version {
    /// As containerd decides: version 2 where the unified hierarchy is mounted at its usual place.
    pub(crate) fn of_host() -> Version {
        match statfs("/sys/fs/cgroup") {
            Ok(fs) if fs.filesystem_type() == CGROUP2_SUPER_MAGIC => Version::V2,
            _ => Version::V1,
        }
    }
}

/// Renders what the agent measured.
///
/// # Errors
/// When the message cannot be encoded.
pub(crate) fn render(stats: &StatsContainerResponse, version: Version) -> Result<Any> {
    let cgroup = stats.cgroup_stats.clone().unwrap_or_default();
    let message: Box<dyn MessageDyn> = match version {
        Version::V1 => Box::new(metrics_v1(&cgroup, &stats.network_stats)),
        Version::V2 => Box::new(metrics_v2(&cgroup, &stats.network_stats)),
    };
    convert_to_any(message).map_err(|error| Error::Failed(format!("metrics: {error}")))
}

/// What containers use together: processors, memory and processes. Their network is one and the same.
pub(crate) fn sum(all: &[StatsContainerResponse]) -> StatsContainerResponse {
    let mut sum = StatsContainerResponse::default();
    let total = sum.cgroup_stats.mut_or_insert_default();
    for stats in all {
        let cpu = total.cpu_stats.mut_or_insert_default().cpu_usage.mut_or_insert_default();
        let own = &stats.cgroup_stats.cpu_stats.cpu_usage;
        add(&mut cpu.total_usage, own.total_usage);
        add(&mut cpu.usage_in_kernelmode, own.usage_in_kernelmode);
        add(&mut cpu.usage_in_usermode, own.usage_in_usermode);
        let memory = total.memory_stats.mut_or_insert_default();
        let own = &stats.cgroup_stats.memory_stats;
        add(&mut memory.cache, own.cache);
        add(&mut memory.usage.mut_or_insert_default().usage, own.usage.usage);
        for (name, value) in &own.stats {
            add(memory.stats.entry(name.clone()).or_default(), *value);
        }
        let processes = total.pids_stats.mut_or_insert_default();
        add(&mut processes.current, stats.cgroup_stats.pids_stats.current);
    }
    sum.network_stats = all.first().map(|stats| stats.network_stats.clone()).unwrap_or_default();
    sum
}

/// A guest may say what it likes.
fn add(sum: &mut u64, value: u64) {
    *sum = sum.saturating_add(value);
}

/// The guest's own cgroups may be of either version: a counter goes by its name in one or the other.
fn counter(stats: &HashMap<String, u64>, names: &[&str]) -> u64 {
    names.iter().find_map(|name| stats.get(*name).copied()).unwrap_or_default()
}

fn metrics_v1(cgroup: &CgroupStats, network: &[NetworkStats]) -> v1::Metrics {
    let hugetlb = cgroup.hugetlb_stats.iter().map(|(size, stat)| v1::HugetlbStat {
        usage: stat.usage,
        max: stat.max_usage,
        failcnt: stat.failcnt,
        pagesize: size.clone(),
        ..Default::default()
    });
    v1::Metrics {
        hugetlb: hugetlb.collect(),
        pids: some(v1::PidsStat {
            current: cgroup.pids_stats.current,
            limit: cgroup.pids_stats.limit,
            ..Default::default()
        }),
        cpu: some(cpu_v1(cgroup)),
        memory: some(memory_v1(cgroup)),
        blkio: some(blkio_v1(cgroup)),
        network: network.iter().map(network_v1).collect(),
        ..Default::default()
    }
}

fn cpu_v1(cgroup: &CgroupStats) -> v1::CPUStat {
    let (usage, throttling) = (&cgroup.cpu_stats.cpu_usage, &cgroup.cpu_stats.throttling_data);
    v1::CPUStat {
        usage: some(v1::CPUUsage {
            total: usage.total_usage,
            kernel: usage.usage_in_kernelmode,
            user: usage.usage_in_usermode,
            per_cpu: usage.percpu_usage.clone(),
            ..Default::default()
        }),
        throttling: some(v1::Throttle {
            periods: throttling.periods,
            throttled_periods: throttling.throttled_periods,
            throttled_time: throttling.throttled_time,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory_v1(cgroup: &CgroupStats) -> v1::MemoryStat {
    let memory = &cgroup.memory_stats;
    let stat = |names: &[&str]| counter(&memory.stats, names);
    let mut all = v1::MemoryStat {
        cache: memory.cache.max(stat(&["cache", "file"])),
        rss: stat(&["rss", "anon"]),
        rss_huge: stat(&["rss_huge", "anon_thp"]),
        mapped_file: stat(&["mapped_file", "file_mapped"]),
        dirty: stat(&["dirty", "file_dirty"]),
        writeback: stat(&["writeback", "file_writeback"]),
        pg_pg_in: stat(&["pgpgin"]),
        pg_pg_out: stat(&["pgpgout"]),
        pg_fault: stat(&["pgfault"]),
        pg_maj_fault: stat(&["pgmajfault"]),
        inactive_anon: stat(&["inactive_anon"]),
        active_anon: stat(&["active_anon"]),
        inactive_file: stat(&["inactive_file"]),
        active_file: stat(&["active_file"]),
        unevictable: stat(&["unevictable"]),
        usage: some(entry(&memory.usage)),
        swap: some(entry(&memory.swap_usage)),
        kernel: some(entry(&memory.kernel_usage)),
        ..Default::default()
    };
    // A container's cgroup has no children that count apart: the totals are the same.
    all.total_cache = all.cache;
    all.total_rss = all.rss;
    all.total_rss_huge = all.rss_huge;
    all.total_mapped_file = all.mapped_file;
    all.total_dirty = all.dirty;
    all.total_writeback = all.writeback;
    all.total_pg_pg_in = all.pg_pg_in;
    all.total_pg_pg_out = all.pg_pg_out;
    all.total_pg_fault = all.pg_fault;
    all.total_pg_maj_fault = all.pg_maj_fault;
    all.total_inactive_anon = all.inactive_anon;
    all.total_active_anon = all.active_anon;
    all.total_inactive_file = all.inactive_file;
    all.total_active_file = all.active_file;
    all.total_unevictable = all.unevictable;
    all.hierarchical_memory_limit = memory.usage.limit;
    all
}

fn entry(data: &MemoryData) -> v1::MemoryEntry {
    v1::MemoryEntry {
        limit: data.limit,
        usage: data.usage,
        max: data.max_usage,
        failcnt: data.failcnt,
        ..Default::default()
    }
}

fn blkio_v1(cgroup: &CgroupStats) -> v1::BlkIOStat {
    let blkio = &cgroup.blkio_stats;
    let entries = |entries: &[BlkioStatsEntry]| entries.iter().map(blkio_entry_v1).collect();
    v1::BlkIOStat {
        io_service_bytes_recursive: entries(&blkio.io_service_bytes_recursive),
        io_serviced_recursive: entries(&blkio.io_serviced_recursive),
        io_queued_recursive: entries(&blkio.io_queued_recursive),
        io_service_time_recursive: entries(&blkio.io_service_time_recursive),
        io_wait_time_recursive: entries(&blkio.io_wait_time_recursive),
        io_merged_recursive: entries(&blkio.io_merged_recursive),
        io_time_recursive: entries(&blkio.io_time_recursive),
        sectors_recursive: entries(&blkio.sectors_recursive),
        ..Default::default()
    }
}

fn blkio_entry_v1(entry: &BlkioStatsEntry) -> v1::BlkIOEntry {
    v1::BlkIOEntry {
        op: entry.op.clone(),
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
        ..Default::default()
    }
}

fn network_v1(network: &NetworkStats) -> v1::NetworkStat {
    v1::NetworkStat {
        name: network.name.clone(),
        rx_bytes: network.rx_bytes,
        rx_packets: network.rx_packets,
        rx_errors: network.rx_errors,
        rx_dropped: network.rx_dropped,
        tx_bytes: network.tx_bytes,
        tx_packets: network.tx_packets,
        tx_errors: network.tx_errors,
        tx_dropped: network.tx_dropped,
        ..Default::default()
    }
}

fn metrics_v2(cgroup: &CgroupStats, network: &[NetworkStats]) -> v2::Metrics {
    let (usage, throttling) = (&cgroup.cpu_stats.cpu_usage, &cgroup.cpu_stats.throttling_data);
    // The agent counts nanoseconds, version 2 microseconds.
    let usec = |nanoseconds: u64| nanoseconds / 1000;
    let hugetlb = cgroup.hugetlb_stats.iter().map(|(size, stat)| v2::HugeTlbStat {
        current: stat.usage,
        max: stat.max_usage,
        pagesize: size.clone(),
        ..Default::default()
    });
    v2::Metrics {
        pids: some(v2::PidsStat {
            current: cgroup.pids_stats.current,
            limit: cgroup.pids_stats.limit,
            ..Default::default()
        }),
        cpu: some(v2::CPUStat {
            usage_usec: usec(usage.total_usage),
            user_usec: usec(usage.usage_in_usermode),
            system_usec: usec(usage.usage_in_kernelmode),
            nr_periods: throttling.periods,
            nr_throttled: throttling.throttled_periods,
            throttled_usec: usec(throttling.throttled_time),
            ..Default::default()
        }),
        memory: some(memory_v2(cgroup)),
        io: some(v2::IOStat { usage: io_v2(cgroup), ..Default::default() }),
        hugetlb: hugetlb.collect(),
        network: network.iter().map(network_v2).collect(),
        ..Default::default()
    }
}

fn memory_v2(cgroup: &CgroupStats) -> v2::MemoryStat {
    let memory = &cgroup.memory_stats;
    let stat = |names: &[&str]| counter(&memory.stats, names);
    v2::MemoryStat {
        anon: stat(&["anon", "rss"]),
        file: stat(&["file", "cache"]),
        kernel_stack: stat(&["kernel_stack"]),
        slab: stat(&["slab"]),
        sock: stat(&["sock"]),
        shmem: stat(&["shmem"]),
        file_mapped: stat(&["file_mapped", "mapped_file"]),
        file_dirty: stat(&["file_dirty", "dirty"]),
        file_writeback: stat(&["file_writeback", "writeback"]),
        anon_thp: stat(&["anon_thp", "rss_huge"]),
        inactive_anon: stat(&["inactive_anon"]),
        active_anon: stat(&["active_anon"]),
        inactive_file: stat(&["inactive_file"]),
        active_file: stat(&["active_file"]),
        unevictable: stat(&["unevictable"]),
        slab_reclaimable: stat(&["slab_reclaimable"]),
        slab_unreclaimable: stat(&["slab_unreclaimable"]),
        pgfault: stat(&["pgfault"]),
        pgmajfault: stat(&["pgmajfault"]),
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        max_usage: memory.usage.max_usage,
        swap_usage: memory.swap_usage.usage,
        swap_limit: memory.swap_usage.limit,
        ..Default::default()
    }
}

/// Version 2 has one line a device where version 1 has one an operation.
fn io_v2(cgroup: &CgroupStats) -> Vec<v2::IOEntry> {
    let blkio = &cgroup.blkio_stats;
    let mut devices: std::collections::BTreeMap<(u64, u64), v2::IOEntry> = Default::default();
    for (entries, is_bytes) in
        [(&blkio.io_service_bytes_recursive, true), (&blkio.io_serviced_recursive, false)]
    {
        for entry in entries {
            let device = devices.entry((entry.major, entry.minor)).or_default();
            (device.major, device.minor) = (entry.major, entry.minor);
            match (entry.op.to_ascii_lowercase().as_str(), is_bytes) {
                ("read", true) => device.rbytes += entry.value,
                ("write", true) => device.wbytes += entry.value,
                ("read", false) => device.rios += entry.value,
                ("write", false) => device.wios += entry.value,
                _ => {}
            }
        }
    }
    devices.into_values().collect()
}

fn network_v2(network: &NetworkStats) -> v2::NetworkStat {
    v2::NetworkStat {
        name: network.name.clone(),
        rx_bytes: network.rx_bytes,
        rx_packets: network.rx_packets,
        rx_errors: network.rx_errors,
        rx_dropped: network.rx_dropped,
        tx_bytes: network.tx_bytes,
        tx_packets: network.tx_packets,
        tx_errors: network.tx_errors,
        tx_dropped: network.tx_dropped,
        ..Default::default()
    }
}

fn some<T>(value: T) -> MessageField<T> {
    MessageField::some(value)
}

#[cfg(test)]
mod tests {
    use agent_protocol::agent::{BlkioStats, CpuStats, CpuUsage, MemoryStats, PidsStats};
    use containerd_shim_protos::protobuf::Message;

    use super::*;

    fn measured() -> StatsContainerResponse {
        let entry =
            |op: &str, value| BlkioStatsEntry { major: 8, op: op.into(), value, ..Default::default() };
        let cpu = CpuUsage { total_usage: 5_000_000, usage_in_usermode: 3_000_000, ..Default::default() };
        let cgroup = CgroupStats {
            cpu_stats: some(CpuStats { cpu_usage: some(cpu), ..Default::default() }),
            memory_stats: some(MemoryStats {
                usage: some(MemoryData { usage: 4096, limit: 8192, ..Default::default() }),
                stats: [("anon".to_string(), 100), ("file".to_string(), 200)].into(),
                ..Default::default()
            }),
            pids_stats: some(PidsStats { current: 2, limit: 10, ..Default::default() }),
            blkio_stats: some(BlkioStats {
                io_service_bytes_recursive: vec![entry("Read", 10), entry("Write", 20)],
                io_serviced_recursive: vec![entry("read", 1)],
                ..Default::default()
            }),
            ..Default::default()
        };
        let network = NetworkStats { name: "eth0".into(), rx_bytes: 7, ..Default::default() };
        StatsContainerResponse {
            cgroup_stats: some(cgroup),
            network_stats: vec![network],
            ..Default::default()
        }
    }

    #[test]
    fn what_containers_use_adds_up_and_their_network_is_one() {
        let together = sum(&[measured(), measured()]);
        let cgroup = &together.cgroup_stats;
        assert_eq!(cgroup.cpu_stats.cpu_usage.total_usage, 10_000_000);
        assert_eq!((cgroup.memory_stats.usage.usage, cgroup.memory_stats.stats["anon"]), (8192, 200));
        assert_eq!((cgroup.pids_stats.current, together.network_stats[0].rx_bytes), (4, 7));
        let mut liar = measured();
        liar.cgroup_stats.mut_or_insert_default().pids_stats.mut_or_insert_default().current = u64::MAX;
        assert_eq!(sum(&[liar.clone(), liar]).cgroup_stats.pids_stats.current, u64::MAX);
        assert!(sum(&[]).network_stats.is_empty());
    }

    #[test]
    fn a_version_1_host_is_told_nanoseconds_and_version_1_names() {
        let any = render(&measured(), Version::V1).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage.total, 5_000_000);
        assert_eq!(
            (metrics.memory.rss, metrics.memory.total_cache, metrics.memory.usage.limit),
            (100, 200, 8192)
        );
        assert_eq!((metrics.pids.current, metrics.network[0].rx_bytes), (2, 7));
    }

    #[test]
    fn a_version_2_host_is_told_microseconds_and_version_2_names() {
        let any = render(&measured(), Version::V2).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.user_usec), (5_000, 3_000));
        assert_eq!((metrics.memory.anon, metrics.memory.usage), (100, 4096));
        let io = &metrics.io.usage[0];
        assert_eq!((io.major, io.rbytes, io.wbytes, io.rios), (8, 10, 20, 1));
    }

    #[test]
    fn an_agent_that_measured_nothing_gives_zeros() {
        for version in [Version::V1, Version::V2] {
            assert!(render(&StatsContainerResponse::new(), version).is_ok());
        }
    }
}
