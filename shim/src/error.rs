//! What a Task call can answer when it refuses, and the ttrpc status containerd sees for it.

use containerd_shim_protos::ttrpc::{self, Code, proto::Status};

/// Why a request was refused. The variant decides the status code (containerd's `errdefs`), the text is for the
/// operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The request itself cannot be right: a bad id, a malformed spec, an unusable configuration.
    #[error("{0}")]
    InvalidArgument(String),
    /// No such container, exec or process.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// Right in itself, but not in the state the process is in.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The call is not part of what this runtime can do.
    #[error("{0}")]
    Unimplemented(String),
    /// Something did not answer in time.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The machine underneath went away.
    #[error("{0}")]
    Unavailable(String),
    /// Everything else.
    #[error("{0}")]
    Failed(String),
}

/// What the shim's own functions return.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn code(&self) -> Code {
        match self {
            Error::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Error::NotFound(_) => Code::NOT_FOUND,
            Error::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Error::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Error::Unimplemented(_) => Code::UNIMPLEMENTED,
            Error::DeadlineExceeded(_) => Code::DEADLINE_EXCEEDED,
            Error::Unavailable(_) => Code::UNAVAILABLE,
            Error::Failed(_) => Code::UNKNOWN,
        }
    }

    /// An input or output error on `what`, in the operator's terms.
    pub(crate) fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
        move |error| Error::Failed(format!("{what}: {error}"))
    }

    /// A system call that was refused on `what`.
    pub(crate) fn os(what: impl std::fmt::Display) -> impl FnOnce(nix::Error) -> Error {
        move |error| Error::Failed(format!("{what}: {}", error.desc()))
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let mut status = Status::new();
        status.set_code(error.code());
        status.set_message(error.to_string());
        ttrpc::Error::RpcStatus(status)
    }
}
