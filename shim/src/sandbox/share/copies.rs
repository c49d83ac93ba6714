//! Files and directories of the host's that a guest has copies of, as no directory is shared with it.
//!
//! A copy is a sandbox's: containers that mount the same have the same. Volumes that Kubernetes updates are watched, and
//! copied anew; what a container writes to a copy stays in the guest.

use std::{
    collections::HashMap,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use agent_client::AgentClient;
use sha2::{Digest, Sha256};
use slog::{Logger, info, warn};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    task::JoinHandle,
    time::timeout,
};

use super::{
    super::boot::in_containerds_terms,
    GUEST_DIR,
    content::{self, Content, Unreadable},
    follow::{Followed, Follower},
};
use crate::{
    error::{Error, Result},
    thread,
};

/// Directories of kubelet's that have volumes whose content it exchanges as a whole, by one link.
const PUBLISHED: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];
/// How often a volume is read that is exchanged meanwhile.
const READS: usize = 5;
/// How long after a failed update of a volume it is tried again, twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Characters of a copy's name that are from its source.
const LONGEST_LABEL: usize = 64;

/// All copies of a sandbox's guest, by what they are of.
pub(crate) struct Copies {
    agent: AgentClient,
    made: AsyncMutex<Made>,
    log: Logger,
}

#[derive(Default)]
struct Made {
    copies: HashMap<PathBuf, Weak<Copied>>,
    /// From the first volume that is watched on.
    follower: Option<Follower>,
}

/// One copy. Dropped, it stays in the guest as it is.
pub(crate) struct Copied {
    /// Where the guest has it.
    pub(crate) guest_path: String,
    _following: Option<Following>,
}

/// A volume that is copied anew as it changes.
struct Following {
    task: JoinHandle<()>,
    _followed: Followed,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether kubelet exchanges the content of `source` by a link.
pub(crate) fn is_published(source: &Path) -> bool {
    let plugin = source.parent().and_then(Path::file_name);
    plugin.is_some_and(|plugin| PUBLISHED.iter().any(|one| plugin == *one))
}

impl Copies {
    pub(super) fn new(agent: AgentClient, log: Logger) -> Copies {
        Copies { agent, made: AsyncMutex::default(), log }
    }

    /// The guest's copy of `source`, made unless a container has it already.
    ///
    /// # Errors
    /// `InvalidArgument` that names the source and what of it cannot be copied; the guest's own words.
    pub(crate) async fn of(&self, source: &Path) -> Result<Arc<Copied>> {
        let mut made = self.made.lock().await;
        if let Some(copied) = made.copies.get(source).and_then(Weak::upgrade) {
            return Ok(copied);
        }
        let guest_path = format!("{GUEST_DIR}/{}", name_of(source));
        let mut copying = Copying {
            source: source.to_owned(),
            guest_path: guest_path.clone(),
            agent: self.agent.clone(),
            current: None,
        };
        // Before it is read, so that no change is lost.
        let followed = if is_published(source) {
            let follower = match made.follower.take() {
                Some(follower) => follower,
                None => Follower::start()?,
            };
            Some(made.follower.insert(follower).follow(source)?)
        } else {
            None
        };
        copying.copy().await?;
        let following = followed.map(|followed| {
            let changed = followed.changed();
            let task = tokio::spawn(copying.follow(changed, self.log.clone()));
            Following { task, _followed: followed }
        });
        let copied = Arc::new(Copied { guest_path, _following: following });
        made.copies.retain(|_, copied| copied.strong_count() > 0);
        made.copies.insert(source.to_owned(), Arc::downgrade(&copied));
        Ok(copied)
    }
}

/// The same for the same source: a container that is made anew finds the place of the one before.
fn name_of(source: &Path) -> String {
    let digest = Sha256::digest(source.as_os_str().as_encoded_bytes());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let label = source.file_name().unwrap_or_default().to_string_lossy();
    format!("copy-{digest}-{}", &label[..label.floor_char_boundary(LONGEST_LABEL)])
}

/// What brings a copy to the guest.
struct Copying {
    source: PathBuf,
    guest_path: String,
    agent: AgentClient,
    /// The directory with the volume's content that the guest has.
    current: Option<OsString>,
}

impl Copying {
    /// Copies what the guest has not.
    async fn copy(&mut self) -> Result<()> {
        let content = self.read().await?;
        // Kubelet never changes what it has published.
        let known = content.current.clone().filter(|current| self.current.as_ref() == Some(current));
        for entry in content.entries {
            if known.as_ref().is_some_and(|known| entry.path.starts_with(known)) {
                continue;
            }
            let path = match entry.path.to_str() {
                Some("") | None => self.guest_path.clone(),
                Some(below) => format!("{}/{below}", self.guest_path),
            };
            let copied =
                agent_client::Copied { path: &path, mode: entry.mode, owner: entry.owner, data: &entry.data };
            let sent = self.agent.copy(copied).await.map_err(in_containerds_terms);
            sent.map_err(|why| Error::Failed(format!("copy {} to the guest: {why}", self.source.display())))?;
        }
        self.current = content.current;
        Ok(())
    }

    /// On a thread of its own, as a disk may hang.
    async fn read(&self) -> Result<Content> {
        let source = self.source.clone();
        let read = move || {
            let mut reads = (0..READS).map(|_| content::read(&source));
            let read = reads.find(|read| !matches!(read, Err(why) if why.is_passing()));
            read.unwrap_or_else(|| content::read(&source)).map_err(|why| unreadable(&source, &why))
        };
        thread::run("copy", read).await
    }

    /// Copies at each change. What failed is tried again: nobody publishes the same a second time.
    async fn follow(mut self, changed: Arc<Notify>, log: Logger) {
        changed.notified().await;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.copy().await {
                Ok(()) => {
                    info!(log, "a volume's change is in the guest"; "volume" => self.source.display().to_string());
                    pause = FIRST_PAUSE;
                    changed.notified().await;
                }
                Err(why) => {
                    warn!(log, "a volume's change is not in the guest, and is copied again";
                        "in" => format!("{} s", pause.as_secs()), "why" => why.to_string());
                    let _ = timeout(pause, changed.notified()).await;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

fn unreadable(source: &Path, why: &Unreadable) -> Error {
    Error::InvalidArgument(format!("mount source {}: {why}", source.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d13_the_volumes_that_kubelet_exchanges_are_known_by_their_place() {
        for plugin in PUBLISHED {
            let volume = Path::new("/var/lib/kubelet/pods/7/volumes").join(plugin).join("settings");
            assert!(is_published(&volume) && !is_published(&volume.join("sub")));
        }
        assert!(!is_published(Path::new("/")) && !is_published(Path::new("/srv/data")));
    }

    #[test]
    fn the_name_of_a_copy_is_its_sources_alone() {
        let name = name_of(Path::new("/etc/hosts"));
        assert_eq!(name, name_of(Path::new("/etc/hosts")));
        assert!(name.starts_with("copy-") && name.ends_with("-hosts"), "{name}");
        assert_ne!(name, name_of(Path::new("/srv/hosts")));
        assert!(name_of(&Path::new("/x").join("é".repeat(127))).len() < 128);
        assert!(name_of(Path::new("/")).starts_with("copy-"));
    }
}
