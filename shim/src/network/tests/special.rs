//! Interfaces that are devices of the host, and those that another program moves the packets of.

use std::os::unix::{fs::PermissionsExt, net::UnixListener};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use vmm::{
    Hypervisor,
    spec::{Boot, PciPlaces, VfioPort, VmName, VmUuid, Window},
};

use super::*;
use crate::{
    fakes::FakeHypervisor,
    sandbox::{boot, run_dir},
};

const ADDRESS: &str = "0000:3b:00.0";
const CLASS: &str = "0x020000";
/// How long what the kernel does at once may take in a test.
const SOON: std::time::Duration = std::time::Duration::from_secs(10);

/// Runs `test` where the host is one of its own.
fn on_host(test: impl FnOnce(&Host) + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        test(&Host::new());
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// A veth that says it is the device.
fn nic(pod: &Pod) -> Found {
    let mut found = one(pod, "eth0");
    (found.link.kind, found.link.pci_device) = (Kind::Device, Some(ADDRESS.into()));
    found
}

fn passing() -> Manner {
    Manner { passes_through: true, ..manner(1) }
}

/// Joins an interface to a machine on this thread, which is in the namespace from here on.
fn joined(pod: &Pod, run_dir: &Path, found: &Found, manner: Manner) -> Result<(Joined, Joint)> {
    let identity = namespace::enter(&pod.path)?;
    let record = Record::new(run_dir, &pod.path, identity);
    let mut joined = Joined::new(Netlink::open().unwrap(), manner, Some(record))?;
    let mut joints = joined.join(std::slice::from_ref(found))?;
    Ok((joined, joints.remove(0)))
}

#[test]
fn d18_a_device_of_the_host_is_vfios_until_the_machine_is_gone_or_its_remains_are_cleared() {
    on_host(|host| {
        host.pci(ADDRESS, 4, "ixgbe", CLASS);
        host.driver("ixgbe");
        host.driver("vfio-pci");
        host.probes();
        let choice = format!("/sys/bus/pci/devices/{ADDRESS}/driver_override");
        for (before, after) in [("(null)\n", "\n"), ("ixgbe\n", "ixgbe\n")] {
            for is_killed in [false, true] {
                let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
                fs::write(&choice, before).unwrap();
                let taken = host.rebinds(ADDRESS, "ixgbe", "vfio-pci", "drivers_probe");
                let (joined, joint) = joined(&pod, run_dir.path(), &nic(&pod), passing()).unwrap();
                taken.recv_timeout(SOON).unwrap();
                let Joint::Device(device) = joint else { panic!() };
                assert_eq!(
                    (device.address(), fs::read_to_string(&choice).unwrap().as_str()),
                    (Some(ADDRESS), "vfio-pci")
                );
                let given = host.rebinds(ADDRESS, "vfio-pci", "ixgbe", "drivers/ixgbe/bind");
                if is_killed {
                    std::mem::forget(joined);
                    // The device is there even where the namespace is not.
                    drop(pod);
                    sweep(run_dir.path()).unwrap();
                } else {
                    drop(joined);
                }
                given.recv_timeout(SOON).unwrap();
                assert_eq!(fs::read_to_string(&choice).unwrap(), after);
                // What the host's driver has is left alone.
                sweep(run_dir.path()).unwrap();
            }
        }
    });
}

#[test]
fn d18_the_record_says_what_is_to_be_given_back_before_it_is_taken() {
    on_host(|host| {
        host.pci(ADDRESS, 4, "ixgbe", CLASS);
        host.driver("vfio-pci");
        let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
        // The driver has no file by which it could be taken from it.
        let before = std::path::PathBuf::from(format!("/sys/bus/pci/devices/{ADDRESS}/driver"));
        fs::remove_file(&before).unwrap();
        std::os::unix::fs::symlink("/sys/bus/pci/drivers/gone", &before).unwrap();
        // Nor was that tried for the first time.
        let choice = format!("/sys/bus/pci/devices/{ADDRESS}/driver_override");
        fs::write(&choice, "vfio-pci\n").unwrap();
        let refused = joined(&pod, run_dir.path(), &nic(&pod), passing()).err().unwrap().to_string();
        assert!(refused.starts_with("give PCI device 0000:3b:00.0 to vfio-pci"), "{refused}");
        let record = fs::read_to_string(run_dir.path().join("network.json")).unwrap();
        assert!(
            record.contains(r#""taken":[{"address":"0000:3b:00.0","driver":"gone","chosen":null}]"#),
            "{record}"
        );
        assert_eq!(fs::read_to_string(&choice).unwrap(), "\n", "the next look for a driver finds its own");
    });
}

#[test]
fn d18_what_is_not_given_back_is_told_and_kept_in_mind_until_it_is() {
    on_host(|host| {
        host.pci(ADDRESS, 4, "ixgbe", CLASS);
        host.driver("ixgbe");
        host.driver("vfio-pci");
        host.probes();
        let taken = host.rebinds(ADDRESS, "ixgbe", "vfio-pci", "drivers_probe");
        let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
        let (joined, _) = joined(&pod, run_dir.path(), &nic(&pod), passing()).unwrap();
        taken.recv_timeout(SOON).unwrap();
        // Its driver is unloaded.
        let driver = Path::new("/sys/bus/pci/drivers/ixgbe");
        fs::remove_dir_all(driver).unwrap();
        let link = format!("/sys/bus/pci/devices/{ADDRESS}/driver");
        fs::remove_file(&link).unwrap();
        let network = Network::of(None, Vec::new(), Told::default(), Some(joined), None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let told = [runtime.block_on(network.disconnect()), sweep(run_dir.path())];
        for told in told.map(|outcome| outcome.unwrap_err().to_string()) {
            assert!(told.contains("`echo 0000:3b:00.0 > /sys/bus/pci/drivers/ixgbe/bind`"), "{told}");
        }
        let kept = run_dir::remove(run_dir.path()).unwrap_err().to_string();
        assert!(kept.contains("PCI device 0000:3b:00.0 of driver ixgbe"), "{kept}");
        let record = fs::read_to_string(run_dir.path().join("network.json")).unwrap();
        assert!(record.contains(r#""changed":[],"taken":[{"address":"0000:3b:00.0""#), "{record}");
        std::os::unix::fs::symlink(driver, &link).unwrap();
        sweep(run_dir.path()).unwrap();
        run_dir::remove(run_dir.path()).unwrap();
        assert!(!run_dir.path().exists());
    });
}

#[test]
fn d18_others_are_served_while_a_boot_that_came_to_nothing_gives_a_device_back() {
    on_host(|host| {
        host.pci(ADDRESS, 4, "ixgbe", CLASS);
        host.driver("ixgbe");
        host.driver("vfio-pci");
        host.probes();
        let taken = host.rebinds(ADDRESS, "ixgbe", "vfio-pci", "drivers_probe");
        let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
        let (joined, _) = joined(&pod, run_dir.path(), &nic(&pod), passing()).unwrap();
        taken.recv_timeout(SOON).unwrap();
        let network = Network::of(None, Vec::new(), Told::default(), Some(joined), None);
        let (serve, served) = std::sync::mpsc::channel();
        // The kernel does nothing before others were served, unless they never are.
        let kernel = std::thread::spawn(move || {
            let are_served = served.recv_timeout(SOON).is_ok();
            let given = Host.rebinds(ADDRESS, "vfio-pci", "ixgbe", "drivers/ixgbe/bind");
            given.recv_timeout(SOON).unwrap();
            are_served
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async {
            let error = boot::given_up(&network, Error::Failed("no machine".into()));
            tokio::join!(error, async { serve.send(()).unwrap() }).0
        });
        assert_eq!(error.to_string(), "no machine");
        assert!(kernel.join().unwrap(), "the shim's only thread waited for the kernel");
    });
}

#[test]
fn d18_nobody_waits_for_ever_for_a_device_to_be_given_back() {
    on_host(|host| {
        host.pci(ADDRESS, 4, "ixgbe", CLASS);
        host.driver("ixgbe");
        host.driver("vfio-pci");
        let device = physical::Physical::at(Path::new("/sys"), ADDRESS).unwrap();
        fs::remove_file(format!("/sys/bus/pci/devices/{ADDRESS}/driver")).unwrap();
        // Whoever writes there waits for who reads.
        let late = record::give_back(vec![device], std::time::Duration::from_millis(50)).unwrap_err();
        assert!(matches!(late, Error::DeadlineExceeded(_)), "{late}");
        assert!(late.to_string().starts_with("PCI device 0000:3b:00.0 of driver ixgbe"), "{late}");
        assert_eq!(fs::read_to_string("/sys/bus/pci/drivers/ixgbe/bind").unwrap(), ADDRESS);
    });
}

#[test]
fn d18_a_device_that_a_machine_cannot_have_stays_with_its_driver() {
    on_host(|host| {
        host.pci(ADDRESS, 4, "ixgbe", CLASS);
        let (pod, run_dir) = (Pod::with_veth(), tempfile::tempdir().unwrap());
        let refused = |manner| joined(&pod, run_dir.path(), &nic(&pod), manner).err().unwrap().to_string();
        let cases = [(manner(1), "set cold_plug_vfio or hot_plug_vfio"), (passing(), "modprobe vfio-pci")];
        for (manner, why) in cases {
            assert!(refused(manner).contains(why), "{}", refused(manner));
        }
        host.driver("vfio-pci");
        assert!(refused(Manner { is_late: true, ..passing() }).contains("has come too late"));
        let slow = Manner { rates: Rates { rx: 1, tx: 0 }, ..passing() };
        assert!(refused(slow).contains("unset rx_rate_limiter_max_rate"));
        host.pci("0000:3b:00.1", 4, "ixgbe", CLASS);
        assert!(refused(passing()).contains("0000:3b:00.1, which the guest is to have, is driven by ixgbe"));
        assert!(!Path::new(&format!("/sys/bus/pci/devices/{ADDRESS}/driver_override")).exists());
    });
}

#[test]
fn d18_an_interface_that_the_machine_has_instead_is_not_missed_in_the_namespace() {
    let found = one(&Pod::with_veth(), "eth0");
    let member = || Member::new(found.clone(), None, false);
    assert!(member().is_among(std::slice::from_ref(&found)) && !member().is_among(&[]));
    assert!(member().taken(true).is_among(&[]));
}

fn machine(pass_through: PassThrough) -> VmSpec {
    let (name, uuid) = (VmName::new("machine").unwrap(), VmUuid::random().unwrap());
    let boot = Boot::Initrd("/initrd".into());
    let plain = VmSpec::plain(name, uuid, "/run".into(), "/qemu".into(), "/kernel".into(), boot).unwrap();
    VmSpec { pci: PciPlaces::new(1, 1, Window::default()).unwrap(), pass_through, ..plain }
}

#[test]
fn d18_a_machine_has_a_device_from_the_start_or_as_soon_as_it_runs() {
    on_host(|host| {
        host.pci(ADDRESS, 4, "vfio-pci", CLASS);
        let device = HostDevice::once_bound(Path::new("/sys"), ADDRESS).unwrap();
        let socket = VhostUser::new("/socket", vmm::spec::VhostUserKind::Net([2; 6]), None).unwrap();
        let joints = vec![(3, Joint::Device(device.clone())), (4, Joint::VhostUser(socket.clone()))];
        let network = Network::of(None, joints, Told::default(), None, None);
        let cold = |devices| PassThrough::Cold { devices, port: VfioPort::Root };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (configured, wanted, plugged) in [
            (cold(Vec::new()), cold(vec![device.clone()]), "0000:3b:00.0 07/00"),
            (PassThrough::Hot(VfioPort::Root), PassThrough::Hot(VfioPort::Root), "0000:3b:00.0 07/00"),
        ] {
            let mut spec = machine(configured);
            network.add_to(&mut spec).unwrap();
            assert_eq!((&spec.pass_through, &spec.vhost_user[..]), (&wanted, &[socket.clone()][..]));
            runtime.block_on(async {
                let host = FakeHypervisor::new("/agent".into());
                let vm = host.boot(spec.clone()).await.unwrap();
                network.hand_over(vm.as_ref(), &spec).await.unwrap();
                host.has_host_devices(&[plugged]).await;
            });
        }
        host.pci("0000:3c:00.0", 5, "vfio-pci", CLASS);
        let other = HostDevice::once_bound(Path::new("/sys"), "0000:3c:00.0").unwrap();
        let mut full = machine(cold(vec![other]));
        let refused = network.add_to(&mut full).unwrap_err().to_string();
        assert!(
            refused.starts_with(
                "the pod's network: 0000:3b:00.0 is to be in the guest, and the machine has no free"
            ),
            "{refused}"
        );
    });
}

/// The directory of a socket, which goes with the test.
struct Served(std::path::PathBuf, #[expect(dead_code, reason = "it listens")] UnixListener);

impl Served {
    fn at(address: &str) -> Served {
        let directory = std::path::PathBuf::from(format!("/tmp/vhostuser_{address}"));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let socket = UnixListener::bind(directory.join("vhu.sock")).unwrap();
        Served(directory, socket)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn d18_another_program_moves_the_packets_of_an_interface_if_root_alone_can_be_that() {
    let (pod, run_dir) = (Pod::new(), tempfile::tempdir().unwrap());
    pod.run("ip link add eth0 address 02:00:00:00:00:07 type bridge");
    pod.run("ip addr add 198.18.77.2/24 dev eth0");
    let error = join(&pod, manner(1), run_dir.path()).err().unwrap().to_string();
    assert!(error.contains("kind bridge"), "{error}");
    let served = Served::at("198.18.77.2");
    let before = pod.state();
    let network = join(&pod, manner(1), run_dir.path()).unwrap();
    let [device] = &network.vhost_user[..] else { panic!("{:?}", network.vhost_user) };
    assert_eq!(device.socket(), served.0.join("vhu.sock"));
    assert_eq!(device.kind, vmm::spec::VhostUserKind::Net([2, 0, 0, 0, 0, 7]));
    assert_eq!((network.nics().len(), network.told.interfaces[0].name.as_str()), (0, "eth0"));
    drop(network);
    assert_eq!(pod.state(), before);
    fs::set_permissions(&served.0, fs::Permissions::from_mode(0o775)).unwrap();
    let error = join(&pod, manner(1), run_dir.path()).err().unwrap().to_string();
    // As if there were none.
    assert!(error.contains("kind bridge"), "{error}");
    fs::set_permissions(&served.0, fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(served.0.join("vhu.sock")).unwrap();
    fs::write(served.0.join("vhu.sock"), "").unwrap();
    let error = join(&pod, manner(1), run_dir.path()).err().unwrap().to_string();
    assert!(error.contains("vhu.sock is no socket"), "{error}");
}
