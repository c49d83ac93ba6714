//! What a container may use, and changes of that while it runs.

use agent_protocol::convert;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use oci_spec::runtime::{LinuxResources, Spec};

use super::{Container, spec, warn_of};
use crate::{
    error::{Error, Result},
    sandbox::{Sandbox, resources::check_sets},
};

/// Refuses limits of a configuration that are none, before anything is made.
///
/// # Errors
/// The limit and what is wrong with it.
pub(crate) fn check(spec: &Spec) -> Result<()> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.map_or(Ok(()), check_sets)
}

/// Limits that the guest's agent passes over, as those in the field do with some.
pub(super) async fn lost(sandbox: &Sandbox, resources: &LinuxResources) -> Option<&'static str> {
    resources.unified().as_ref()?;
    let details = sandbox.ask(sandbox.agent().guest_details()).await.ok()?;
    let takes = details.agent_details.extra_features.iter().any(|feature| feature == convert::CGROUP_FILES);
    (!takes).then_some("linux.resources.unified")
}

impl Container {
    /// Changes the container's limits.
    ///
    /// # Errors
    /// `InvalidArgument` when `resources` is no OCI LinuxResources in JSON; which limit is none; the guest's own words.
    pub(crate) async fn update(&self, resources: Option<&Any>) -> Result<()> {
        let json = resources.ok_or_else(|| Error::InvalidArgument("update: no resources given".into()))?;
        let mut resources: LinuxResources = serde_json::from_slice(&json.value).map_err(|error| {
            Error::InvalidArgument(format!("update: resources ({}): {error}", json.type_url))
        })?;
        check_sets(&resources)?;
        let asked = resources.clone();
        spec::keep_guest_limits(&mut resources);
        warn_of(lost(&self.sandbox, &resources).await.as_slice(), &self.log);
        let wire = convert::resources_to_wire(&resources);
        let told = self.sandbox.ask(self.sandbox.agent().update_container(&self.id, wire));
        self.sandbox.change(&self.id, &asked, &self.updating, told).await
    }
}
