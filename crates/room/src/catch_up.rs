//! Catching up: a connection that lacks events receives them from the log in portions, and is
//! live again at the head.
//!
//! While it catches up, the connection receives ephemeral events as usual, but no logged
//! events. These are not queued: the host reads them from the log when the gateway can
//! receive the next portion, or, for the room's own sockets, in the next turn of the event
//! loop. A socket becomes live between two batches, and a gateway drops events that do not
//! follow the position of the connection. So there is no hole between the last portion and
//! the first live event.
//!
//! A connection with its own socket stalls when too much was sent to it without a sign of
//! life: a frame or a ping. Nothing more is sent to it until the next sign of life, except
//! answers. Then it catches up.

use crate::ids::ConnId;
use crate::seq_range::SeqRange;
use std::collections::VecDeque;

/// Maximum size of a portion in bytes. A single row may be larger.
pub const PORTION_BYTES: usize = 256 * 1024;

/// The room's own connections that catch up, and those that are stalled.
#[derive(Debug, Default)]
pub(crate) struct CatchUpQueue {
    /// The connections that catch up and are not stalled, in the order in which they receive
    /// a portion.
    ready: VecDeque<ConnId>,
    stalled: Vec<ConnId>,
}

impl CatchUpQueue {
    /// Returns the number of connections that wait for a portion.
    pub(crate) fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Adds a connection that catches up.
    pub(crate) fn push(&mut self, conn: ConnId) {
        self.ready.push_back(conn);
    }

    /// Removes the connection that receives the next portion, and returns it.
    pub(crate) fn pop(&mut self) -> Option<ConnId> {
        self.ready.pop_front()
    }

    /// Removes a connection.
    pub(crate) fn remove(&mut self, conn: ConnId) {
        self.ready.retain(|one| *one != conn);
        self.stalled.retain(|one| *one != conn);
    }

    /// Records that a connection has stalled.
    pub(crate) fn stall(&mut self, conn: ConnId) {
        self.remove(conn);
        self.stalled.push(conn);
    }

    /// Returns the stalled connections.
    pub(crate) fn stalled(&self) -> &[ConnId] {
        &self.stalled
    }
}

/// The state of a connection that catches up.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    /// Ranges of older events that the client has requested. They are sent first.
    past: VecDeque<SeqRange>,
    /// Sequence number up to which the connection has received all other events.
    at: u64,
}

/// The next part of the log for a connection that catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// The events that the connection lacks. The portion may end before `range.upto`.
    pub range: SeqRange,
    /// `true` for older events that the client has requested.
    pub is_past: bool,
}

/// A part of the log that the host must read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRead {
    /// The connection that receives it.
    pub conn: ConnId,
    /// The events.
    pub portion: Portion,
}

impl CatchUp {
    /// Creates the state of a connection that has received all events up to `at`.
    pub(crate) fn new(at: u64) -> Self {
        CatchUp {
            past: VecDeque::new(),
            at,
        }
    }

    /// Continues after the event `at`, up to which the connection has received all events.
    /// Returns `true` if it has caught up.
    pub(crate) fn continue_after(&mut self, at: u64, head: u64) -> bool {
        self.at = at;
        self.past.is_empty() && self.at >= head
    }

    /// Returns the sequence number up to which the connection has received all events, except
    /// older ones that it has requested.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Returns `true` if the connection waits for older events that it has requested.
    pub(crate) fn has_past(&self) -> bool {
        !self.past.is_empty()
    }

    /// Adds older events that the client has requested.
    pub(crate) fn add_past(&mut self, range: SeqRange) {
        self.past.push_front(range);
    }

    /// Returns the next portion. `head` is the last event of the log.
    pub(crate) fn next_portion(&self, head: u64) -> Portion {
        let past = self.past.front().copied();
        Portion {
            range: past.unwrap_or(SeqRange {
                after: self.at,
                upto: head,
            }),
            is_past: past.is_some(),
        }
    }

    /// Records that the next portion was sent, up to the event `last`. Returns `true` if
    /// the connection has caught up.
    pub(crate) fn sent(&mut self, last: u64, head: u64) -> bool {
        match self.past.front_mut() {
            Some(range) if last < range.upto => range.after = last,
            Some(_) => {
                self.past.pop_front();
            }
            None => self.at = last,
        }
        self.past.is_empty() && self.at >= head
    }
}
