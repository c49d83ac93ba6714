//! What methods about processes and their streams have in common.

use std::sync::Arc;

use agent_protocol::agent::{ReadStreamRequest, ReadStreamResponse, WriteStreamRequest, WriteStreamResponse};

use super::Agent;
use crate::{error::Error, process::Process};

impl Agent {
    pub(super) fn process(&self, container: &str, exec: &str) -> Result<Arc<Process>, Error> {
        self.sandbox.container(container)?.process(exec)
    }

    pub(super) async fn write(&self, request: &WriteStreamRequest) -> Result<WriteStreamResponse, Error> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        let written = process.stdio().write_stdin(&request.data).await?;
        // No longer than the request, which is shorter than 4 GiB.
        let len = u32::try_from(written).unwrap_or(u32::MAX);
        Ok(WriteStreamResponse { len, ..Default::default() })
    }

    pub(super) async fn read(
        &self,
        request: &ReadStreamRequest,
        stream: Output,
    ) -> Result<ReadStreamResponse, Error> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        let max = usize::try_from(request.len).unwrap_or(usize::MAX);
        let data = match stream {
            Output::Stdout => process.stdio().read_stdout(max).await?,
            Output::Stderr => process.stdio().read_stderr(max).await?,
        };
        Ok(ReadStreamResponse { data, ..Default::default() })
    }
}

/// Which of the two to read.
#[derive(Clone, Copy)]
pub(super) enum Output {
    Stdout,
    Stderr,
}
