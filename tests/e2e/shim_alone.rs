//! The shim's binary without a container.

use std::process::Command;
use std::time::Duration;

use tests::command::{Output, run};
use tests::{Case, Result, check};

use crate::listed;

listed! {
    all: [],
    ours: [
        the_version_names_the_protocol_and_the_qemu_versions,
        without_arguments_it_says_what_it_is_for,
        an_unknown_argument_is_an_error_that_names_it,
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
