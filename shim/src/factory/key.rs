//! What makes a machine what it is: two machines with the same key can be copies of one template.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vmm::{
    VmSpec,
    spec::{Boot, Firmware, Origin, VmName, VmUuid},
};

/// A template's name, and the files that it was made of.
#[derive(Debug)]
pub(super) struct Key {
    /// Hexadecimal digits.
    pub(super) name: String,
    pub(super) files: Vec<Made>,
}

/// A file as it was when a template was made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) path: PathBuf,
    /// Device, inode, bytes and, in nanoseconds, the last changes of content and of anything.
    identity: [i128; 5],
}

impl Made {
    fn of(path: &Path) -> Result<Made, String> {
        let metadata = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let moment =
            |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        let identity = [
            metadata.dev().into(),
            metadata.ino().into(),
            metadata.size().into(),
            moment(metadata.mtime(), metadata.mtime_nsec()),
            moment(metadata.ctime(), metadata.ctime_nsec()),
        ];
        Ok(Made { path: path.to_owned(), identity })
    }

    /// Whether the file is still what it was.
    pub(super) fn is_current(&self) -> bool {
        Made::of(&self.path).is_ok_and(|now| now == *self)
    }
}

impl Key {
    /// # Errors
    /// A file that the machine is made of and that is not there.
    pub(super) fn of(spec: &VmSpec) -> Result<Key, String> {
        let files = files(spec).map(Made::of).collect::<Result<Vec<_>, _>>()?;
        let mut digest = Sha256::new();
        digest.update(env!("CARGO_PKG_VERSION"));
        digest.update(format!("{:?} {files:?}", nameless(spec)));
        digest.update(host());
        let name = digest.finalize().iter().take(16).fold(String::new(), |mut name, byte| {
            // Writing to a string cannot go wrong.
            let _ = write!(name, "{byte:02x}");
            name
        });
        Ok(Key { name, files })
    }
}

fn files(spec: &VmSpec) -> impl Iterator<Item = &Path> {
    let boot = match &spec.boot {
        Boot::Initrd(path) | Boot::Image { path, .. } => path,
    };
    let firmware = match &spec.firmware {
        Firmware::BuiltIn => [None, None],
        Firmware::Bios(path) => [Some(path), None],
        Firmware::Flash { code, variables } => [Some(code), variables.as_ref()],
    };
    let extensions = spec.extensions.iter().map(|extension| &extension.path);
    [&spec.qemu, &spec.kernel, boot]
        .into_iter()
        .chain(firmware.into_iter().flatten())
        .chain(extensions)
        .map(PathBuf::as_path)
}

/// The specification without what differs between machines that are otherwise the same.
fn nameless(spec: &VmSpec) -> VmSpec {
    let mut spec = spec.clone();
    if let Ok(name) = VmName::new("machine") {
        spec.name = name;
    }
    if let Ok(uuid) = VmUuid::new("00000000-0000-0000-0000-000000000000") {
        spec.uuid = uuid;
    }
    spec.run_dir = PathBuf::new();
    spec.origin = Origin::Boot;
    spec.selinux = None;
    spec.extra_monitor = None;
    if let Some(share) = &mut spec.share {
        share.source = PathBuf::new();
    }
    if let Some(dump) = &mut spec.panic_dump {
        dump.directory = PathBuf::new();
    }
    spec
}

/// The processor and the kernel that virtualises it: a guest's processor is made of theirs.
fn host() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let what = ["model name", "flags", "microcode", "stepping"];
    let first = processors.split("\n\n").next().unwrap_or_default();
    let lines = first.lines().filter(|line| what.iter().any(|what| line.starts_with(what)));
    lines.fold(kernel, |mut all, line| {
        all.push_str(line);
        all
    })
}
