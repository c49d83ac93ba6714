//! What containerd says of a pod whose sandbox is no container, in the terms of the rest of the shim: the OCI
//! configuration that the pod's own container would have had, and what its others get from it.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use containerd_shim_protos::{protobuf::well_known_types::any::Any, sandbox_api::CreateSandboxRequest};
use oci_spec::runtime::Spec;
use protobuf::Message;
use serde_json::{Value, json};

use super::wire::pod::{DNSConfig, LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig};
use crate::{
    container::bundle,
    error::{Error, Result},
    ids,
    sandbox::{Provisions, RESOLVER},
};

/// The message containerd's CRI passes on from kubelet.
const POD_CONFIG: &str = "runtime.v1.PodSandboxConfig";
/// What containerd itself says in annotations, and nobody else.
const RESERVED: &str = "io.kubernetes.cri";
/// `NamespaceMode.NODE`.
const NODE: i32 = 2;
/// A line of a file of name servers, or of hosts, is short; whoever has more bytes than these has something else there.
const LONGEST: u64 = 64 << 10;

/// A pod as it is asked for.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) spec: Spec,
    pub(crate) provisions: Provisions,
    pub(crate) bundle: PathBuf,
}

impl Pod {
    /// # Errors
    /// `InvalidArgument` that says what of the request cannot be.
    pub(crate) fn of(request: CreateSandboxRequest) -> Result<Pod> {
        ids::check("sandbox id", &request.sandbox_id)?;
        let config = request.options.as_ref().map(config_of).transpose()?.unwrap_or_default();
        let spec = spec_of(&request, &config)?;
        if bundle::shares_the_hosts_network(&spec) {
            return Err(Error::InvalidArgument(format!(
                "sandbox {}: host networking is asked for, which a virtual machine cannot give: leave out hostNetwork",
                request.sandbox_id
            )));
        }
        // Without a configuration it is no pod of kubelet's, and its containers bring their own files.
        let provisions = if request.options.is_some() { provisions(config) } else { Provisions::default() };
        Ok(Pod { id: request.sandbox_id, spec, provisions, bundle: request.bundle_path.into() })
    }
}

fn config_of(options: &Any) -> Result<PodSandboxConfig> {
    let name = options.type_url.rsplit('/').next().unwrap_or_default();
    if name != POD_CONFIG {
        return Err(Error::InvalidArgument(format!(
            "sandbox options: {:?} is not known, {POD_CONFIG} is",
            options.type_url
        )));
    }
    PodSandboxConfig::parse_from_bytes(&options.value)
        .map_err(|error| Error::InvalidArgument(format!("sandbox options ({POD_CONFIG}): {error}")))
}

/// The configuration that the pod's own container would have had.
fn spec_of(request: &CreateSandboxRequest, config: &PodSandboxConfig) -> Result<Spec> {
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.clone().unwrap_or_default();
    let mut namespaces = vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "uts"})];
    if context.namespace_options.network != NODE {
        namespaces.push(match request.netns_path.as_str() {
            "" => json!({"type": "network"}),
            path => json!({"type": "network", "path": path}),
        });
    }
    let label = &context.selinux_options;
    let label = [&label.user, &label.role, &label.type_, &label.level].map(String::as_str);
    let label = if label.iter().any(|part| part.is_empty()) { String::new() } else { label.join(":") };
    let spec = json!({
        "ociVersion": "1.0.2",
        "hostname": hostname(config),
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/pause"], "selinuxLabel": label},
        "annotations": annotations(request, config, &linux.resources),
        "linux": {"namespaces": namespaces, "cgroupsPath": cgroups_path(&linux, &request.sandbox_id)},
    });
    serde_json::from_value(spec).map_err(|error| Error::InvalidArgument(format!("sandbox options: {error}")))
}

/// The pod's, all of them, and containerd's own as a pod's own container has them.
fn annotations(
    request: &CreateSandboxRequest,
    config: &PodSandboxConfig,
    resources: &LinuxContainerResources,
) -> HashMap<String, String> {
    let given = request.annotations.iter().chain(&config.annotations);
    let given = given.filter(|(key, _)| !key.starts_with(RESERVED));
    let own = [
        ("container-type", "sandbox".to_owned()),
        ("sandbox-id", request.sandbox_id.clone()),
        ("sandbox-cpu-period", resources.cpu_period.to_string()),
        ("sandbox-cpu-quota", resources.cpu_quota.to_string()),
        ("sandbox-memory", resources.memory_limit_in_bytes.to_string()),
    ];
    let own = own.into_iter().map(|(key, value)| (format!("{RESERVED}.{key}"), value));
    given.map(|(key, value)| (key.clone(), value.clone())).chain(own).collect()
}

