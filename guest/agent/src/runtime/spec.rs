//! What the guest changes in a configuration that comes from the host.

use std::path::{Path, PathBuf};

use agent_protocol::{convert, oci};
use oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp,
    LinuxSeccompAction, Process, Spec, User,
};

use super::BUNDLES;
use crate::{
    cgroup::{self, Cgroup, unified},
    error::Error,
    id::Id,
};

/// Namespaces a container may join instead of having its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    pub(crate) ipc: Option<PathBuf>,
    /// With the host name it was given.
    pub(crate) uts: Option<(PathBuf, String)>,
    pub(crate) pid: Option<PathBuf>,
}

/// Makes a container's configuration the guest's. `user`, if given, comes from names in the image.
///
/// # Errors
///
/// [`Error::Invalid`] if a part is missing that nothing can stand for, or the root is not in the share.
pub(crate) fn adapt(mut spec: Spec, id: &Id, shared: &Shared, user: Option<User>) -> Result<Spec, Error> {
    check_root(&spec)?;
    let hostname = spec.hostname().clone();
    let process = spec.process_mut().as_mut().ok_or_else(|| Error::invalid("spec.process: missing"))?;
    adapt_process(process, None, user)?;
    adapt_linux(spec.linux_mut().get_or_insert_default(), id, shared, hostname.as_deref())?;
    if spec.hooks().as_ref().is_some_and(|hooks| *hooks == Default::default()) {
        spec.set_hooks(None);
    }
    Ok(spec)
}

/// Makes a process' description the guest's. `container` lends its capabilities to one that names none.
pub(crate) fn adapt_process(
    process: &mut Process,
    container: Option<&Process>,
    user: Option<User>,
) -> Result<(), Error> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::invalid("process.args: missing"));
    }
    if let Some(user) = user {
        process.set_user(user);
    }
    let lent = || container?.capabilities().clone();
    let given = process.capabilities().clone().or_else(lent);
    process.set_capabilities(Some(explicit(given)));
    // To libcontainer a `false` means that seccomp goes last, when it is no longer allowed to.
    process.set_no_new_privileges(process.no_new_privileges().filter(|set| *set));
    // Unset would mean whatever score the maker of the process had.
    process.set_oom_score_adj(Some(process.oom_score_adj().unwrap_or(0)));
    // The guest's kernel runs without these modules.
    if process.selinux_label().as_ref().is_some_and(|label| !label.is_empty()) {
        return Err(Error::invalid(
            "process.selinuxLabel: this guest has no SELinux: set disable_guest_selinux",
        ));
    }
    process.set_apparmor_profile(None).set_selinux_label(None);
    Ok(())
}

/// Those are left out when `process`, of the container `id`, is made.
pub(crate) fn warn_of_unknown_capabilities(id: &Id, process: &oci::Process) {
    let unknown = convert::unknown_capabilities(process);
    if !unknown.is_empty() {
        log::warn!("container {id}: unknown capabilities, which a process does without: {unknown:?}");
    }
}

/// An unset set means none, which libcontainer would take for "as they are": everything.
fn explicit(sets: Option<LinuxCapabilities>) -> LinuxCapabilities {
    let mut sets = sets.unwrap_or_else(no_capabilities);
    let none = || Some(Capabilities::default());
    if sets.bounding().is_none() {
        sets.set_bounding(none());
    }
    if sets.effective().is_none() {
        sets.set_effective(none());
    }
    if sets.permitted().is_none() {
        sets.set_permitted(none());
    }
    if sets.inheritable().is_none() {
        sets.set_inheritable(none());
    }
    if sets.ambient().is_none() {
        sets.set_ambient(none());
    }
    sets
}

/// The type's own default is a set of capabilities, not none.
fn no_capabilities() -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    sets
}

