//! Numbers that nobody else has.

use std::{fs::File, io::Read};

use netlink::Mac;

use crate::error::{Error, Result};

const RANDOM: &str = "/dev/urandom";
/// The kernel counts interfaces from 1 on; numbers from here on it does not reach.
const FIRST_INDEX: u32 = 8192;

/// A number for an interface. A macvtap's device file is called by it, and all namespaces have those in one directory.
pub(super) fn index() -> Result<u32> {
    let most = i32::MAX.unsigned_abs();
    Ok(FIRST_INDEX + u32::from_ne_bytes(bytes()?) % (most - FIRST_INDEX))
}

/// An address of Ethernet that no maker has given: local, and of one interface.
pub(super) fn mac() -> Result<Mac> {
    let mut mac: [u8; 6] = bytes()?;
    mac[0] = mac[0] & !1 | 2;
    Ok(Mac(mac))
}

fn bytes<const COUNT: usize>() -> Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    File::open(RANDOM).and_then(|mut random| random.read_exact(&mut bytes)).map_err(Error::io(RANDOM))?;
    Ok(bytes)
}
