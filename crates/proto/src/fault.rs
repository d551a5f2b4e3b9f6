//! What can be wrong with what a client or a service asked for: one type for
//! the whole core. Sockets turn it into an error answer (`wire::native`), HTTP
//! into a problem (`http::problem`), each in one place.

use crate::time::Millis;
use serde::{Deserialize, Serialize};

/// The stable error codes of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Code {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    NotJoined,
    TooLarge,
    RateLimited,
    Conflict,
    Internal,
}

impl Code {
    /// The code as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BadRequest => "badRequest",
            Code::Unauthorized => "unauthorized",
            Code::Forbidden => "forbidden",
            Code::NotFound => "notFound",
            Code::NotJoined => "notJoined",
            Code::TooLarge => "tooLarge",
            Code::RateLimited => "rateLimited",
            Code::Conflict => "conflict",
            Code::Internal => "internal",
        }
    }

    /// The HTTP status that says the same.
    pub fn status(self) -> u16 {
        match self {
            Code::BadRequest => 400,
            Code::Unauthorized => 401,
            Code::Forbidden | Code::NotJoined => 403,
            Code::NotFound => 404,
            Code::Conflict => 409,
            Code::TooLarge => 413,
            Code::RateLimited => 429,
            Code::Internal => 500,
        }
    }
}

/// A refusal: its code and a sentence for the developer who reads it. Never
/// holds a token or content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Fault {
    pub code: Code,
    pub message: String,
    /// The field that is wrong, where one is.
    pub field: Option<String>,
    /// With [`Code::RateLimited`]: when to try again.
    pub retry_after: Option<Millis>,
}

impl Fault {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Fault {
            code,
            message: message.into(),
            field: None,
            retry_after: None,
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Fault::new(Code::BadRequest, message)
    }

    /// `field` is not what it must be: `expected` reads "a whole number".
    pub fn bad_field(field: &str, expected: &str) -> Self {
        Fault {
            field: Some(field.to_owned()),
            ..Fault::bad_request(format!("`{field}` must be {expected}"))
        }
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Fault::new(Code::Unauthorized, message)
    }

    /// A request has no token at all.
    pub fn no_token() -> Self {
        Fault::unauthorized(
            "send a token: Authorization: Bearer, Sec-WebSocket-Protocol: roomcast.v1, bearer.<jwt>, or ?token=",
        )
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Fault::new(Code::Forbidden, message)
    }

    pub fn not_joined() -> Self {
        Fault::new(Code::NotJoined, "join the room first")
    }

    pub fn rate_limited(what: &str, retry_after: Millis) -> Self {
        Fault {
            retry_after: Some(retry_after.max(1)),
            ..Fault::new(Code::RateLimited, format!("too many {what}"))
        }
    }

    pub fn internal() -> Self {
        Fault::new(Code::Internal, "something went wrong here; try again")
    }
}

pub type Result<T> = std::result::Result<T, Fault>;