fn adapt_linux(linux: &mut Linux, id: &Id, shared: &Shared, hostname: Option<&str>) -> Result<(), Error> {
    if let Some(seccomp) = linux.seccomp() {
        check_seccomp(seccomp)?;
    }
    if let Some(resources) = linux.resources_mut() {
        unified::check(resources)?;
        cgroup::without_absent_sizes(resources);
    }
    let own = linux.namespaces().as_deref().unwrap_or_default();
    let namespaces = namespaces(own, shared, hostname);
    let propagation = propagation(linux.rootfs_propagation().as_deref())?;
    linux
        .set_namespaces(Some(namespaces))
        .set_cgroups_path(Some(Cgroup::oci_path(id)))
        .set_rootfs_propagation(propagation)
        .set_mount_label(None)
        .set_intel_rdt(None);
    Ok(())
}

/// libcontainer knows the words of the OCI's text, callers those of mount(8), too; what it does goes for everything below.
fn propagation(asked: Option<&str>) -> Result<Option<String>, Error> {
    const WORDS: [&str; 4] = ["shared", "slave", "private", "unbindable"];
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else { return Ok(None) };
    let known = WORDS.iter().find(|word| asked.strip_prefix('r').unwrap_or(asked) == **word);
    let refused =
        || Error::invalid(format!("linux.rootfsPropagation: {asked:?} is none of {}", WORDS.join(", ")));
    known.map(|word| Some((*word).to_owned())).ok_or_else(refused)
}

/// A filter that asks a supervisor needs one to be there.
fn check_seccomp(seccomp: &LinuxSeccomp) -> Result<(), Error> {
    let rules = seccomp.syscalls().iter().flatten();
    if rules.map(|rule| rule.action()).any(|action| action == LinuxSeccompAction::ScmpActNotify) {
        return Err(Error::invalid(
            "linux.seccomp: SCMP_ACT_NOTIFY wants a supervisor, and the guest has none",
        ));
    }
    Ok(())
}

/// Paths of the host mean nothing here. The network is the guest's; mounts and cgroups are always the
/// container's own.
fn namespaces(own: &[LinuxNamespace], shared: &Shared, hostname: Option<&str>) -> Vec<LinuxNamespace> {
    let mut kinds: Vec<LinuxNamespaceType> = vec![LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup];
    for kind in own.iter().map(LinuxNamespace::typ) {
        if kind != LinuxNamespaceType::Network && !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    if hostname.is_some() && !kinds.contains(&LinuxNamespaceType::Uts) {
        kinds.push(LinuxNamespaceType::Uts);
    }
    kinds.into_iter().map(|kind| namespace(kind, shared, hostname)).collect()
}

fn namespace(kind: LinuxNamespaceType, shared: &Shared, hostname: Option<&str>) -> LinuxNamespace {
    let path = match kind {
        LinuxNamespaceType::Ipc => shared.ipc.clone(),
        LinuxNamespaceType::Pid => shared.pid.clone(),
        LinuxNamespaceType::Uts => shared_uts(shared, hostname),
        _ => None,
    };
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path);
    namespace
}

/// A container with a host name of its own keeps it to itself.
fn shared_uts(shared: &Shared, hostname: Option<&str>) -> Option<PathBuf> {
    let (path, name) = shared.uts.as_ref()?;
    hostname.is_none_or(|own| own.is_empty() || own == name).then(|| path.clone())
}

