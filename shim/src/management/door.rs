//! The socket, and the place where the tools of the field look for it.
//!
//! The socket is in the sandbox's run directory, whose path has containerd's namespace in it. The tools know no
//! namespaces: they look in `/run/vc/sbs/<sandbox id>`, where there is a link to it. What the link leads to also says
//! whose it is, so that nobody removes another's.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{Error as IoError, ErrorKind, Result as IoResult},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, PermissionsExt, symlink},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use slog::{Logger, warn};
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};

/// Where tools look. It stays when it is empty, as `kata-monitor` watches it.
const SANDBOXES: &str = "/run/vc/sbs";
const SOCKET: &str = "shim-monitor.sock";
/// The file, in a bundle, that says where the socket is.
const ADDRESS: &str = "monitor_address";

/// When there are too many descriptors, nobody is taken for so long.
const PAUSE: Duration = Duration::from_millis(100);

/// A sandbox's socket; the link goes with it, the socket with the run directory.
pub(crate) struct Door {
    /// Until somebody answers there.
    listener: Mutex<Option<UnixListener>>,
    socket: PathBuf,
    link: Mutex<Option<Link>>,
}

impl Door {
    /// Opens the door of the sandbox `id`. Pods run without one, too.
    pub(crate) fn open(run_dir: &Path, id: &str, log: &Logger) -> Option<Door> {
        let socket = run_dir.join(SOCKET);
        let listener = match listen(run_dir, SOCKET) {
            Ok(listener) => listener,
            Err(error) => {
                warn!(log, "no management"; "socket" => socket.display().to_string(), "why" => error.to_string());
                return None;
            }
        };
        let link = Link::make(&Path::new(SANDBOXES).join(id), &socket);
        let link = link.inspect_err(|error| {
            warn!(log, "tools do not find the management"; "why" => error.to_string(),
                "socket" => socket.display().to_string());
        });
        Some(Door { listener: Mutex::new(Some(listener)), socket, link: Mutex::new(link.ok()) })
    }

    /// The socket, for the first who asks.
    pub(super) fn listener(&self) -> Option<UnixListener> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Says in a bundle where the door is.
    pub(crate) fn tell(&self, bundle: &Path, log: &Logger) {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let path = link.as_ref().map_or(&self.socket, |link| &link.path);
        let file = bundle.join(ADDRESS);
        if let Err(error) = fs::write(&file, format!("unix://{}", path.display())) {
            warn!(log, "management address"; "file" => file.display().to_string(), "why" => error.to_string());
        }
    }

    /// Takes the link away.
    pub(crate) fn close(&self) {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Where tools find the door of a sandbox.
pub(super) fn link_of(id: &str) -> PathBuf {
    Path::new(SANDBOXES).join(id).join(SOCKET)
}

/// Listens at a socket of that name in a run directory, for root alone.
pub(super) fn listen(run_dir: &Path, name: &str) -> IoResult<UnixListener> {
    // An address has room for 107 bytes of path, and the directory's own path may be longer.
    let dir = File::open(run_dir)?;
    let listener = StdListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
    fs::set_permissions(run_dir.join(name), Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// The next who connects; nobody, after a while, when there are too many descriptors.
pub(super) async fn next(listener: &UnixListener) -> Option<UnixStream> {
    match listener.accept().await {
        Ok((stream, _)) => Some(stream),
        Err(_) => {
            sleep(PAUSE).await;
            None
        }
    }
}

/// Where tools find a socket; dropped, it is gone.
struct Link {
    path: PathBuf,
    socket: PathBuf,
}

impl Link {
    /// Makes it in `dir`, unless another sandbox of that name, in another namespace, has one there.
    fn make(dir: &Path, socket: &Path) -> IoResult<Link> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join(SOCKET);
        match symlink(socket, &path) {
            // What a shim left that was killed, and that nobody has cleared up.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && leads_nowhere(&path, socket) => {
                fs::remove_file(&path)?;
                symlink(socket, &path)?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(IoError::new(error.kind(), format!("{} is another sandbox's", path.display())));
            }
            made => made?,
        }
        Ok(Link { path, socket: socket.to_owned() })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        remove(&self.path, &self.socket);
    }
}

fn leads_nowhere(link: &Path, socket: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target == socket || !target.exists())
}

/// Removes a link if it leads to `socket`, and the directory that it was alone in.
fn remove(link: &Path, socket: &Path) {
    if fs::read_link(link).is_ok_and(|target| target == socket) {
        let _ = fs::remove_file(link);
        if let Some(dir) = link.parent() {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Removes the link that a shim has left whose run directory this was.
pub(crate) fn sweep(run_dir: &Path) {
    if let Some(id) = run_dir.file_name() {
        remove(&Path::new(SANDBOXES).join(id).join(SOCKET), &run_dir.join(SOCKET));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c22_who_comes_first_has_the_name_and_nobody_else_takes_it_away() {
        let root = tempfile::tempdir().unwrap();
        let (dir, [one, two]) =
            (root.path().join("sbs/pod"), ["one", "two"].map(|name| root.path().join(name)));
        fs::write(&one, "").unwrap();
        let link = Link::make(&dir, &one).unwrap();
        assert_eq!(fs::read_link(&link.path).unwrap(), one);
        assert!(Link::make(&dir, &two).err().unwrap().to_string().contains("another sandbox's"));
        remove(&link.path, &two);
        assert!(link.path.exists());
        drop(link);
        assert!(!dir.exists() && dir.parent().unwrap().exists());
    }

    #[test]
    fn c22_what_a_killed_shim_has_left_is_in_nobodys_way() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("pod");
        for gone in ["gone", "socket"] {
            fs::create_dir_all(&dir).unwrap();
            symlink(root.path().join(gone), dir.join(SOCKET)).unwrap();
            let socket = root.path().join("socket");
            let link = Link::make(&dir, &socket).unwrap();
            assert_eq!(fs::read_link(&link.path).unwrap(), socket);
        }
    }

    #[tokio::test]
    async fn c22_the_socket_is_for_root_alone_however_long_its_path() {
        let root = tempfile::tempdir().unwrap();
        let run_dir = root.path().join("x".repeat(120));
        fs::create_dir(&run_dir).unwrap();
        let socket = run_dir.join(SOCKET);
        let _listener = listen(&run_dir, SOCKET).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
