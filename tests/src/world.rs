//! What all cases of one test process share.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::assets::Assets;
use crate::case::Case;
use crate::command::run;
use crate::containerd::Containerd;
use crate::events::Follower;
use crate::{Context, Result, operator};

/// The id of the container that many cases exec into.
pub const SHARED: &str = "shared";

/// One containerd, the fixtures, and one long-lived container.
pub struct World {
    // Fields drop in this order: what is inside the directory goes before the directory.
    events: Follower,
    containerd: Containerd,
    dir: TempDir,
    assets: Assets,
    spec: Value,
    cases: AtomicUsize,
    shared: Mutex<Option<&'static str>>,
}

impl World {
    /// Starts containerd with the shipped configuration, and unpacks the fixtures.
    pub fn new() -> Result<World> {
        let assets = Assets::find()?;
        // Short, for the sake of socket names below it: sun_path has 108 bytes.
        let dir = tempfile::Builder::new().prefix("kt").tempdir_in("/tmp")?;
        let configuration = dir.path().join("configuration.toml");
        if assets.is_kata() {
            operator::written(&assets, dir.path(), "configuration.toml", |_| {})?;
        }
        let containerd = Containerd::start(&assets, dir.path(), &[("KATA_CONF_FILE", &configuration)])?;
        let events = Follower::start(&assets, &containerd.socket())?;
        unpack(&assets.image(), dir.path())?;
        let spec = run(Command::new(&assets.ctr).args(["oci", "spec"]), Duration::from_secs(10))?.exits(0)?;
        let spec = serde_json::from_slice(&spec.stdout).context("ctr oci spec")?;
        Ok(World {
            events,
            containerd,
            dir,
            assets,
            spec,
            cases: AtomicUsize::new(0),
            shared: Mutex::new(None),
        })
    }

    /// Where things under test lie.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// The containerd of this process.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// All events since the start, of all cases.
    pub fn events(&self) -> &Follower {
        &self.events
    }

    /// A directory that goes with this value.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The test image's files, unpacked.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// containerd's own default OCI spec.
    pub fn default_spec(&self) -> Value {
        self.spec.clone()
    }

    /// Runs one case in a namespace of its own, cleans up after it and checks that nothing is left.
    ///
    /// Fails with what the case said, what was left, and the end of the log.
    pub fn case(&self, body: impl FnOnce(&Case<'_>) -> Result<()>) -> Result<()> {
        let case = self.open_case()?;
        case.conclude(body)
    }

    fn open_case(&self) -> Result<Case<'_>> {
        let number = self.cases.fetch_add(1, Ordering::Relaxed);
        Case::new(self, format!("kt-{}-{number}", std::process::id()))
    }

    /// The namespace whose container [`SHARED`] runs for as long as this process: started on first use.
    pub fn shared(&self) -> Result<Case<'_>> {
        let namespace = format!("kt-{}-shared", std::process::id());
        let mut started = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let case = Case::new(self, namespace)?;
        if started.is_none() {
            case.container(SHARED).detach(["sleep", "1000000"])?;
            *started = Some(SHARED);
        } else {
            case.image_is_there();
        }
        Ok(case)
    }

    /// Ends the shared container. The last thing to do with a world.
    pub fn finish(self) -> Result<()> {
        let started = self.shared.lock().unwrap_or_else(PoisonError::into_inner).take();
        match started {
            Some(id) => {
                let case = Case::new(&self, format!("kt-{}-shared", std::process::id()))?;
                case.adopt(id);
                case.conclude(|_| Ok(()))
            }
            None => Ok(()),
        }
    }
}

/// Unpacks the layers of the OCI archive into `<dir>/rootfs`.
pub(crate) fn unpack(archive: &Path, dir: &Path) -> Result<()> {
    let (image, rootfs) = (dir.join("image"), dir.join("rootfs"));
    fs::create_dir(&image)?;
    fs::create_dir(&rootfs)?;
    untar(archive, &image)?;
    let index = blob(&image.join("index.json"))?;
    let manifest = digest_path(&image, &index["manifests"][0])?;
    let layers = blob(&manifest)?;
    let layers = layers["layers"].as_array().context("the manifest's layers")?;
    layers.iter().try_for_each(|layer| untar(&digest_path(&image, layer)?, &rootfs))
}

fn blob(file: &Path) -> Result<Value> {
    let bytes = fs::read(file).context(file.display())?;
    serde_json::from_slice(&bytes).context(file.display())
}

fn digest_path(image: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("an OCI descriptor's digest")?;
    Ok(image.join("blobs").join(digest.replace(':', "/")))
}

fn untar(archive: &Path, into: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(archive).arg("-C").arg(into);
    run(&mut tar, Duration::from_secs(60))?.exits(0).map(|_| ())
}
