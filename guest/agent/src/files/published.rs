//! Volumes of Kubernetes whose content the host exchanges as a whole: their files are links through the link `..data`,
//! which leads to a directory beside it. Where that link comes to lead elsewhere, what it led to is of no more use.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, ResolveFlag, readlinkat},
    sys::stat::Mode,
};

use super::{open_at, remove};

/// The link that all of a volume's files are behind.
const DATA: &str = "..data";

/// Where the link leads before it is replaced, if `name` is that link.
pub(super) fn led_to(dir: &OwnedFd, name: &Path) -> Option<OsString> {
    let is_it = name == Path::new(DATA);
    is_it.then(|| readlinkat(dir, name).ok()).flatten()
}

/// Removes what the link led to before it led to `now`, and the links of files that there are no more.
pub(super) fn tidy(dir: &OwnedFd, before: &OsStr, now: &[u8]) -> io::Result<()> {
    if before.as_bytes() == now || !is_content(Path::new(before)) {
        return Ok(());
    }
    let beside = format!("/proc/self/fd/{}", dir.as_raw_fd());
    match fs::remove_dir_all(Path::new(&beside).join(before)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for entry in fs::read_dir(beside)? {
        let name = entry?.file_name();
        if is_dead_link(dir, &name) {
            remove(dir, Path::new(&name))?;
        }
    }
    Ok(())
}

/// A container that may write to its volume can have the link lead anywhere.
fn is_content(path: &Path) -> bool {
    let mut parts = path.components();
    let first = parts.next();
    matches!(first, Some(Component::Normal(name)) if name.as_bytes().starts_with(b".."))
        && parts.next().is_none()
}

fn is_dead_link(dir: &OwnedFd, name: &OsStr) -> bool {
    let through = |target: OsString| target.as_bytes().starts_with(b"..data/");
    let leads_nowhere = || {
        let found = open_at(dir, Path::new(name), OFlag::O_PATH, Mode::empty(), ResolveFlag::RESOLVE_BENEATH);
        found.is_err_and(|error| error.raw_os_error() == Some(Errno::ENOENT as i32))
    };
    readlinkat(dir, name).is_ok_and(through) && leads_nowhere()
}

#[cfg(test)]
mod tests {
    use super::super::{copy_below, tests::request};
    use super::*;

    /// Has the volume `v` of `root` a file of that content, in a directory of that name.
    fn publish(root: &Path, directory: &str, key: &str) {
        let copy = |path: &str, data: &[u8], mode| {
            let path = Path::new("v").join(path);
            copy_below(root, &path, &request(data, 0, data.len() as i64, mode)).unwrap();
        };
        copy("", b"", 0o040_755);
        copy(directory, b"", 0o040_755);
        copy(&format!("{directory}/{key}"), directory.as_bytes(), 0o100_644);
        copy(key, format!("..data/{key}").as_bytes(), 0o120_777);
        copy("..data", directory.as_bytes(), 0o120_777);
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn d13_what_was_published_before_goes_with_its_links() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        publish(root.path(), "..1", "old");
        assert_eq!(names(&volume), ["..1", "..data", "old"]);
        publish(root.path(), "..2", "new");
        assert_eq!(names(&volume), ["..2", "..data", "new"]);
        assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "..2");
        publish(root.path(), "..2", "more");
        assert_eq!(names(&volume), ["..2", "..data", "more", "new"], "the same directory");
    }

    #[test]
    fn d13_a_link_that_a_container_has_made_takes_nothing_else_along() {
        let root = tempfile::tempdir().unwrap();
        let precious = root.path().join("precious");
        fs::create_dir_all(&precious).unwrap();
        for planted in ["../precious", "..", "/", "precious"] {
            fs::create_dir_all(root.path().join("v/precious")).unwrap();
            let link = root.path().join("v/..data");
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(planted, &link).unwrap();
            publish(root.path(), "..1", "key");
            assert!(precious.exists() && root.path().join("v/precious").exists(), "{planted}");
        }
        let link = root.path().join("v/..link");
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        fs::remove_file(root.path().join("v/..data")).unwrap();
        std::os::unix::fs::symlink("..link", root.path().join("v/..data")).unwrap();
        publish(root.path(), "..1", "key");
        assert!(precious.exists(), "what a link in its place leads to");
    }
}
