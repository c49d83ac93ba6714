//! Where containerd asks for the output by a URI instead of FIFOs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tests::case::PATIENCE;
use tests::{Case, Result, check, check_eq, eventually};

use crate::listed;

listed! {
    all: [
        the_output_goes_to_a_file,
        the_output_goes_to_a_logger_of_its_own,
        a_logger_that_is_not_there_is_an_error_that_names_it,
    ],
    ours: []
}

const SAYS: [&str; 3] = ["sh", "-c", "echo to stdout; echo to stderr >&2; exit 3"];

fn the_output_goes_to_a_file(case: &Case<'_>) -> Result<()> {
    let file = case.dir().join("logs/container.log");
    fs::create_dir(case.dir().join("logs"))?;
    let uri = format!("file://{}", file.display());
    logs_to(case, &uri)?;
    let text = content_with(&file, "to stderr")?;
    check!(text.contains("to stdout\n") && text.contains("to stderr\n"), "the file holds {text:?}");
    Ok(())
}

fn the_output_goes_to_a_logger_of_its_own(case: &Case<'_>) -> Result<()> {
    let (program, out, err, args) = ("logger", "logger.out", "logger.err", "logger.args");
    let [program, out, err, args] = [program, out, err, args].map(|name| case.dir().join(name));
    // The protocol: stdout at 3, stderr at 4, and 5 closed to say that the logger is ready.
    let script = format!(
        "#!/bin/sh\necho \"$CONTAINER_NAMESPACE $CONTAINER_ID $*\" > {}\nexec 5>&-\ncat <&3 > {} &\ncat <&4 > {}\nwait\n",
        args.display(),
        out.display(),
        err.display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    let uri = format!("binary://{}?key=value", program.display());
    logs_to(case, &uri)?;
    check_eq!(content_with(&out, "stdout")?, "to stdout\n", "what the logger got for stdout");
    check_eq!(content_with(&err, "stderr")?, "to stderr\n", "what the logger got for stderr");
    check_eq!(
        fs::read_to_string(&args)?,
        format!("{} logs key value\n", case.namespace),
        "how it was called"
    );
    Ok(())
}

fn logs_to(case: &Case<'_>, uri: &str) -> Result<()> {
    case.container("logs").flags(["--log-uri", uri]).detach(SAYS)?;
    let exit = |line: &str| line.contains(&format!(" {} ", case.namespace)) && line.contains("/tasks/exit");
    case.world.events().log.wait_for(PATIENCE, exit)?;
    let deleted = case.ctr(["task", "delete", "logs"])?.err();
    check!(deleted.contains("exit code 3"), "ctr task delete does not show the status: {deleted}");
    Ok(())
}

fn content_with(file: &Path, part: &str) -> Result<String> {
    // The logger is nobody's child here: its progress shows in the file alone.
    eventually(Duration::from_secs(5), || {
        let text = fs::read_to_string(file).unwrap_or_default();
        check!(text.contains(part), "{} without {part}: {text}", file.display());
        Ok(text)
    })
}

fn a_logger_that_is_not_there_is_an_error_that_names_it(case: &Case<'_>) -> Result<()> {
    let output = case.container("logs").flags(["--log-uri", "binary:///no/such/logger"]).run(SAYS);
    let output = output?;
    check!(output.status != 0, "status {}", output.status);
    check!(output.err().contains("/no/such/logger"), "the reason is missing: {}", output.err());
    Ok(())
}
