//! Memory that the host cannot read: no machine here has it, but QEMU makes the objects where nothing uses them, and so
//! tells whether it would take them.

use serde_json::json;

use crate::Machine;
use crate::common::Fixture;

#[tokio::test]
async fn a27_qemu_takes_the_objects_as_they_are_written() {
    let mut machine = Machine::boot(Fixture::new()).await;
    let sev =
        json!({"qom-type": "sev-guest", "id": "sev", "cbitpos": 51, "reduced-phys-bits": 1, "policy": 5});
    machine.ask("object-add", sev);
    assert_eq!(machine.property("/objects/sev", "policy"), 5);
    let version = machine.ask("query-version", json!({}))["qemu"]["major"].as_u64().unwrap();
    // QEMU has SEV-SNP since 9.1.
    if version >= 10 {
        let (block, auth) = ("A".repeat(128), format!("{}==", "A".repeat(5462)));
        let snp = json!({
            "qom-type": "sev-snp-guest", "id": "snp", "cbitpos": 51, "reduced-phys-bits": 1, "policy": 196_608,
            "kernel-hashes": true, "id-block": block, "id-auth": auth,
        });
        machine.ask("object-add", snp);
        assert_eq!(machine.property("/objects/snp", "policy"), 196_608);
        assert_eq!(machine.property("/objects/snp", "id-block"), block);
    }
    machine.end().await;
}
