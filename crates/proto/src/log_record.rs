//! Records of the operator's log: one line of JSON for each event. A record contains
//! only fields that are added by name, so content and tokens cannot reach the log.

use crate::answer::to_json;
use crate::error::{Error, ErrorCode};
use crate::time::{Millis, rfc3339};
use serde_json::{Map, Value};

/// The level of a record, and the lowest level that is logged (`LOG_LEVEL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Details for debugging.
    Debug,
    /// Normal events, such as connects and batches.
    Info,
    /// Rejected requests and connections.
    Warn,
    /// Failures of the server.
    Error,
    /// As `LOG_LEVEL`: log nothing.
    Off,
}

impl Level {
    /// All levels, in ascending order.
    pub const ALL: [Level; 5] = [
        Level::Debug,
        Level::Info,
        Level::Warn,
        Level::Error,
        Level::Off,
    ];

    /// Returns the level as it is written in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Off => "off",
        }
    }
}

/// One record: `{ ts, level, event, roomId, userId, connectionId, … }`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// The level of the record.
    pub level: Level,
    fields: Map<String, Value>,
}

impl LogRecord {
    /// Creates a record of an event.
    pub fn new(level: Level, event: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("level".into(), level.as_str().into());
        fields.insert("event".into(), event.into());
        LogRecord { level, fields }
    }

    /// Creates a record at [`Level::Info`].
    pub fn info(event: &str) -> Self {
        LogRecord::new(Level::Info, event)
    }

    /// Creates the record of a rejected request or connection. `reason` is a short code:
    /// `auth`, `origin`, `rate`, `malformed`, …
    pub fn reject(reason: &str) -> Self {
        LogRecord::new(Level::Warn, "reject").with("reason", reason)
    }

    /// Creates the record of a connection or request that `error` rejects. The reason follows
    /// from the code of the error.
    pub fn rejected(error: &Error) -> Self {
        let reason = match error.code {
            ErrorCode::RateLimited | ErrorCode::Conflict => "rate",
            ErrorCode::BadRequest | ErrorCode::TooLarge => "malformed",
            _ => "auth",
        };
        LogRecord::reject(reason).cause(error)
    }

    /// Creates the record of a failure of the server.
    pub fn error(what: impl Into<String>) -> Self {
        LogRecord::new(Level::Error, "error").with("error", what.into())
    }

    /// Adds a field.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// Adds the code and the message of an error, which contain neither a token nor the
    /// content of a message.
    pub fn cause(self, error: &Error) -> Self {
        self.with("code", error.code.as_str())
            .with("detail", error.message.as_str())
    }

    /// Adds the room.
    pub fn room(self, room: &str) -> Self {
        self.with("roomId", room)
    }

    /// Adds the user.
    pub fn user(self, user: &str) -> Self {
        self.with("userId", user)
    }

    /// Adds the id of the connection.
    pub fn connection(self, id: &str) -> Self {
        self.with("connectionId", id)
    }

    /// Adds the duration in milliseconds, unless the record already has one.
    pub fn took(mut self, millis: Millis) -> Self {
        self.fields
            .entry("durationMs")
            .or_insert_with(|| millis.into());
        self
    }

    /// Returns the record as one line of JSON with the time `now`.
    pub fn line(mut self, now: Millis) -> String {
        self.fields.insert("ts".into(), rfc3339(now).into());
        to_json(&self.fields)
    }
}
