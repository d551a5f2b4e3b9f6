//! Errors that are sent to clients and services. All crates of the core use this type.
//! Each transport encodes it in one place: sockets as an error answer
//! ([`framing::error`](crate::framing::error)), HTTP as `application/problem+json`.

use crate::retry::OVERLOAD_PAUSE;
use crate::time::Millis;
use serde::{Deserialize, Serialize};

/// The error codes of the protocol. Clients may depend on them: they never change their
/// meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum ErrorCode {
    /// The request is malformed or a field has a wrong value.
    BadRequest,
    /// There is no token, or the token is not valid.
    Unauthorized,
    /// The token is valid but does not allow this.
    Forbidden,
    /// The resource does not exist.
    NotFound,
    /// The connection has not joined the room.
    NotJoined,
    /// A frame or body exceeds its size limit.
    TooLarge,
    /// A rate limit was exceeded. The error has the time after which to retry.
    RateLimited,
    /// The request conflicts with the state of the server, such as a full room.
    Conflict,
    /// The server failed. The request may be repeated.
    Internal,
    /// The server cannot check the token at the moment, or is short of memory. The error has the time after which to
    /// retry.
    Unavailable,
}

impl ErrorCode {
    /// Returns the code as clients see it, such as `badRequest`.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "badRequest",
            ErrorCode::Unauthorized => "unauthorized",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::NotFound => "notFound",
            ErrorCode::NotJoined => "notJoined",
            ErrorCode::TooLarge => "tooLarge",
            ErrorCode::RateLimited => "rateLimited",
            ErrorCode::Conflict => "conflict",
            ErrorCode::Internal => "internal",
            ErrorCode::Unavailable => "unavailable",
        }
    }

    /// Returns the HTTP status code with the same meaning.
    pub fn status(self) -> u16 {
        match self {
            ErrorCode::BadRequest => 400,
            ErrorCode::Unauthorized => 401,
            ErrorCode::Forbidden | ErrorCode::NotJoined => 403,
            ErrorCode::NotFound => 404,
            ErrorCode::Conflict => 409,
            ErrorCode::TooLarge => 413,
            ErrorCode::RateLimited => 429,
            ErrorCode::Internal => 500,
            ErrorCode::Unavailable => 503,
        }
    }
}

/// An error with its code and a message for the developer of the client. It never
/// contains a token or the content of a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Error {
    /// The code for programs.
    pub code: ErrorCode,
    /// The message for people.
    pub message: String,
    /// The name of the field with the wrong value, if there is one.
    pub field: Option<String>,
    /// The time in milliseconds after which the client may retry. Set with
    /// [`ErrorCode::RateLimited`] and [`ErrorCode::Unavailable`].
    pub retry_after: Option<Millis>,
}

impl Error {
    /// Creates an error without a field or a retry time.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Error {
            code,
            message: message.into(),
            field: None,
            retry_after: None,
        }
    }

    /// Creates a [`ErrorCode::BadRequest`] error.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Error::new(ErrorCode::BadRequest, message)
    }

    /// Creates the error for a field with a wrong value. `expected` completes the
    /// sentence "`field` must be …".
    pub fn bad_field(field: &str, expected: &str) -> Self {
        Error {
            field: Some(field.to_owned()),
            ..Error::bad_request(format!("`{field}` must be {expected}"))
        }
    }

    /// Creates the error for a required field that is missing.
    pub fn missing_field(field: &str) -> Self {
        Error {
            field: Some(field.to_owned()),
            ..Error::bad_request(format!("`{field}` is required"))
        }
    }

    /// Creates a [`ErrorCode::Unauthorized`] error.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Error::new(ErrorCode::Unauthorized, message)
    }

    /// Creates the error for a request without a token.
    pub fn no_token() -> Self {
        Error::unauthorized(
            "a token is required: send Authorization: Bearer <jwt>, Sec-WebSocket-Protocol: roomcast.v1, bearer.<jwt>, ?token=<jwt>, ?ticket=<ticket>, or auth: { token } of Socket.IO",
        )
    }

    /// Creates a [`ErrorCode::Forbidden`] error.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Error::new(ErrorCode::Forbidden, message)
    }

    /// Creates the error for a command to a room that the connection has not joined.
    pub fn not_joined() -> Self {
        Error::new(ErrorCode::NotJoined, "join the room first")
    }

    /// Creates the error for an exceeded rate limit. `what` names the requests and
    /// completes "too many …". `retry_after` is raised to at least one millisecond.
    pub fn rate_limited(what: &str, retry_after: Millis) -> Self {
        Error {
            retry_after: Some(retry_after.max(1)),
            ..Error::new(ErrorCode::RateLimited, format!("too many {what}"))
        }
    }

    /// Creates the error for a request that cannot be decided before `retry_after`.
    pub fn unavailable(message: &str, retry_after: Millis) -> Self {
        Error {
            retry_after: Some(retry_after),
            ..Error::new(ErrorCode::Unavailable, message)
        }
    }

    /// Creates the error for a request that needs memory of which the server is short.
    pub fn overloaded() -> Self {
        Error {
            retry_after: Some(OVERLOAD_PAUSE),
            ..Error::new(
                ErrorCode::Unavailable,
                "the server is short of memory, try again later",
            )
        }
    }

    /// Creates the error for a failure of the server.
    pub fn internal() -> Self {
        Error::new(ErrorCode::Internal, "internal error, try again")
    }
}

/// A result whose error is sent to the client.
pub type Result<T> = std::result::Result<T, Error>;
