//! Sandboxes that start as copies of a saved machine.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::ConnectResponse;
use tests::case::PATIENCE;
use tests::command::{Output, run};
use tests::keeper::factory;
use tests::{Case, Context, Result, check, check_eq, operator};

use crate::faults::child_named;
use crate::listed;

listed! {
    all: [],
    ours: [
        sandboxes_are_copies_where_the_suite_has_them_so,
        copies_of_one_template_are_different,
        a_copy_has_a_share_by_virtio_fs,
        a_template_is_made_shown_and_removed_by_command,
        a_template_whose_maker_is_killed_is_never_used,
    ]
}

/// How many start one after the other, and how many at once.
const IN_A_ROW: usize = 8;
const AT_ONCE: usize = 8;

/// What must differ between two guests, or be right in each.
pub(crate) const DIFFERENCES: &str = "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo; \
    cat /proc/sys/kernel/random/boot_id; date +%s; ls /root; echo mine >/root/mark";

fn templates(case: &Case<'_>) -> PathBuf {
    case.dir().join("templates")
}

/// A configuration with templates in the case's directory.
fn with_templates(case: &Case<'_>, edit: impl FnOnce(&mut operator::Configuration)) -> Result<PathBuf> {
    case.configuration(|file| {
        file.set("factory.enable_template", true)
            .set("factory.template_path", operator::path(&templates(case)))
            .set("hypervisor.qemu.default_memory", 256);
        edit(file);
    })
}

/// With `KATA_TEST_TEMPLATES` all cases would pass as well if no sandbox had anything of the templates there.
fn sandboxes_are_copies_where_the_suite_has_them_so(case: &Case<'_>) -> Result<()> {
    let configuration = case.configuration(|_| {})?;
    let templates = case.world.assets().templates.is_some();
    if templates {
        // Another case may be making it.
        run(&mut factory(case, "init", &configuration), PATIENCE)?.exits(0)?;
    }
    case.container("either").configured(&configuration).detach(["sleep", "1000"])?;
    let task = case.shim_of("either")?;
    let shim = task.plain::<ConnectResponse>("Connect")?.shim_pid;
    let qemu = fs::read(format!("/proc/{}/cmdline", child_named(shim, "qemu-system")?))?;
    let is_copy = qemu.split(|byte| *byte == 0).any(|word| word == b"-incoming");
    check_eq!(is_copy, templates, "whether the machine is a copy");
    task.kill("", 9)?;
    check_eq!(task.wait("")?, 137, "status");
    case.ctr(["task", "delete", "either"])?;
    case.ctr(["container", "rm", "either"])?.exits(0).map(drop)
}

fn copies_of_one_template_are_different(case: &Case<'_>) -> Result<()> {
    let configuration = with_templates(case, |_| {})?;
    let container = |id: &str| case.container(id).configured(&configuration);
    let mut said = Vec::new();
    for number in 0..IN_A_ROW {
        said.push(container(&format!("row-{number}")).run(["sh", "-c", DIFFERENCES])?);
    }
    let ids: Vec<String> = (0..AT_ONCE).map(|number| format!("at-once-{number}")).collect();
    let running = ids.iter().map(|id| container(id).start(["sh", "-c", DIFFERENCES]));
    for running in running.collect::<Result<Vec<_>>>()? {
        said.push(running.wait(PATIENCE)?);
    }
    let mut seen = HashSet::new();
    for output in said {
        check_differs(&output.exits(0)?, &mut seen)?;
    }
    check_eq!(made_templates(case)?.len(), 1, "templates made");
    expect_untold(case, "boots by itself", &["row-", "at-once-"])
}

/// That the shims of containers whose names begin like these did not say `what`. Other cases write to the same log.
fn expect_untold(case: &Case<'_>, what: &str, ids: &[&str]) -> Result<()> {
    let log = case.log();
    let ours = |line: &&str| ids.iter().any(|id| line.contains(&format!(" id={id}")));
    let told = log.lines().filter(ours).find(|line| line.contains(what));
    check!(told.is_none(), "{told:?}");
    Ok(())
}

/// Random bytes and boot id that nobody else had, the right time, and a root file system without another's file.
pub(crate) fn check_differs(output: &Output, seen: &mut HashSet<String>) -> Result<()> {
    let text = output.out();
    let lines: Vec<&str> = text.lines().collect();
    check_eq!(lines.len(), 3, "lines of {text}");
    check_eq!((lines[0].len(), lines[1].len()), (32, 36), "digits of {text}");
    check!(seen.insert(lines[0].to_owned()), "two guests had the same random bytes: {text}");
    check!(seen.insert(lines[1].to_owned()), "two guests had the same boot id: {text}");
    let theirs: u64 = lines[2].parse().context(lines[2])?;
    let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    check!(theirs.abs_diff(ours) < 60, "the guest's clock says {theirs}, the host's {ours}");
    Ok(())
}

