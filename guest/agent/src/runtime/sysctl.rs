//! Network settings of a container. The pod has the guest's network stack for itself, so they are the
//! guest's; libcontainer would refuse them as settings of the host.

use std::{fs, path::PathBuf};

use oci_spec::runtime::{Linux, Spec};

/// Applies the settings under `net` and takes them out of the configuration.
pub(super) fn apply_network(spec: &mut Spec) -> Result<(), String> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let Some(all) = linux.sysctl_mut().take() else { return Ok(()) };
    let (network, rest): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(key, _)| key.replace('/', ".").starts_with("net."));
    network.iter().try_for_each(|(key, value)| set(key, value))?;
    linux.set_sysctl(Some(rest.into_iter().collect()));
    Ok(())
}

/// Applies the settings of the namespaces that a container has of its own, from within them, by the agent's view of /proc.
/// That they are such has been validated.
pub(super) fn apply_own(linux: &Linux) -> Result<(), String> {
    linux.sysctl().iter().flatten().try_for_each(|(key, value)| set(key, value))
}

fn set(key: &str, value: &str) -> Result<(), String> {
    let path = path(key).ok_or_else(|| format!("sysctl {key:?}: not a name of a setting"))?;
    fs::write(path, value).map_err(|error| format!("sysctl {key}={value}: {error}"))
}

/// The file of a setting. With slashes as separators, dots belong to names of interfaces.
fn path(key: &str) -> Option<PathBuf> {
    let parts: Vec<&str> =
        if key.contains('/') { key.split('/').collect() } else { key.split('.').collect() };
    let sane = parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
    sane.then(|| ["/proc/sys"].into_iter().chain(parts).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_name_the_same_file() {
        let wanted = PathBuf::from("/proc/sys/net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.ip_forward"), Some(wanted.clone()));
        assert_eq!(path("net/ipv4/ip_forward"), Some(wanted));
        assert_eq!(
            path("net/ipv4/conf/eth0.1/rp_filter"),
            Some("/proc/sys/net/ipv4/conf/eth0.1/rp_filter".into())
        );
    }

    #[test]
    fn no_setting_leads_out_of_proc_sys() {
        assert_eq!(path("net/../../etc/passwd"), None);
        assert_eq!(path("net..x"), None);
    }
}
