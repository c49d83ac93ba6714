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
    for dir in [root, parent] {
        for name in names.split_whitespace() {
            // One at a time: a controller that cannot be had must not take the others with it.
            if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), format!("+{name}")) {
                ::log::warn!("enable cgroup controller {name} in {}: {error}", dir.display());
            }
        }
    }
    Ok(())
}
