//! What a room wants done: the effects of a command, in order. The shell
//! carries them out and decides nothing.

use super::Member;
use super::log::Row;
use crate::eventlog::Entry;
use crate::name::UserId;
use crate::time::Millis;
use crate::wire::native::Close;

/// A connection's place in the room. It is given out again after the
/// connection has gone.
pub type ConnId = usize;

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
    /// The log after `after` and up to `upto`, to one socket, in large frames.
    Replay {
        conn: ConnId,
        after: u64,
        upto: u64,
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
    Close {
        conn: ConnId,
        why: Close,
    },
    /// The answers of a call, as a JSON list.
    Reply {
        call: CallId,
        answers: String,
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
    /// To every joined connection that is not among `custom`.
    pub shared: Option<String>,
    /// To these instead; `None` is nothing at all.
    pub custom: Vec<(ConnId, Option<String>)>,
    /// The answers in it that wait for the tick to be stored.
    pub acked: Vec<(ConnId, u32)>,
}
