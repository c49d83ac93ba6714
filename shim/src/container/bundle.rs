//! What containerd prepared for a container: the bundle with its OCI configuration, and whose sandbox it joins.

use std::{collections::HashMap, fs::File, io::Read, os::unix::fs::MetadataExt, path::Path};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::capabilities::{self, Unknown};
use crate::{
    error::{Error, Result},
    ids,
};

/// Far more than any real configuration; a larger file is no configuration.
const LONGEST_SPEC: u64 = 10 << 20;

/// containerd's CRI plugin and CRI-O each say in annotations what part of a pod a container is.
const TYPE_ANNOTATIONS: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
const SANDBOX_ANNOTATIONS: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];

/// The sandbox a container runs in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SandboxRef {
    /// The id of the container that the sandbox was made for.
    pub(crate) id: String,
    /// Whether this very container makes the sandbox; otherwise it joins one.
    pub(crate) is_own: bool,
}

/// The file of a bundle with its OCI configuration.
const CONFIG: &str = "config.json";

/// Whether the bundle is a sandbox's that is no container: containerd writes no configuration for it.
pub(crate) fn is_a_sandboxs(bundle: &Path) -> bool {
    bundle.is_dir() && !bundle.join(CONFIG).exists()
}

/// Reads `config.json` of container `id`'s bundle, checks what every later step relies on, and whose sandbox it is for. What
/// it is to do without comes along.
///
/// # Errors
/// `InvalidArgument` that names the file and what is wrong in it, or the annotation.
pub(crate) fn read(bundle: &Path, id: &str) -> Result<(Spec, SandboxRef, Unknown)> {
    let path = bundle.join(CONFIG);
    let wrong = |why: &dyn std::fmt::Display| Error::InvalidArgument(format!("{}: {why}", path.display()));
    let (spec, unknown) = read_spec(&path).map_err(|why| wrong(&why))?;
    let sandbox = sandbox_of(&spec, id)?;
    // The others of a pod are given their sandbox's network by what stands for the sandbox, which is a process here.
    if sandbox.is_own && shares_the_hosts_network(&spec) {
        return Err(wrong(
            &"host networking is asked for (linux.namespaces has no network entry, or the host's own), which a \
              virtual machine cannot give: leave out hostNetwork or --net-host",
        ));
    }
    if maps_users(&spec) {
        return Err(wrong(
            &"a user namespace is asked for (linux.uidMappings, linux.gidMappings), which containers in a virtual \
              machine do not get, as their users are none of the host's: leave out hostUsers: false or --uidmap",
        ));
    }
    Ok((spec, sandbox, unknown))
}

fn read_spec(path: &Path) -> std::result::Result<(Spec, Unknown), String> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_SPEC + 1).read_to_end(&mut text))
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > LONGEST_SPEC {
        return Err("larger than 10 MiB, which no OCI configuration is".into());
    }
    let read = capabilities::read(&text, "/process/capabilities");
    let (spec, unknown): (Spec, _) = read.map_err(|error| error.to_string())?;
    let process = spec.process().as_ref().ok_or("has no process: nothing to run")?;
    if process.args().as_ref().is_none_or(|args| args.is_empty()) {
        return Err("process.args is empty: the first is the program to run".into());
    }
    spec.root().as_ref().ok_or("has no root: it names the root filesystem")?;
    Ok((spec, unknown))
}

pub(crate) fn shares_the_hosts_network(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let mut all = namespaces.into_iter().flatten();
    let network = all.find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    network.is_none_or(|network| network.path().as_deref().is_some_and(is_the_hosts))
}

fn maps_users(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let mappings = linux.map(|linux| [linux.uid_mappings(), linux.gid_mappings()]);
    mappings.into_iter().flatten().flatten().any(|mappings| !mappings.is_empty())
}

/// Whether the namespace at `path` is the one this process is in, as containerd is: the host's.
fn is_the_hosts(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(path).is_some_and(|given| identity(Path::new("/proc/self/ns/net")) == Some(given))
}

/// Whether it is of a pod, rather than of a container that stands alone.
pub(crate) fn is_pod(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    annotations.is_some_and(|annotations| TYPE_ANNOTATIONS.iter().any(|key| annotations.contains_key(*key)))
}