fn a_copy_has_a_share_by_virtio_fs(case: &Case<'_>) -> Result<()> {
    let configuration = with_templates(case, |file| {
        file.set("hypervisor.qemu.shared_fs", "virtio-fs");
    })?;
    let ids = ["virtio-fs-first", "virtio-fs-second"];
    for id in ids {
        let script = ["sh", "-c", "awk '$2 == \"/\" {print $3}' /proc/mounts"];
        let output = case.container(id).configured(&configuration).run(script)?.exits(0)?;
        check_eq!(output.out(), "virtiofs\n", "the root file system of the {id}");
    }
    expect_untold(case, "boots by itself", &ids)
}

fn a_template_is_made_shown_and_removed_by_command(case: &Case<'_>) -> Result<()> {
    let configuration = with_templates(case, |_| {})?;
    let says = |action: &str| -> Result<String> {
        Ok(run(&mut factory(case, action, &configuration), PATIENCE)?.exits(0)?.out())
    };
    check!(says("status")?.contains("none of this configuration"), "status before");
    let made = says("init")?;
    check!(made.contains("makes a template") && made.contains("KiB"), "init says {made}");
    check!(says("init")?.contains("is there already"), "init again");
    check!(says("status")?.contains("of this configuration"), "status afterwards");
    let [template] = &*made_templates(case)? else { tests::fail!("{:?}", made_templates(case)?) };
    let memory = fs::metadata(template.join("memory"))?;
    check!(
        memory.blocks() * 512 < memory.size() / 2,
        "{} blocks of {} bytes",
        memory.blocks(),
        memory.size()
    );

    case.container("of-init").configured(&configuration).run(["true"])?.exits(0)?;
    expect_untold(case, "template", &["of-init"])?;

    // One copy that does not come up may have been killed.
    fs::write(template.join("state"), "")?;
    case.container("of-nothing").configured(&configuration).run(["true"])?.exits(0)?;
    check!(case.log().contains("a copy of the template did not come up"), "nothing is told of the copy");
    check!(template.join("doubted").exists(), "{} is not doubted", template.display());

    check!(says("destroy")?.contains("removed"), "destroy");
    check_eq!(made_templates(case)?, Vec::<PathBuf>::new(), "templates that are left");
    let off = case.configuration(|file| {
        file.set("factory.enable_template", false);
    })?;
    let refused = run(&mut factory(case, "init", &off), PATIENCE)?;
    check!(
        refused.err().contains("neither factory.enable_template nor factory.vm_cache_number"),
        "{}",
        refused.err()
    );
    Ok(())
}

/// What is in the directory but for the lock.
fn made_templates(case: &Case<'_>) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(templates(case))?.map(|entry| Ok(entry?.path()));
    let entries: Vec<PathBuf> = entries.collect::<Result<_>>()?;
    Ok(entries.into_iter().filter(|path| path.file_name().is_some_and(|name| name != "lock")).collect())
}

/// At three moments: while its machine boots, when that is about to be saved, and as soon as the template is there.
fn a_template_whose_maker_is_killed_is_never_used(case: &Case<'_>) -> Result<()> {
    let configuration = with_templates(case, |_| {})?;
    let directory = templates(case);
    let moments: [&dyn Fn() -> bool; 3] = [
        &|| directory.join("making/template/memory").exists(),
        &|| directory.join("making/template/state").exists(),
        &|| made_templates(case).is_ok_and(|made| made.iter().any(|path| path.join("state").exists())),
    ];
    for has_come in moments {
        let mut maker = factory(case, "init", &configuration).stdout(Stdio::null()).spawn()?;
        let came = wait_for(has_come, &mut maker);
        maker.kill()?;
        maker.wait()?;
        check!(came, "the maker was never as far");
        let left = made_templates(case)?;
        let whole =
            left.iter().filter(|path| path.join("made-of.json").exists() && !path.ends_with("making"));
        for template in whole {
            check!(template.join("state").metadata()?.size() > 0, "{} is not whole", template.display());
        }
    }
    // Whatever is there, a sandbox starts.
    case.container("of-killed").configured(&configuration).run(["true"])?.exits(0)?;
    expect_untold(case, "of no use", &["of-killed"])
}

fn wait_for(has_come: &dyn Fn() -> bool, maker: &mut Child) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if has_come() {
            return true;
        }
        if matches!(maker.try_wait(), Ok(Some(_))) {
            return has_come();
        }
        sleep(Duration::from_millis(1));
    }
    false
}
