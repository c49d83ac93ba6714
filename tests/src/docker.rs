//! Docker: a daemon of our own beside a containerd of our own, in the network and mounts of that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::assets::Assets;
use crate::case::PATIENCE;
use crate::command::{Output, pid_of, run, start, tail};
use crate::containerd::{Containerd, serve, text};
use crate::leak::{Suspects, remove_empty_cgroups};
use crate::world::unpack;
use crate::{Context, Failure, Result, eventually, fail, operator};

/// The image.
pub const IMAGE: &str = "busybox";

/// Where Docker's containers are for containerd.
const NAMESPACE: &str = "moby";

/// The operator's page, whose configuration of the daemon is the one that is tested.
const PAGE: &str = include_str!("../../docs/docker.md");

/// Where the page has the shim's configuration.
const CONFIGURATION: &str = "/etc/kata-containers/configuration.toml";

/// What the daemon keeps outside of the directories it is told; hidden, as a host may have another daemon.
const APART: &str = "mount -t tmpfs tmpfs /run/docker && exec \"$0\" \"$@\"";

/// How long the daemon may take to end: longer than it gives containers.
const END: Duration = Duration::from_secs(20);

/// A daemon with the test image, ended with the value.
pub struct Docker {
    // Fields drop in this order.
    daemon: Mutex<Daemon>,
    containerd: Containerd,
    dir: TempDir,
    programs: PathBuf,
    cgroup: String,
    cases: AtomicUsize,
}

struct Daemon(Child);

impl Daemon {
    /// Asks it to end, and has it end.
    fn end(&mut self) -> Result<()> {
        kill(pid_of(&self.0), Signal::SIGTERM)?;
        let ended = eventually(END, || self.0.try_wait()?.map(drop).context("the daemon has not ended"));
        if ended.is_err() {
            self.0.kill()?;
            self.0.wait()?;
        }
        ended
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Whether there are Docker's programs: `KATA_TEST_DOCKER` names the directory they are unpacked in.
pub fn programs() -> Result<PathBuf> {
    let dir = std::env::var_os("KATA_TEST_DOCKER").map(PathBuf::from);
    dir.context("KATA_TEST_DOCKER is to name Docker's programs: `make matrix` fetches them")
}

impl Docker {
    /// Starts containerd and the daemon, and loads the image.
    pub fn new() -> Result<Docker> {
        let (assets, programs) = (Assets::find()?, programs()?);
        let dir = tempfile::Builder::new().prefix("kd").tempdir_in("/tmp")?;
        let own = operator::written(&assets, dir.path(), "configuration.toml", |_| {})?;
        let page = PAGE.split("```json").nth(1).and_then(|rest| rest.split("```").next());
        let page = page.context("docs/docker.md: the daemon's configuration")?;
        if !page.contains(CONFIGURATION) {
            fail!("docs/docker.md: no {CONFIGURATION} in {page}");
        }
        fs::write(dir.path().join("daemon.json"), page.replace(CONFIGURATION, &operator::path(&own)))?;
        let containerd = Containerd::for_daemon(&assets, dir.path())?;
        let cgroup = format!("kd-{}", std::process::id());
        let daemon = Mutex::new(Daemon(launch(&containerd, dir.path(), &programs, &cgroup)?));
        let docker = Docker { daemon, containerd, dir, programs, cgroup, cases: AtomicUsize::new(0) };
        unpack(&assets.image(), docker.dir())?;
        let archive = docker.dir().join("rootfs.tar");
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&archive).arg("-C").arg(docker.dir().join("rootfs")).arg(".");
        run(&mut tar, PATIENCE)?.exits(0)?;
        docker.says(["import", "--change", "CMD [\"sh\"]", &operator::path(&archive), IMAGE])?;
        Ok(docker)
    }

    /// Ends the daemon and starts it again: its containers live on.
    pub fn restart(&self) -> Result<()> {
        let mut daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        daemon.end()?;
        daemon.0 = launch(&self.containerd, self.dir.path(), &self.programs, &self.cgroup)?;
        Ok(())
    }

    /// A directory of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A program on the containers' host.
    pub fn on_host(&self, words: &str) -> Result<Output> {
        let mut words = words.split(' ');
        let mut command = self.containerd.beside(words.next().unwrap_or_default());
        run(command.args(words), PATIENCE)
    }

    /// A `docker` command.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut docker = self.containerd.beside(self.programs.join("usr/bin/docker"));
        docker.arg("--config").arg(self.dir()).arg("--host").arg(socket(self.dir())).args(args);
        docker
    }

