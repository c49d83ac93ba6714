//! Are the files of a specification what they have to be? Asked before anything is started, so that the answer names
//! the file rather than a symptom.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::error::{BootError, PathError, PathProblem};
use crate::spec::{Accelerator, Backing, Boot, Firmware, Protection, ShareKind, VmSpec};
use crate::user::Credentials;

/// What memory comes in, in bytes.
const PAGE: u64 = 4096;

/// What is asked of a path.
#[derive(Clone, Copy)]
enum Kind {
    Program,
    File,
    Directory,
    /// Anything that can be read.
    Source,
}

/// Checks every path of `spec`; the first one that will not do is the error.
pub(crate) fn check(spec: &VmSpec) -> Result<(), PathError> {
    one("run directory", &spec.run_dir, Kind::Directory)?;
    one("QEMU", &spec.qemu, Kind::Program)?;
    one("kernel", &spec.kernel, Kind::File)?;
    match &spec.boot {
        Boot::Initrd(path) => one("initrd", path, Kind::File)?,
        Boot::Image { path, driver, .. } => {
            one("guest image", path, Kind::File)?;
            if driver.is_memory() {
                whole_pages("guest image", path)?;
            }
        }
    }
    for extension in &spec.extensions {
        one("extension image", &extension.path, Kind::File)?;
    }
    match &spec.firmware {
        Firmware::BuiltIn => {}
        Firmware::Bios(path) => one("firmware", path, Kind::File)?,
        Firmware::Flash { code, variables } => {
            one("firmware", code, Kind::File)?;
            whole_pages("firmware", code)?;
            if let Some(variables) = variables {
                one("firmware variables", variables, Kind::File)?;
                whole_pages("firmware variables", variables)?;
            }
        }
    }
    if let Backing::Directory(directory) = &spec.backing {
        one("directory for the guest's memory", directory, Kind::Directory)?;
    }
    one("entropy source", &spec.entropy, Kind::Source)?;
    if let Some(share) = &spec.share {
        one("shared directory", &share.source, Kind::Directory)?;
        if let ShareKind::VirtioFs(fs) = &share.kind {
            one("virtio-fs daemon", &fs.daemon, Kind::Program)?;
        }
    }
    Ok(())
}

/// What QEMU opens by itself, and needs to be allowed to: everything else it is given open.
fn qemus(spec: &VmSpec) -> Vec<(&'static str, &Path, AccessFlags)> {
    let (read, write) = (AccessFlags::R_OK, AccessFlags::R_OK | AccessFlags::W_OK);
    let mut list: Vec<(&'static str, &Path, AccessFlags)> = vec![
        ("QEMU", &spec.qemu, AccessFlags::X_OK | read),
        ("kernel", &spec.kernel, read),
        ("entropy source", &spec.entropy, read),
    ];
    match &spec.boot {
        Boot::Initrd(path) => list.push(("initrd", path, read)),
        // Opened anew through its descriptor, to be mapped.
        Boot::Image { path, driver, .. } if driver.is_memory() => list.push(("guest image", path, read)),
        Boot::Image { .. } => {}
    }
    match &spec.firmware {
        Firmware::BuiltIn => {}
        Firmware::Bios(path) => list.push(("firmware", path, read)),
        Firmware::Flash { code, variables } => {
            list.push(("firmware", code, read));
            list.extend(variables.iter().map(|path| ("firmware variables", path.as_path(), read)));
        }
    }
    if let Backing::Directory(directory) = &spec.backing {
        list.push(("directory for the guest's memory", directory, AccessFlags::X_OK | write));
    }
    let devices = [
        (spec.accelerator == Accelerator::Kvm, "KVM", "/dev/kvm"),
        (matches!(spec.protection, Some(Protection::Sev { .. } | Protection::Snp { .. })), "SEV", "/dev/sev"),
        (spec.sgx_epc.is_some(), "SGX", "/dev/sgx_vepc"),
    ];
    list.extend(
        devices.into_iter().filter(|(used, ..)| *used).map(|(_, what, path)| (what, Path::new(path), write)),
    );
    list.extend(spec.vhost_user.iter().map(|device| ("vhost-user socket", device.socket(), write)));
    list
}

