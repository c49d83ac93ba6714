//! What a pod's containers are given by a sandbox that is no container: containerd makes files of `/etc` and applies
//! settings of the kernel for a pod's own container alone.
//!
//! The files are the guest's, so that nobody there can fill a file system of the host's with them.

use std::{collections::HashMap, path::Path};

use agent_client::AgentClient;
use oci_spec::runtime::{Mount, Spec};

/// Where the guest has the files, below the one directory that it takes files in.
const GUEST_DIR: &str = "/run/kata-containers/sandbox/etc";
/// Where containers expect them.
const ETC: &str = "/etc";
/// The file of name servers, which the guest itself has, too.
pub(crate) const RESOLVER: &str = "resolv.conf";
/// A plain file that everybody may read.
const MODE: u32 = 0o100_644;

/// What the containers of a pod are to be given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Provisions {
    /// Names in `/etc`, and what is in them.
    pub(crate) files: Vec<(&'static str, String)>,
    /// Settings of the kernel.
    pub(crate) sysctl: HashMap<String, String>,
}

/// What the guest has of it.
#[derive(Debug, Default)]
pub(crate) struct Provided {
    files: Vec<&'static str>,
    sysctl: HashMap<String, String>,
}

impl Provisions {
    /// The lines of the file of name servers.
    pub(super) fn resolver(&self) -> Vec<String> {
        let file = self.files.iter().find(|(name, _)| *name == RESOLVER);
        file.map(|(_, text)| text.lines().map(str::to_owned).collect()).unwrap_or_default()
    }

    /// Writes the files in the guest.
    ///
    /// # Errors
    /// The agent's refusal.
    pub(super) async fn send(&self, agent: &AgentClient) -> Result<Provided, agent_client::Error> {
        for (name, text) in &self.files {
            agent.copy_file(&format!("{GUEST_DIR}/{name}"), MODE, text.as_bytes()).await?;
        }
        let files = self.files.iter().map(|(name, _)| *name).collect();
        Ok(Provided { files, sysctl: self.sysctl.clone() })
    }
}

impl Provided {
    /// Whether it is what a pod's own container would have had.
    pub(crate) fn is_of_a_pod(&self) -> bool {
        !self.files.is_empty()
    }

    /// Takes the mounts out of `spec` that the guest's files replace, and returns those of the guest's, for its
    /// configuration in the guest's terms. A setting that the container has itself stays.
    pub(crate) fn complete(&self, spec: &mut Spec) -> Vec<Mount> {
        if !self.sysctl.is_empty() {
            let all = spec.linux_mut().get_or_insert_default().sysctl_mut().get_or_insert_default();
            for (key, value) in &self.sysctl {
                all.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let mounts = spec.mounts_mut().get_or_insert_default();
        let wanted = self.files.iter().filter_map(|name| {
            let place = Path::new(ETC).join(name);
            let given = mounts.iter().position(|mount| *mount.destination() == place);
            match given {
                // Somebody has made that one, kubelet for `/etc/hosts`.
                Some(given) if is_file(&mounts[given]) => return None,
                // containerd names a file here that it makes for a pod's own container; where that is missing, it makes
                // a directory of that name.
                Some(given) => drop(mounts.remove(given)),
                None => {}
            }
            let mut mount = Mount::default();
            let access = if read_only { "ro" } else { "rw" };
            mount
                .set_destination(place)
                .set_typ(Some("bind".to_owned()))
                .set_source(Some(Path::new(GUEST_DIR).join(name)))
                .set_options(Some(["bind", "rprivate", access].map(str::to_owned).to_vec()));
            Some(mount)
        });
        wanted.collect()
    }
}

fn is_file(mount: &Mount) -> bool {
    mount.source().as_ref().is_some_and(|source| source.is_file())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn provided() -> Provided {
        let sysctl = HashMap::from([("net.core.somaxconn".to_owned(), "77".to_owned())]);
        Provided { files: vec!["hosts", RESOLVER], sysctl }
    }

    fn spec(mounts: serde_json::Value) -> Spec {
        serde_json::from_value(json!({"ociVersion": "1.0.2", "mounts": mounts})).unwrap()
    }

    fn places(mounts: &[Mount]) -> Vec<&str> {
        mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect()
    }

    #[test]
    fn files_that_nobody_has_made_are_the_guests() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |source: &Path, place| json!({"destination": place, "type": "bind", "source": source});
        let data = mount(dir.path(), "/data");
        let mut of_containerd = spec(json!([mount(dir.path(), "/etc/resolv.conf"), data]));
        let added = provided().complete(&mut of_containerd);
        assert_eq!(places(&added), ["/etc/hosts", "/etc/resolv.conf"]);
        assert_eq!(added[0].source().as_deref(), Some(Path::new("/run/kata-containers/sandbox/etc/hosts")));
        assert_eq!(places(of_containerd.mounts().as_ref().unwrap()), ["/data"]);
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, "x").unwrap();
        let mut of_kubelet = spec(json!([mount(&hosts, "/etc/hosts")]));
        assert_eq!(places(&provided().complete(&mut of_kubelet)), ["/etc/resolv.conf"]);
        assert_eq!(places(of_kubelet.mounts().as_ref().unwrap()), ["/etc/hosts"]);
    }

    #[test]
    fn a_containers_own_setting_stays() {
        let mut spec = spec(json!([]));
        let own = HashMap::from([("net.core.somaxconn".to_owned(), "1".to_owned())]);
        spec.linux_mut().get_or_insert_default().set_sysctl(Some(own.clone()));
        provided().complete(&mut spec);
        assert_eq!(spec.linux().as_ref().unwrap().sysctl().as_ref(), Some(&own));
        spec.linux_mut().get_or_insert_default().set_sysctl(None);
        provided().complete(&mut spec);
        assert_eq!(spec.linux().as_ref().unwrap().sysctl().as_ref().unwrap()["net.core.somaxconn"], "77");
    }

    #[test]
    fn in_the_pause_way_nothing_is_changed() {
        let mut before = spec(json!([{"destination": "/etc/hosts", "type": "bind", "source": "/nowhere"}]));
        let after = before.clone();
        assert!(Provided::default().complete(&mut before).is_empty());
        assert_eq!(before, after);
    }
}
