//! Mounts of the tests' own, which are as on a host that an init system has set up.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::{Context, Result};

/// From now on this process and its children have copies of the host's mounts, shared among them: what one mounts, all
/// see, and the host does not. To be called before there is another thread.
pub fn like_a_hosts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("mounts of its own, as root")?;
    let change = |flags| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | flags, None::<&str>);
    change(MsFlags::MS_PRIVATE).and_then(|()| change(MsFlags::MS_SHARED)).context("shared mounts")
}
