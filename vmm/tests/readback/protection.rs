//! Memory that the host cannot read: no machine here has it, but QEMU tells which properties it would take.

use serde_json::json;

use crate::Machine;
use crate::common::Fixture;

#[tokio::test]
async fn a27_the_objects_have_the_properties_that_are_set() {
    let mut machine = Machine::boot(Fixture::new()).await;
    let version = machine.ask("query-version", json!({}))["qemu"]["major"].as_u64().unwrap();
    let sev = ["cbitpos", "reduced-phys-bits", "policy"].as_slice();
    let snp = ["cbitpos", "reduced-phys-bits", "policy", "kernel-hashes", "id-block", "id-auth"].as_slice();
    for (kind, wanted, since) in [("sev-guest", sev, 7), ("sev-snp-guest", snp, 10)] {
        if version < since {
            continue;
        }
        let properties = machine.ask("qom-list-properties", json!({"typename": kind}));
        let has =
            |name: &&&str| properties.as_array().unwrap().iter().any(|property| property["name"] == **name);
        assert_eq!(wanted.iter().filter(has).count(), wanted.len(), "{kind}: {properties}");
    }
    machine.end().await;
}
