//! One case: a containerd namespace, the containers in it, and the proof that it left nothing.

use std::cell::{Cell, RefCell};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::assets::RUNC;
use crate::bundle::Bundle;
use crate::command::{Output, Running, run, start, tail};
use crate::leak::{Suspects, remove_empty_cgroups};
use crate::shim::{Shim, TaskClient};
use crate::world::World;
use crate::{Context, Failure, Result, operator};

/// The name under which the test image is imported.
pub const IMAGE: &str = "localhost/busybox:latest";

/// Longest time for one `ctr` command: several guest boots on a loaded machine without KVM.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// One case of the suite.
pub struct Case<'w> {
    /// What it shares with the others.
    pub world: &'w World,
    /// Its namespace in containerd.
    pub namespace: String,
    ids: RefCell<Vec<String>>,
    reference: Cell<bool>,
    execs: Cell<usize>,
    image_there: Cell<bool>,
    log_from: usize,
}

impl<'w> Case<'w> {
    pub(crate) fn new(world: &'w World, namespace: String) -> Result<Case<'w>> {
        fs::create_dir_all(world.dir().join(&namespace))?;
        Ok(Case {
            world,
            namespace,
            ids: RefCell::default(),
            reference: Cell::new(!world.assets().is_kata()),
            execs: Cell::new(0),
            image_there: Cell::new(false),
            log_from: world.containerd().log().len(),
        })
    }

    pub(crate) fn image_is_there(&self) {
        self.image_there.set(true);
    }

    /// Takes note of a container that this case has to look after.
    pub fn adopt(&self, id: &str) {
        self.ids.borrow_mut().push(id.to_owned());
    }

    /// A directory of the case's own.
    pub fn dir(&self) -> PathBuf {
        self.world.dir().join(&self.namespace)
    }

    /// A `ctr` command in the case's namespace.
    pub fn ctr_command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.world.assets().ctr);
        let socket = self.world.containerd().socket();
        command.arg("--address").arg(socket).args(["--namespace", &self.namespace]).args(args);
        command
    }

    /// Runs `ctr`, whatever its status is.
    pub fn ctr<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Output> {
        run(&mut self.ctr_command(args), PATIENCE)
    }

    /// A container of the test image, to be run.
    pub fn container(&self, id: &str) -> Container<'_> {
        let runtime = self.world.assets().runtime.clone();
        Container { case: self, id: id.to_owned(), runtime, flags: Vec::new(), stdin: Vec::new() }
    }

    /// `ctr task exec` of `command` in the container `id`, with further `flags`.
    pub fn exec(&self, id: &str, flags: &[&str], command: &[&str]) -> Result<Output> {
        let exec = format!("exec-{}-{}", std::process::id(), self.next_exec());
        let verb = ["task", "exec", "--exec-id", &exec];
        self.ctr(verb.iter().chain(flags).chain([&id]).chain(command).copied())
    }

    /// A direct connection to the shim that containerd started for `id`.
    pub fn shim_of(&self, id: &str) -> Result<TaskClient> {
        let bundle = self.bundle_of(id);
        let address = fs::read_to_string(bundle.join("address")).context(bundle.display())?;
        TaskClient::connect(address.trim(), id)
    }

    /// The bundle that containerd made for `id`.
    pub fn bundle_of(&self, id: &str) -> PathBuf {
        let tasks = self.world.dir().join("state/io.containerd.runtime.v2.task");
        tasks.join(&self.namespace).join(id)
    }

    /// A shim of our own for `id`, without containerd in between, in a bundle with `spec` as its config.json.
    pub fn shim(&self, id: &str, spec: &Value) -> Result<Shim> {
        self.adopt(id);
        let bundle = Bundle::new(self.world, self.dir().join(id))?;
        bundle.write(spec)?;
        Shim::start(self, id, bundle)
    }

    /// What containerd and the shims have logged since this case began.
    pub fn log(&self) -> String {
        let log = self.world.containerd().log();
        log.get(self.log_from..).unwrap_or_default().to_owned()
    }

    /// Everything this case may leave.
    pub fn suspects(&self) -> Suspects {
        Suspects {
            namespace: self.namespace.clone(),
            address: self.world.containerd().socket(),
            ids: self.ids.borrow().clone(),
            cgroup_may_stay: self.reference.get(),
        }
    }

    /// A configuration file for `--runtime-config-path`: the shipped one after `edit`.
    pub fn configuration(&self, edit: impl FnOnce(&mut operator::Configuration)) -> Result<PathBuf> {
        let name = format!("configuration-{}.toml", self.next_exec());
        operator::written(self.world.assets(), &self.dir(), &name, edit)
    }

    pub(crate) fn conclude(self, body: impl FnOnce(&Case<'w>) -> Result<()>) -> Result<()> {
        let result = catch_unwind(AssertUnwindSafe(|| body(&self))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Failure::new(text.unwrap_or_else(|| "panicked".to_owned())))
        });
        self.remove_all();
        let clean = self.suspects().expect_nothing();
        if self.reference.get() {
            remove_empty_cgroups(&self.namespace);
        }
        let failures: Vec<String> =
            [result, clean].into_iter().filter_map(Result::err).map(|failure| failure.to_string()).collect();
        if failures.is_empty() {
            return Ok(());
        }
        // Last, so that what is cut off a long output is not the reason.
        Err(Failure::new(format!(
            "--- end of containerd's log\n{}\n---\n{}",
            tail(&self.log()),
            failures.join("\n")
        )))
    }

    /// Removes what a failed case did not get to. A step that fails shows in the check that follows.
    fn remove_all(&self) {
        for (list, remove) in
            [(["task", "ls", "-q"], ["task", "rm", "-f"]), (["c", "ls", "-q"], ["c", "rm", ""])]
        {
            let ids = self.ctr(list).map(|output| output.out()).unwrap_or_default();
            for id in ids.split_whitespace() {
                let args = remove.iter().copied().filter(|word| !word.is_empty()).chain([id]);
                let _ = self.ctr(args);
            }
        }
    }

    fn import_image(&self) -> Result<()> {
        if !self.image_there.replace(true) {
            let archive = self.world.assets().image();
            self.ctr(["images", "import", &archive.to_string_lossy()])?.exits(0)?;
        }
        Ok(())
    }

    pub(crate) fn next_exec(&self) -> usize {
        // Also unique between the several values that stand for the shared namespace.
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        self.execs.set(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.execs.get()
    }
}

