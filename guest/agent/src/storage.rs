//! What the host has the guest mount, for the sandbox or for one container.

mod group;
mod options;
mod plan;
mod sub_path;

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use agent_protocol::agent::Storage;
use nix::unistd::syncfs;
use tokio::sync::Mutex;

use crate::{error::Error, reaper::Reaper, worker};
pub(crate) use plan::DRIVERS;
use plan::Plan;

/// How long mounting may take; a share answers as soon as the host's side does.
const MOUNT: Duration = Duration::from_secs(30);
/// The same where all files of a volume are given to a group. The host waits less long, as its operator says; a create that
/// comes after that finds what was done meanwhile.
const GIVE: Duration = Duration::from_secs(600);

/// Everything mounted, by mount point, with the number of users of each.
///
/// The lock is held across awaits: mounting goes one after the other, so that the second user of a mount
/// point finds it mounted.
#[derive(Default)]
pub(crate) struct Mounts {
    users: Mutex<HashMap<PathBuf, usize>>,
    had_disks: AtomicBool,
}

impl Mounts {
    /// Mounts what is not mounted yet, `submounts` by going there, and counts one more user of each. Returns the mount
    /// points, for [`Self::remove`].
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a storage that makes no sense, [`Error::Worker`] if the kernel refused;
    /// nothing stays mounted then.
    pub(crate) async fn add(
        &self,
        reaper: &Reaper,
        storages: &[Storage],
        submounts: Vec<PathBuf>,
    ) -> Result<Vec<PathBuf>, Error> {
        let mut plans = storages.iter().map(Plan::new).collect::<Result<Vec<_>, _>>()?;
        for directory in submounts {
            if plans.iter().all(|plan| plan.mount_point() != directory) {
                plans.push(Plan::arrive(directory));
            }
        }
        let points: Vec<PathBuf> = plans.iter().map(|plan| plan.mount_point().to_owned()).collect();
        let mut users = self.users.lock().await;
        let missing: Vec<Plan> =
            plans.into_iter().filter(|plan| !users.contains_key(plan.mount_point())).collect();
        let kept: Vec<PathBuf> = missing
            .iter()
            .filter(|plan| plan.is_the_pods())
            .map(|plan| plan.mount_point().to_owned())
            .collect();
        if missing.iter().any(Plan::is_a_disk) {
            self.had_disks.store(true, Ordering::Relaxed);
        }
        if !missing.is_empty() {
            mount_all(reaper, missing).await?;
        }
        // A container may be made anew, and finds what the one before it has left: the pod is one more user.
        for point in points.iter().chain(&kept) {
            *users.entry(point.clone()).or_default() += 1;
        }
        Ok(points)
    }

    /// Whether there are disks among them, or were.
    pub(crate) fn have_disks(&self) -> bool {
        self.had_disks.load(Ordering::Relaxed)
    }

    /// Has the host know of all that was written, and blocks until it does: for when nothing else is to come.
    pub(crate) async fn write_back(&self) -> Result<(), Error> {
        let mut first = Ok(());
        for point in self.users.lock().await.keys() {
            let written = match directory(point) {
                // A part of a volume that is mounted itself. It may be a pipe, made to be waited for.
                Err(error) if error.kind() == ErrorKind::NotADirectory => continue,
                opened => opened.and_then(|mounted| Ok(syncfs(mounted)?)),
            };
            first = first.and(written.map_err(Error::system(format!("write back {}", point.display()))));
        }
        first
    }

    /// Unmounts everything that the pod is a user of.
    pub(crate) async fn clear(&self, reaper: &Reaper) -> Result<(), Error> {
        let points: Vec<PathBuf> = self.users.lock().await.drain().map(|(point, _)| point).collect();
        if points.is_empty() {
            return Ok(());
        }
        worker::run(reaper, "unmount storages", &[], MOUNT, move || plan::unmount_all(&points))
            .await
            .map(drop)
    }

    /// Counts one user less of each, and unmounts those without, the last one mounted first.
    pub(crate) async fn remove(&self, reaper: &Reaper, points: &[PathBuf]) -> Result<(), Error> {
        let mut users = self.users.lock().await;
        let idle: Vec<PathBuf> =
            points.iter().rev().filter(|point| users.get(*point) == Some(&1)).cloned().collect();
        if !idle.is_empty() {
            worker::run(reaper, "unmount storages", &[], MOUNT, move || plan::unmount_all(&idle)).await?;
        }
        for point in points {
            match users.get_mut(point) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(users.remove(point)),
            }
        }
        Ok(())
    }

    /// Changes the options, which is the size most of all, of what is mounted already.
    pub(crate) async fn change(&self, reaper: &Reaper, storages: &[Storage]) -> Result<(), Error> {
        let plans = storages.iter().map(Plan::new).collect::<Result<Vec<_>, _>>()?;
        let users = self.users.lock().await;
        if let Some(plan) = plans.iter().find(|plan| !users.contains_key(plan.mount_point())) {
            return Err(Error::NotFound { kind: "mount", id: plan.mount_point().display().to_string() });
        }
        worker::run(reaper, "remount storages", &[], MOUNT, move || plan::remount_all(&plans)).await?;
        Ok(())
    }
}

fn directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK).open(path)
}

/// Mounts all, or none, and logs what there is to say of it.
async fn mount_all(reaper: &Reaper, plans: Vec<Plan>) -> Result<(), Error> {
    let deadline = if plans.iter().any(Plan::has_a_group) { GIVE } else { MOUNT };
    let points: Vec<PathBuf> = plans.iter().rev().map(|plan| plan.mount_point().to_owned()).collect();
    match worker::run(reaper, "mount storages", &[], deadline, move || plan::mount_all(&plans)).await {
        Ok(report) if report.text.is_empty() => {}
        Ok(report) => ::log::warn!("{}", report.text),
        Err(error) => {
            // One that was ended at its deadline leaves what it has mounted; the error is the one to tell.
            if matches!(error, Error::Timeout { .. }) {
                let unmount = move || plan::unmount_all(&points);
                let _ = worker::run(reaper, "unmount storages", &[], MOUNT, unmount).await;
            }
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[tokio::test]
    async fn a_part_of_a_volume_that_is_a_pipe_does_not_hold_up_what_is_written_back() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let mounts = Mounts::default();
        mounts.users.lock().await.extend([(pipe, 1), (dir.path().to_owned(), 1)]);
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(futures::executor::block_on(mounts.write_back())));
        told.recv_timeout(Duration::from_secs(10)).expect("it does not wait for the pipe's writer").unwrap();
    }
}