fn check_root(spec: &Spec) -> Result<(), Error> {
    let root = spec.root().as_ref().ok_or_else(|| Error::invalid("spec.root: missing"))?.path();
    let plain = root.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if plain && root.starts_with(BUNDLES) && root != Path::new(BUNDLES) {
        return Ok(());
    }
    Err(Error::invalid(format!("spec.root.path: {} is not below {BUNDLES}", root.display())))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder, ProcessBuilder, RootBuilder, SpecBuilder};

    use super::*;

    fn id() -> Id {
        Id::parse("container", "c1").unwrap()
    }

    fn process() -> Process {
        let mut process = ProcessBuilder::default().args(vec!["sh".to_owned()]).build().unwrap();
        process.set_capabilities(None);
        process
    }

    fn spec(root: &str, kinds: &[LinuxNamespaceType]) -> Spec {
        let namespaces = kinds
            .iter()
            .map(|kind| LinuxNamespaceBuilder::default().typ(*kind).path("/host/ns").build().unwrap())
            .collect::<Vec<_>>();
        let linux = LinuxBuilder::default().namespaces(namespaces).build().unwrap();
        let root = RootBuilder::default().path(root).build().unwrap();
        let mut spec = SpecBuilder::default().root(root).process(process()).linux(linux).build().unwrap();
        spec.set_hostname(None);
        spec
    }

    fn adapted(kinds: &[LinuxNamespaceType], shared: &Shared) -> Vec<(LinuxNamespaceType, Option<PathBuf>)> {
        let spec = adapt(spec("/run/kata-containers/c1/rootfs", kinds), &id(), shared, None).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        namespaces.iter().map(|namespace| (namespace.typ(), namespace.path().clone())).collect()
    }

    #[test]
    fn the_hosts_namespaces_stay_on_the_host() {
        use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid};
        let all = adapted(&[Network, Pid, Ipc], &Shared::default());
        assert_eq!(all, [(Mount, None), (Cgroup, None), (Pid, None), (Ipc, None)]);
    }

    #[test]
    fn a_container_joins_what_the_pod_shares() {
        use LinuxNamespaceType::{Cgroup, Ipc, Mount, Pid, Uts};
        let shared = Shared {
            ipc: Some("/ns/ipc".into()),
            uts: Some(("/ns/uts".into(), "pod".into())),
            pid: Some("/ns/pid".into()),
        };
        let all = adapted(&[Pid, Ipc, Uts], &shared);
        let wanted = [
            (Mount, None),
            (Cgroup, None),
            (Pid, Some("/ns/pid".into())),
            (Ipc, Some("/ns/ipc".into())),
            (Uts, Some("/ns/uts".into())),
        ];
        assert_eq!(all, wanted);
        assert_eq!(shared_uts(&shared, Some("other")), None);
        assert_eq!(shared_uts(&shared, Some("pod")), Some("/ns/uts".into()));
    }

    #[test]
    fn unset_capabilities_are_none_at_all() {
        let mut process = process();
        adapt_process(&mut process, None, None).unwrap();
        let sets = process.capabilities().clone().unwrap();
        for set in [sets.bounding(), sets.effective(), sets.permitted(), sets.inheritable(), sets.ambient()] {
            assert_eq!(set.as_ref().map(|set| set.len()), Some(0));
        }
    }

    #[test]
    fn an_exec_without_capabilities_has_those_of_its_container() {
        let mut container = process();
        container.set_capabilities(Some(LinuxCapabilities::default()));
        let mut exec = process();
        adapt_process(&mut exec, Some(&container), None).unwrap();
        let bounding = |process: &Process| process.capabilities().clone().unwrap().bounding().clone();
        assert_eq!(bounding(&exec), bounding(&container));
    }

    #[test]
    fn only_true_no_new_privileges_reach_the_library() {
        let mut process = process();
        process.set_no_new_privileges(Some(false));
        adapt_process(&mut process, None, None).unwrap();
        assert_eq!(process.no_new_privileges(), None);
    }

    #[test]
    fn a_label_that_nobody_here_enforces_is_refused() {
        let mut process = process();
        process.set_selinux_label(Some("u:r:t".into()));
        let error = adapt_process(&mut process, None, None).unwrap_err();
        assert!(error.to_string().contains("process.selinuxLabel"), "{error}");
    }

    #[test]
    fn propagation_is_known_by_the_words_of_mount_too() {
        assert_eq!(propagation(Some("rslave")).unwrap().as_deref(), Some("slave"));
        assert_eq!(propagation(Some("private")).unwrap().as_deref(), Some("private"));
        assert_eq!(propagation(Some("")).unwrap(), None);
        assert!(propagation(Some("everywhere")).unwrap_err().to_string().contains("rootfsPropagation"));
    }

    #[test]
    fn a_root_outside_the_share_is_refused() {
        for root in ["/", "/etc", "/run/kata-containers", "/run/kata-containers/../..", "rootfs"] {
            assert!(adapt(spec(root, &[]), &id(), &Shared::default(), None).is_err(), "{root}");
        }
    }
}
