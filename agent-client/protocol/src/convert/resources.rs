//! `linux.resources`: what the container may use up, and which devices it may touch.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxInterfacePriority,
    LinuxMemory, LinuxNetwork, LinuxPids, LinuxResources, LinuxThrottleDevice, LinuxThrottleDeviceBuilder,
    LinuxWeightDevice, LinuxWeightDeviceBuilder,
};

use super::{
    error::{ConvertError, Within},
    value::{Result, list, list_to_wire, map, name, nonzero, number, optional_number, optional_text, text},
};
use crate::oci;

/// What an agent that carries out `linux.resources.unified` has among its extra features.
pub const CGROUP_FILES: &str = "cgroup-files";

/// The limits as they travel; see the module's head for zero, -1 and what has no field.
pub fn resources_to_wire(resources: &LinuxResources) -> oci::LinuxResources {
    oci::LinuxResources {
        devices: list_to_wire(resources.devices().as_ref(), rule_to_wire),
        memory: resources.memory().as_ref().map(memory_to_wire).into(),
        cpu: resources.cpu().as_ref().map(cpu_to_wire).into(),
        pids: resources.pids().as_ref().map(pids_to_wire).into(),
        block_io: resources.block_io().as_ref().map(block_io_to_wire).into(),
        hugepage_limits: list_to_wire(resources.hugepage_limits().as_ref(), hugepage_to_wire),
        network: resources.network().as_ref().map(network_to_wire).into(),
        unified: resources.unified().clone().unwrap_or_default(),
        ..Default::default()
    }
}

/// Limits from the wire.
///
/// # Errors
///
/// Names the field that holds an unknown device type or access, or a number out of range.
pub fn resources_from_wire(wire: &oci::LinuxResources) -> Result<LinuxResources> {
    let mut resources = LinuxResources::default();
    resources
        .set_devices(list("devices", &wire.devices, rule_from_wire)?)
        .set_memory(wire.memory.as_ref().map(memory_from_wire))
        .set_cpu(wire.cpu.as_ref().map(cpu_from_wire).transpose().within("cpu")?)
        .set_pids(wire.pids.as_ref().map(pids_from_wire))
        .set_block_io(wire.block_io.as_ref().map(block_io_from_wire).transpose().within("block_io")?)
        .set_hugepage_limits(list("hugepage_limits", &wire.hugepage_limits, hugepage_from_wire)?)
        .set_network(wire.network.as_ref().map(network_from_wire).transpose().within("network")?)
        .set_unified(map("unified", &wire.unified)?);
    Ok(resources)
}

/// Whether a rule's numbers matter. Type `a`, like no type, means every device there is.
fn covers_all(typ: Option<LinuxDeviceType>) -> bool {
    matches!(typ, None | Some(LinuxDeviceType::A))
}