/// Checks, as that user, that QEMU may open what it has to; the first path that it may not is the error.
pub(crate) fn check_for(user: Credentials, spec: &VmSpec) -> Result<(), BootError> {
    let list = qemus(spec);
    // The kernel has users for threads, and this one is the user's until it ends. That this process cannot be dumped
    // or traced by that user afterwards, which the kernel sees to, is as well.
    let asked = std::thread::scope(|scope| {
        let ask = || {
            user.assume()?;
            Ok(list.iter().find_map(|(what, path, flags)| out_of_reach(what, path, *flags)))
        };
        scope.spawn(ask).join().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
    });
    match asked {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error.into()),
        Err(source) => Err(BootError::Io { doing: format!("become {user}"), source }),
    }
}

fn out_of_reach(what: &'static str, path: &Path, flags: AccessFlags) -> Option<PathError> {
    let problem = match access(path, flags) {
        Ok(()) => return None,
        Err(Errno::EACCES) => PathProblem::NotForUser,
        Err(Errno::ENOENT) => PathProblem::Missing,
        Err(errno) => PathProblem::Unknown(errno),
    };
    Some(PathError { what, path: path.to_owned(), problem })
}

fn one(what: &'static str, path: &Path, kind: Kind) -> Result<(), PathError> {
    problem(path, kind).map_or(Ok(()), |problem| Err(PathError { what, path: path.to_owned(), problem }))
}

/// A file that is to be memory.
fn whole_pages(what: &'static str, path: &Path) -> Result<(), PathError> {
    let whole = fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0 && metadata.len() % PAGE == 0);
    let problem = PathProblem::NotPages;
    if whole { Ok(()) } else { Err(PathError { what, path: path.to_owned(), problem }) }
}

fn problem(path: &Path, kind: Kind) -> Option<PathProblem> {
    if !path.is_absolute() {
        return Some(PathProblem::NotAbsolute);
    }
    // JSON, which QEMU and the record of processes are told paths in, is text.
    if path.to_str().is_none() {
        return Some(PathProblem::NotText);
    }
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(PathProblem::Missing),
        Err(error) => return Some(PathProblem::Unknown(Errno::from_raw(error.raw_os_error().unwrap_or(0)))),
    };
    wrong_type(&metadata, kind).or_else(|| forbidden(path, kind))
}

fn wrong_type(metadata: &Metadata, kind: Kind) -> Option<PathProblem> {
    match kind {
        Kind::Program | Kind::File if !metadata.is_file() => Some(PathProblem::NotAFile),
        Kind::Directory if !metadata.is_dir() => Some(PathProblem::NotADirectory),
        _ => None,
    }
}

fn forbidden(path: &Path, kind: Kind) -> Option<PathProblem> {
    let (flags, problem) = match kind {
        Kind::Program => (AccessFlags::X_OK, PathProblem::NotExecutable),
        Kind::File | Kind::Directory | Kind::Source => (AccessFlags::R_OK, PathProblem::NotReadable),
    };
    match access(path, flags) {
        Ok(()) => None,
        Err(Errno::EACCES) => Some(problem),
        Err(errno) => Some(PathProblem::Unknown(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn each_problem_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(problem(&dir.path().join("none"), Kind::File), Some(PathProblem::Missing));
        assert_eq!(problem(Path::new("file"), Kind::File), Some(PathProblem::NotAbsolute));
        assert_eq!(problem(dir.path(), Kind::Program), Some(PathProblem::NotAFile));
        assert_eq!(problem(&file, Kind::Directory), Some(PathProblem::NotADirectory));
        assert_eq!(problem(&file, Kind::Program), Some(PathProblem::NotExecutable));
        assert_eq!(problem(&file, Kind::File), None);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(problem(&file, Kind::Program), None);
        assert_eq!(problem(Path::new("/dev/urandom"), Kind::Source), None);
    }

    #[test]
    fn an_error_names_the_file_and_what_is_wrong_with_it() {
        let error = one("kernel", Path::new("/nowhere/vmlinuz"), Kind::File).unwrap_err();
        assert_eq!(error.to_string(), "kernel /nowhere/vmlinuz: missing");
    }
}
