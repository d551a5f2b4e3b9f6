//! Rooms and gateways: what the two say to each other.
//!
//! A gateway holds sockets of many rooms. To a room each of them is a connection
//! like those of its own sockets, and the gateway is where their frames go: one
//! request a tick, whatever number of sockets is behind it, with what all of
//! them get in it once.
//!
//! During a deploy the two may differ by a version, so fields are only ever
//! added, with a default.

use super::connections::Start;
use super::output::{ConnId, Output};
use super::tick::{Arrival, Greeting};
use super::{Hello, Room};
use crate::auth::Rights;
use crate::fault::{Fault, Result};
use crate::time::{Millis, sooner};
use crate::wire::command::Status;
use crate::wire::native::{self, Close};
use serde::{Deserialize, Serialize};

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
    pub(super) fn bytes(&self) -> usize {
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

impl Room {
    /// A connection at a gateway joins; see [`Command::Join`].
    pub fn subscribe(
        &mut self,
        hello: Hello,
        id: Option<u32>,
        again: bool,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<ConnId> {
        if !hello.rights.has(Rights::READ) {
            return Err(Fault::forbidden("the token does not open this room"));
        }
        let client = client_of(&hello.connection_id);
        let mut here = self.roster.sockets(&hello.user);
        let before = here.find(|conn| self.is_of(*conn, client));
        drop(here);
        if let Some(conn) = before {
            out.push(Output::Replaced { conn });
            // 1012: the service restarts (IANA).
            self.disconnect(conn, 1012, now, out);
        }
        if again {
            let left = self.parting.iter().any(|conn| self.is_of(*conn, client));
            if left || !self.members.contains_key(hello.user.as_str()) {
                return Err(Fault::not_joined());
            }
            self.admit_user(&hello, now)?;
        } else {
            self.admit(&hello, now)?;
        }
        Ok(self.arrive(hello, Greeting::Joined(id), now, out))
    }

    /// The connection that the client at a gateway has here, whichever of its
    /// connections is named.
    pub fn seat_of(&self, connection: &str) -> Option<ConnId> {
        let client = client_of(connection);
        self.conns.keys().find(|conn| self.is_of(*conn, client))
    }

    /// Whether a connection is one of this client at a gateway.
    fn is_of(&self, conn: ConnId, client: &str) -> bool {
        self.conn(conn)
            .is_some_and(|conn| conn.remote && client_of(&conn.id) == client)
    }

    /// A connection showed another token, and has the rights of this one now. A
    /// connection at a gateway that may not read any more leaves the room: a
    /// gateway of this version does not ask for that, one of an older does.
    pub fn refreshed(
        &mut self,
        conn: ConnId,
        rights: Rights,
        expires: Millis,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(this) = self.conn_mut(conn) else {
            return;
        };
        if this.remote && !rights.has(Rights::READ) {
            out.push(Output::Parted { conn });
            return self.disconnect(conn, Close::Forbidden.code(), now, out);
        }
        this.rights = rights;
        this.expires = expires;
        let shows_status = rights.has(Rights::PRESENCE) || this.status == Status::default();
        if !shows_status {
            this.status = Status::default();
            let user = this.user.clone();
            self.roster.set(&user, conn, Status::default());
            self.expect_news(now);
        }
        sooner(&mut self.expiry, expires);
        out.push(Output::Attach { conn });
    }

    /// The answer to `joinRoom` and what was missed.
    pub(super) fn welcome_remote(
        &mut self,
        arrival: &Arrival,
        id: Option<u32>,
        head: u64,
        out: &mut Vec<Output>,
    ) {
        let conn = arrival.conn;
        let Some(this) = self.conn(conn).filter(|conn| conn.joined) else {
            return;
        };
        let user = this.user.clone();
        out.push(Output::Attach { conn });
        out.push(Output::Joined {
            conn,
            after: arrival.after,
        });
        if let Some(id) = id {
            let start = Start {
                after: arrival.after,
                reset: arrival.reset,
            };
            out.push(Output::Send {
                conn,
                frame: native::ack(id, &self.joined_json(&user, head, start)),
            });
        }
        if arrival.after < head {
            self.log_replay(conn, arrival.after, head, out);
            self.fall_behind(conn, arrival.after, out);
        }
    }

    /// Connections at gateways whose membership ended have been told so: they
    /// are of the room no more.
    pub(super) fn part(&mut self, now: Millis, out: &mut Vec<Output>) {
        for conn in std::mem::take(&mut self.parting) {
            // It may have joined again.
            if self.conn(conn).is_some_and(|conn| !conn.joined) {
                out.push(Output::Parted { conn });
                self.disconnect(conn, 1000, now, out);
            }
        }
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
