//! What can go wrong between the host and the guest's agent.

use std::{io, time::Duration};

pub use ttrpc::Code;

/// A call to the agent, or the way to it, did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the guest.
    #[error("connecting to the guest agent: {0}")]
    Connect(io::Error),
    /// The agent was tried again and again, in vain.
    #[error(
        "the guest agent did not answer within {after:?}, {attempts} attempts: {last}; the guest's console shows \
         whether its kernel and agent came up"
    )]
    Unreachable {
        /// How long it was sought.
        after: Duration,
        /// How many connections were tried.
        attempts: u32,
        /// Why the last of them did not do.
        last: Box<Error>,
    },
    /// The guest did not answer in time. If it did not even read the request, the connection is closed.
    #[error("the guest agent did not answer {call} within {after:?}")]
    Timeout {
        /// The call's name in the protocol.
        call: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The connection ended before the answer came: the guest or its agent is gone.
    #[error("the connection to the guest agent closed during {call}")]
    Closed {
        /// The call's name in the protocol.
        call: &'static str,
    },
    /// The agent answered with an error.
    #[error("the guest agent refused {call}: {message} ({code:?})")]
    Guest {
        /// The call's name in the protocol.
        call: &'static str,
        /// The agent's code.
        code: Code,
        /// The agent's words: untrusted, escaped and shortened, fit for a log or a user.
        message: String,
    },
    /// The agent's answer breaks the protocol.
    #[error("the guest agent broke the protocol in {call}: {what}")]
    Protocol {
        /// The call's name in the protocol.
        call: &'static str,
        /// What was wrong; escaped and shortened.
        what: String,
    },
}

/// What agents in the field say, lower case, instead of answering with [`Code::NOT_FOUND`].
const NOT_FOUND_TEXTS: [&str; 4] =
    ["invalid container id", "invalid exec id", "cannot find init process", "esrch: no such process"];

impl Error {
    /// Whether the agent says that the container or process is not there, or not any more.
    pub fn is_not_found(&self) -> bool {
        let Self::Guest { code, message, .. } = self else { return false };
        let message = message.to_lowercase();
        let named = NOT_FOUND_TEXTS.iter().any(|text| message.contains(text));
        !self.is_unsupported() && (*code == Code::NOT_FOUND || named)
    }

    /// Whether the agent has no such call.
    ///
    /// ttrpc servers say so with [`Code::UNIMPLEMENTED`], or, when the call is in their protocol but has no
    /// code behind it, with [`Code::NOT_FOUND`] and a text of ttrpc's own.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Guest { code: Code::UNIMPLEMENTED, .. } => true,
            Self::Guest { code: Code::NOT_FOUND, message, .. } => message.ends_with(" is not supported"),
            _ => false,
        }
    }

    /// Whether the agent says that a stream has ended.
    ///
    /// Agents in the field answer a read at the end of a stream with an error, under varying codes, whose
    /// text is or contains "EOF" ("read meet eof").
    pub(crate) fn is_end_of_stream(&self) -> bool {
        matches!(self, Self::Guest { message, .. } if message.to_lowercase().contains("eof"))
    }

    pub(crate) fn protocol(call: &'static str, what: impl AsRef<str>) -> Self {
        Self::Protocol { call, what: fit_for_a_log(what.as_ref()) }
    }

    /// What ttrpc said of one call. `open` is whether the connection still was.
    pub(crate) fn from_ttrpc(call: &'static str, error: ttrpc::Error, open: bool) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                let code = status.code.enum_value().unwrap_or(Code::UNKNOWN);
                Self::Guest { call, code, message: fit_for_a_log(&status.message) }
            }
            ttrpc::Error::Others(what) if open => Self::protocol(call, what),
            // A dead connection shows in many ways, depending on where the call stood.
            _ => Self::Closed { call },
        }
    }
}

/// The guest's words, so that they can neither flood a log nor steer a terminal.
fn fit_for_a_log(text: &str) -> String {
    const LONGEST: usize = 1024;
    let mut fit = String::new();
    for letter in text.chars() {
        if fit.len() >= LONGEST {
            fit.push('…');
            break;
        }
        if letter.is_control() { fit.extend(letter.escape_default()) } else { fit.push(letter) }
    }
    fit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(code: Code, message: &str) -> Error {
        Error::from_ttrpc("Call", ttrpc::error::get_rpc_status(code, message), true)
    }

    #[test]
    fn not_found_is_seen_in_the_code_and_in_the_words_of_field_agents() {
        assert!(guest(Code::NOT_FOUND, "").is_not_found());
        assert!(guest(Code::INTERNAL, "Invalid container id").is_not_found());
        assert!(guest(Code::INVALID_ARGUMENT, "ESRCH: No such process").is_not_found());
        assert!(!guest(Code::INTERNAL, "no memory").is_not_found());
        assert!(!Error::Closed { call: "Call" }.is_not_found());
    }

    #[test]
    fn a_call_the_agent_lacks_is_not_a_container_that_is_gone() {
        for error in [
            guest(Code::NOT_FOUND, "/grpc.AgentService/PauseContainer is not supported"),
            guest(Code::UNIMPLEMENTED, "no such method"),
        ] {
            assert!(error.is_unsupported() && !error.is_not_found(), "{error}");
        }
    }

    #[test]
    fn the_guests_words_cannot_flood_or_steer() {
        let hostile = format!("\u{1b}[2J\n{}", "é".repeat(1 << 20));
        let text = guest(Code::INTERNAL, &hostile).to_string();
        assert!(text.len() < 1200, "{} bytes", text.len());
        assert!(!text.chars().any(char::is_control));
        assert!(text.contains("\\u{1b}[2J\\n"));
    }

    #[test]
    fn a_code_outside_the_protocol_is_unknown() {
        let mut status = ttrpc::error::get_status(Code::OK, "x");
        status.code = protobuf::EnumOrUnknown::from_i32(-7);
        let error = Error::from_ttrpc("Call", ttrpc::Error::RpcStatus(status), true);
        assert!(matches!(error, Error::Guest { code: Code::UNKNOWN, .. }), "{error}");
    }
}
