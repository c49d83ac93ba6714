//! A containerd of our own: own root, state and socket, nothing of the host's.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::assets::Assets;
use crate::command::{pid_of, tail};
use crate::{Context, Result, fail};

/// Its configuration.
const CONFIGURATION: &str = "containerd.toml";

/// How long containerd may take to serve.
const READY: Duration = Duration::from_secs(30);

/// CRI would look for a network and for a sandbox image.
const NO_CRI: &str = "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";

/// Where network plugins keep what they have given, wherever they are told to keep the rest.
const CNI_STATE: &str = "/var/lib/cni";

/// Becomes its first argument, in the namespaces it is run in.
const APART: &str = "ip link set lo up && mount -t tmpfs tmpfs /var/lib/cni && exec \"$0\" \"$@\"";

/// A running containerd, ended with the value.
pub struct Containerd {
    child: Child,
    dir: PathBuf,
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

impl Containerd {
    /// Starts containerd with everything it keeps in `dir`, and waits until it says that it serves.
    ///
    /// `environment` reaches the shims too, since containerd hands its own on.
    pub fn start(assets: &Assets, dir: &Path, environment: &[(&str, &Path)]) -> Result<Containerd> {
        Self::spawn(Command::new(&assets.containerd), NO_CRI, assets, dir, environment)
    }

    /// The same with CRI, as `plugins` has it, in a network and mounts of its own: what its network plugins make there
    /// is nowhere else, and goes with it.
    pub fn for_pods(
        assets: &Assets,
        dir: &Path,
        plugins: &str,
        environment: &[(&str, &Path)],
    ) -> Result<Containerd> {
        let mut apart = Command::new("unshare");
        apart
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", APART])
            .arg(&assets.containerd);
        fs::create_dir_all(CNI_STATE).context(CNI_STATE)?;
        Self::spawn(apart, plugins, assets, dir, environment)
    }

    /// The same for another daemon that uses it and is to run in its namespaces.
    pub fn for_daemon(assets: &Assets, dir: &Path) -> Result<Containerd> {
        Self::for_pods(assets, dir, NO_CRI, &[])
    }

    /// A program in the network and mounts that it is in.
    pub fn beside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--wd=.", "--target", &self.pid().to_string(), "--"]).arg(program);
        command
    }

    fn spawn(
        command: Command,
        plugins: &str,
        assets: &Assets,
        dir: &Path,
        environment: &[(&str, &Path)],
    ) -> Result<Containerd> {
        let file = dir.join(CONFIGURATION);
        fs::write(&file, configuration(assets.generation, dir, plugins)).context(file.display())?;
        let own = [("PATH".into(), assets.search_path())];
        let given =
            environment.iter().map(|(name, value)| (OsString::from(name), value.as_os_str().to_owned()));
        let environment: Vec<_> = own.into_iter().chain(given).collect();
        let child = launch(command, dir, &environment)?;
        Ok(Containerd { child, dir: dir.to_owned(), program: assets.containerd.clone(), environment })
    }

    /// Ends containerd and starts it again, as an update of it does, in the namespaces it was in.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_after(Signal::SIGTERM, || Ok(()))
    }

    /// The same by `signal`, with something done while none runs.
    pub fn restart_after(&mut self, signal: Signal, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        let namespace = |kind| File::open(format!("/proc/{}/ns/{kind}", self.pid()));
        let (net, mounts) = (namespace("net")?, namespace("mnt")?);
        kill(pid_of(&self.child), signal)?;
        self.child.wait()?;
        let done = meanwhile();
        let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let mut again = Command::new("nsenter");
        again
            .arg(format!("--net={}", path(&net)))
            .arg(format!("--mount={}", path(&mounts)))
            .arg(&self.program);
        self.child = launch(again, &self.dir, &self.environment)?;
        done
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its GRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// What it and, through it, its shims have logged so far.
    pub fn log(&self) -> String {
        text(&self.dir.join("containerd.log"))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = kill(pid_of(&self.child), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Runs `command` with containerd's arguments until it says that it serves.
fn launch(mut command: Command, dir: &Path, environment: &[(OsString, OsString)]) -> Result<Child> {
    command.arg("--config").arg(dir.join(CONFIGURATION));
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    serve(command, dir, "containerd.log")
}

/// Runs a daemon, what it says going to the file `log` in `dir`, until it says that it serves.
pub(crate) fn serve(mut command: Command, dir: &Path, log: &str) -> Result<Child> {
    // Daemons speak systemd's notify protocol, so their being ready is an event.
    let socket = dir.join("notify");
    let _ = fs::remove_file(&socket);
    let notify = UnixDatagram::bind(socket)?;
    notify.set_read_timeout(Some(READY))?;
    let said = File::options().append(true).create(true).open(dir.join(log))?;
    let mut child = command
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()
        .context(format_args!("{command:?}"))?;
    let served = ready(&notify, &dir.join(log));
    if served.is_err() {
        let _ = child.kill().and_then(|()| child.wait());
    }
    served.map(|()| child)
}

fn ready(notify: &UnixDatagram, log: &Path) -> Result<()> {
    let mut message = [0; 256];
    match notify.recv(&mut message) {
        Ok(length) if message[..length].starts_with(b"READY=1") => Ok(()),
        Ok(length) => fail!("a daemon notified {:?}", String::from_utf8_lossy(&message[..length])),
        Err(error) => fail!("a daemon did not serve: {error}; {}: {}", log.display(), tail(&text(log))),
    }
}

/// A log as far as it is there.
pub(crate) fn text(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn configuration(generation: u32, dir: &Path, plugins: &str) -> String {
    let (format, dir) = (if generation < 2 { 2 } else { 3 }, dir.display());
    format!(
        "version = {format}\n\
         root = \"{dir}/root\"\n\
         state = \"{dir}/state\"\n\
         {plugins}\
         [grpc]\naddress = \"{dir}/containerd.sock\"\n\
         [ttrpc]\naddress = \"{dir}/containerd.sock.ttrpc\"\n\
         [debug]\nlevel = \"debug\"\n"
    )
}
