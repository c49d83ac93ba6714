//! The crate against files in a temporary directory.

mod annotations;
mod devices;
mod files;
mod firmware;
mod host_devices;
mod kata;
mod memory;
mod offences;
mod trees;
mod values;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vmm::protection::Available;
use vmm::spec::{Accelerator, KernelParam};

use crate::annotations::Annotations;
use crate::find::Search;
use crate::host::Host;
use crate::{Configuration, Finding, LoadError, Loaded};

/// A directory with everything a configuration names, and a main file.
struct Place {
    directory: tempfile::TempDir,
    host: Host,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::rich(directory.path().join("nodes"));
        let place = Self { directory, host };
        for program in ["qemu", "virtiofsd"] {
            place.file(program, "#!");
            place.mode(program, 0o755);
        }
        for file in ["kernel", "initrd", "image"] {
            place.file(file, &"x".repeat(65536));
        }
        place
    }

    /// The same on a host that has nothing.
    fn bare() -> Self {
        let mut place = Self::new();
        place.host = Host {
            no_kvm: Some("no /dev/kvm".to_owned()),
            accelerator: Accelerator::Tcg,
            vhost_vsock: false,
            protection: Available::default(),
            ..Host::rich(place.path("nodes"))
        };
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        self.mode(name, 0o644);
        path
    }

    /// An empty file of that size which takes no room on the disk.
    fn sparse(&self, name: &str, bytes: u64) {
        fs::File::create(self.path(name)).unwrap().set_len(bytes).unwrap();
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The least there is to say.
    fn base(&self) -> String {
        let dir = self.path("");
        let dir = dir.display();
        format!(
            "[hypervisor.qemu]\npath = \"{dir}qemu\"\nkernel = \"{dir}kernel\"\ninitrd = \"{dir}initrd\"\n"
        )
    }

    /// The main file is the least there is to say; a drop-in says `text` after it, `@DIR@` standing for the place.
    fn load_with(&self, text: &str) -> Result<Loaded, LoadError> {
        self.file("config.d/10-test", &self.placed(text));
        self.load(&self.base())
    }

    fn load(&self, text: &str) -> Result<Loaded, LoadError> {
        let main = self.file("configuration.toml", &self.placed(text));
        self.load_named(&main)
    }

    fn load_named(&self, main: &Path) -> Result<Loaded, LoadError> {
        self.load_as(main, &[])
    }

    /// The same as [`Place::load_with`] for a sandbox with annotations, whose values may have `@DIR@` in them.
    fn load_for(&self, text: &str, annotations: &[(&str, &str)]) -> Result<Loaded, LoadError> {
        self.file("config.d/10-test", &self.placed(text));
        self.load_as(&self.file("configuration.toml", &self.base()), annotations)
    }

    fn load_as(&self, main: &Path, annotations: &[(&str, &str)]) -> Result<Loaded, LoadError> {
        let search = Search::named_by(main, nix::unistd::getuid().as_raw());
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), self.placed(value)));
        Configuration::load_from(&search, &Annotations::of(&annotations.collect()), &self.host)
    }

    fn placed(&self, text: &str) -> String {
        text.replace("@DIR@/", &self.path("").display().to_string())
    }
}

fn problems(result: Result<Loaded, LoadError>) -> Vec<Finding> {
    match result {
        Err(LoadError::Invalid { problems }) => problems,
        other => panic!("expected problems, found {other:?}"),
    }
}

fn words(params: &[KernelParam]) -> Vec<&str> {
    params.iter().map(KernelParam::as_str).collect()
}

fn texts(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(Finding::to_string).collect()
}
