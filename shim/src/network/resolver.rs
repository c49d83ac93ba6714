//! The name servers of the pod.

use std::{fs::File, io::Read, path::PathBuf};

use oci_spec::runtime::Spec;

/// Where a container is given them, as a mount.
const RESOLVER: &str = "/etc/resolv.conf";
/// The C library reads a few servers and domains; whoever has more bytes than these has something else there.
pub(super) const LONGEST: u64 = 64 << 10;

/// The lines of the `/etc/resolv.conf` that the sandbox's own container is given; none where it is given none that
/// can be read, which its own mount will tell.
pub(crate) fn lines(spec: &Spec) -> Vec<String> {
    let Some(source) = file(spec) else { return Vec::new() };
    let mut text = String::new();
    let read = File::open(source).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    text.lines().map(str::to_owned).collect()
}

/// The file that the sandbox's own container is given.
pub(super) fn file(spec: &Spec) -> Option<&PathBuf> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mount = mounts.iter().find(|mount| mount.destination().as_os_str() == RESOLVER);
    mount.and_then(|mount| mount.source().as_ref())
}
