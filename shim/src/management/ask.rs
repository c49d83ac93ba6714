//! The other side of the door: what a tool of ours asks another shim.

use std::{fs::File, os::fd::AsRawFd, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::door;
use crate::error::{Error, Result};

/// How long an answer may take: the guest may have a file system to grow.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// The body of the answer to a request.
///
/// # Errors
/// `Unavailable` where nobody answers, or what the shim says that does not do it.
pub(crate) fn ask(sandbox: &str, method: &str, target: &str, body: &str) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("tokio"))?;
    runtime.block_on(async {
        let answer = timeout(PATIENCE, exchange(sandbox, method, target, body)).await;
        answer.unwrap_or_else(|_| {
            Err(Error::DeadlineExceeded(format!(
                "sandbox {sandbox}: no answer within {} s",
                PATIENCE.as_secs()
            )))
        })
    })
}

async fn exchange(sandbox: &str, method: &str, target: &str, body: &str) -> Result<Vec<u8>> {
    let socket = door::link_of(sandbox);
    let gone = |error| Error::Unavailable(format!("sandbox {sandbox}: {}: {error}", socket.display()));
    let mut stream = connect(&socket).await.map_err(gone)?;
    let length = body.len();
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: shim\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.map_err(gone)?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await.map_err(gone)?;
    match parsed(&answer) {
        Some((200, body)) => Ok(body.to_vec()),
        Some((_, why)) => {
            Err(Error::Failed(format!("sandbox {sandbox}: {}", String::from_utf8_lossy(why).trim())))
        }
        None => Err(Error::Failed(format!("sandbox {sandbox}: {}: no HTTP answer", socket.display()))),
    }
}

/// An address has room for 107 bytes of path.
async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let dir = File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    UnixStream::connect(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)).await
}

/// Status and body of an answer, after which the shim hangs up.
fn parsed(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    Some((status, &answer[end + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        assert_eq!(parsed(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"), Some((200, &b"{}"[..])));
        assert_eq!(parsed(b"HTTP/1.1 409 Conflict\r\n\r\nsmall\n"), Some((409, &b"small\n"[..])));
        for other in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 ok\r\n\r\n"] {
            assert_eq!(parsed(other.as_bytes()), None, "{other:?}");
        }
    }

    #[test]
    fn a_sandbox_that_is_not_there_is_told_by_its_name() {
        let error = ask("no-such-sandbox", "GET", "/metrics", "").unwrap_err().to_string();
        assert!(error.contains("no-such-sandbox") && error.contains("shim-monitor.sock"), "{error}");
    }
}
