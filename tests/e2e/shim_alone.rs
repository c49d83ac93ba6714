//! The shim's binary without a container.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::assets::KATA;
use tests::command::{Output, run};
use tests::{Case, Result, check, check_eq};

use crate::listed;

listed! {
    all: [],
    ours: [
        the_version_names_the_protocol_and_the_qemu_versions,
        without_arguments_it_says_what_it_is_for,
        an_unknown_argument_is_an_error_that_names_it,
        containerd_2_is_told_what_the_runtime_is,
    ]
}

fn shim(case: &Case<'_>, args: &[&str]) -> Result<Output> {
    run(Command::new(&case.world.assets().shim).args(args), Duration::from_secs(10))
}

fn the_version_names_the_protocol_and_the_qemu_versions(case: &Case<'_>) -> Result<()> {
    let output = shim(case, &["-v"])?.exits(0)?;
    let said = output.out();
    for word in ["containerd-shim-kata-v2", env!("CARGO_PKG_VERSION"), "task API v2", "QEMU", "7.2"] {
        check!(said.contains(word), "`{word}` is not in: {said}");
    }
    Ok(())
}

fn without_arguments_it_says_what_it_is_for(case: &Case<'_>) -> Result<()> {
    let output = shim(case, &[])?;
    let said = output.out() + &output.err();
    for word in ["containerd", "io.containerd.kata.v2", "start", "delete"] {
        check!(said.contains(word), "`{word}` is not in: {said}");
    }
    check!(!said.contains("panicked"), "it panicked: {said}");
    Ok(())
}

fn an_unknown_argument_is_an_error_that_names_it(case: &Case<'_>) -> Result<()> {
    let output = shim(case, &["-no-such-flag"])?;
    check!(output.status != 0, "status {}", output.status);
    check!(output.err().contains("no-such-flag"), "the flag is not in: {}", output.err());
    Ok(())
}

fn containerd_2_is_told_what_the_runtime_is(case: &Case<'_>) -> Result<()> {
    // Those before do not ask.
    if case.world.assets().generation < 2 {
        return Ok(());
    }
    // Without options for the runtime, and with some.
    for options in [&[][..], &["--runtime-config-path", "/etc/kata-containers/configuration.toml"]] {
        let asked = ["plugins", "inspect-runtime", "--runtime", KATA];
        let info = case.ctr(asked.into_iter().chain(options.iter().copied()))?.exits(0)?.stdout;
        let info: Value = serde_json::from_slice(&info)?;
        check_eq!(info["Name"].as_str(), Some(KATA), "{info}");
        check_eq!(info["Version"]["Version"].as_str(), Some(env!("CARGO_PKG_VERSION")), "{info}");
    }
    Ok(())
}
