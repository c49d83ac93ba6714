//! What connects a machine with programs of the host, where it comes once the machine's state is there: QEMU saves no
//! device that another program serves.

use std::os::fd::OwnedFd;

use super::command::places::{LatePort, SHARE_PORT, VSOCK_PORT};
use super::command::{SHARE_CHARDEV, VSOCK, VSOCK_CHARDEV, virtio_fs};
use super::plug::leave;
use super::qmp::{ChardevAdd, ChardevRemove, Getfd, PresentedAdd, Qmp};
use crate::device::{ChardevBackend, Device, PciPlace};
use crate::error::QmpError;
use crate::plug::PlugError;
use crate::spec::{Tag, VirtioFs, VirtioPci, VsockSpec};

/// A socket connected to the daemon of a share, and what the guest is to see of that.
pub(super) struct LateShare<'a> {
    pub(super) socket: OwnedFd,
    pub(super) tag: &'a Tag,
    pub(super) fs: &'a VirtioFs,
}

/// The back end of a vsock.
pub(super) struct LateVsock {
    pub(super) kind: VsockSpec,
    pub(super) fd: OwnedFd,
    /// The guest's address.
    pub(super) cid: u32,
}

/// All of that which comes late.
pub(super) struct Late<'a> {
    pub(super) share: Option<LateShare<'a>>,
    pub(super) vsock: LateVsock,
}

/// What the kernel's vsock is handed over as.
const VHOST: &str = "vhostvsock0";

impl Late<'_> {
    /// The vsock comes last: whoever reaches the guest by it finds the share there.
    pub(super) async fn plug(self, qmp: &Qmp, virtio: VirtioPci) -> Result<(), QmpError> {
        if let Some(LateShare { socket, tag, fs }) = self.share {
            hand_over(qmp, SHARE_CHARDEV, socket).await?;
            add(qmp, &virtio_fs(tag, fs, behind(&SHARE_PORT)), virtio).await?;
        }
        let LateVsock { kind, fd, cid } = self.vsock;
        let place = behind(&VSOCK_PORT);
        let device = match kind {
            VsockSpec::Vhost => {
                qmp.execute_with(Getfd { fdname: VHOST.to_owned() }, fd).await?;
                Device::VhostVsockPci { id: VSOCK, guest_cid: cid, vhostfd: VHOST.to_owned(), place }
            }
            VsockSpec::VhostUser => {
                hand_over(qmp, VSOCK_CHARDEV, fd).await?;
                Device::VhostUserVsockPci { id: VSOCK, chardev: VSOCK_CHARDEV, place }
            }
        };
        add(qmp, &device, virtio).await
    }
}

/// Takes the vsock of a template away, so that it can be saved.
pub(super) async fn unplug_vsock(qmp: &Qmp, kind: VsockSpec) -> Result<(), PlugError> {
    leave::leave(qmp, VSOCK).await?;
    if kind == VsockSpec::VhostUser {
        qmp.execute(ChardevRemove { id: VSOCK_CHARDEV.to_owned() }).await?;
    }
    Ok(())
}

fn behind(port: &LatePort) -> Option<PciPlace> {
    Some(PciPlace::behind(port.id))
}

async fn hand_over(qmp: &Qmp, name: &'static str, socket: OwnedFd) -> Result<(), QmpError> {
    qmp.execute_with(Getfd { fdname: name.to_owned() }, socket).await?;
    let backend = ChardevBackend::handed(name);
    qmp.execute(ChardevAdd { id: name.to_owned(), backend }).await.map(drop)
}

async fn add(qmp: &Qmp, device: &Device, virtio: VirtioPci) -> Result<(), QmpError> {
    qmp.execute(PresentedAdd(device.presented(virtio))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::qemu::qmp::tests::{Peer, connected};
    use crate::spec::{ExtraArgs, FsCache, FsServer};

    async fn asked(peer: &mut Peer) -> (String, Value) {
        let asked = peer.hear().await;
        peer.say(&json!({"return": {}, "id": asked["id"]}).to_string()).await;
        (asked["execute"].as_str().unwrap().to_owned(), asked["arguments"].clone())
    }

    fn vsock(kind: VsockSpec) -> LateVsock {
        LateVsock { kind, fd: File::open("/dev/null").unwrap().into(), cid: 77 }
    }

    #[tokio::test]
    async fn a21_a_copy_gets_its_share_and_then_its_vsock() {
        let (qmp, mut peer) = connected(Duration::from_secs(5)).await;
        let tag = Tag::new("kataShared").unwrap();
        let fs = VirtioFs {
            daemon: "/guest/virtiofsd".into(),
            server: FsServer::Virtiofsd(FsCache::Auto),
            queue_size: 512,
            dax_mib: 0,
            extra_args: ExtraArgs::default(),
        };
        let share = Some(LateShare { socket: File::open("/dev/null").unwrap().into(), tag: &tag, fs: &fs });
        let late = Late { share, vsock: vsock(VsockSpec::VhostUser) };
        let script = async {
            let mut all = Vec::new();
            while all.len() < 6 {
                all.push(asked(&mut peer).await);
            }
            all
        };
        let (plugged, all) = tokio::join!(late.plug(&qmp, VirtioPci::Usual), script);
        plugged.unwrap();
        let backend = |name| {
            let data = json!({"addr": {"type": "fd", "data": {"str": name}}, "server": false});
            json!({"id": name, "backend": {"type": "socket", "data": data}})
        };
        let share = json!({
            "driver": "vhost-user-fs-pci", "id": "fs0", "chardev": "charfs0", "tag": "kataShared", "queue-size": 512,
            "bus": "late0", "addr": "0",
        });
        let vsock = json!({"driver": "vhost-user-vsock-pci", "id": "vsock0", "chardev": "charvsock0", "bus": "late1", "addr": "0"});
        let expected = [
            ("getfd", json!({"fdname": "charfs0"})),
            ("chardev-add", backend("charfs0")),
            ("device_add", share),
            ("getfd", json!({"fdname": "charvsock0"})),
            ("chardev-add", backend("charvsock0")),
            ("device_add", vsock),
        ];
        assert_eq!(all, expected.map(|(command, arguments)| (command.to_owned(), arguments)));
    }

    #[tokio::test]
    async fn a21_the_kernels_vsock_is_handed_over_with_the_guests_address() {
        let (qmp, mut peer) = connected(Duration::from_secs(5)).await;
        let late = Late { share: None, vsock: vsock(VsockSpec::Vhost) };
        let script = async { [asked(&mut peer).await, asked(&mut peer).await] };
        let (plugged, [handed, added]) = tokio::join!(late.plug(&qmp, VirtioPci::Usual), script);
        plugged.unwrap();
        assert_eq!(handed, ("getfd".to_owned(), json!({"fdname": "vhostvsock0"})));
        let device = json!({
            "driver": "vhost-vsock-pci", "id": "vsock0", "guest-cid": 77, "vhostfd": "vhostvsock0", "bus": "late1", "addr": "0",
        });
        assert_eq!(added, ("device_add".to_owned(), device));
    }
}
