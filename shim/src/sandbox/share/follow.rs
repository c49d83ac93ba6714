//! Directories of the host's that are watched: whoever has a copy is told when they change.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    task::JoinHandle,
};

use crate::error::{Error, Result};

/// One inotify instance, as the host has few: by its descriptors, who is to be told.
struct Watches {
    inotify: Inotify,
    /// The same, for whoever waits.
    ready: AsyncFd<OwnedFd>,
    told: Mutex<HashMap<WatchDescriptor, Vec<Arc<Notify>>>>,
}

/// Tells of changes until it is dropped.
pub(super) struct Follower {
    watches: Arc<Watches>,
    task: JoinHandle<()>,
}

/// That one directory is watched, for as long as this is there.
pub(super) struct Followed {
    watches: Arc<Watches>,
    watch: WatchDescriptor,
    changed: Arc<Notify>,
}

impl Follower {
    /// # Errors
    /// That the host has no more of what it takes.
    pub(super) fn start() -> Result<Follower> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let inotify = inotify.map_err(|error| {
            let what = error.desc();
            Error::Failed(format!(
                "watch volumes (inotify): {what}; sysctl fs.inotify.max_user_instances says how many pods can"
            ))
        })?;
        let ready = inotify.as_fd().try_clone_to_owned().map_err(Error::io("watch volumes (inotify)"))?;
        // SAFETY: the descriptor is open, and the same, for as long as the AsyncFd that owns it.
        let ready = unsafe { AsyncFd::register_with_interest(ready, Interest::READABLE) };
        let ready = ready.map_err(|error| Error::io("watch volumes (inotify)")(error.into()))?;
        let watches = Arc::new(Watches { inotify, ready, told: Mutex::default() });
        let watching = watches.clone();
        let task = tokio::spawn(async move { watching.tell().await });
        Ok(Follower { watches, task })
    }

    /// Watches what a directory has: names that come, and those that change what they stand for.
    ///
    /// # Errors
    /// Names the directory.
    pub(super) fn follow(&self, directory: &Path) -> Result<Followed> {
        let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        let changed = Arc::new(Notify::new());
        let mut told = self.watches.told();
        let watch = self.watches.inotify.add_watch(directory, events);
        let watch = watch.map_err(Error::os(format_args!("watch {}", directory.display())))?;
        told.entry(watch).or_default().push(changed.clone());
        drop(told);
        Ok(Followed { watches: self.watches.clone(), watch, changed })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    /// Told of each change, and once for several.
    pub(super) fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let mut told = self.watches.told();
        let Some(others) = told.get_mut(&self.watch) else { return };
        others.retain(|other| !Arc::ptr_eq(other, &self.changed));
        if others.is_empty() {
            told.remove(&self.watch);
            // The directory may be gone, and the watch with it.
            let _ = self.watches.inotify.rm_watch(self.watch);
        }
    }
}

impl Watches {
    fn told(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, Vec<Arc<Notify>>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self) {
        while let Ok(mut ready) = self.ready.readable().await {
            match self.inotify.read_events() {
                Ok(events) => {
                    let lost = events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW));
                    let told = self.told();
                    let concerned = told
                        .iter()
                        .filter(|(watch, _)| lost || events.iter().any(|event| event.wd == **watch));
                    concerned.flat_map(|(_, all)| all).for_each(|one| one.notify_one());
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                // Nothing else is told of a descriptor that is sound.
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[tokio::test]
    async fn d13_a_change_is_told_to_all_who_follow_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let follower = Follower::start().unwrap();
        let followed = [(); 2].map(|()| follower.follow(dir.path()).unwrap());
        fs::write(dir.path().join("a"), "").unwrap();
        for one in &followed {
            tokio::time::timeout(Duration::from_secs(5), one.changed().notified()).await.unwrap();
        }
        let [first, second] = followed;
        drop(first);
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        tokio::time::timeout(Duration::from_secs(5), second.changed().notified()).await.unwrap();
        drop(second);
        assert!(follower.watches.told().is_empty());
        let error = follower.follow(&dir.path().join("b")).err().unwrap().to_string();
        assert!(error.contains("/b"), "{error}");
    }
}
