//! Where the things under test lie. Each has a place by default and an environment variable to say otherwise.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::run;
use crate::{Context, Result, fail};

/// The runtime under test unless `KATA_TEST_RUNTIME` names another one.
pub const KATA: &str = "io.containerd.kata.v2";

/// The reference.
pub const RUNC: &str = "io.containerd.runc.v2";

/// Files that the suite runs or gives to what it runs.
#[derive(Debug, Clone)]
pub struct Assets {
    /// containerd's runtime name: `KATA_TEST_RUNTIME`.
    pub runtime: String,
    /// `KATA_TEST_CONTAINERD`, or `containerd` of the search path.
    pub containerd: PathBuf,
    /// The first number of its version.
    pub generation: u32,
    /// `KATA_TEST_CTR`, or `ctr` of the search path.
    pub ctr: PathBuf,
    /// `KATA_TEST_QEMU`, or what the shipped configuration names.
    pub qemu: Option<PathBuf>,
    /// `KATA_TEST_TEMPLATES`, a directory: every sandbox starts as a copy of a template in there.
    pub templates: Option<PathBuf>,
    /// `KATA_TEST_SANDBOX_API`: whether pods are made by containerd's Sandbox API, without pause containers. For
    /// containerd 1.7 and later.
    pub sandbox_api: bool,
    /// The shim's binary: `KATA_TEST_SHIM`, or the newest one in this workspace's target directory; for another
    /// runtime the one of the search path.
    pub shim: PathBuf,
    /// Everything that is built or fetched once: `KATA_CACHE_DIR`.
    pub cache: PathBuf,
    /// The guest's kernel and initramfs: the trimmed ones if they are built, else the distribution's. `KATA_GUEST` says
    /// `stock` or `trimmed`.
    pub guest: PathBuf,
    /// The configuration file as shipped.
    pub configuration: PathBuf,
}

/// Whether pods are made by containerd's Sandbox API.
pub fn by_sandbox_api() -> bool {
    env::var_os("KATA_TEST_SANDBOX_API").is_some_and(|value| !value.is_empty())
}

impl Assets {
    /// Looks for all of them. Fails on the first that is not there.
    pub fn find() -> Result<Assets> {
        let runtime = env::var("KATA_TEST_RUNTIME").unwrap_or_else(|_| KATA.to_owned());
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let cache = cache();
        let containerd = program("KATA_TEST_CONTAINERD", "containerd")?;
        let assets = Assets {
            generation: generation(&containerd)?,
            containerd,
            ctr: program("KATA_TEST_CTR", "ctr")?,
            qemu: env::var_os("KATA_TEST_QEMU").map(PathBuf::from),
            templates: env::var_os("KATA_TEST_TEMPLATES").map(PathBuf::from),
            sandbox_api: by_sandbox_api(),
            shim: shim(&runtime)?,
            guest: guest(&cache)?,
            cache,
            configuration: repository.join("configuration/configuration.toml"),
            runtime,
        };
        let own = assets.is_kata().then(|| assets.configuration.clone());
        for file in own.into_iter().chain([assets.image()]) {
            if !file.exists() {
                fail!("{} is not there: `make guest` makes the guest and the test images", file.display());
            }
        }
        Ok(assets)
    }

    /// The OCI archive of the test image.
    pub fn image(&self) -> PathBuf {
        self.cache.join("images/busybox.tar")
    }

    /// Whether the guest's kernel has that module, built in or to be loaded.
    pub fn guest_has(&self, module: &str) -> bool {
        let modules = self.guest.join("modules");
        let built_in = fs::read_to_string(modules.join("builtin")).unwrap_or_default();
        built_in.lines().any(|line| line == module) || modules.join("on-demand").join(module).exists()
    }

    /// Whether it is this project's shim that is under test, and not a reference to compare with.
    pub fn is_kata(&self) -> bool {
        self.runtime == KATA
    }

    /// The search path for containerd: the shim under test comes first.
    pub fn search_path(&self) -> OsString {
        let own = self.shim.parent().map(Path::to_path_buf);
        let beside = self.containerd.parent().map(Path::to_path_buf);
        let inherited = env::var_os("PATH").unwrap_or_default();
        let all = own.into_iter().chain(beside).chain(env::split_paths(&inherited));
        env::join_paths(all).unwrap_or(inherited)
    }
}

fn cache() -> PathBuf {
    if let Some(own) = env::var_os("KATA_CACHE_DIR") {
        return PathBuf::from(own);
    }
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    base.unwrap_or_else(|| PathBuf::from("/root/.cache")).join("containerd-shim-kata-v2")
}

/// The first number of a containerd's version.
fn generation(containerd: &Path) -> Result<u32> {
    let said = run(Command::new(containerd).arg("--version"), Duration::from_secs(10))?.exits(0)?.out();
    // "containerd <Go module> <version> <commit>"
    let version = said.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
    let first = version.split('.').next().unwrap_or_default();
    first.parse().context(format_args!("{}: the version in {said:?}", containerd.display()))
}

fn guest(cache: &Path) -> Result<PathBuf> {
    let [stock, trimmed] = ["guest", "guest/trimmed"].map(|dir| cache.join(dir));
    match env::var("KATA_GUEST").as_deref() {
        Ok("stock") => Ok(stock),
        Ok("trimmed") => Ok(trimmed),
        Ok("") | Err(_) => Ok(if trimmed.join("initrd.img").exists() { trimmed } else { stock }),
        Ok(other) => fail!("KATA_GUEST={other}: stock or trimmed"),
    }
}

/// A shim's file name follows from the runtime's: `io.containerd.kata.v2` is `containerd-shim-kata-v2`.
fn shim(runtime: &str) -> Result<PathBuf> {
    let mut parts = runtime.rsplit('.');
    let (Some(version), Some(name)) = (parts.next(), parts.next()) else {
        fail!("KATA_TEST_RUNTIME={runtime}: a runtime's name looks like {KATA}");
    };
    let file = format!("containerd-shim-{name}-{version}");
    if let Some(path) = env::var_os("KATA_TEST_SHIM") {
        return Ok(PathBuf::from(path));
    }
    if runtime != KATA {
        return search(&file);
    }
    // This program lies in <target>/<profile>[/deps].
    let own = env::current_exe()?;
    let built =
        own.ancestors().flat_map(|dir| ["release", "debug"].map(|profile| dir.join(profile).join(&file)));
    let newest = built.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).max();
    match newest {
        Some((_, path)) => Ok(path),
        None => fail!("{file} is not built: `make build` first, or name it by KATA_TEST_SHIM"),
    }
}

fn program(variable: &str, name: &str) -> Result<PathBuf> {
    match env::var_os(variable) {
        Some(path) => Ok(PathBuf::from(path)),
        None => search(name),
    }
}

fn search(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    match found {
        Some(file) => Ok(file),
        None => fail!("{name} is not in PATH={}", path.display()),
    }
}
