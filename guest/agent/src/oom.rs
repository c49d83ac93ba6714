//! Containers that ran out of memory.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::{io::Interest, sync::Notify};

use crate::{cgroup::stats, error::Error, id::Id, readiness};

/// Most events kept for a host that does not ask; older ones go first.
const MAX_EVENTS: usize = 256;

/// Watches the counter of out-of-memory kills in every container's cgroup.
pub(crate) struct OomWatch {
    inotify: Inotify,
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    watched: HashMap<WatchDescriptor, Watched>,
    events: VecDeque<Id>,
}

struct Watched {
    container: Id,
    file: PathBuf,
    kills: u64,
}

impl OomWatch {
    /// Starts watching, on the event loop this is called in.
    pub(crate) fn start() -> Result<Arc<Self>, Error> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(Error::system("watch for out-of-memory kills"))?;
        let copy: OwnedFd =
            inotify.as_fd().try_clone_to_owned().map_err(Error::system("watch for out-of-memory kills"))?;
        let ready = readiness::watch(copy, Interest::READABLE)
            .map_err(Error::system("watch for out-of-memory kills"))?;
        let watch = Arc::new(Self { inotify, state: Mutex::default(), arrived: Notify::new() });
        let this = Arc::clone(&watch);
        tokio::spawn(async move {
            while let Ok(mut guard) = ready.readable().await {
                guard.clear_ready();
                this.look();
            }
            ::log::error!("out-of-memory kills are no longer watched (descriptor {})", ready.as_raw_fd());
        });
        Ok(watch)
    }

    /// Adds a container whose cgroup, at `cgroup`, is new: nothing has been killed in it. The kernel ends the watch
    /// with the cgroup.
    pub(crate) fn add(&self, container: &Id, cgroup: &Path) -> Result<(), Error> {
        let file = cgroup.join("memory.events");
        let descriptor = self
            .inotify
            .add_watch(&file, AddWatchFlags::IN_MODIFY)
            .map_err(Error::system(format!("watch {}", file.display())))?;
        let watched = Watched { container: container.clone(), file, kills: 0 };
        self.state().watched.insert(descriptor, watched);
        Ok(())
    }

    /// The container of the next event; waits for one as long as it takes.
    pub(crate) async fn next(&self) -> Id {
        loop {
            let arrived = self.arrived.notified();
            if let Some(container) = self.state().events.pop_front() {
                return container;
            }
            arrived.await;
        }
    }

    /// Takes in what the kernel has to tell. Also called where an event must not come late.
    pub(crate) fn look(&self) {
        loop {
            match self.inotify.read_events() {
                Ok(events) => events.iter().for_each(|event| self.changed(event.wd, event.mask)),
                Err(Errno::EINTR) => {}
                // EAGAIN, most of all.
                Err(_) => return,
            }
        }
    }

    fn changed(&self, descriptor: WatchDescriptor, mask: AddWatchFlags) {
        let mut state = self.state();
        let State { watched, events } = &mut *state;
        if let Some(entry) = watched.get_mut(&descriptor) {
            let now = kills(&entry.file);
            if now > entry.kills {
                entry.kills = now;
                events.push_back(entry.container.clone());
                self.arrived.notify_one();
            }
        }
        if events.len() > MAX_EVENTS {
            events.pop_front();
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            watched.remove(&descriptor);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    stats::keyed(&text)
        .find(|(key, _)| *key == "oom_kill")
        .and_then(|(_, count)| count.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_event_comes_per_kill_and_none_for_other_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, "max 0\noom_kill 0\n").unwrap();
        let watch = OomWatch::start().unwrap();
        watch.add(&Id::parse("container", "c1").unwrap(), dir.path()).unwrap();
        fs::write(&file, "max 1\noom_kill 0\n").unwrap();
        watch.look();
        assert!(watch.state().events.is_empty());
        fs::write(&file, "max 1\noom_kill 1\n").unwrap();
        assert_eq!(watch.next().await.as_str(), "c1");
        watch.look();
        assert!(watch.state().events.is_empty());
    }
}
