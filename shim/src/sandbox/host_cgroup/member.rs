//! One cgroup in one hierarchy.

use std::{
    fs,
    io::{ErrorKind, Result},
    path::{Path, PathBuf},
};

use super::name;
use crate::metrics::Version;

/// A tree of cgroups, and where a process is in it, mostly this one.
pub(super) struct Hierarchy {
    root: PathBuf,
    home: PathBuf,
}

impl Hierarchy {
    /// What is mounted in `root`: one for version 2, one for each of the controllers, or for several, of version 1.
    /// `own` is the `/proc/self/cgroup` of a process.
    pub(super) fn all(root: &Path, version: Version, controllers: &[&str], own: &str) -> Vec<Hierarchy> {
        let all = match version {
            Version::V2 => vec![root.to_path_buf()],
            Version::V1 => {
                controllers.iter().filter_map(|name| root.join(name).canonicalize().ok()).collect()
            }
        };
        let mut there: Vec<_> = all.into_iter().filter(|dir| dir.join("cgroup.procs").exists()).collect();
        there.dedup();
        there.into_iter().map(|root| Hierarchy { home: home_in(&root, version, own), root }).collect()
    }

    /// Puts processes where that process is.
    ///
    /// # Errors
    /// The first that could not be; all others were tried.
    pub(super) fn take(&self, processes: &[u32]) -> Result<()> {
        processes.iter().map(|process| add_if_there(&self.home, *process)).fold(Ok(()), Result::and)
    }

    /// Whether it is of one of these controllers of version 1.
    pub(super) fn has(&self, controllers: &[&str]) -> bool {
        names(&self.root).iter().any(|name| controllers.contains(&name.as_str()))
    }
}

/// The controllers that a hierarchy of version 1 is called by: `cpu,cpuacct`.
fn names(root: &Path) -> Vec<String> {
    let last = root.file_name().unwrap_or_default().to_string_lossy();
    last.split(',').map(str::to_owned).collect()
}

/// Where a process is, by its `/proc/self/cgroup`.
fn home_in(root: &Path, version: Version, own: &str) -> PathBuf {
    let names = names(root);
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = match version {
            Version::V2 => controllers.is_empty(),
            Version::V1 if controllers.is_empty() => names == ["unified"],
            Version::V1 => controllers
                .split(',')
                .map(|one| one.strip_prefix("name=").unwrap_or(one))
                .any(|one| names.iter().any(|name| name == one)),
        };
        is_it.then_some(path)
    });
    root.join(path.unwrap_or("/").trim_start_matches('/'))
}

/// Who is in a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The shim, and with it what it starts.
    Joined,
    /// The machine's processors.
    Processors,
}

/// A cgroup.
pub(super) struct Member {
    root: PathBuf,
    /// Where the shim comes from.
    home: PathBuf,
    cgroup: PathBuf,
    /// Those above it that were not there, or are the shims' alone, the innermost first.
    above: Vec<PathBuf>,
    usage: Use,
}

impl Member {
    pub(super) fn new(hierarchy: &Hierarchy, name: &Path, usage: Use) -> Member {
        let cgroup = hierarchy.root.join(name);
        let above = cgroup.ancestors().skip(1).take_while(|above| *above != hierarchy.root);
        let above = above.take_while(|above| !above.exists() || above.ends_with(name::OVERHEAD));
        let above = above.map(Path::to_path_buf).collect();
        Member { root: hierarchy.root.clone(), home: hierarchy.home.clone(), cgroup, above, usage }
    }

    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// What there is of it that was not there before, the innermost first.
    pub(super) fn makes(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.cgroup).chain(&self.above).map(PathBuf::as_path)
    }

    pub(super) fn is_for_processors(&self) -> bool {
        self.usage == Use::Processors
    }

    /// Makes it, and puts this process and those it has started there if that is what it is for.
    pub(super) fn begin(&self, started: &[u32]) -> Result<()> {
        match self.make() {
            // One above went, as another sandbox was the last in it.
            Err(error) if error.kind() == ErrorKind::NotFound => self.make()?,
            made => made?,
        }
        if self.usage == Use::Processors {
            return Ok(());
        }
        move_to(&self.cgroup)?;
        started.iter().try_for_each(|process| add_if_there(&self.cgroup, *process))
    }

    /// Makes it and all above it.
    fn make(&self) -> Result<()> {
        let mut all: Vec<_> = self.cgroup.ancestors().take_while(|above| *above != self.root).collect();
        all.reverse();
        for cgroup in all {
            match fs::create_dir(cgroup) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            // Version 1 lets nobody in before these are set, and sets them for nobody.
            ["cpuset.cpus", "cpuset.mems"].iter().try_for_each(|file| inherit(cgroup, file))?;
        }
        Ok(())
    }

    pub(super) fn add_thread(&self, tid: u32) -> Result<()> {
        fs::write(self.cgroup.join("tasks"), tid.to_string())
    }

    /// Puts this process where it was.
    pub(super) fn end(&self) {
        if self.usage == Use::Joined {
            // A cgroup that was removed meanwhile: the root is there in any case.
            let _ = move_to(&self.home).or_else(|_| move_to(&self.root));
        }
    }
}

/// Takes a value over from the cgroup above, where there is such a thing and none is set. Version 2 does so by itself.
fn inherit(cgroup: &Path, file: &str) -> Result<()> {
    let unset = fs::read_to_string(cgroup.join(file)).is_ok_and(|value| value.trim().is_empty());
    let above = cgroup.parent().filter(|_| unset && Version::of_host() == Version::V1);
    above.map_or(Ok(()), |above| fs::write(cgroup.join(file), fs::read(above.join(file))?))
}

/// Puts all threads of this process there.
fn move_to(cgroup: &Path) -> Result<()> {
    add(cgroup, 0)
}

/// The same, of a process that may have ended.
fn add_if_there(cgroup: &Path, process: u32) -> Result<()> {
    match add(cgroup, process) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        added => added,
    }
}

/// Puts all threads of a process there; 0 is this one.
fn add(cgroup: &Path, process: u32) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), process.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "9:name=systemd:/s\n5:cpuacct,cpu:/a/b\n4:memory:/m\n0::/u\n";

    #[test]
    fn c24_a_process_is_where_its_hierarchys_line_says() {
        let home = |root: &str, version| home_in(Path::new(root), version, V1);
        assert_eq!(home("/cg/cpu,cpuacct", Version::V1), Path::new("/cg/cpu,cpuacct/a/b"));
        assert_eq!(home("/cg/memory", Version::V1), Path::new("/cg/memory/m"));
        assert_eq!(home("/cg/pids", Version::V1), Path::new("/cg/pids/"));
        assert_eq!(home("/cg/systemd", Version::V1), Path::new("/cg/systemd/s"));
        assert_eq!(home("/cg/unified", Version::V1), Path::new("/cg/unified/u"));
        assert_eq!(home("/cg", Version::V2), Path::new("/cg/u"));
    }

    #[test]
    fn c24_what_was_there_is_not_what_is_made() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir(at("pods")).unwrap();
        let hierarchy = Hierarchy { root: root.path().into(), home: root.path().into() };
        let member = Member::new(&hierarchy, Path::new("pods/p1/kata_s"), Use::Processors);
        assert_eq!(member.makes().collect::<Vec<_>>(), [at("pods/p1/kata_s"), at("pods/p1")]);
        member.begin(&[]).unwrap();
        assert!(member.cgroup().is_dir());
    }
}
