//! What a container has used, from its cgroup and, for the network, from the guest's one network stack.

use std::{collections::HashMap, fs, path::Path};

use agent_protocol::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats,
    NetworkStats, PidsStats, StatsContainerResponse, ThrottlingData,
};
use protobuf::MessageField;

/// Reads all of it. What the kernel does not show stays zero.
pub(crate) fn read(cgroup: &Path) -> StatsContainerResponse {
    let dir = Dir(cgroup);
    let cgroup_stats = CgroupStats {
        cpu_stats: MessageField::some(cpu(&dir)),
        memory_stats: MessageField::some(memory(&dir)),
        pids_stats: MessageField::some(pids(&dir)),
        blkio_stats: MessageField::some(blkio(&dir.text("io.stat"))),
        hugetlb_stats: hugetlb(&dir),
        ..Default::default()
    };
    let network_stats = network(&fs::read_to_string("/proc/net/dev").unwrap_or_default());
    StatsContainerResponse {
        cgroup_stats: MessageField::some(cgroup_stats),
        network_stats,
        ..Default::default()
    }
}

/// The `key value` lines of a flat keyed file.
pub(crate) fn keyed(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once(' '))
}

struct Dir<'a>(&'a Path);

impl Dir<'_> {
    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }

    fn numbers(&self, file: &str) -> HashMap<String, u64> {
        let text = self.text(file);
        keyed(&text).filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect()
    }

    /// A single number; no limit is the largest there is.
    fn number(&self, file: &str) -> u64 {
        match self.text(file).trim() {
            "max" => u64::MAX,
            number => number.parse().unwrap_or(0),
        }
    }
}