/// As containerd places a pod's own container: below the pod's cgroup, or in systemd's words.
fn cgroups_path(linux: &LinuxPodSandboxConfig, id: &str) -> Value {
    let parent = Path::new(&linux.cgroup_parent);
    let slice = parent.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".slice"));
    match slice {
        _ if linux.cgroup_parent.is_empty() => Value::Null,
        Some(slice) => json!(format!("{slice}:cri-containerd:{id}")),
        None => json!(parent.join(id)),
    }
}

/// The pod's, or the host's where it has none.
fn hostname(config: &PodSandboxConfig) -> String {
    let own = Some(config.hostname.clone()).filter(|name| !name.is_empty());
    let of_host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    own.or_else(of_host).unwrap_or_default()
}

/// The files that containerd would have made, and the settings it would have had applied.
fn provisions(config: PodSandboxConfig) -> Provisions {
    let resolver = resolver(&config.dns_config).unwrap_or_else(|| of_the_host("/etc/resolv.conf"));
    let files = vec![
        ("hostname", format!("{}\n", hostname(&config))),
        ("hosts", of_the_host("/etc/hosts")),
        (RESOLVER, resolver),
    ];
    Provisions { files, sysctl: config.linux.into_option().unwrap_or_default().sysctls }
}

/// Nothing where the pod says nothing.
fn resolver(dns: &DNSConfig) -> Option<String> {
    let words = |name: &str, words: &[String]| match words {
        [] => String::new(),
        words => format!("{name} {}\n", words.join(" ")),
    };
    let servers = dns.servers.iter().map(|server| format!("nameserver {server}\n"));
    let text = [words("search", &dns.searches), servers.collect(), words("options", &dns.options)].concat();
    Some(text).filter(|text| !text.is_empty())
}

/// A file of the host's, or nothing where it cannot be read.
fn of_the_host(path: &str) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    read.map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(config: PodSandboxConfig) -> Spec {
        let request = CreateSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
        spec_of(&request, &config).unwrap()
    }

    #[test]
    fn a_pod_is_in_the_cgroup_that_its_own_container_would_have_been_in() {
        let path = |parent: &str| {
            let mut config = PodSandboxConfig::default();
            config.linux.mut_or_insert_default().cgroup_parent = parent.to_owned();
            let path = spec(config).linux().as_ref().unwrap().cgroups_path().clone();
            path.map(|path| path.display().to_string())
        };
        assert_eq!(path("/kubepods/pod1").as_deref(), Some("/kubepods/pod1/p1"));
        assert_eq!(
            path("/kubepods.slice/kubepods-pod1.slice").as_deref(),
            Some("kubepods-pod1.slice:cri-containerd:p1")
        );
        assert_eq!(path(""), None);
    }

    #[test]
    fn a_label_is_whole_or_none() {
        let label = |level: &str| {
            let mut config = PodSandboxConfig::default();
            let context = config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
            let label = context.selinux_options.mut_or_insert_default();
            (label.user, label.role) = ("u".into(), "r".into());
            (label.type_, label.level) = ("t".into(), level.into());
            spec(config).process().as_ref().unwrap().selinux_label().clone().unwrap_or_default()
        };
        assert_eq!((label("s0:c1,c2").as_str(), label("").as_str()), ("u:r:t:s0:c1,c2", ""));
    }

    #[test]
    fn name_servers_are_the_pods_or_the_hosts() {
        let mut config = PodSandboxConfig { hostname: "seven".into(), ..Default::default() };
        assert_eq!(resolver(&config.dns_config), None);
        let dns = config.dns_config.mut_or_insert_default();
        (dns.servers, dns.searches) = (vec!["192.0.2.1".into(), "192.0.2.2".into()], vec!["a.b".into()]);
        let files = provisions(config).files;
        assert_eq!(files[0], ("hostname", "seven\n".to_owned()));
        assert_eq!(files[2].1, "search a.b\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n");
    }

    #[test]
    fn what_is_no_pods_configuration_is_refused_by_what_it_is() {
        let any = |type_url: &str, value: &[u8]| Any {
            type_url: type_url.into(),
            value: value.to_vec(),
            ..Default::default()
        };
        for options in [any("types.example/x.Y", b""), any(POD_CONFIG, b"\xff\xff")] {
            let refused = config_of(&options).unwrap_err().to_string();
            assert!(refused.contains(&options.type_url), "{refused}");
        }
    }
}