    /// Runs `docker` with something to read, whatever its status is.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>, stdin: &str) -> Result<Output> {
        start(&mut self.command(args), stdin.into())?.wait(PATIENCE)
    }

    /// What `docker` says that has to succeed.
    pub fn says<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        Ok(run(&mut self.command(args), PATIENCE)?.exits(0)?.out().trim_end().to_owned())
    }

    /// Hands `body` the name of a container to be, which it does not remove; it is removed then, and nothing of it may be left. Fails with what
    /// `body` said, what was left, and the end of what the shims and the daemon have logged.
    pub fn case(&self, body: impl FnOnce(&str) -> Result<()>) -> Result<()> {
        let name = format!("case-{}", self.cases.fetch_add(1, Ordering::Relaxed));
        let outcome = body(&name);
        // By its number, which all that it has on the host has in its name.
        let gone = self.says(["inspect", "--format", "{{.Id}}", &name]).and_then(|id| {
            self.says(["rm", "--force", &name])?;
            self.expect_nothing_of(&id)
        });
        outcome.and(gone).map_err(|failure| self.with_logs(&failure))
    }

    fn expect_nothing_of(&self, id: &str) -> Result<()> {
        let suspects = Suspects {
            namespace: id.to_owned(),
            address: self.dir().join("containerd.sock"),
            ids: Vec::new(),
            cgroup_may_stay: false,
        };
        suspects.expect_nothing()?;
        for dir in [Path::new("/run/kata").join(NAMESPACE).join(id), Path::new("/run/vc/sbs").join(id)] {
            if dir.exists() {
                fail!("left behind: {}", dir.display());
            }
        }
        Ok(())
    }

    fn with_logs(&self, failure: &Failure) -> Failure {
        let (shims, daemon) = (self.containerd.log(), text(&self.dir().join("dockerd.log")));
        let (shims, daemon) = (tail(&shims), tail(&daemon));
        Failure::new(format!(
            "--- end of containerd's log\n{shims}\n--- end of dockerd's log\n{daemon}\n---\n{failure}"
        ))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Containers outlive their daemon, so those that are left go first.
        if let Ok(ids) = self.says(["ps", "--all", "--quiet"])
            && !ids.is_empty()
        {
            let _ = run(&mut self.command(["rm", "--force"].into_iter().chain(ids.lines())), PATIENCE);
        }
        remove_empty_cgroups(&self.cgroup);
    }
}

fn socket(dir: &Path) -> String {
    format!("unix://{}/docker.sock", dir.display())
}

fn launch(containerd: &Containerd, dir: &Path, programs: &Path, cgroup: &str) -> Result<Child> {
    let (sbin, bin) = (programs.join("usr/sbin"), programs.join("usr/bin"));
    fs::create_dir_all("/run/docker").context("/run/docker")?;
    let mut daemon = containerd.beside("sh");
    daemon.args(["-c", APART]).arg(sbin.join("dockerd"));
    for (flag, file) in [
        ("--config-file", "daemon.json"),
        ("--data-root", "docker"),
        ("--exec-root", "exec"),
        ("--pidfile", "docker.pid"),
        ("--containerd", "containerd.sock"),
    ] {
        daemon.arg(flag).arg(dir.join(file));
    }
    daemon.arg("--host").arg(socket(dir)).args(["--cgroup-parent", cgroup, "--bip", "172.30.0.1/24"]);
    daemon.arg("--init-path").arg(bin.join("docker-init"));
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    // docker-proxy is looked for there.
    let path = [sbin, bin].into_iter().chain(std::env::split_paths(&inherited));
    daemon.env("PATH", std::env::join_paths(path)?);
    serve(daemon, dir, "dockerd.log")
}
