//! As much of HTTP as the tools of operators speak: one request to a connection, on a socket of the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::{Context, Result};

/// How long an answer may take to begin: the guest may have a disk to grow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Status and body of the answer to a request.
pub fn ask(socket: &Path, method: &str, target: &str, body: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).context(socket.display())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: shim\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context(format_args!("{method} {target}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context(format_args!("{method} {target}: {answer}"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok((status.context(format_args!("{method} {target}: {head}"))?, body.to_owned()))
}