fn cpu(dir: &Dir<'_>) -> CpuStats {
    let stat = dir.numbers("cpu.stat");
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    // The kernel counts microseconds, the protocol nanoseconds.
    let nanoseconds = |key: &str| of(key).saturating_mul(1000);
    CpuStats {
        cpu_usage: MessageField::some(CpuUsage {
            total_usage: nanoseconds("usage_usec"),
            usage_in_kernelmode: nanoseconds("system_usec"),
            usage_in_usermode: nanoseconds("user_usec"),
            ..Default::default()
        }),
        throttling_data: MessageField::some(ThrottlingData {
            periods: of("nr_periods"),
            throttled_periods: of("nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(dir: &Dir<'_>) -> MemoryStats {
    let stats = dir.numbers("memory.stat");
    let cache = stats.get("file").copied().unwrap_or(0);
    let kernel = MemoryData {
        usage: stats.get("kernel").copied().unwrap_or(0),
        limit: u64::MAX,
        ..Default::default()
    };
    MemoryStats {
        cache,
        usage: MessageField::some(memory_data(dir, "memory")),
        swap_usage: MessageField::some(memory_data(dir, "memory.swap")),
        kernel_usage: MessageField::some(kernel),
        use_hierarchy: true,
        stats,
        ..Default::default()
    }
}

fn memory_data(dir: &Dir<'_>, prefix: &str) -> MemoryData {
    MemoryData {
        usage: dir.number(&format!("{prefix}.current")),
        max_usage: dir.number(&format!("{prefix}.peak")),
        failcnt: dir.numbers(&format!("{prefix}.events")).get("max").copied().unwrap_or(0),
        limit: dir.number(&format!("{prefix}.max")),
        ..Default::default()
    }
}

/// The protocol says "no limit" with 0.
fn pids(dir: &Dir<'_>) -> PidsStats {
    let limit = dir.number("pids.max");
    PidsStats {
        current: dir.number("pids.current"),
        limit: if limit == u64::MAX { 0 } else { limit },
        ..Default::default()
    }
}

/// Lines such as `254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn blkio(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::default();
    for (device, counters) in keyed(text) {
        let Some((major, minor)) = device.split_once(':') else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in counters.split_whitespace().filter_map(|pair| pair.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut stats.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                "dios" => (&mut stats.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            let value = value.parse().unwrap_or(0);
            list.push(BlkioStatsEntry { major, minor, op: op.to_owned(), value, ..Default::default() });
        }
    }
    stats
}

/// One entry per page size, from the files `hugetlb.<size>.current`.
fn hugetlb(dir: &Dir<'_>) -> HashMap<String, HugetlbStats> {
    let Ok(entries) = fs::read_dir(dir.0) else { return HashMap::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let sizes = names.filter_map(|name| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.contains('.')).then(|| size.to_owned())
    });
    sizes.map(|size| (size.clone(), hugetlb_size(dir, &size))).collect()
}

fn hugetlb_size(dir: &Dir<'_>, size: &str) -> HugetlbStats {
    HugetlbStats {
        usage: dir.number(&format!("hugetlb.{size}.current")),
        failcnt: dir.numbers(&format!("hugetlb.{size}.events")).get("max").copied().unwrap_or(0),
        ..Default::default()
    }
}

/// `/proc/net/dev`: two lines of headings, then `name: ` and sixteen counters.
fn network(text: &str) -> Vec<NetworkStats> {
    text.lines().filter_map(|line| line.split_once(':')).filter_map(interface).collect()
}

fn interface((name, counters): (&str, &str)) -> Option<NetworkStats> {
    let all: Vec<u64> = counters.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
    let [
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = all[..]
    else {
        return None;
    };
    Some(NetworkStats {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_cgroup_is_read_into_the_wire_form() {
        let dir = cgroup(&[
            (
                "cpu.stat",
                "usage_usec 3000\nuser_usec 1000\nsystem_usec 2000\nnr_periods 4\nthrottled_usec 5\n",
            ),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\n"),
            ("memory.stat", "anon 4096\nfile 2048\nkernel 512\n"),
            ("memory.swap.current", "16\n"),
            ("memory.swap.max", "64\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("hugetlb.2MB.events", "max 2\n"),
        ]);
        let stats = read(dir.path()).cgroup_stats.unwrap();
        let usage = &stats.cpu_stats.cpu_usage;
        assert_eq!((usage.total_usage, usage.usage_in_usermode), (3_000_000, 1_000_000));
        assert_eq!(stats.cpu_stats.throttling_data.throttled_time, 5000);
        let memory = &stats.memory_stats;
        assert_eq!((memory.usage.usage, memory.usage.limit, memory.usage.failcnt), (8192, u64::MAX, 7));
        assert_eq!((memory.cache, memory.stats["anon"], memory.swap_usage.limit), (2048, 4096, 64));
        assert_eq!((stats.pids_stats.current, stats.pids_stats.limit), (3, 0));
        assert_eq!(stats.hugetlb_stats.len(), 1);
        assert_eq!((stats.hugetlb_stats["2MB"].usage, stats.hugetlb_stats["2MB"].failcnt), (2_097_152, 2));
    }

    #[test]
    fn an_empty_cgroup_is_all_zeros() {
        let dir = cgroup(&[]);
        let stats = read(dir.path()).cgroup_stats.unwrap();
        assert_eq!(stats.memory_stats.usage.usage, 0);
        assert_eq!(stats.blkio_stats.io_serviced_recursive.len(), 0);
    }

    #[test]
    fn block_devices_are_kept_apart() {
        let stats =
            blkio("254:0 rbytes=4096 wbytes=1 rios=2 wios=3 dbytes=0 dios=0\n8:16 rbytes=5\nrubbish\n");
        let bytes = &stats.io_service_bytes_recursive;
        assert_eq!(bytes.iter().map(|entry| entry.value).collect::<Vec<_>>(), [4096, 1, 0, 5]);
        assert_eq!((bytes[3].major, bytes[3].minor, bytes[3].op.as_str()), (8, 16, "Read"));
        assert_eq!(stats.io_serviced_recursive.len(), 3);
    }

    #[test]
    fn interfaces_are_read_with_their_names() {
        let text =
            "Inter-|   Receive\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n    lo:1\n";
        let stats = network(text);
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].name.as_str(), stats[0].rx_dropped, stats[0].tx_bytes), ("eth0", 4, 9));
    }
}
