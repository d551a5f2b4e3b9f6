//! The messages between rooms and gateways, and the request of a connection that
//! joins a room.
//!
//! A gateway holds sockets of many rooms. To a room each of them is a connection
//! like those of its own sockets, and the gateway is where their frames go: one
//! request a tick, whatever number of sockets is behind it, with what all of
//! them get in it once.
//!
//! During a deploy the two may differ by a version, so fields are only ever
//! added, with a default.

use crate::access::{Rights, TokenId};
use crate::time::Millis;
use crate::wire::command::{Position, Status};
use crate::wire::native::Close;
use serde::{Deserialize, Serialize};

/// A connection that asks to join a room. Its token has been judged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub connection_id: String,
    pub user: String,
    pub rights: Rights,
    pub expires: Millis,
    /// Where it comes from, for the limit per address.
    #[serde(default)]
    pub address: Option<String>,
    #[serde(default)]
    pub position: Position,
    #[serde(default)]
    pub status: Status,
    #[serde(default)]
    pub token: TokenId,
}

/// What a gateway asks of a room, in the order its sockets said it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub gateway: String,
    pub commands: Vec<Command>,
}

/// Between the id of a client at a gateway and what makes it one of its
/// connections to a room: each time it joins it is another.
pub const SEAT: char = ':';

/// The client that a connection is of.
pub fn client_of(connection: &str) -> &str {
    connection.split(SEAT).next().unwrap_or_default()
}

/// Connections are named by their ids, which nobody has twice.
#[derive(Debug, Serialize, Deserialize)]
pub enum Command {
    /// Joins; the answer goes by `id`. What else there is of the same client
    /// ([`client_of`]) is gone.
    Join {
        hello: Hello,
        id: Option<u32>,
        /// It was let in before, and comes for what it missed: not if its user
        /// has left since.
        #[serde(default)]
        again: bool,
    },
    /// A frame of the native framing.
    Frame { connection: String, frame: String },
    /// The client is gone, whichever of its connections this is.
    Gone { connection: String, code: u16 },
    /// It showed another token.
    Refresh {
        connection: String,
        rights: Rights,
        expires: Millis,
    },
}

impl Command {
    pub fn connection(&self) -> &str {
        match self {
            Command::Join { hello, .. } => &hello.connection_id,
            Command::Frame { connection, .. }
            | Command::Gone { connection, .. }
            | Command::Refresh { connection, .. } => connection,
        }
    }
}

/// What a room has for the sockets of a gateway. Texts stand behind the header,
/// as they are: they are most of it, and JSON in JSON would double the work.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Push {
    pub room: String,
    pub epoch: String,
    /// Which waking of the room this is.
    pub life: String,
    /// Counts the pushes of this life to this gateway: one that is repeated
    /// because its answer was lost is known by it.
    pub number: u64,
    pub items: Vec<Item>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Item {
    /// A connection gets what `All` gets from here on, after event `after`.
    In { to: String, after: u64 },
    /// A connection is not of the room any more.
    Out { to: String },
    /// Its socket is to be closed.
    Close { to: String, why: Close },
    /// Whether it is still there; it should have had the events up to `at`.
    Is { to: String, at: u64 },
    /// The room does not know this connection, which should join again.
    Lost { to: String },
    /// A text of so many bytes for one connection; with it, it has the events up
    /// to `at`. With `after` it must have had those up to there before.
    One {
        to: String,
        bytes: usize,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<u64>,
    },
    /// A text for all connections that joined but `not` these, with the events
    /// after `after` up to `at`.
    All {
        bytes: usize,
        not: Vec<String>,
        after: u64,
        at: u64,
    },
}

/// The gateway's answer to a push: connections it does not have any more.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pushed {
    pub gone: Vec<String>,
}

impl Item {
    /// The connection it is about, if it is about one.
    pub fn to(&self) -> Option<&str> {
        match self {
            Item::In { to, .. }
            | Item::Out { to }
            | Item::Close { to, .. }
            | Item::Is { to, .. }
            | Item::Lost { to }
            | Item::One { to, .. } => Some(to),
            Item::All { .. } => None,
        }
    }

    /// Whether it must come through, however long that takes, so it is kept until
    /// it has: a connection that left must not get what all get, and one that was
    /// given up must join again. The rest is found to be missing, and comes again.
    pub fn is_last_word(&self) -> bool {
        matches!(
            self,
            Item::Out { .. } | Item::Close { .. } | Item::Lost { .. }
        )
    }

    /// Bytes of its text.
    pub fn bytes(&self) -> usize {
        match self {
            Item::One { bytes, .. } | Item::All { bytes, .. } => *bytes,
            _ => 0,
        }
    }
}

impl Push {
    /// The body of the request: the header on a line, then the texts.
    pub fn body(&self, texts: &str) -> serde_json::Result<String> {
        let mut body = serde_json::to_string(self)?;
        body.reserve(texts.len() + 1);
        body.push('\n');
        body.push_str(texts);
        Ok(body)
    }

    /// Takes a body apart: the header, and each item's text. `None` where it is
    /// not one.
    pub fn parse(body: &str) -> Option<(Push, Vec<&str>)> {
        let (header, mut rest) = body.split_once('\n')?;
        let push: Push = serde_json::from_str(header).ok()?;
        let mut texts = Vec::with_capacity(push.items.len());
        for item in &push.items {
            let (text, after) = rest.split_at_checked(item.bytes())?;
            texts.push(text);
            rest = after;
        }
        Some((push, texts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_read_as_it_was_written() {
        let one = |bytes| Item::One {
            to: "c".into(),
            bytes,
            after: None,
            at: Some(3),
        };
        let push = Push {
            room: "r".into(),
            items: vec![one(3), Item::Out { to: "c".into() }, one(2)],
            ..Push::default()
        };
        let body = push.body("\né!\n").expect("JSON");
        let (read, texts) = Push::parse(&body).expect("is one");
        assert_eq!(read.items, push.items);
        assert_eq!(texts, ["\né", "", "!\n"]);
        for broken in ["", "{}", "{}\n", &body[..body.len() - 1], "x\n"] {
            assert!(Push::parse(broken).is_none(), "{broken}");
        }
        let cut_in_a_character = Push {
            items: vec![one(2)],
            ..push
        };
        let body = cut_in_a_character.body("\né").expect("JSON");
        assert!(Push::parse(&body).is_none());
    }
}
