//! Makes every controller available to containers.

use std::{fs, path::Path};

use crate::{cgroup, error::Error};

/// Enables all controllers from the root down to where containers' cgroups are made.
pub(super) fn set_up() -> Result<(), Error> {
    let parent = Path::new(cgroup::PARENT);
    let root = Path::new(cgroup::ROOT);
    fs::create_dir(parent).map_err(Error::system(format!("make {}", parent.display())))?;
    let names = fs::read_to_string(root.join("cgroup.controllers"))
        .map_err(Error::system("read the names of cgroup controllers"))?;
    [root, parent].iter().for_each(|dir| enable(dir, &names));
    Ok(())
}

/// All at once, as the kernel goes over the hierarchy each time. A controller that cannot be had must not take the others
/// with it.
fn enable(dir: &Path, names: &str) {
    let control = dir.join("cgroup.subtree_control");
    let all: Vec<String> = names.split_whitespace().map(|name| format!("+{name}")).collect();
    if fs::write(&control, all.join(" ")).is_ok() {
        return;
    }
    for one in &all {
        if let Err(error) = fs::write(&control, one) {
            ::log::warn!("enable cgroup controller {one} in {}: {error}", dir.display());
        }
    }
}
