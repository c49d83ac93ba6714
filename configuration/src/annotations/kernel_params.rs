//! Words that a pod adds to the guest's kernel command line.

/// Words, or beginnings of words, that would run another program than the agent, open a way into the guest, or
/// change what the operator's own words mean.
pub(crate) const REFUSED: [&str; 27] = [
    "init=",
    "rdinit=",
    "root=",
    "agent.config_file",
    "agent.debug_console",
    "agent.devmode",
    "agent.log_vport",
    "agent.policy",
    "dm_mod.",
    "enforcing=",
    "kata.",
    "lsm=",
    "modprobe.",
    "oops=",
    "panic=",
    "security=",
    "selinux=",
    "sysctl.",
    "agent.server_addr",
    "apparmor=",
    "evm=",
    "ima_",
    "lockdown=",
    "module.sig",
    "trusted.",
    "systemd.",
    "rd.",
];

/// Checks the words of an annotation.
///
/// # Errors
/// Every word that is refused, and why.
pub(super) fn check(text: &str) -> Result<(), String> {
    let odd = text.chars().find(|c| !(c.is_ascii_graphic() || *c == ' ') || "\"'\\".contains(*c));
    if let Some(odd) = odd {
        return Err(format!(
            "holds {odd:?}; write plain words parted by spaces, without quotes and backslashes"
        ));
    }
    let refused: Vec<_> = text.split(' ').filter(|word| is_refused(word)).collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(format!("{} may only be set in the configuration file; leave it out", refused.join(", ")))
}

fn is_refused(word: &str) -> bool {
    // To the kernel both signs are the same. What follows `--` is for its first program.
    let name = word.replace('-', "_");
    name == "__" || is_for_init(word) || REFUSED.iter().any(|refused| name.starts_with(refused))
}

/// Whether the kernel hands a word to its first program: words it does not know, a module's apart, become arguments or,
/// with a value, variables of the environment, and by either agents and systemd may be told to do something else.
/// The kernel's own are not written in capitals.
fn is_for_init(word: &str) -> bool {
    const RUN_LEVELS: [&str; 10] = ["s", "S", "single", "rescue", "emergency", "1", "2", "3", "4", "5"];
    let name = word.split('=').next().unwrap_or_default();
    let is_variable =
        word.contains('=') && name.contains(|c: char| c.is_ascii_uppercase()) && !name.contains('.');
    is_variable || RUN_LEVELS.contains(&word) || word.starts_with('-')
}
