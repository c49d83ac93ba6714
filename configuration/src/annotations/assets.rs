//! Whether a file is the one whose hash an annotation gives.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha512};

use crate::program::{content, reason};

/// The only hash there is.
const SHA512: &str = "sha512";

/// Checks the annotation that names the kind of hash.
pub(super) fn hash_type(value: &str) -> Result<(), String> {
    if value == SHA512 { Ok(()) } else { Err(format!("{value:?} is not supported; set {SHA512}")) }
}

/// Checks that the file which `key` names has this hash.
///
/// # Errors
/// That it has another one, or none.
pub(super) fn hash(key: &str, path: &str, expected: &str) -> Result<(), String> {
    if expected.len() != 128 || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("{expected:?} is not a SHA-512; write 128 hexadecimal digits"));
    }
    if path.is_empty() {
        return Err(format!("there is no file to check, as {key} is not set; set it or leave out its hash"));
    }
    content(Path::new(path))?;
    let found = sha512(Path::new(path)).map_err(|error| format!("{path}: {}", reason(&error)))?;
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    // The hash it has would tell a pod about a file that it cannot read.
    Err(format!("{path} has another SHA-512; set that of the file, or leave it out"))
}

fn sha512(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha512::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => digest.update(&buffer[..read]),
        }
    }
    Ok(digest.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot go wrong.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