fn rule_to_wire(rule: &LinuxDeviceCgroup) -> oci::LinuxDeviceCgroup {
    let any = if covers_all(rule.typ()) { 0 } else { -1 };
    oci::LinuxDeviceCgroup {
        allow: rule.allow(),
        type_: rule.typ().map(|typ| typ.as_str().to_owned()).unwrap_or_default(),
        major: rule.major().unwrap_or(any),
        minor: rule.minor().unwrap_or(any),
        access: rule.access().clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn rule_from_wire(wire: &oci::LinuxDeviceCgroup) -> Result<LinuxDeviceCgroup> {
    let typ = match wire.type_.as_str() {
        "" => None,
        "a" | "b" | "c" => Some(name::<LinuxDeviceType>("type", &wire.type_, "a device type")?),
        other => return Err(ConvertError::new("type", other, "one of \"a\", \"b\" and \"c\"")),
    };
    if !wire.access.chars().all(|letter| "rwm".contains(letter)) {
        return Err(ConvertError::new("access", &wire.access, "made of \"r\", \"w\" and \"m\""));
    }
    let stands_for_any = |number: i64| number < 0 || (number == 0 && covers_all(typ));
    let number = |number: i64| (!stands_for_any(number)).then_some(number);
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(wire.allow)
        .set_typ(typ)
        .set_major(number(wire.major))
        .set_minor(number(wire.minor))
        .set_access(optional_text("access", &wire.access)?);
    Ok(rule)
}

#[allow(deprecated, reason = "the wire has the kernel memory limit, and cgroup v1 guests obey it")]
fn memory_to_wire(memory: &LinuxMemory) -> oci::LinuxMemory {
    oci::LinuxMemory {
        limit: memory.limit().unwrap_or_default(),
        reservation: memory.reservation().unwrap_or_default(),
        swap: memory.swap().unwrap_or_default(),
        kernel: memory.kernel().unwrap_or_default(),
        kernel_tcp: memory.kernel_tcp().unwrap_or_default(),
        swappiness: memory.swappiness().unwrap_or_default(),
        disable_oom_killer: memory.disable_oom_killer().unwrap_or_default(),
        ..Default::default()
    }
}

#[allow(deprecated, reason = "as in memory_to_wire")]
fn memory_from_wire(wire: &oci::LinuxMemory) -> LinuxMemory {
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(nonzero(wire.limit))
        .set_reservation(nonzero(wire.reservation))
        .set_swap(nonzero(wire.swap))
        .set_kernel(nonzero(wire.kernel))
        .set_kernel_tcp(nonzero(wire.kernel_tcp))
        .set_swappiness(nonzero(wire.swappiness))
        .set_disable_oom_killer(nonzero(wire.disable_oom_killer));
    memory
}

fn cpu_to_wire(cpu: &LinuxCpu) -> oci::LinuxCPU {
    oci::LinuxCPU {
        shares: cpu.shares().unwrap_or_default(),
        quota: cpu.quota().unwrap_or_default(),
        period: cpu.period().unwrap_or_default(),
        realtime_runtime: cpu.realtime_runtime().unwrap_or_default(),
        realtime_period: cpu.realtime_period().unwrap_or_default(),
        cpus: cpu.cpus().clone().unwrap_or_default(),
        mems: cpu.mems().clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn cpu_from_wire(wire: &oci::LinuxCPU) -> Result<LinuxCpu> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(nonzero(wire.shares))
        .set_quota(nonzero(wire.quota))
        .set_period(nonzero(wire.period))
        .set_realtime_runtime(nonzero(wire.realtime_runtime))
        .set_realtime_period(nonzero(wire.realtime_period))
        .set_cpus(optional_text("cpus", &wire.cpus)?)
        .set_mems(optional_text("mems", &wire.mems)?);
    Ok(cpu)
}

fn pids_to_wire(pids: &LinuxPids) -> oci::LinuxPids {
    oci::LinuxPids { limit: pids.limit(), ..Default::default() }
}

fn pids_from_wire(wire: &oci::LinuxPids) -> LinuxPids {
    let mut pids = LinuxPids::default();
    pids.set_limit(wire.limit);
    pids
}

fn block_io_to_wire(block_io: &LinuxBlockIo) -> oci::LinuxBlockIO {
    let throttles =
        |devices: &Option<Vec<LinuxThrottleDevice>>| list_to_wire(devices.as_ref(), throttle_to_wire);
    oci::LinuxBlockIO {
        weight: block_io.weight().map(u32::from).unwrap_or_default(),
        leaf_weight: block_io.leaf_weight().map(u32::from).unwrap_or_default(),
        weight_device: list_to_wire(block_io.weight_device().as_ref(), weight_to_wire),
        throttle_read_bps_device: throttles(block_io.throttle_read_bps_device()),
        throttle_write_bps_device: throttles(block_io.throttle_write_bps_device()),
        throttle_read_iops_device: throttles(block_io.throttle_read_iops_device()),
        throttle_write_iops_device: throttles(block_io.throttle_write_iops_device()),
        ..Default::default()
    }
}

fn block_io_from_wire(wire: &oci::LinuxBlockIO) -> Result<LinuxBlockIo> {
    let throttles = |field: &str, devices| list(field, devices, throttle_from_wire);
    let mut block_io = LinuxBlockIo::default();
    block_io
        .set_weight(weight("weight", wire.weight)?)
        .set_leaf_weight(weight("leaf_weight", wire.leaf_weight)?)
        .set_weight_device(list("weight_device", &wire.weight_device, weight_from_wire)?)
        .set_throttle_read_bps_device(throttles("throttle_read_bps_device", &wire.throttle_read_bps_device)?)
        .set_throttle_write_bps_device(throttles(
            "throttle_write_bps_device",
            &wire.throttle_write_bps_device,
        )?)
        .set_throttle_read_iops_device(throttles(
            "throttle_read_iops_device",
            &wire.throttle_read_iops_device,
        )?)
        .set_throttle_write_iops_device(throttles(
            "throttle_write_iops_device",
            &wire.throttle_write_iops_device,
        )?);
    Ok(block_io)
}

fn weight(field: &str, value: u32) -> Result<Option<u16>> {
    optional_number(field, value, "a weight below 65536")
}

fn weight_to_wire(device: &LinuxWeightDevice) -> oci::LinuxWeightDevice {
    oci::LinuxWeightDevice {
        major: device.major(),
        minor: device.minor(),
        weight: device.weight().map(u32::from).unwrap_or_default(),
        leaf_weight: device.leaf_weight().map(u32::from).unwrap_or_default(),
        ..Default::default()
    }
}

fn weight_from_wire(wire: &oci::LinuxWeightDevice) -> Result<LinuxWeightDevice> {
    let mut device = LinuxWeightDeviceBuilder::default().major(wire.major).minor(wire.minor);
    if let Some(weight) = weight("weight", wire.weight)? {
        device = device.weight(weight);
    }
    if let Some(leaf_weight) = weight("leaf_weight", wire.leaf_weight)? {
        device = device.leaf_weight(leaf_weight);
    }
    device.build().map_err(|error| ConvertError::new("", error, "a device's weight"))
}

fn throttle_to_wire(device: &LinuxThrottleDevice) -> oci::LinuxThrottleDevice {
    oci::LinuxThrottleDevice {
        major: device.major(),
        minor: device.minor(),
        rate: device.rate(),
        ..Default::default()
    }
}

fn throttle_from_wire(wire: &oci::LinuxThrottleDevice) -> Result<LinuxThrottleDevice> {
    let device = LinuxThrottleDeviceBuilder::default();
    let device = device.major(wire.major).minor(wire.minor).rate(wire.rate).build();
    device.map_err(|error| ConvertError::new("", error, "a device's rate"))
}

/// A negative limit has no meaning in the configuration and travels as zero.
fn hugepage_to_wire(limit: &LinuxHugepageLimit) -> oci::LinuxHugepageLimit {
    oci::LinuxHugepageLimit {
        pagesize: limit.page_size().clone(),
        limit: u64::try_from(limit.limit()).unwrap_or_default(),
        ..Default::default()
    }
}

fn hugepage_from_wire(wire: &oci::LinuxHugepageLimit) -> Result<LinuxHugepageLimit> {
    let mut limit = LinuxHugepageLimit::default();
    limit.set_page_size(text("pagesize", &wire.pagesize)?).set_limit(number(
        "limit",
        wire.limit,
        "a number of bytes below 2^63",
    )?);
    Ok(limit)
}

fn network_to_wire(network: &LinuxNetwork) -> oci::LinuxNetwork {
    let priority = |priority: &LinuxInterfacePriority| oci::LinuxInterfacePriority {
        name: priority.name().clone(),
        priority: priority.priority(),
        ..Default::default()
    };
    oci::LinuxNetwork {
        class_id: network.class_id().unwrap_or_default(),
        priorities: list_to_wire(network.priorities().as_ref(), priority),
        ..Default::default()
    }
}

fn network_from_wire(wire: &oci::LinuxNetwork) -> Result<LinuxNetwork> {
    let priority = |wire: &oci::LinuxInterfacePriority| {
        let mut priority = LinuxInterfacePriority::default();
        priority.set_name(text("name", &wire.name)?).set_priority(wire.priority);
        Ok(priority)
    };
    let mut network = LinuxNetwork::default();
    network.set_class_id(nonzero(wire.class_id)).set_priorities(list(
        "priorities",
        &wire.priorities,
        priority,
    )?);
    Ok(network)
}