/// Whose sandbox the container `id` belongs to: its own when it stands alone or *is* a pod's sandbox container, else
/// its pod's.
///
/// # Errors
/// `InvalidArgument` for a container type nobody knows, or a pod's container that names no (or no proper) sandbox.
fn sandbox_of(spec: &Spec, id: &str) -> Result<SandboxRef> {
    let empty = HashMap::new();
    let annotations = spec.annotations().as_ref().unwrap_or(&empty);
    let any_of = |keys: [&'static str; 2]| {
        keys.into_iter().find_map(|key| annotations.get(key).map(|value| (key, value)))
    };
    match any_of(TYPE_ANNOTATIONS) {
        None => Ok(SandboxRef { id: id.to_string(), is_own: true }),
        Some((_, kind)) if kind == "sandbox" => Ok(SandboxRef { id: id.to_string(), is_own: true }),
        Some((_, kind)) if kind == "container" => {
            let (key, sandbox) = any_of(SANDBOX_ANNOTATIONS).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "container {id} is part of a pod, but no annotation says which: {}",
                    SANDBOX_ANNOTATIONS.join(" or ")
                ))
            })?;
            ids::check(&format!("annotation {key}"), sandbox)?;
            Ok(SandboxRef { id: sandbox.clone(), is_own: false })
        }
        Some((key, kind)) => Err(Error::InvalidArgument(format!(
            "annotation {key}: {kind:?} is not a container type; sandbox and container are"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> Result<(Spec, SandboxRef, Unknown)> {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("config.json"), config).unwrap();
        super::read(bundle.path(), "c1")
    }

    fn spec_with(annotations: &[(&str, &str)]) -> Spec {
        let mut spec = Spec::default();
        let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        spec.set_annotations(Some(annotations.collect()));
        spec
    }

    #[test]
    fn a_bundle_that_cannot_be_run_is_refused_by_what_it_lacks() {
        let refused = |config: &str| read(config).expect_err(config).to_string();
        assert!(refused("{").contains("config.json: EOF"));
        let bare = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#;
        assert!(refused(bare).contains("has no process"));
        let idle =
            r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"cwd":"/"},"root":{"path":"r"}}"#;
        assert!(refused(idle).contains("process.args"));
        let host = r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"cwd":"/","args":["sh"]},
            "root":{"path":"r"},"linux":{"namespaces":[{"type":"pid"}]}}"#;
        assert!(refused(host).contains("host networking"));
        let by_path = host.replace("\"pid\"", "\"network\",\"path\":\"/proc/self/ns/net\"");
        assert!(refused(&by_path).contains("host networking"));
        let pods = r#""annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"p"},"linux""#;
        let joined = read(&by_path.replace("\"linux\"", pods)).unwrap().1;
        assert_eq!(joined, SandboxRef { id: "p".into(), is_own: false }, "the network is the pod's");
        for kind in ["uidMappings", "gidMappings"] {
            let with = |list: &str| {
                host.replace(
                    r#""namespaces":["#,
                    &format!(r#""{kind}":[{list}],"namespaces":[{{"type":"network"}},"#),
                )
            };
            assert!(read(&with("")).is_ok());
            let mapped = with(r#"{"containerID":0,"hostID":100000,"size":65536}"#);
            assert!(refused(&mapped).contains("user namespace"));
        }
        assert!(
            super::read(Path::new("/nonexistent"), "c1")
                .unwrap_err()
                .to_string()
                .contains("/nonexistent/config.json")
        );
    }

    #[test]
    fn a_container_without_annotations_is_its_own_sandbox() {
        let own = SandboxRef { id: "c1".into(), is_own: true };
        assert_eq!(sandbox_of(&spec_with(&[]), "c1").unwrap(), own);
        assert_eq!(sandbox_of(&spec_with(&[(TYPE_ANNOTATIONS[1], "sandbox")]), "c1").unwrap(), own);
    }

    #[test]
    fn a_pods_container_joins_the_pods_sandbox() {
        for flavour in 0..2 {
            let spec = spec_with(&[
                (TYPE_ANNOTATIONS[flavour], "container"),
                (SANDBOX_ANNOTATIONS[flavour], "pod1"),
            ]);
            assert_eq!(sandbox_of(&spec, "c1").unwrap(), SandboxRef { id: "pod1".into(), is_own: false });
        }
    }

    #[test]
    fn annotations_that_make_no_sense_are_refused_by_name() {
        for (annotations, named) in [
            (vec![(TYPE_ANNOTATIONS[0], "virtual")], "container-type"),
            (vec![(TYPE_ANNOTATIONS[0], "container")], "sandbox-id"),
            (vec![(TYPE_ANNOTATIONS[0], "container"), (SANDBOX_ANNOTATIONS[0], "../etc")], "sandbox-id"),
        ] {
            let error = sandbox_of(&spec_with(&annotations), "c1").expect_err(named).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
