//! Any message: what the guest accepts says the same when it is sent again, and nothing makes it panic.

use agent_protocol::{
    convert::{resources_from_wire, resources_to_wire, spec_from_wire, spec_to_wire},
    oci,
};
use proptest::prelude::*;
use protobuf::{Message, MessageField};

fn memory() -> impl Strategy<Value = oci::LinuxMemory> {
    any::<([i64; 5], u64, bool)>().prop_map(
        |([limit, reservation, swap, kernel, kernel_tcp], rest, killer)| oci::LinuxMemory {
            limit,
            reservation,
            swap,
            kernel,
            kernel_tcp,
            swappiness: rest,
            disable_oom_killer: killer,
            ..Default::default()
        },
    )
}

fn cpu() -> impl Strategy<Value = oci::LinuxCPU> {
    (any::<([u64; 3], [i64; 2])>(), "[0-9,-]{0,8}").prop_map(
        |(([shares, period, realtime_period], [quota, realtime_runtime]), cpus)| oci::LinuxCPU {
            shares,
            quota,
            period,
            realtime_runtime,
            realtime_period,
            cpus,
            ..Default::default()
        },
    )
}

/// Only what a sender can mean: numbers of a rule for everything are 0, other numbers are -1 or more.
fn device() -> impl Strategy<Value = oci::LinuxDeviceCgroup> {
    let kind = prop_oneof![("a?", Just(0_i64), Just(0_i64)), ("[bc]", -1_i64..1 << 20, -1_i64..1 << 20),];
    (any::<bool>(), kind, "r?w?m?").prop_map(|(allow, (type_, major, minor), access)| {
        oci::LinuxDeviceCgroup { allow, type_, major, minor, access, ..Default::default() }
    })
}

fn message<T: std::fmt::Debug + Clone>(
    of: impl Strategy<Value = T>,
) -> impl Strategy<Value = MessageField<T>> {
    proptest::option::of(of).prop_map(MessageField::from_option)
}

fn resources() -> impl Strategy<Value = oci::LinuxResources> {
    let pids = any::<i64>().prop_map(|limit| oci::LinuxPids { limit, ..Default::default() });
    let devices = proptest::collection::vec(device(), 0..4);
    (devices, message(memory()), message(cpu()), message(pids)).prop_map(|(devices, memory, cpu, pids)| {
        oci::LinuxResources { devices, memory, cpu, pids, ..Default::default() }
    })
}

proptest! {
    #[test]
    fn resources_survive_the_way_back(wire in resources()) {
        prop_assert_eq!(resources_to_wire(&resources_from_wire(&wire).unwrap()), wire);
    }

    #[test]
    fn what_is_accepted_is_stable(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(wire) = oci::Spec::parse_from_bytes(&bytes)
            && let Ok(spec) = spec_from_wire(&wire)
        {
            prop_assert_eq!(spec_from_wire(&spec_to_wire(&spec)).unwrap(), spec);
        }
    }

    #[test]
    fn a_damaged_message_is_refused_or_stable(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let spec: oci_spec::runtime::Spec = serde_json::from_str(include_str!("rich-spec.json")).unwrap();
        let mut bytes = spec_to_wire(&spec).write_to_bytes().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(wire) = oci::Spec::parse_from_bytes(&bytes)
            && let Ok(spec) = spec_from_wire(&wire)
        {
            prop_assert_eq!(spec_from_wire(&spec_to_wire(&spec)).unwrap(), spec);
        }
    }
}
