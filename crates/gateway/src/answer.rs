//! Answers to requests of long-polling.

use crate::handshake::Error as HandshakeError;
use engineioxide_core::Packet;
use roomcast_proto::answer::to_json;
use roomcast_proto::error::Error;
use serde_json::json;

/// The separator of the packets of a polling payload.
pub(crate) const SEPARATOR: char = '\u{1e}';

/// The answer to a request of long-polling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    pub(crate) fn ok(body: String) -> Self {
        Answer { status: 200, body }
    }

    pub(crate) fn packets(packets: impl IntoIterator<Item = Packet>) -> Self {
        let packets: Vec<String> = packets.into_iter().map(String::from).collect();
        Answer::ok(packets.join(&SEPARATOR.to_string()))
    }

    /// Returns the answer to a request that fails with `error`.
    pub fn error(error: HandshakeError) -> Self {
        Answer {
            status: 400,
            body: error.json(),
        }
    }

    /// Returns the answer to a request that the server cannot handle at the moment. The body is
    /// the error, which the Worker answers as a problem.
    pub(crate) fn unavailable() -> Self {
        let error = Error::overloaded();
        Answer {
            status: error.code.status(),
            body: serde_json::to_string(&error).unwrap_or_default(),
        }
    }

    pub(crate) fn too_large() -> Self {
        Answer {
            status: 413,
            body: to_json(&json!({ "code": 3, "message": "Payload too large" })),
        }
    }
}
