//! Users by name, looked up in the image's own files.

use std::path::Path;

use agent_protocol::agent::StringUser;
use oci_spec::runtime::User;

use crate::{error::Error, files};

/// Most groups looked at, and most a user can be in.
const MAX_GROUPS: usize = 4096;

/// The user `wire` asks for, in an image at `root`; `None` if it asks for nobody in particular.
///
/// # Errors
///
/// [`Error::Invalid`] if a name is not in the image.
pub(crate) fn resolve(root: &Path, wire: Option<&StringUser>) -> Result<Option<User>, Error> {
    let Some(wire) = wire.filter(|user| !user.uid.is_empty()) else { return Ok(None) };
    // An image without these files has no names, which is no error before one is asked for.
    let read = |path: &str| files::read_in(root, Path::new(path)).unwrap_or_default();
    resolve_in(&read("/etc/passwd"), &read("/etc/group"), wire).map(Some)
}

fn resolve_in(passwd: &str, group: &str, wire: &StringUser) -> Result<User, Error> {
    let unknown = |kind: &str, name: &str| Error::invalid(format!("{kind} {name:?}: not in the image"));
    let account = account(passwd, &wire.uid);
    let uid = account.map(|account| account.uid).or_else(|| wire.uid.parse().ok());
    let uid = uid.ok_or_else(|| unknown("user", &wire.uid))?;
    let gid = match wire.gid.as_str() {
        "" => account.map_or(0, |account| account.gid),
        name => self::gid(group, name).ok_or_else(|| unknown("group", name))?,
    };
    let mut additional = memberships(group, account.map(|account| account.name));
    for name in wire.additional_gids.iter().take(MAX_GROUPS) {
        let more = self::gid(group, name).ok_or_else(|| unknown("group", name))?;
        if !additional.contains(&more) {
            additional.push(more);
        }
    }
    let mut user = User::default();
    user.set_uid(uid).set_gid(gid).set_additional_gids(Some(additional));
    Ok(user)
}

#[derive(Clone, Copy)]
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// The account of that name, or else of that number.
fn account<'a>(passwd: &'a str, wanted: &str) -> Option<Account<'a>> {
    let accounts = || {
        passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some(Account { name, uid, gid: fields.next()?.parse().ok()? })
        })
    };
    let number: Option<u32> = wanted.parse().ok();
    accounts().find(|account| account.name == wanted).or_else(|| {
        let number = number?;
        accounts().find(|account| account.uid == number)
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn gid(group: &str, wanted: &str) -> Option<u32> {
    let named = groups(group).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
    named.or_else(|| wanted.parse().ok())
}

fn memberships(group: &str, user: Option<&str>) -> Vec<u32> {
    let Some(user) = user else { return Vec::new() };
    let of_user = groups(group).filter(|(.., members)| members.split(',').any(|member| member == user));
    of_user.map(|(_, gid, _)| gid).take(MAX_GROUPS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nbroken\napp:x:1000:1001::/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nlog:x:7:root,app\nadm:x:8:root\n";

    fn wire(uid: &str, gid: &str, more: &[&str]) -> StringUser {
        StringUser {
            uid: uid.into(),
            gid: gid.into(),
            additional_gids: more.iter().map(|gid| (*gid).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn ids(uid: &str, gid: &str, more: &[&str]) -> (u32, u32, Vec<u32>) {
        let user = resolve_in(PASSWD, GROUP, &wire(uid, gid, more)).unwrap();
        (user.uid(), user.gid(), user.additional_gids().clone().unwrap())
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        assert_eq!(ids("app", "", &[]), (1000, 1001, vec![7]));
        assert_eq!(ids("1000", "", &["8", "log"]), (1000, 1001, vec![7, 8]));
        assert_eq!(ids("4242", "adm", &[]), (4242, 8, vec![]));
    }

    #[test]
    fn names_the_image_lacks_are_refused() {
        assert!(resolve_in(PASSWD, GROUP, &wire("nobody", "", &[])).is_err());
        assert!(resolve_in(PASSWD, GROUP, &wire("app", "nogroup", &[])).is_err());
        assert!(resolve_in(PASSWD, GROUP, &wire("-1", "", &[])).is_err());
        assert!(resolve_in(PASSWD, GROUP, &wire("4294967296", "", &[])).is_err());
    }
}
