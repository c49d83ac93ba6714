//! A containerd of our own: own root, state and socket, nothing of the host's.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::assets::Assets;
use crate::command::{pid_of, tail};
use crate::{Context, Result, fail};

/// How long containerd may take to serve.
const READY: Duration = Duration::from_secs(30);

/// Where network plugins keep what they have given, wherever they are told to keep the rest.
const CNI_STATE: &str = "/var/lib/cni";

/// Becomes its first argument, in the namespaces it is run in.
const APART: &str = "ip link set lo up && mount -t tmpfs tmpfs /var/lib/cni && exec \"$0\" \"$@\"";

/// A running containerd, ended with the value.
pub struct Containerd {
    child: Child,
    dir: PathBuf,
}

impl Containerd {
    /// Starts containerd with everything it keeps in `dir`, and waits until it says that it serves.
    ///
    /// `environment` reaches the shims too, since containerd hands its own on.
    pub fn start(assets: &Assets, dir: &Path, environment: &[(&str, &Path)]) -> Result<Containerd> {
        // CRI stays out: it would look for a network and for a sandbox image, and no case uses it.
        let plugins = "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        Self::spawn(Command::new(&assets.containerd), plugins, assets, dir, environment)
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

    fn spawn(
        mut command: Command,
        plugins: &str,
        assets: &Assets,
        dir: &Path,
        environment: &[(&str, &Path)],
    ) -> Result<Containerd> {
        let file = dir.join("containerd.toml");
        fs::write(&file, configuration(dir, plugins)).context(file.display())?;
        // containerd speaks systemd's notify protocol, so its being ready is an event.
        let notify = UnixDatagram::bind(dir.join("notify"))?;
        notify.set_read_timeout(Some(READY))?;
        let log = File::create(dir.join("containerd.log"))?;
        let child = command
            .arg("--config")
            .arg(&file)
            .env("PATH", assets.search_path())
            .env("NOTIFY_SOCKET", dir.join("notify"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context(assets.containerd.display())?;
        let containerd = Containerd { child, dir: dir.to_owned() };
        containerd.ready(&notify)?;
        Ok(containerd)
    }

    fn ready(&self, notify: &UnixDatagram) -> Result<()> {
        let mut message = [0; 256];
        match notify.recv(&mut message) {
            Ok(length) if message[..length].starts_with(b"READY=1") => Ok(()),
            Ok(length) => fail!("containerd notified {:?}", String::from_utf8_lossy(&message[..length])),
            Err(error) => fail!("containerd did not serve: {error}; its log: {}", tail(&self.log())),
        }
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
        let bytes = fs::read(self.dir.join("containerd.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = kill(pid_of(&self.child), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn configuration(dir: &Path, plugins: &str) -> String {
    let dir = dir.display();
    format!(
        "version = 2\n\
         root = \"{dir}/root\"\n\
         state = \"{dir}/state\"\n\
         {plugins}\
         [grpc]\naddress = \"{dir}/containerd.sock\"\n\
         [ttrpc]\naddress = \"{dir}/containerd.sock.ttrpc\"\n\
         [debug]\nlevel = \"debug\"\n"
    )
}
