//! Reasons for which the server closes a socket.

use crate::error::ErrorCode;

/// Reason for which the server closes a socket, with its close code.
///
/// The codes are HTTP status codes with 4000 added, in the range that RFC 6455, 7.4.2
/// leaves to applications. A client reconnects after 4408, 4410, 4500 and 4503, after
/// 4401 with a new token, and after 4429 with a delay. After 4400, 4403 and 4413 the
/// same request would fail again. After 4409 it would replace another connection.
///
/// The serialised names of the variants are stored and sent between objects, so they
/// must not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Disconnect {
    /// A frame was not valid in the framing. Code 4400.
    Malformed,
    /// The token has expired. Code 4401.
    Expired,
    /// The token was revoked. Code 4401.
    Revoked,
    /// The token of a `refreshToken` command does not allow the connection. Code 4403.
    Forbidden,
    /// A service removed the user from the room. Code 4403.
    Kicked,
    /// A frame exceeded the limit of bytes or lines. Code 4413.
    TooLarge,
    /// The client exceeded a rate limit for too long, or flooded the object. Code 4429.
    TooFast,
    /// The room was deleted. The client may join again without `since`. Code 4410.
    RoomDeleted,
    /// The keepalive timed out: no ping for `GHOST_TIMEOUT`. Code 4408.
    #[serde(rename = "Ghost")]
    Stale,
    /// Another connection of the user has replaced this one, which was silent for longer
    /// than all others. Code 4409.
    Replaced,
    /// Slow consumer: the client did not read what was sent to it. It may resume from
    /// its last sequence number. Code 4503.
    TooSlow,
    /// The server failed. Code 4500.
    Failed,
    /// The client did not authenticate or connect to a namespace in time. Code 4408.
    NoHandshake,
    /// Normal closure at the request of the client. Code 1000.
    Normal,
}

impl Disconnect {
    /// Returns the close code.
    pub fn code(self) -> u16 {
        match self {
            Disconnect::Malformed => 4400,
            Disconnect::Expired | Disconnect::Revoked => 4401,
            Disconnect::Forbidden | Disconnect::Kicked => 4403,
            Disconnect::NoHandshake | Disconnect::Stale => 4408,
            Disconnect::Replaced => 4409,
            Disconnect::TooLarge => 4413,
            Disconnect::TooFast => 4429,
            Disconnect::RoomDeleted => 4410,
            Disconnect::Normal => 1000,
            Disconnect::Failed => 4500,
            Disconnect::TooSlow => 4503,
        }
    }

    /// Returns the error code with the same meaning, for a connection that is refused for this
    /// reason.
    pub fn error_code(self) -> ErrorCode {
        match self {
            Disconnect::Malformed | Disconnect::NoHandshake | Disconnect::Normal => {
                ErrorCode::BadRequest
            }
            Disconnect::Expired | Disconnect::Revoked => ErrorCode::Unauthorized,
            Disconnect::Forbidden | Disconnect::Kicked => ErrorCode::Forbidden,
            Disconnect::Replaced => ErrorCode::Conflict,
            Disconnect::TooLarge => ErrorCode::TooLarge,
            Disconnect::TooFast => ErrorCode::RateLimited,
            Disconnect::RoomDeleted => ErrorCode::NotFound,
            Disconnect::Stale | Disconnect::TooSlow => ErrorCode::Unavailable,
            Disconnect::Failed => ErrorCode::Internal,
        }
    }

    /// Returns `true` if the client must not reconnect by itself with the same token. Socket.IO
    /// clients get a DISCONNECT packet.
    pub fn is_final(self) -> bool {
        match self {
            Disconnect::Expired
            | Disconnect::Revoked
            | Disconnect::Kicked
            | Disconnect::Forbidden
            | Disconnect::Replaced
            | Disconnect::TooFast => true,
            Disconnect::Malformed
            | Disconnect::TooLarge
            | Disconnect::RoomDeleted
            | Disconnect::Stale
            | Disconnect::TooSlow
            | Disconnect::Failed
            | Disconnect::NoHandshake
            | Disconnect::Normal => false,
        }
    }

    /// Returns the text that is sent with the close code. At most 123 bytes
    /// (RFC 6455, 5.5).
    pub fn reason(self) -> &'static str {
        match self {
            Disconnect::Malformed => "malformed frame",
            Disconnect::Expired => "token expired",
            Disconnect::Revoked => "token revoked",
            Disconnect::Forbidden => "forbidden",
            Disconnect::Kicked => "kicked",
            Disconnect::TooLarge => "frame too large",
            Disconnect::TooFast => "rate limit exceeded",
            Disconnect::RoomDeleted => "room deleted",
            Disconnect::Stale => "keepalive timeout",
            Disconnect::Replaced => "replaced by another connection of the user",
            Disconnect::TooSlow => "slow consumer, resume from your last seq",
            Disconnect::Failed => "internal error",
            Disconnect::NoHandshake => "handshake timeout",
            Disconnect::Normal => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader;

    #[test]
    fn variants_keep_their_stored_names() {
        let stored = r#"["Malformed","Expired","Revoked","Forbidden","Kicked","TooLarge","TooFast","RoomDeleted","Ghost","TooSlow","Failed","NoHandshake","Normal","Replaced"]"#;
        let all: Vec<Disconnect> = reader::from_str(stored).expect("known names");
        assert_eq!(serde_json::to_string(&all).expect("JSON"), stored);
        assert!(all.iter().all(|one| one.reason().len() <= 123));
    }
}
