//! HOME of a process that was told none: what the passwd file of its image says.
//!
//! libcontainer would ask the C library for it, and with that a whole name service, which takes an emulated CPU longer
//! than many a container runs, and believes the image about where further names are to be found.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use nix::unistd::{Uid, geteuid};
use oci_spec::runtime::Process;

use crate::files::MAX_TEXT;

/// Keeps libcontainer from looking. Never seen by the process: see [`super::library`].
const STAND_IN: &str = "HOME=/";

/// Whether an entry of an environment sets HOME.
pub(super) fn is_home(entry: &str) -> bool {
    entry.starts_with("HOME=")
}

/// Gives `process` a stand-in if it has no HOME. Returns whether it does.
pub(super) fn stand_in(process: &mut Process) -> bool {
    let env = process.env_mut().get_or_insert_default();
    let missing = !env.iter().any(|entry| is_home(entry));
    if missing {
        env.push(STAND_IN.to_owned());
    }
    missing
}

/// The home of the user this runs as, in the root it runs in.
pub(super) fn find() -> Option<String> {
    // An image without users is as good as one without this user.
    let passwd = read(Path::new("/etc/passwd")).unwrap_or_default();
    of(geteuid(), &String::from_utf8_lossy(&passwd)).map(str::to_owned)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MAX_TEXT).read_to_end(&mut content)?;
    Ok(content)
}

fn of(user: Uid, passwd: &str) -> Option<&str> {
    passwd.lines().find_map(|line| {
        // name:password:uid:gid:comment:home:shell
        let mut fields = line.split(':').skip(2);
        let uid: u32 = fields.next()?.parse().ok()?;
        let home = fields.nth(2)?;
        (uid == user.as_raw()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::ProcessBuilder;

    use super::*;

    #[test]
    fn a_home_is_that_of_the_first_account_with_the_users_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:7:7::/srv/app:\nalias:x:7:7::/other:\n";
        assert_eq!(of(Uid::from_raw(0), passwd), Some("/root"));
        assert_eq!(of(Uid::from_raw(7), passwd), Some("/srv/app"));
        assert_eq!(of(Uid::from_raw(8), passwd), None);
    }

    #[test]
    fn only_a_process_without_home_gets_a_stand_in() {
        let mut process = ProcessBuilder::default().env(vec!["HOME=/x".to_owned()]).build().unwrap();
        assert!(!stand_in(&mut process));
        process.set_env(None);
        assert!(stand_in(&mut process));
        assert_eq!(process.env().as_deref().unwrap(), ["HOME=/"]);
    }
}
