//! Files of the kernel, read into samples.

use std::fs;

/// One line of a family.
pub(super) struct Sample {
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) value: f64,
}

impl Sample {
    pub(super) fn plain(value: f64) -> Self {
        Self { labels: Vec::new(), value }
    }

    pub(super) fn new(labels: &[(&'static str, &str)], value: f64) -> Self {
        let labels = labels.iter().map(|(label, value)| (*label, (*value).to_owned())).collect();
        Self { labels, value }
    }
}

/// Samples that come from one file.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) help: &'static str,
    file: &'static str,
    parse: fn(&str) -> Vec<Sample>,
}

impl Family {
    pub(super) fn read(&self) -> Vec<Sample> {
        fs::read_to_string(self.file).map(|text| (self.parse)(&text)).unwrap_or_default()
    }
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    file: &'static str,
    parse: fn(&str) -> Vec<Sample>,
) -> Family {
    Family { name, kind: "gauge", help, file, parse }
}

pub(super) const FAMILIES: &[Family] = &[
    gauge("kata_guest_load", "Load averages of the guest.", "/proc/loadavg", load),
    gauge("kata_guest_tasks", "Tasks of the guest, and those that run.", "/proc/loadavg", tasks),
    gauge("kata_guest_cpu_time", "Time of the guest's processors, in ticks.", "/proc/stat", cpu_time),
    gauge("kata_guest_meminfo", "Memory of the guest, in bytes.", "/proc/meminfo", meminfo),
    gauge("kata_guest_vm_stat", "Counters of the guest's memory management.", "/proc/vmstat", vmstat),
    gauge("kata_guest_netdev_stat", "Counters of the guest's interfaces.", "/proc/net/dev", netdev),
    gauge("kata_guest_diskstat", "Counters of the guest's disks.", "/proc/diskstats", diskstats),
    gauge("kata_agent_proc_status", "Memory of the agent, in bytes.", "/proc/self/status", status),
    gauge(
        "kata_agent_proc_stat",
        "Processor time of the agent by kind, in ticks.",
        "/proc/self/stat",
        proc_stat,
    ),
    gauge("kata_agent_io_stat", "Input and output of the agent.", "/proc/self/io", io),
    gauge("kata_agent_total_time", "Processor time of the agent, in ticks.", "/proc/self/stat", total_time),
    gauge("kata_agent_threads", "Threads of the agent.", "/proc/self/stat", threads),
    gauge("kata_agent_total_vm", "Address space of the agent, in bytes.", "/proc/self/stat", total_vm),
    gauge("kata_agent_total_rss", "Resident memory of the agent, in bytes.", "/proc/self/statm", total_rss),
];

const CPU_ITEMS: &[&str] =
    &["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];

const NET_ITEMS: &[&str] = &[
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];

const DISK_ITEMS: &[&str] = &[
    "reads",
    "merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
    "discards",
    "discards_merged",
    "sectors_discarded",
    "time_discarding",
    "flushes",
    "time_flushing",
];

const PAGE: f64 = 4096.0;

fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// One sample per named column of a line, with `label` saying which line it is.
fn columns<'a>(
    label: &'static str,
    line: &str,
    items: &[&str],
    words: impl Iterator<Item = &'a str>,
) -> Vec<Sample> {
    let pairs = items.iter().zip(words);
    pairs
        .filter_map(|(item, word)| Some(Sample::new(&[(label, line), ("item", item)], number(word)?)))
        .collect()
}

fn load(text: &str) -> Vec<Sample> {
    let items = ["load1", "load5", "load15"].iter().zip(text.split_whitespace());
    items.filter_map(|(item, word)| Some(Sample::new(&[("item", item)], number(word)?))).collect()
}

fn tasks(text: &str) -> Vec<Sample> {
    let Some((running, all)) = text.split_whitespace().nth(3).and_then(|word| word.split_once('/')) else {
        return Vec::new();
    };
    let pairs = [("cur", running), ("max", all)];
    pairs.iter().filter_map(|(item, word)| Some(Sample::new(&[("item", item)], number(word)?))).collect()
}

fn cpu_time(text: &str) -> Vec<Sample> {
    let lines = text.lines().filter(|line| line.starts_with("cpu"));
    lines
        .flat_map(|line| {
            let mut words = line.split_whitespace();
            let name = match words.next().unwrap_or_default() {
                "cpu" => "total",
                name => name.strip_prefix("cpu").unwrap_or(name),
            };
            columns("cpu", name, CPU_ITEMS, words)
        })
        .collect()
}

fn meminfo(text: &str) -> Vec<Sample> {
    amounts(text, memory_item)
}

/// The item that dashboards know a line of `/proc/meminfo` by: `Active(anon)` is `active_anon`.
fn memory_item(name: &str) -> String {
    if name == "Percpu" {
        return "per_cpu".to_owned();
    }
    if let Some(size) = name.strip_prefix("DirectMap") {
        return format!("direct_map_{size}");
    }
    let name = name.replace("HugePages", "Hugepages").replace('(', "_").replace(')', "");
    let letters: Vec<char> = name.chars().collect();
    let mut item = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let is = |at: usize, kind: fn(&char) -> bool| letters.get(at).is_some_and(kind);
        let begins_word = letter.is_ascii_uppercase()
            && at > 0
            && (is(at - 1, char::is_ascii_lowercase)
                || is(at - 1, char::is_ascii_uppercase) && is(at + 1, char::is_ascii_lowercase));
        if begins_word {
            item.push('_');
        }
        item.push(letter.to_ascii_lowercase());
    }
    item
}

