//! QEMU's own server of disks.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The server, ended with the test.
pub(crate) struct Server(Child);

impl Server {
    /// Serves `image` at `socket`.
    pub(crate) fn start(image: &Path, socket: &Path) -> Server {
        let node = format!("driver=file,node-name=disk,filename={}", image.display());
        let export = format!(
            "type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={},writable=on",
            socket.display()
        );
        let server = Server(
            Command::new("qemu-storage-daemon")
                .args(["--blockdev", &node, "--export", &export])
                .spawn()
                .unwrap(),
        );
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "{} does not come", socket.display());
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
