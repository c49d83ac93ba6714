//! As much of HTTP/1.1 as `nydusd` speaks: one request to a connection, an answer that tells its length.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The longest answer that is read, head and body, in bytes.
const LONGEST: usize = 64 << 10;
/// The status of an answer without a body, which then tells no length.
const NO_CONTENT: u16 = 204;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    /// What came is not HTTP, or longer than anything the daemon has to say.
    Nonsense(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

/// Connects to `socket` and asks; waits as long as the caller lets it.
pub(super) async fn ask(socket: &Path, method: &str, target: &str, body: &str) -> Result<Answer, Failure> {
    let mut stream = UnixStream::connect(socket).await?;
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: \
         {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    loop {
        if let Some(answer) = parse(&bytes).map_err(Failure::Nonsense)? {
            return Ok(answer);
        }
        if bytes.len() >= LONGEST {
            return Err(Failure::Nonsense(format!("it is longer than {LONGEST} bytes")));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(Failure::Nonsense(format!("it ends after {} bytes", bytes.len())));
        }
    }
}

/// The answer in `bytes`; `None` until all of it is there.
fn parse(bytes: &[u8]) -> Result<Option<Answer>, String> {
    // Told before the head is whole, so that something else is not waited on for ever.
    let begin = b"HTTP/1.";
    if !bytes.starts_with(&begin[..begin.len().min(bytes.len())]) {
        return Err("it is not HTTP/1".to_owned());
    }
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..head]).map_err(|_| "its head is not text".to_owned())?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| "it has no status".to_owned())?;
    let length = match content_length(lines)? {
        _ if status == NO_CONTENT => 0,
        Some(length) if length <= LONGEST => length,
        Some(length) => return Err(format!("a body of {length} bytes is too long")),
        None => return Err("it does not tell its length".to_owned()),
    };
    let body = bytes.get(head + 4..head + 4 + length);
    Ok(body.map(|body| Answer { status, body: body.to_vec() }))
}

fn content_length<'a>(mut lines: impl Iterator<Item = &'a str>) -> Result<Option<usize>, String> {
    let value = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    let wrong = |value: &str| format!("{value:?} is no length");
    value.map(|value| value.parse().map_err(|_| wrong(value))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(text: &str) -> Answer {
        parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn an_answer_is_there_when_its_last_byte_is() {
        let text = "HTTP/1.1 200 \r\nServer: Nydus API\r\ncontent-LENGTH: 2\r\n\r\n{}";
        for cut in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..cut]), Ok(None), "cut at {cut}");
        }
        assert_eq!(whole(text), Answer { status: 200, body: b"{}".into() });
        assert_eq!(whole("HTTP/1.1 204 \r\n\r\n"), Answer { status: 204, body: Vec::new() });
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for text in [
            "SSH-2.0",
            "HTTP/2",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 ok\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&[b"HTTP/1.1 200 \r\nContent-Length:", bytes.as_slice(), b"\r\n\r\n"].concat());
        }
    }
}
