//! The RuntimeClass and the Pod of the operator's page, and what kubelet makes of them.

use std::collections::BTreeMap;

use k8s_cri::v1::{ContainerConfig, LinuxContainerResources};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Pod, page::snippet};
use crate::cri::image_of;
use crate::{Context, Result, check_eq, fail};

/// The time in which a container has its share of a processor, in microseconds.
const PERIOD: i64 = 100_000;

/// A class of pods.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RuntimeClass {
    api_version: String,
    kind: String,
    metadata: Metadata,
    /// What CRI is told to make its pods with.
    pub(super) handler: String,
    overhead: Overhead,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Overhead {
    pod_fixed: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    runtime_class_name: String,
    containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Container {
    name: String,
    image: String,
    command: Vec<String>,
}

impl RuntimeClass {
    /// The page's.
    pub(super) fn of_the_page() -> Result<RuntimeClass> {
        let class: RuntimeClass = parsed("kind: RuntimeClass")?;
        check_eq!(
            (&*class.api_version, &*class.kind),
            ("node.k8s.io/v1", "RuntimeClass"),
            "what Kubernetes calls a class"
        );
        Ok(class)
    }

    /// What is added to a pod's resources, as kubelet tells CRI.
    pub(super) fn overhead(&self) -> Result<LinuxContainerResources> {
        let mut resources = LinuxContainerResources::default();
        for (name, amount) in &self.overhead.pod_fixed {
            match name.as_str() {
                "memory" => resources.memory_limit_in_bytes = mib(amount)? << 20,
                "cpu" => {
                    let milli = milli(amount)?;
                    resources.cpu_shares = milli * 1024 / 1000;
                    (resources.cpu_period, resources.cpu_quota) = (PERIOD, milli * PERIOD / 1000);
                }
                other => fail!("podFixed: {other} is no resource of a pod"),
            }
        }
        Ok(resources)
    }
}

/// The containers of the page's pod, which is of that class.
pub fn containers_of_the_page(pod: &Pod<'_>) -> Result<Vec<ContainerConfig>> {
    let manifest: Manifest = parsed("kind: Pod")?;
    check_eq!((&*manifest.api_version, &*manifest.kind), ("v1", "Pod"), "what Kubernetes calls a pod");
    let class = &pod.world.class.metadata.name;
    let Manifest { metadata, spec, .. } = manifest;
    check_eq!(&spec.runtime_class_name, class, "the class of pod {}", metadata.name);
    let containers = spec.containers.iter().map(|container| ContainerConfig {
        image: Some(image_of(&container.image)),
        ..pod.container(&container.name, container.command.iter().map(String::as_str))
    });
    Ok(containers.collect())
}

fn parsed<T: DeserializeOwned>(word: &str) -> Result<T> {
    serde_saphyr::from_str(snippet("yaml", word)?).context(word)
}

/// An amount of memory in MiB.
fn mib(amount: &str) -> Result<i64> {
    amount
        .strip_suffix("Mi")
        .and_then(|number| number.parse().ok())
        .context(format_args!("memory {amount:?}"))
}

/// An amount of processors in thousandths.
fn milli(amount: &str) -> Result<i64> {
    amount.strip_suffix('m').and_then(|number| number.parse().ok()).context(format_args!("cpu {amount:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_class_adds_memory_and_processors_to_a_pod() {
        let class = RuntimeClass::of_the_page().unwrap();
        let overhead = class.overhead().unwrap();
        assert_eq!(overhead.memory_limit_in_bytes, 350 << 20);
        assert_eq!((overhead.cpu_shares, overhead.cpu_quota, overhead.cpu_period), (256, 25_000, PERIOD));
    }

    #[test]
    fn the_readme_has_the_pages_class() {
        let readme = include_str!("../../../README.md");
        let class = readme.split("\n\n").find(|part| part.contains("kind: RuntimeClass")).unwrap();
        let class: RuntimeClass = serde_saphyr::from_str(class).unwrap();
        assert_eq!(class, RuntimeClass::of_the_page().unwrap());
    }
}
