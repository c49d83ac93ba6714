//! What a configuration says and the wire cannot.

use oci_spec::runtime::{Linux, LinuxCpu, LinuxMemory, LinuxResources, LinuxSeccomp, Mount, Process, Spec};

/// Names, as in `config.json`, of the parts that are set and that [`super::spec_to_wire`] leaves out.
///
/// The caller decides whether a container may run without them, and tells the operator.
pub fn not_carried(spec: &Spec) -> Vec<&'static str> {
    let mounts_have = |mapped: fn(&Mount) -> bool| spec.mounts().iter().flatten().any(mapped);
    let mut found = only_set(&[
        ("domainname", spec.domainname().is_some()),
        ("mounts[].uidMappings", mounts_have(|mount| mount.uid_mappings().is_some())),
        ("mounts[].gidMappings", mounts_have(|mount| mount.gid_mappings().is_some())),
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ]);
    found.extend(spec.process().iter().flat_map(of_process));
    found.extend(spec.linux().iter().flat_map(of_linux));
    found
}

fn only_set(parts: &[(&'static str, bool)]) -> Vec<&'static str> {
    parts.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect()
}

fn of_process(process: &Process) -> Vec<&'static str> {
    only_set(&[
        ("process.commandLine", process.command_line().is_some()),
        ("process.user.umask", process.user().umask().is_some()),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ])
}

fn of_linux(linux: &Linux) -> Vec<&'static str> {
    let mut found = only_set(&[
        ("linux.netDevices", linux.net_devices().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("linux.timeOffsets", linux.time_offsets().is_some()),
    ]);
    found.extend(linux.seccomp().iter().flat_map(of_seccomp));
    found.extend(linux.resources().iter().flat_map(of_resources));
    found
}

fn of_seccomp(seccomp: &LinuxSeccomp) -> Vec<&'static str> {
    only_set(&[
        ("linux.seccomp.defaultErrnoRet", seccomp.default_errno_ret().is_some()),
        ("linux.seccomp.listenerPath", seccomp.listener_path().is_some()),
        ("linux.seccomp.listenerMetadata", seccomp.listener_metadata().is_some()),
    ])
}

fn of_resources(resources: &LinuxResources) -> Vec<&'static str> {
    let mut found = only_set(&[("linux.resources.rdma", resources.rdma().is_some())]);
    found.extend(resources.memory().iter().flat_map(of_memory));
    found.extend(resources.cpu().iter().flat_map(of_cpu));
    found
}

fn of_memory(memory: &LinuxMemory) -> Vec<&'static str> {
    only_set(&[
        ("linux.resources.memory.useHierarchy", memory.use_hierarchy().is_some()),
        ("linux.resources.memory.checkBeforeUpdate", memory.check_before_update().is_some()),
    ])
}

fn of_cpu(cpu: &LinuxCpu) -> Vec<&'static str> {
    only_set(&[
        ("linux.resources.cpu.idle", cpu.idle().is_some()),
        ("linux.resources.cpu.burst", cpu.burst().is_some()),
    ])
}