/// `name: number kB` lines.
fn amounts(text: &str, item: fn(&str) -> String) -> Vec<Sample> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .filter_map(|(name, rest)| {
            let mut words = rest.split_whitespace();
            let value = number(words.next()?)?;
            let unit = if words.next() == Some("kB") { 1024.0 } else { 1.0 };
            Some(Sample::new(&[("item", &item(name.trim()))], value * unit))
        })
        .collect()
}

fn vmstat(text: &str) -> Vec<Sample> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(name, word)| Some(Sample::new(&[("item", name)], number(word)?))).collect()
}

fn netdev(text: &str) -> Vec<Sample> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .flat_map(|(name, rest)| columns("interface", name.trim(), NET_ITEMS, rest.split_whitespace()))
        .collect()
}

fn diskstats(text: &str) -> Vec<Sample> {
    text.lines()
        .flat_map(|line| {
            let mut words = line.split_whitespace().skip(2);
            let name = words.next().unwrap_or_default();
            columns("disk", name, DISK_ITEMS, words)
        })
        .collect()
}

/// Of the many lines, those that are amounts of memory.
fn status(text: &str) -> Vec<Sample> {
    let memory: String =
        text.lines().filter(|line| line.ends_with("kB")).flat_map(|line| [line, "\n"]).collect();
    amounts(&memory, str::to_ascii_lowercase)
}

fn io(text: &str) -> Vec<Sample> {
    amounts(text, str::to_owned)
}

/// A field of `/proc/self/stat` by its number in proc(5); the name in field 2 may hold spaces.
fn stat_field(text: &str, field: usize) -> Option<f64> {
    let (_, rest) = text.rsplit_once(')')?;
    number(rest.split_whitespace().nth(field - 3)?)
}

fn one(value: Option<f64>) -> Vec<Sample> {
    value.map(Sample::plain).into_iter().collect()
}

fn proc_stat(text: &str) -> Vec<Sample> {
    let items = [("utime", 14), ("stime", 15), ("cutime", 16), ("cstime", 17)];
    let known = items.iter().filter_map(|(item, field)| Some((item, stat_field(text, *field)?)));
    known.map(|(item, value)| Sample::new(&[("item", item)], value)).collect()
}

fn total_time(text: &str) -> Vec<Sample> {
    one(stat_field(text, 14).zip(stat_field(text, 15)).map(|(user, system)| user + system))
}

fn threads(text: &str) -> Vec<Sample> {
    one(stat_field(text, 20))
}

fn total_vm(text: &str) -> Vec<Sample> {
    one(stat_field(text, 23))
}

fn total_rss(text: &str) -> Vec<Sample> {
    one(text.split_whitespace().nth(1).and_then(number).map(|pages| pages * PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(samples: &[Sample]) -> Vec<(String, f64)> {
        let join = |sample: &Sample| {
            sample.labels.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join("/")
        };
        samples.iter().map(|sample| (join(sample), sample.value)).collect()
    }

    #[test]
    fn each_file_is_read_by_its_shape() {
        assert_eq!(flat(&load("0.5 1 2 3/99 7\n"))[2], ("load15".into(), 2.0));
        assert_eq!(flat(&tasks("0.5 1 2 3/99 7\n")), [("cur".into(), 3.0), ("max".into(), 99.0)]);
        let cpu = flat(&cpu_time("cpu  1 2 3\ncpu0 4 5 6\nintr 9\n"));
        assert_eq!((cpu.len(), &cpu[3]), (6, &("0/user".into(), 4.0)));
        assert_eq!(flat(&meminfo("MemTotal:  2 kB\nHugePages_Total: 3\n"))[0].1, 2048.0);
        assert_eq!(
            flat(&netdev("h|\n eth0: 1 2\n")),
            [("eth0/recv_bytes".into(), 1.0), ("eth0/recv_packets".into(), 2.0)]
        );
        assert_eq!(flat(&diskstats(" 254 0 vda 7 8\n"))[1], ("vda/merged".into(), 8.0));
    }

    #[test]
    fn c22_items_are_named_as_dashboards_know_them() {
        for (name, item) in [
            ("MemTotal", "mem_total"),
            ("Active(anon)", "active_anon"),
            ("SReclaimable", "s_reclaimable"),
            ("Committed_AS", "committed_as"),
            ("NFS_Unstable", "nfs_unstable"),
            ("AnonHugePages", "anon_hugepages"),
            ("HugePages_Total", "hugepages_total"),
            ("DirectMap1G", "direct_map_1G"),
            ("Percpu", "per_cpu"),
            ("WritebackTmp", "writeback_tmp"),
        ] {
            assert_eq!(memory_item(name), item);
        }
        assert_eq!(flat(&status("VmRSS:\t 2 kB\nThreads:\t3\n")), [("vmrss".into(), 2048.0)]);
    }

    #[test]
    fn a_process_name_with_spaces_does_not_shift_fields() {
        let text = "1 (a b) c) S 0 1 1 0 -1 4 5 6 7 8 10 20 0 0 20 0 3 0 9 4096 5\n";
        assert_eq!(total_time(text)[0].value, 30.0);
        assert_eq!(threads(text)[0].value, 3.0);
        assert_eq!(total_vm(text)[0].value, 4096.0);
    }
}
