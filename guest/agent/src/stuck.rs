//! What keeps a process that was to be done by now.

use std::fs;

use nix::unistd::Pid;

/// Functions of the kernel that are named, the innermost first.
const FRAMES: usize = 5;

/// A few words on where the process is and how long it has been on the processor, by proc(5). Whoever reads the error of
/// a missed deadline can tell by them a share that does not answer from a machine that is too slow.
pub(crate) fn whereabouts(pid: Pid) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).map_or("gone", str::trim);
    let frames = frames(&read("stack"));
    let at = if frames.is_empty() { String::new() } else { format!(" in {frames}") };
    format!("process {pid}: {state}{at}, {} on the processor", on_processor(&read("schedstat")))
}

/// Of lines such as `[<0>] p9_client_rpc+0x12c/0x2e0 [9pnet]`.
fn frames(stack: &str) -> String {
    let name = |line: &str| Some(line.split_whitespace().nth(1)?.split('+').next()?.to_owned());
    stack.lines().filter_map(name).take(FRAMES).collect::<Vec<_>>().join(" < ")
}

/// The first of the figures of schedstat is in nanoseconds.
fn on_processor(schedstat: &str) -> String {
    let ns = schedstat.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
    ns.map_or("unknown".to_owned(), |ns| format!("{} ms", ns / 1_000_000))
}

#[cfg(test)]
mod tests {
    use nix::unistd::getpid;

    use super::*;

    #[test]
    fn a_process_is_where_the_kernel_says() {
        let said = whereabouts(getpid());
        assert!(said.starts_with(&format!("process {}: ", getpid())), "{said}");
        assert!(said.ends_with(" ms on the processor"), "{said}");
        assert_eq!(
            whereabouts(Pid::from_raw(i32::MAX)),
            "process 2147483647: gone, unknown on the processor"
        );
    }

    #[test]
    fn the_innermost_functions_are_named() {
        let stack = "[<0>] p9_client_rpc+0x12c/0x2e0 [9pnet]\n[<0>] p9_client_walk+0x87/0x200\n[<0>] a+0/1\n[<0>] b+0/1\n[<0>] c+0/1\n[<0>] d+0/1\n";
        assert_eq!(frames(stack), "p9_client_rpc < p9_client_walk < a < b < c");
        assert_eq!(frames(""), "");
    }
}
