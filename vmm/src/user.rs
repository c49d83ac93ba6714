//! A user for one machine, so that its QEMU may do no more than anybody.
//!
//! No account is made, which could be left behind: a number will do. It is one of [`USERS`] that no account has, nor
//! any process, and a lock on its byte of [`LOCKS`] keeps other machines off it. The kernel gives the lock back with
//! the process that held it, whatever becomes of that.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Numbers that systemd's list of users has as unused, far beyond those that `useradd` gives out to containers.
const USERS: Range<u32> = 0x7000_0000..0x7001_0000;
/// Below the root: as many bytes as there are numbers could be locked, none is ever written.
const LOCKS: &str = "run/containerd-shim-kata-v2.users";
/// How many numbers are tried. Thousands of machines would have to run for a second attempt to be likely.
const ATTEMPTS: u32 = 50;
const KVM: &str = "dev/kvm";

/// A user, with the group of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    id: u32,
    /// The one further group.
    kvm: Option<u32>,
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}", self.id)
    }
}

/// A user that no other machine has while this value lives.
#[derive(Debug)]
pub(crate) struct User {
    credentials: Credentials,
    _lock: File,
}

impl User {
    /// Takes a user, who may use KVM if `kvm` is set and the device's group may.
    pub(crate) fn take(kvm: bool) -> io::Result<User> {
        User::take_in(Path::new("/"), kvm, random)
    }

    fn take_in(root: &Path, kvm: bool, mut random: impl FnMut() -> io::Result<u32>) -> io::Result<User> {
        let accounts = accounts(&root.join("etc"))?;
        let kvm = if kvm { kvm_group(root) } else { None };
        for _ in 0..ATTEMPTS {
            let number = random()? % (USERS.end - USERS.start);
            let id = USERS.start + number;
            if accounts.iter().any(|taken| taken.contains(&u64::from(id))) {
                continue;
            }
            let Some(lock) = lock(root, number)? else { continue };
            // Under the lock: a machine whose shim was killed may be a moment behind it.
            if !has_process(&root.join("proc"), id)? {
                return Ok(User { credentials: Credentials { id, kvm }, _lock: lock });
            }
        }
        let text = format!("none of {ATTEMPTS} numbers from {} on is free", USERS.start);
        Err(io::Error::other(text))
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials
    }
}

