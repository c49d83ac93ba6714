//! Where an agent listens, and how a connection to it is made.

use std::{fmt, io, path::PathBuf};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
};
use ttrpc::r#async::transport::Socket;

use crate::{error::Error, short_path::ShortPath};

/// The vsock port agents serve on.
pub const AGENT_PORT: u32 = 1024;

/// Where a guest's agent can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Through the host's kernel (vhost-vsock).
    Vsock {
        /// The guest's context id.
        cid: u32,
    },
    /// Through a helper's Unix socket, which wants `CONNECT <port>` first and answers `OK <port>`.
    Unix {
        /// The socket; of any length.
        path: PathBuf,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid } => write!(f, "vsock {cid}:{AGENT_PORT}"),
            Self::Unix { path } => write!(f, "{}, port {AGENT_PORT}", path.display()),
        }
    }
}

impl Endpoint {
    /// Connects; has no deadline of its own.
    pub(crate) async fn dial(&self) -> Result<Socket, Error> {
        let stream = match self {
            // Opened close-on-exec, as tokio's Unix sockets are: no hook or logger inherits the agent.
            Self::Vsock { cid } => Socket::connect(format!("vsock://{cid}:{AGENT_PORT}")).await,
            Self::Unix { path } => dial_unix(path.clone()).await,
        };
        stream.map_err(|source| Error::Connect { endpoint: self.to_string(), source })
    }
}

async fn dial_unix(path: PathBuf) -> io::Result<Socket> {
    let mut stream = UnixStream::connect(ShortPath::new(&path)?.path()).await?;
    ask_for_port(&mut stream, AGENT_PORT).await?;
    Ok(Socket::from(stream))
}

/// The helper's handshake: `CONNECT <port>\n`, answered by `OK <number>\n`.
async fn ask_for_port(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), port: u32) -> io::Result<()> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let line = read_line(stream).await?;
    let number = line.strip_prefix(b"OK ").and_then(|number| std::str::from_utf8(number).ok());
    if number.is_none_or(|number| number.parse::<u32>().is_err()) {
        let line = line.escape_ascii();
        let what = format!("\"CONNECT {port}\" was answered by \"{line}\" instead of \"OK <number>\"");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(())
}

/// Reads up to the newline and not a byte further: what follows is the agent's.
async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    const LONGEST: usize = 64;
    let mut line = Vec::with_capacity(LONGEST);
    while line.len() < LONGEST {
        match stream.read_u8().await {
            Ok(b'\n') => return Ok(line),
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let what = format!("the connection was closed after \"{}\"", line.escape_ascii());
                return Err(io::Error::new(error.kind(), what));
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("no newline in {LONGEST} bytes of answer")))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn answered_by(answer: &[u8]) -> (io::Result<()>, Vec<u8>) {
        let (mut host, mut helper) = duplex(256);
        helper.write_all(answer).await.unwrap();
        helper.shutdown().await.unwrap();
        let outcome = ask_for_port(&mut host, 1024).await;
        let mut rest = Vec::new();
        host.read_to_end(&mut rest).await.unwrap();
        (outcome, rest)
    }

    #[tokio::test]
    async fn what_follows_the_newline_is_left_for_the_agent() {
        let (outcome, rest) = answered_by(b"OK 1073741824\n\0\0\0\x07rest").await;
        outcome.unwrap();
        assert_eq!(rest, b"\0\0\0\x07rest");
    }

    #[tokio::test]
    async fn an_answer_that_is_not_ok_and_a_number_is_refused() {
        let (long, huge) = (vec![b'x'; 100], [b"OK ".as_slice(), &[b'9'; 20], b"\n"].concat());
        for answer in [b"".as_slice(), b"OK", b"OK \n", b"OK x\n", b"ok 1\n", b"\n", b"OK -1\n", &long, &huge]
        {
            let (outcome, _) = answered_by(answer).await;
            outcome.expect_err(&answer.escape_ascii().to_string());
        }
    }
}
