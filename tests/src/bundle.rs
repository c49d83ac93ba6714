//! A bundle as containerd would lay it out: config.json, a place for the root filesystem, the log FIFO.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use containerd_shim_protos::types::mount::Mount;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::world::World;
use crate::{Context, Result};

/// A bundle for one container.
pub struct Bundle {
    /// Where it lies.
    pub dir: PathBuf,
    lower: Vec<PathBuf>,
    log: Arc<Mutex<Vec<String>>>,
    // Keeps the FIFO from ending between two processes of the shim.
    _fifo: File,
}

impl Bundle {
    /// Makes the directory and starts to read the shim's log.
    pub fn new(world: &World, dir: PathBuf) -> Result<Bundle> {
        for part in ["rootfs", "upper", "work"] {
            fs::create_dir_all(dir.join(part)).context(dir.display())?;
        }
        let path = dir.join("log");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).context(path.display())?;
        let fifo = OpenOptions::new().read(true).write(true).open(&path)?;
        let log = Arc::new(Mutex::new(Vec::new()));
        follow(fifo.try_clone()?, log.clone());
        Ok(Bundle { dir, lower: vec![world.rootfs()], log, _fifo: fifo })
    }

    /// Writes config.json.
    pub fn write(&self, spec: &Value) -> Result<()> {
        fs::write(self.dir.join("config.json"), serde_json::to_vec_pretty(spec)?).context(self.dir.display())
    }

    /// Puts the files of `dir` over the image's.
    pub fn add_layer(&mut self, dir: PathBuf) {
        self.lower.insert(0, dir);
    }

    /// The root filesystem as containerd's overlay snapshotter asks for it.
    pub fn rootfs(&self) -> Mount {
        let lower: Vec<String> = self.lower.iter().map(|dir| dir.display().to_string()).collect();
        let layer = |part| format!("{part}dir={}", self.dir.join(part).display());
        Mount {
            type_: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![layer("work"), layer("upper"), format!("lowerdir={}", lower.join(":"))],
            ..Mount::default()
        }
    }

    /// What the shim has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

/// containerd's default spec for a container that runs `args`.
pub fn spec(world: &World, namespace: &str, id: &str, args: &[&str]) -> Value {
    let mut spec = world.default_spec();
    spec["process"]["args"] = json!(args);
    spec["process"]["env"] = json!(["PATH=/bin:/usr/bin:/sbin:/usr/sbin"]);
    spec["root"]["path"] = json!("rootfs");
    spec["linux"]["cgroupsPath"] = json!(Path::new("/").join(namespace).join(id));
    spec
}

/// The process of an exec, made from the container's own.
pub fn process(spec: &Value, args: &[&str]) -> Value {
    let mut process = spec["process"].clone();
    process["args"] = json!(args);
    process
}

fn follow(fifo: File, log: Arc<Mutex<Vec<String>>>) {
    // Ends with the test process: the FIFO is held open by its own bundle until then.
    thread::spawn(move || {
        for line in BufReader::new(fifo).lines().map_while(std::io::Result::ok) {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
}