impl Credentials {
    /// Makes the calling thread this user, for good, without any capability. System calls only: the C library's
    /// functions of these names would change every thread, and take locks for it.
    pub(crate) fn assume(self) -> io::Result<()> {
        let group = self.kvm.unwrap_or_default();
        let none = [0u32; 6];
        // Version 3 of the structure, the calling thread.
        let header = [0x2008_0522_u32, 0];
        // SAFETY: the calls read the number of groups, the header and the three words for each half of the
        // capabilities that their arguments say, all of which live here.
        unsafe {
            check(libc::syscall(libc::SYS_setgroups, usize::from(self.kvm.is_some()), &raw const group))?;
            check(libc::syscall(libc::SYS_setresgid, self.id, self.id, self.id))?;
            check(libc::syscall(libc::SYS_setresuid, self.id, self.id, self.id))?;
            // The change of the user took all but the inheritable ones.
            check(libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()))
        }
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    crate::random::fill(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// The group that lets a user at KVM. The root's own would let it at far more.
fn kvm_group(root: &Path) -> Option<u32> {
    let device = fs::metadata(root.join(KVM)).ok()?;
    let anybody = device.mode() & 0o006 == 0o006;
    (!anybody && device.mode() & 0o060 == 0o060 && device.gid() != 0).then(|| device.gid())
}

/// A lock on the number, unless somebody has it.
fn lock(root: &Path, number: u32) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(root.join(LOCKS))?;
    let byte = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number.into(),
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte)) {
        Ok(_) => Ok(Some(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The numbers that accounts and groups have, and those they may give to containers.
fn accounts(etc: &Path) -> io::Result<Vec<Range<u64>>> {
    let single: fn(&[&str]) -> Option<Range<u64>> = |fields| {
        let id = fields.get(2)?.parse().ok()?;
        Some(id..id + 1)
    };
    let subordinate: fn(&[&str]) -> Option<Range<u64>> = |fields| {
        let first: u64 = fields.get(1)?.parse().ok()?;
        Some(first..first.saturating_add(fields.get(2)?.trim().parse().ok()?))
    };
    let files = [("passwd", single), ("group", single), ("subuid", subordinate), ("subgid", subordinate)];
    let mut taken = Vec::new();
    for (name, parse) in files {
        let text = match fs::read(etc.join(name)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        taken.extend(text.lines().filter_map(|line| parse(&line.split(':').collect::<Vec<_>>())));
    }
    Ok(taken)
}

/// Whether a process has the number as one of its users or groups.
fn has_process(proc: &Path, id: u32) -> io::Result<bool> {
    let id = id.to_string();
    for entry in fs::read_dir(proc)? {
        let path = entry?.path();
        let is_process = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
        // It may have ended since the directory was read.
        let Some(status) = is_process.then(|| fs::read_to_string(path.join("status")).ok()).flatten() else {
            continue;
        };
        let ids = status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:"));
        if ids.flat_map(str::split_whitespace).any(|word| word == id) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    /// A host with these files.
    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in ["etc", "run", "dev", "proc/7"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        for (path, text) in files {
            fs::write(root.path().join(path), text).unwrap();
        }
        root
    }

    fn first_of(root: &Path, numbers: &[u32]) -> io::Result<User> {
        let mut numbers = numbers.iter().copied().cycle();
        User::take_in(root, false, || Ok(numbers.next().unwrap()))
    }

    #[test]
    fn a33_a_user_is_a_number_that_no_account_and_no_process_has() {
        let root = host(&[
            ("etc/passwd", &format!("root:x:0:0::/:/bin/sh\na:x:{}:9::/:/bin/sh\n", USERS.start)),
            ("etc/group", &format!("g:x:{}:\n", USERS.start + 1)),
            ("etc/subuid", &format!("b:{}:2\n", USERS.start + 2)),
            ("proc/7/status", &format!("Name:\tx\nUid:\t0\t0\t{0}\t0\nGid:\t0\t0\t0\t0\n", USERS.start + 4)),
        ]);
        let user = first_of(root.path(), &[0, 1, 2, 3, 4, 5]).unwrap();
        assert_eq!(user.credentials(), Credentials { id: USERS.start + 5, kvm: None });
        let names: Vec<_> = fs::read_dir(root.path().join("etc")).unwrap().flatten().collect();
        assert_eq!(names.len(), 3, "nothing is added");
    }

    #[test]
    fn a33_a_user_is_one_machines_and_free_with_it() {
        let root = host(&[]);
        let one = first_of(root.path(), &[9]).unwrap();
        let other = first_of(root.path(), &[9, 10]).unwrap();
        assert_ne!(one.credentials(), other.credentials());
        assert!(first_of(root.path(), &[9]).unwrap_err().to_string().contains("is free"));
        drop(one);
        assert_eq!(first_of(root.path(), &[9]).unwrap().credentials().id, USERS.start + 9);
        assert_eq!(fs::metadata(root.path().join(LOCKS)).unwrap().len(), 0);
    }

    #[test]
    fn a33_sixty_four_machines_at_once_have_sixty_four_users() {
        let root = host(&[]);
        let users: Vec<User> = std::thread::scope(|scope| {
            let take = || User::take_in(root.path(), false, || Ok(random()? % 128)).unwrap();
            let threads: Vec<_> = (0..64).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let ids: BTreeSet<u32> = users.iter().map(|user| user.credentials().id).collect();
        assert_eq!(ids.len(), 64);
    }

    #[test]
    fn c4_the_one_further_group_is_that_of_kvm_and_never_the_roots() {
        let root = host(&[("dev/kvm", "")]);
        let device = root.path().join(KVM);
        let group = |gid: u32, mode: u32| {
            std::os::unix::fs::chown(&device, None, Some(gid)).unwrap();
            fs::set_permissions(&device, fs::Permissions::from_mode(mode)).unwrap();
            User::take_in(root.path(), true, || Ok(0)).unwrap().credentials().kvm
        };
        assert_eq!(group(0, 0o660), None);
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        assert_eq!(group(106, 0o660), Some(106));
        assert_eq!(group(106, 0o666), None);
        assert_eq!(group(106, 0o600), None);
        assert_eq!(first_of(root.path(), &[1]).unwrap().credentials().kvm, None);
    }
}
