//! Programs of the guest's image that run at points of every container's life: the executable files in the directories
//! `prestart`, `poststart` and `poststop` of `guest_hook_path`, in the order of their names.
//!
//! libcontainer runs them, each by way of the agent's own program ([`run`]), which ends one that takes too long and says
//! which one went wrong.

mod run;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Hook, HookBuilder, Hooks, Spec};

use crate::error::Error;
pub(crate) use run::{NAME, failure, main};

/// The agent's own program, which has no other name any more.
const AGENT: &str = "/proc/1/exe";
/// The directories, and the points that they are named after.
const STAGES: [&str; 3] = [PRESTART, "poststart", "poststop"];
const PRESTART: &str = "prestart";
/// What hooks have of an environment.
const ENVIRONMENT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Those that there are, by stages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestHooks([Vec<PathBuf>; 3]);

impl GuestHooks {
    /// Looks for them. An image may have none.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a path that is not absolute.
    pub(crate) fn find(path: &str) -> Result<GuestHooks, Error> {
        if path.is_empty() {
            return Ok(GuestHooks::default());
        }
        let path = Path::new(path);
        if !path.is_absolute() {
            return Err(Error::invalid(format!("guest_hook_path: {path:?} is not an absolute path")));
        }
        let found = GuestHooks(STAGES.map(|stage| executables(&path.join(stage))));
        if found.is_empty() {
            let stages = STAGES.join(", ");
            log::warn!("guest_hook_path: {}: no executable file in {stages}", path.display());
        }
        Ok(found)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// Has the container of that bundle run them, after its own.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for one whose name cannot be told.
    pub(crate) fn add_to(&self, spec: &mut Spec, bundle: &Path) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let mut hooks = spec.hooks().clone().unwrap_or_default();
        for (stage, programs) in STAGES.into_iter().zip(&self.0) {
            let added = programs.iter().map(|program| hook(program, stage, bundle));
            list(&mut hooks, stage).get_or_insert_default().extend(added.collect::<Result<Vec<_>, _>>()?);
        }
        spec.set_hooks(Some(hooks));
        Ok(())
    }
}

#[allow(deprecated, reason = "it is before the container's root is entered that these are to run")]
fn list<'a>(hooks: &'a mut Hooks, stage: &str) -> &'a mut Option<Vec<Hook>> {
    match stage {
        PRESTART => hooks.prestart_mut(),
        "poststart" => hooks.poststart_mut(),
        _ => hooks.poststop_mut(),
    }
}

fn hook(program: &Path, stage: &str, bundle: &Path) -> Result<Hook, Error> {
    let text = |path: &Path| path.to_str().map(str::to_owned);
    let named = text(program).zip(text(bundle));
    let (program, bundle) =
        named.ok_or_else(|| Error::invalid(format!("hook {}: not UTF-8", program.display())))?;
    let args = vec![NAME.to_owned(), program, stage.to_owned(), bundle];
    let hook = HookBuilder::default().path(AGENT).args(args).env(vec![ENVIRONMENT.to_owned()]).build();
    hook.map_err(|error| Error::invalid(format!("hook: {error}")))
}

fn executables(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_one = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let mut found: Vec<_> = entries.filter(is_one).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d23_executable_files_are_hooks_of_the_stage_whose_directory_they_are_in() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in
            [("prestart/b", 0o755), ("prestart/a", 0o500), ("poststop/c", 0o755), ("prestart/no", 0o644)]
        {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(dir.path().join("prestart/directory")).unwrap();
        let found = GuestHooks::find(dir.path().to_str().unwrap()).unwrap();
        let mut spec = Spec::default();
        spec.set_hooks(None);
        found.add_to(&mut spec, Path::new("/run/kata-containers/c1")).unwrap();
        let mut hooks = spec.hooks().clone().unwrap();
        let names = |hooks: &mut Hooks, stage: &str| -> Vec<String> {
            let all = list(hooks, stage).clone().unwrap_or_default();
            all.iter()
                .map(|hook| hook.args().as_ref().unwrap()[1].rsplit('/').next().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&mut hooks, "prestart"), ["a", "b"]);
        assert_eq!(names(&mut hooks, "poststop"), ["c"]);
        assert!(names(&mut hooks, "poststart").is_empty());
        let args = list(&mut hooks, "poststop").clone().unwrap()[0].args().clone().unwrap();
        assert_eq!(args[2..], ["poststop", "/run/kata-containers/c1"]);
    }

    #[test]
    fn d23_an_image_without_hooks_changes_no_container() {
        for path in ["", "/nonexistent"] {
            let found = GuestHooks::find(path).unwrap();
            let mut spec = Spec::default();
            spec.set_hooks(None);
            found.add_to(&mut spec, Path::new("/b")).unwrap();
            assert!(spec.hooks().is_none());
        }
        let error = GuestHooks::find("usr/hooks").unwrap_err().to_string();
        assert!(error.contains("guest_hook_path") && error.contains("usr/hooks"), "{error}");
    }
}
