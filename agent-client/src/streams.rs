//! Standard input, output and error of a process in the guest.
//!
//! Reading waits for output and writing waits for the process to take its input, so neither has a deadline;
//! both end with the connection.

use agent_protocol::agent::{
    CloseStdinRequest, ReadStreamRequest, ReadStreamResponse, TtyWinResizeRequest, WriteStreamRequest,
};
use ttrpc::context::Context;

use crate::{calls::ask, client::AgentClient, error::Error};

/// The vsock port on which agents that can have a process' streams on connections of their own take those.
pub const STREAM_PORT: u32 = 1027;

/// Most bytes asked for or sent in one call: what every agent in the field takes and gives.
pub const STREAM_CHUNK: usize = 32 * 1024;

/// The host's ports of the connections that are a process' streams; zero for a stream that goes by calls.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct StreamPorts {
    /// Standard input.
    pub stdin: u32,
    /// Standard output, or a terminal's.
    pub stdout: u32,
    /// Standard error.
    pub stderr: u32,
}

impl AgentClient {
    /// Gives bytes to a process' standard input; returns how many were taken, at least one of them and at
    /// most [`STREAM_CHUNK`]. Waits, without a deadline, until the process makes room.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] when the guest claims to have taken none or more than it was given.
    pub async fn write_stdin(&self, container: &str, exec: &str, bytes: &[u8]) -> Result<usize, Error> {
        let sent = bytes.len().min(STREAM_CHUNK);
        if sent == 0 {
            return Ok(0);
        }
        let request = WriteStreamRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            data: bytes[..sent].to_vec(),
            ..Default::default()
        };
        let taken = ask!(self, "WriteStdin", None, write_stdin, request)?.len as usize;
        match taken {
            1.. if taken <= sent => Ok(taken),
            _ => Err(Error::protocol("WriteStdin", format!("{taken} bytes taken of {sent}"))),
        }
    }

    /// Waits, without a deadline, for output and returns at most `max` bytes of it, at most
    /// [`STREAM_CHUNK`] and at least one; none mean that the stream has ended.
    ///
    /// The end shows on the wire as an answer without data from this project's agent, and as an error that
    /// speaks of "EOF" from others in the field; here both are an empty answer.
    ///
    /// Output that arrives after this future was dropped is lost, so it wants to be polled to its end.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] when the guest answers with more than was asked for; the stream is then of no
    /// further use.
    pub async fn read_stdout(&self, container: &str, exec: &str, max: usize) -> Result<Vec<u8>, Error> {
        let (request, asked) = read_request(container, exec, max);
        checked("ReadStdout", asked, ask!(self, "ReadStdout", None, read_stdout, request))
    }

    /// As [`read_stdout`](Self::read_stdout), for standard error.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn read_stderr(&self, container: &str, exec: &str, max: usize) -> Result<Vec<u8>, Error> {
        let (request, asked) = read_request(container, exec, max);
        checked("ReadStderr", asked, ask!(self, "ReadStderr", None, read_stderr, request))
    }

    /// Ends a process' standard input.
    ///
    /// # Errors
    ///
    /// Those of any bounded call.
    pub async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), Error> {
        let request = CloseStdinRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        ask!(self, "CloseStdin", Some(self.timeouts.call), close_stdin, request).map(drop)
    }

    /// Tells a process' terminal its new size, in character cells.
    ///
    /// # Errors
    ///
    /// Those of any bounded call.
    pub async fn resize_tty(
        &self,
        container: &str,
        exec: &str,
        rows: u32,
        columns: u32,
    ) -> Result<(), Error> {
        let request = TtyWinResizeRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            row: rows,
            column: columns,
            ..Default::default()
        };
        ask!(self, "TtyWinResize", Some(self.timeouts.call), tty_win_resize, request).map(drop)
    }
}

fn read_request(container: &str, exec: &str, max: usize) -> (ReadStreamRequest, usize) {
    // An answer to "no bytes" could not be told from the end.
    let asked = max.clamp(1, STREAM_CHUNK);
    let request = ReadStreamRequest {
        container_id: container.to_owned(),
        exec_id: exec.to_owned(),
        len: asked as u32,
        ..Default::default()
    };
    (request, asked)
}

/// An answer longer than asked for has crashed other runtimes, which copied it into their own buffer.
fn checked(
    call: &'static str,
    asked: usize,
    answer: Result<ReadStreamResponse, Error>,
) -> Result<Vec<u8>, Error> {
    match answer {
        Ok(reply) if reply.data.len() > asked => {
            Err(Error::protocol(call, format!("{} bytes answered, {asked} asked", reply.data.len())))
        }
        Ok(reply) => Ok(reply.data),
        Err(error) if error.is_end_of_stream() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
