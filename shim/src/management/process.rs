//! What the kernel shows of a process, by the items that the dashboards of the field know.

use std::{fs, io, path::Path};

use rustix::param::{clock_ticks_per_second, page_size};

/// A label's value, and the figure.
pub(super) type Item = (String, f64);

/// Fields of `stat`, numbered as in proc(5), in ticks.
const TIMES: [(&str, usize); 4] = [("utime", 14), ("stime", 15), ("cutime", 16), ("cstime", 17)];
const THREADS: usize = 20;
const STARTED: usize = 22;
const ADDRESS_SPACE: usize = 23;
const RESIDENT: usize = 24;

/// What a process has used.
#[derive(Default)]
pub(super) struct Process {
    pub(super) threads: f64,
    pub(super) times: Vec<Item>,
    pub(super) status: Vec<Item>,
    pub(super) io: Vec<Item>,
    pub(super) fds: f64,
    pub(super) most_fds: f64,
    /// Seconds of processors.
    pub(super) cpu: f64,
    /// Seconds since 1970.
    pub(super) started: f64,
    /// Bytes.
    pub(super) address_space: f64,
    pub(super) resident: f64,
    /// Bytes, what it shares with others counted in part.
    pub(super) share: f64,
}

impl Process {
    /// Reads what is shown of `pid`; what is not shown stays zero.
    ///
    /// # Errors
    /// There is no such process.
    pub(super) fn read(pid: u32) -> io::Result<Process> {
        let dir = Path::new("/proc").join(pid.to_string());
        let text = |file: &str| fs::read_to_string(dir.join(file));
        let stat = text("stat")?;
        let field = |number| field(&stat, number).unwrap_or_default();
        let seconds = |ticks: f64| ticks / clock_ticks_per_second() as f64;
        let booted = fs::read_to_string("/proc/stat").unwrap_or_default();
        Ok(Process {
            threads: field(THREADS),
            times: TIMES.map(|(item, number)| (item.to_owned(), field(number))).into(),
            status: status(&text("status").unwrap_or_default()),
            io: io_items(&text("io").unwrap_or_default()),
            fds: fs::read_dir(dir.join("fd")).map_or(0, Iterator::count) as f64,
            most_fds: most_fds(&text("limits").unwrap_or_default()),
            cpu: seconds(field(TIMES[0].1) + field(TIMES[1].1)),
            started: keyed(&booted, "btime").unwrap_or_default() + seconds(field(STARTED)),
            address_space: field(ADDRESS_SPACE),
            resident: field(RESIDENT) * page_size() as f64,
            share: keyed(&text("smaps_rollup").unwrap_or_default(), "Pss:").unwrap_or_default() * 1024.0,
        })
    }
}

/// The name in field 2 may hold anything, spaces and parentheses too.
fn field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3)?.parse().ok()
}

/// The number after a key at the begin of a line.
fn keyed(text: &str, key: &str) -> Option<f64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| words.next().filter(|word| *word == key).and(words.next())?.parse().ok())
}

/// Amounts of memory, in bytes, and how often another had its turn.
fn status(text: &str) -> Vec<Item> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    let items = pairs.filter_map(|(name, rest)| {
        let mut words = rest.split_whitespace();
        let value: f64 = words.next()?.parse().ok()?;
        let unit = match words.next() {
            Some("kB") => 1024.0,
            None if name.ends_with("ctxt_switches") => 1.0,
            _ => return None,
        };
        Some((name.to_ascii_lowercase(), value * unit))
    });
    items.collect()
}

fn io_items(text: &str) -> Vec<Item> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.filter_map(|(name, value)| Some((name.replace('_', ""), value.trim().parse().ok()?))).collect()
}

fn most_fds(text: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    soft.and_then(|soft| soft.parse().ok()).unwrap_or_default()
}

/// What `/proc/net/dev` counts: interface, item, figure.
pub(super) fn interfaces(text: &str) -> Vec<(String, &'static str, f64)> {
    const ITEMS: [&str; 16] = [
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
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let items = lines.flat_map(|(name, counters)| {
        let pairs = ITEMS.into_iter().zip(counters.split_whitespace());
        pairs.filter_map(move |(item, word)| Some((name.trim().to_owned(), item, word.parse().ok()?)))
    });
    items.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c22_files_of_the_kernel_are_read_by_their_shape() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4 5 6 7 8 10 20 30 40 20 0 3 0 900 4096 5 18446744073709551615";
        let fields =
            [14, 15, 17, THREADS, STARTED, ADDRESS_SPACE, RESIDENT].map(|number| field(stat, number));
        assert_eq!(fields.map(Option::unwrap), [10.0, 20.0, 40.0, 3.0, 900.0, 4096.0, 5.0]);
        let status = status("Name:\tx\nVmRSS:\t  2 kB\nThreads:\t3\nvoluntary_ctxt_switches:\t4\n");
        assert_eq!(status, [("vmrss".into(), 2048.0), ("voluntary_ctxt_switches".into(), 4.0)]);
        assert_eq!(io_items("cancelled_write_bytes: 5\n"), [("cancelledwritebytes".into(), 5.0)]);
        assert_eq!(most_fds("Max processes  1 2 x\nMax open files            1024   4096   files\n"), 1024.0);
        assert_eq!(keyed("Rss: 1 kB\nPss:   7 kB\nPss_Anon: 8 kB\n", "Pss:"), Some(7.0));
        let counters = interfaces("Inter-|\n face |x\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n");
        assert_eq!((counters.len(), &counters[8]), (16, &("eth0".into(), "sent_bytes", 9.0)));
    }

    #[test]
    fn c22_this_process_has_all_of_it() {
        let process = Process::read(std::process::id()).unwrap();
        for figure in [process.threads, process.fds, process.most_fds, process.resident, process.share] {
            assert!(figure >= 1.0, "{figure}");
        }
        assert!(process.started > 1e9 && process.address_space >= process.resident);
        assert!(process.status.iter().any(|(item, _)| item == "vmrss") && process.io.len() == 7);
        assert!(Process::read(0).is_err());
    }
}
