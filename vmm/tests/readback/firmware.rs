//! What the machine starts from.

use std::fs;

use serde_json::{Value, json};
use vmm::spec::Firmware;
use vmm::{BootError, Hypervisor, PathProblem, Qemu};

use crate::Machine;
use crate::common::{Fixture, log};

/// Any firmware of a size that flash memory has.
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

#[tokio::test]
async fn a26_flash_is_read_only_and_the_machine_starts_from_it() {
    let mut fixture = Fixture::new();
    let variables = fixture.dir.path().join("variables,readonly=off");
    fs::write(&variables, [0; 64 << 10]).unwrap();
    fixture.spec.firmware = Firmware::Flash { code: SEABIOS.into(), variables: Some(variables.clone()) };
    let mut machine = Machine::boot(fixture).await;
    let nodes = machine.ask("query-named-block-nodes", json!({}));
    let node = |name: &str| -> Value {
        let nodes = nodes.as_array().unwrap();
        nodes.iter().find(|node| node["node-name"] == name).unwrap().clone()
    };
    for (id, path) in [("pflash0", SEABIOS), ("pflash1", variables.to_str().unwrap())] {
        assert_eq!((&node(id)["ro"], &node(id)["file"]), (&json!(true), &json!(path)), "{id}");
        assert_eq!(machine.property("/machine", id), id);
    }
    machine.end().await;
}

#[tokio::test]
async fn a26_one_file_is_in_read_only_memory() {
    let mut fixture = Fixture::new();
    fixture.spec.firmware = Firmware::Bios(SEABIOS.into());
    let mut machine = Machine::boot(fixture).await;
    assert_eq!(machine.property("/machine", "firmware"), SEABIOS);
    machine.end().await;
}

#[tokio::test]
async fn a26_flash_that_does_not_end_with_a_page_is_refused() {
    let mut fixture = Fixture::new();
    let code = fixture.dir.path().join("code");
    fs::write(&code, [0; 4097]).unwrap();
    fixture.spec.firmware = Firmware::Flash { code, variables: None };
    let error = Qemu::new(log()).boot(fixture.spec.clone()).await.err().unwrap();
    assert!(matches!(&error, BootError::Path(path) if path.problem == PathProblem::NotPages), "{error}");
    fixture.assert_nothing_left();
}
