//! The pod's name and the servers that know others.

use std::{fs, path::Path};

use nix::unistd::sethostname;

use crate::error::Error;

/// The guest's own; containers get theirs from the host, as a mount.
const RESOLVER: &str = "/etc/resolv.conf";

/// Sets both, as far as they are given.
///
/// # Errors
///
/// [`Error::Invalid`] for a line of more than one line, [`Error::System`] if the kernel refuses the name.
pub(super) fn set(hostname: &str, dns: &[String]) -> Result<(), Error> {
    if !hostname.is_empty() {
        sethostname(hostname).map_err(Error::system(format!("set host name {hostname:?}")))?;
    }
    let Some(text) = resolver(dns)? else { return Ok(()) };
    fs::write(Path::new(RESOLVER), text).map_err(Error::system(format!("write {RESOLVER}")))
}

fn resolver(dns: &[String]) -> Result<Option<String>, Error> {
    if let Some(line) = dns.iter().find(|line| line.contains('\n')) {
        return Err(Error::invalid(format!("dns: {line:?} is more than one line")));
    }
    Ok((!dns.is_empty()).then(|| dns.join("\n") + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_as_they_come() {
        let dns = ["nameserver 10.0.0.1".to_owned(), "search a.b".to_owned()];
        assert_eq!(resolver(&dns).unwrap().unwrap(), "nameserver 10.0.0.1\nsearch a.b\n");
        assert_eq!(resolver(&[]).unwrap(), None);
        assert!(resolver(&["a\nb".to_owned()]).is_err());
    }
}
