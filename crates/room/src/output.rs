//! What a room wants done: the effects of a command, in order. The shell
//! carries them out and decides nothing.

use super::Member;
use super::gateways::Kept;
use super::log::Row;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::name::UserId;
use roomcast_proto::time::Millis;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

slotmap::new_key_type! {
    /// A connection in the room. Slots are reused, keys are not: each key
    /// carries the generation of its slot, so the key of a connection that is
    /// gone finds nothing.
    pub struct ConnId;
}

/// A service's call that waits for an answer.
pub type CallId = u64;

#[derive(Debug)]
pub enum Output {
    /// To be stored before any output after it is carried out. When storing
    /// fails those are dropped, every answer that waited for it is `internal`,
    /// and the room is read again from storage.
    Store(Change),
    /// One frame to one socket, now.
    Send {
        conn: ConnId,
        frame: String,
    },
    /// One frame to every socket.
    Deliver(Delivery),
    /// The log after `after` and up to `upto`, to one socket of the room's own,
    /// in large frames.
    Replay {
        conn: ConnId,
        after: u64,
        upto: u64,
    },
    /// A connection at a gateway is behind: it gets the log in portions, and
    /// nothing else of the log until it is at the head. See [`super::catch_up`].
    CatchUp {
        conn: ConnId,
    },
    /// A page of the log, as the answer `id` to one socket.
    Page {
        conn: ConnId,
        id: u32,
        range: super::log::Range,
    },
    /// What must be known of the connection after hibernation has changed.
    Attach {
        conn: ConnId,
    },
    /// A connection at a gateway gets what everybody gets from here on: what
    /// is after event `after`.
    Joined {
        conn: ConnId,
        after: u64,
    },
    /// A connection at a gateway is not of the room any more; its socket stays.
    Parted {
        conn: ConnId,
    },
    Close {
        conn: ConnId,
        why: Disconnect,
    },
    /// The answers of a call, as a JSON list.
    Reply {
        call: CallId,
        answers: String,
    },
    /// The token of a `refreshToken` is to be judged; then
    /// [`super::Room::authenticated`] is to be called.
    Authenticate {
        connection: String,
        id: Option<u32>,
        token: String,
    },
    Log(LogRecord),
}

impl Output {
    /// The connection that it is for, if it is for one.
    pub(super) fn connection(&self) -> Option<ConnId> {
        match self {
            Output::Send { conn, .. }
            | Output::Replay { conn, .. }
            | Output::CatchUp { conn }
            | Output::Page { conn, .. }
            | Output::Attach { conn }
            | Output::Joined { conn, .. }
            | Output::Parted { conn }
            | Output::Close { conn, .. } => Some(*conn),
            Output::Store(_)
            | Output::Deliver(_)
            | Output::Reply { .. }
            | Output::Authenticate { .. }
            | Output::Log(_) => None,
        }
    }
}

/// What a room stores.
#[derive(Debug)]
pub enum Change {
    Append(Row),
    PutMember(UserId, Member),
    RemoveMember(UserId),
    /// A connection at a gateway: what is to be known of it after hibernation.
    PutSubscriber {
        id: String,
        gateway: String,
        kept: Kept,
    },
    RemoveSubscriber(String),
    /// Cursors that moved, as an entry of the journal.
    Cursors(String),
    /// All members as they are, in place of the journal.
    Checkpoint(Vec<(UserId, Member)>),
    /// Delete rows up to an event, if stored before a time.
    Trim {
        upto: u64,
        before: Millis,
    },
    /// Forget everything, begin again under another epoch.
    Wipe {
        epoch: String,
    },
}

/// What goes out at the end of a tick: one frame a socket.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Which tick it is: [`super::Room::receives`] says who gets it.
    pub tick: u64,
    /// To everybody who is not among `custom`.
    pub shared: Option<String>,
    /// Who gets something else.
    pub custom: Vec<Custom>,
    /// The answers in it that wait for the tick to be stored.
    pub acked: Vec<(ConnId, u32)>,
    /// The logged events in `shared`: after the first number, up to the second.
    pub events: (u64, u64),
}

/// A frame that only one connection gets: lines of its own, and as much as it
/// may have of what everybody gets.
#[derive(Debug)]
pub struct Custom {
    pub conn: ConnId,
    pub private: String,
    /// Whether the logged events are among the parts of the shared frame.
    pub with_events: bool,
    /// Parts of the shared frame, in UTF-16 units, to be joined by line breaks;
    /// an empty list is none of it, and `None` as well. They are cut in
    /// JavaScript, where the shared frame is already.
    pub shared: Option<Vec<Range<usize>>>,
}

impl Custom {
    /// The frame as text; empty for no frame at all.
    pub fn text(&self, shared: &str) -> String {
        let mut text = self.private.clone();
        for run in self.shared.iter().flatten() {
            let part = cut(shared, run.clone());
            if !text.is_empty() && !part.is_empty() {
                text.push('\n');
            }
            text.push_str(&part);
        }
        text
    }
}

/// The part of a text that has this range of UTF-16 units.
fn cut(text: &str, run: Range<usize>) -> Cow<'_, str> {
    if text.is_ascii() {
        return text.get(run).unwrap_or_default().into();
    }
    let units: Vec<u16> = text
        .encode_utf16()
        .skip(run.start)
        .take(run.len())
        .collect();
    String::from_utf16_lossy(&units).into()
}

impl Delivery {
    /// The custom frames as text; `None` for no frame at all.
    pub fn frames(&self) -> HashMap<ConnId, Option<String>> {
        let shared = self.shared.as_deref().unwrap_or_default();
        let frame = |custom: &Custom| Some(custom.text(shared)).filter(|text| !text.is_empty());
        let custom = self.custom.iter();
        custom.map(|custom| (custom.conn, frame(custom))).collect()
    }
}

/// A key that stands for the connection `n` in tests of parts.
#[cfg(test)]
pub(super) fn conn(n: u32) -> ConnId {
    slotmap::KeyData::from_ffi((1 << 32) | u64::from(n)).into()
}
