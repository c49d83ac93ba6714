//! What a hook reads about its container (OCI runtime specification, "State").

use std::{collections::HashMap, path::Path};

use oci_spec::runtime::Spec;
use serde::Serialize;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Creating,
    Running,
    Stopped,
}

/// What stays the same.
#[derive(Debug, Clone)]
pub(super) struct State {
    oci_version: String,
    id: String,
    bundle: String,
    annotations: HashMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a str,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: &'a HashMap<String, String>,
}

impl State {
    pub(super) fn of(spec: &Spec, id: &str, bundle: &Path) -> State {
        State {
            oci_version: spec.version().clone(),
            id: id.to_owned(),
            bundle: bundle.display().to_string(),
            annotations: spec.annotations().clone().unwrap_or_default(),
        }
    }

    /// As JSON. A stopped container has no process.
    pub(super) fn at(&self, status: Status, pid: i32) -> Vec<u8> {
        let told = Told {
            oci_version: &self.oci_version,
            id: &self.id,
            status,
            pid: (!matches!(status, Status::Stopped)).then_some(pid),
            bundle: &self.bundle,
            annotations: &self.annotations,
        };
        // Strings alone cannot fail to be JSON.
        serde_json::to_vec(&told).unwrap_or_default()
    }
}
