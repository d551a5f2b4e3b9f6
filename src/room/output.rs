//! What a room wants done: the effects of a command, in order. The shell
//! carries them out and decides nothing.

use super::Member;
use super::log::Row;
use crate::eventlog::Entry;
use crate::name::UserId;
use crate::time::Millis;
use crate::wire::native::Close;
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
    /// The same, of one whose client has another connection by now: nobody need
    /// be told.
    Replaced {
        conn: ConnId,
    },
    Close {
        conn: ConnId,
        why: Close,
    },
    /// The answers of a call, as a JSON list.
    Reply {
        call: CallId,
        answers: String,
    },
    /// A `refreshToken` whose token can be judged only after something was
    /// fetched; then [`super::Room::prepared`] is to be called.
    Prepare {
        connection: String,
        id: Option<u32>,
        token: String,
    },
    Log(Entry),
}

/// What a room stores.
#[derive(Debug)]
pub enum Change {
    Append(Row),
    PutMember(UserId, Member),
    RemoveMember(UserId),
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

impl Delivery {
    /// The custom frames as text; `None` for no frame at all.
    pub fn frames(&self) -> HashMap<ConnId, Option<String>> {
        let shared: Vec<u16> = self
            .shared
            .as_deref()
            .unwrap_or_default()
            .encode_utf16()
            .collect();
        let frame = |custom: &Custom| {
            let mut lines = vec![custom.private.clone()];
            for run in custom.shared.iter().flatten() {
                lines.push(String::from_utf16_lossy(&shared[run.clone()]));
            }
            lines.retain(|lines| !lines.is_empty());
            (!lines.is_empty()).then(|| lines.join("\n"))
        };
        self.custom
            .iter()
            .map(|custom| (custom.conn, frame(custom)))
            .collect()
    }
}

/// A key that stands for the connection `n` in tests of parts.
#[cfg(test)]
pub(super) fn conn(n: u32) -> ConnId {
    slotmap::KeyData::from_ffi((1 << 32) | u64::from(n)).into()
}
