//! The event log: one JSON line for each thing an operator wants to see. Never
//! content, never a token: an entry has only the fields that are put into it
//! here by name.

use crate::time::{Millis, rfc3339};
use serde_json::{Map, Value};

/// Which lines the event log has: those at this level and above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
    Off,
}

impl Level {
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

/// One line: `{ ts, level, event, roomId, userId, connectionId, … }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub level: Level,
    fields: Map<String, Value>,
}

impl Entry {
    pub fn new(level: Level, event: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("level".into(), level.as_str().into());
        fields.insert("event".into(), event.into());
        Entry { level, fields }
    }

    pub fn info(event: &str) -> Self {
        Entry::new(Level::Info, event)
    }

    /// A request that was refused, and on what ground: `auth`, `origin`,
    /// `rate`, `malformed`, …
    pub fn reject(ground: &str) -> Self {
        Entry::new(Level::Warn, "reject").with("reason", ground)
    }

    pub fn error(what: impl Into<String>) -> Self {
        Entry::new(Level::Error, "error").with("error", what.into())
    }

    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    pub fn room(self, room: &str) -> Self {
        self.with("roomId", room)
    }

    pub fn user(self, user: &str) -> Self {
        self.with("userId", user)
    }

    pub fn connection(self, id: &str) -> Self {
        self.with("connectionId", id)
    }

    /// How long it took, unless that was said already.
    pub fn took(mut self, millis: Millis) -> Self {
        self.fields
            .entry("durationMs")
            .or_insert_with(|| millis.into());
        self
    }

    /// The line itself.
    pub fn line(mut self, now: Millis) -> String {
        self.fields.insert("ts".into(), rfc3339(now).into());
        Value::Object(self.fields).to_string()
    }
}
