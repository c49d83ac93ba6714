//! What can go wrong in the guest, and the ttrpc code each kind is answered with.

use std::{io, time::Duration};

use ttrpc::{Code, get_status};

/// An answer other than success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The request cannot be right, whatever the state of the guest.
    #[error("{0}")]
    Invalid(String),
    /// The request names something that is not there.
    #[error("{kind} {id}: not found")]
    NotFound { kind: &'static str, id: String },
    /// The request makes something that is there already.
    #[error("{kind} {id}: exists already")]
    Exists { kind: &'static str, id: String },
    /// The request comes at the wrong time.
    #[error("{0}")]
    State(String),
    /// The method is part of the protocol but not of this agent.
    #[error("{0} is not implemented by this agent")]
    Unimplemented(&'static str),
    /// A step did not end in time and was given up.
    #[error("{what}: not done within {after:?}")]
    Timeout { what: String, after: Duration },
    /// The kernel refused.
    #[error("{what}")]
    System {
        what: String,
        #[source]
        source: io::Error,
    },
    /// A worker refused; the text is what the caller should read.
    #[error("{0}")]
    Worker(String),
}

impl Error {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    pub(crate) fn state(text: impl Into<String>) -> Self {
        Self::State(text.into())
    }

    /// Wraps a refused system call, for `map_err`.
    pub(crate) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what: what.into(), source: source.into() }
    }

    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::NotFound { .. } => Code::NOT_FOUND,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::State(_) => Code::FAILED_PRECONDITION,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Timeout { .. } => Code::DEADLINE_EXCEEDED,
            Self::System { .. } | Self::Worker(_) => Code::INTERNAL,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(get_status(error.code(), chain(&error)))
    }
}

/// The error and its causes on one line, outermost first.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent wrappers repeat their cause.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = Error::system("open /x")(io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(chain(&error), "open /x: No such file or directory (os error 2)");
    }

    #[test]
    fn each_kind_has_its_code() {
        let answer: ttrpc::Error = Error::NotFound { kind: "container", id: "x".into() }.into();
        let ttrpc::Error::RpcStatus(status) = answer else { panic!("{answer:?}") };
        assert_eq!((status.code(), status.message()), (Code::NOT_FOUND, "container x: not found"));
    }
}
