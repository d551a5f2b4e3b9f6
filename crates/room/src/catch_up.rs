//! Catching up: a connection at a gateway that is behind gets the log in
//! portions, and is live again at the head.
//!
//! While it is behind, it gets ephemeral events as all connections do, but no logged
//! events. Those are not queued for it: the log is read when the gateway is ready for a
//! portion. The order of calls, for each portion:
//!
//! 1. [`Room::gap`]: what retention has removed meanwhile is announced.
//! 2. [`Room::next_portion`]: from where to where the log is to be read.
//! 3. [`Room::given`]: with the last event that was read. The connection is live
//!    when that is the head.
//!
//! The three take place without a batch ending in between, so that what comes
//! live goes on where the last portion ends.

use super::{ConnId, Output, Room};
use roomcast_proto::event;
use std::collections::VecDeque;

/// Most bytes of a portion, unless a single row has more.
pub const PORTION_BYTES: usize = 256 * 1024;

/// How far a connection that is behind has been given the log.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    /// Parts of the past that it asked for, each after one event up to another:
    /// they come before the rest.
    past: VecDeque<(u64, u64)>,
    /// The last event that it was given besides.
    at: u64,
}

/// The next part of the log for a connection that is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// The last event before it.
    pub after: u64,
    /// Its last event, if it can be given at once.
    pub upto: u64,
    /// Whether it is a part of the past, older than what the connection has.
    pub is_past: bool,
}

impl Portion {
    /// What a gateway is told of a text with the events up to `last`: what the
    /// connection must have had before, and what it has then.
    pub fn events(&self, last: u64) -> (Option<u64>, Option<u64>) {
        ((!self.is_past).then_some(self.after), Some(last))
    }
}

impl Room {
    /// A connection at a gateway has been given the log up to `after`, and the
    /// room is beyond that.
    pub(super) fn fall_behind(&mut self, conn: ConnId, after: u64, out: &mut Vec<Output>) {
        if let Some(this) = self.conn_mut(conn) {
            this.catch_up = Some(CatchUp {
                at: after,
                ..CatchUp::default()
            });
            out.push(Output::CatchUp { conn });
        }
    }

    /// A connection at a gateway that has been given the log from `upto` on gets
    /// a part of the past as well, ahead of what it has yet to get. Everything up
    /// to the head has been delivered.
    pub(super) fn give_past(&mut self, conn: ConnId, after: u64, upto: u64, out: &mut Vec<Output>) {
        let at = self.bounds.head;
        if let Some(this) = self.conn_mut(conn).filter(|_| after < upto) {
            let catch_up = this.catch_up.get_or_insert_with(|| CatchUp {
                at,
                ..CatchUp::default()
            });
            catch_up.past.push_front((after, upto));
            out.push(Output::CatchUp { conn });
        }
    }

    /// What a connection that is behind is to be given next. `None`: it is live,
    /// or gone.
    pub fn next_portion(&self, conn: ConnId) -> Option<Portion> {
        let catch_up = self.conn(conn)?.catch_up.as_ref()?;
        let past = catch_up.past.front();
        let (after, upto) = *past.unwrap_or(&(catch_up.at, self.bounds.head));
        Some(Portion {
            after,
            upto,
            is_past: past.is_some(),
        })
    }

    /// Skips events of the next portion that are past retention. Returns what was
    /// skipped, and the `gap` event of which the connection must be told.
    pub fn gap(&mut self, conn: ConnId) -> Option<(Portion, String)> {
        let portion = self.next_portion(conn)?;
        let floor = self.floor().min(portion.upto);
        if portion.after >= floor {
            return None;
        }
        self.given(conn, floor);
        let line = event::gap(&self.name, portion.after + 1, floor);
        let skipped = Portion {
            upto: floor,
            ..portion
        };
        Some((skipped, line))
    }

    /// A connection has been given its next portion, up to the event `last`.
    pub fn given(&mut self, conn: ConnId, last: u64) {
        let head = self.bounds.head;
        let Some(this) = self.conn_mut(conn) else {
            return;
        };
        let Some(catch_up) = &mut this.catch_up else {
            return;
        };
        match catch_up.past.front_mut() {
            Some((after, upto)) if last < *upto => *after = last,
            Some(_) => {
                catch_up.past.pop_front();
            }
            None => catch_up.at = last,
        }
        if catch_up.past.is_empty() && catch_up.at >= head {
            this.catch_up = None;
        }
    }
}