/// `ctr run`, to be completed by flags and a command.
pub struct Container<'c> {
    case: &'c Case<'c>,
    id: String,
    runtime: String,
    flags: Vec<String>,
    stdin: Vec<u8>,
}

impl Container<'_> {
    /// Adds flags of `ctr run`.
    pub fn flags<'a>(mut self, flags: impl IntoIterator<Item = &'a str>) -> Self {
        self.flags.extend(flags.into_iter().map(str::to_owned));
        self
    }

    /// Runs it by runc, to compare with.
    pub fn by_runc(mut self) -> Self {
        self.case.reference.set(true);
        self.runtime = RUNC.to_owned();
        self
    }

    /// Uses another configuration file than the process's own.
    pub fn configured(self, file: &Path) -> Self {
        self.flags(["--runtime-config-path", &file.to_string_lossy()])
    }

    /// Writes `bytes` to the container's standard input and then closes it.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Runs it in the foreground and removes it, whatever its status is.
    pub fn run<'a>(self, command: impl IntoIterator<Item = &'a str>) -> Result<Output> {
        self.start(command)?.wait(PATIENCE)
    }

    /// Starts it in the foreground, to be waited for.
    pub fn start<'a>(mut self, command: impl IntoIterator<Item = &'a str>) -> Result<Running> {
        let stdin = std::mem::take(&mut self.stdin);
        start(&mut self.flags(["--rm"]).command(command)?, stdin)
    }

    /// Starts it in the background, without standard streams unless a flag asks for them.
    pub fn detach<'a>(self, command: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let has_stdio = self.flags.iter().any(|flag| flag == "--log-uri" || flag == "--fifo-dir");
        let quiet = if has_stdio { vec!["-d"] } else { vec!["-d", "--null-io"] };
        run(&mut self.flags(quiet).command(command)?, PATIENCE)?.exits(0).map(|_| ())
    }

    /// The whole `ctr run` as a command, for a terminal of the caller's.
    pub fn command<'a>(self, command: impl IntoIterator<Item = &'a str>) -> Result<Command> {
        self.case.import_image()?;
        self.case.adopt(&self.id);
        let mut ctr = self.case.ctr_command(["run", "--runtime", &self.runtime]);
        ctr.args(&self.flags).arg(IMAGE).arg(&self.id).args(command);
        Ok(ctr)
    }
}
