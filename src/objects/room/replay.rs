//! Replay: portions of the log for the room's own connections that catch up.
//!
//! They are read in turns of the event loop, like pages, so that a replay of any length does
//! not delay other connections. The connections take turns.

use super::ActiveRoom;
use super::lines::append_lines;
use super::store::Store;
use crate::runtime::Result;
use crate::runtime::time::now;
use js_sys::JsString;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::log_text::slice;
use roomcast_room::SeqRange;
use roomcast_room::catch_up::PORTION_BYTES;
use std::collections::VecDeque;
use worker::{Error, State};

/// Maximum size of the portions that are sent in one turn of the event loop, in UTF-16 units.
/// The last portion may exceed it. Sending them takes a few milliseconds.
const TURN_LENGTH: usize = 1 << 20;

/// Maximum number of portions that are sent in one turn of the event loop. Reading a short
/// portion takes about as long as handling a message.
const TURN_PORTIONS: usize = 64;

/// Number of portions that are kept. Few are enough, because after an outage connections that
/// need the same events take turns.
const CACHED_PORTIONS: usize = 4;

/// The portions that were read last. Kept because after an outage all connections need the
/// same events.
#[derive(Default)]
pub(super) struct PortionCache(VecDeque<CachedPortion>);

struct CachedPortion {
    /// The events.
    range: SeqRange,
    text: JsString,
}

impl PortionCache {
    /// Returns the next portion at the start of `range`: its last event and its text.
    pub(super) fn portion(&mut self, store: &Store, range: SeqRange) -> Result<(u64, JsString)> {
        let mut cached = self.0.iter();
        let cached =
            cached.find(|one| one.range.after == range.after && one.range.upto <= range.upto);
        if let Some(CachedPortion { range, text }) = cached {
            return Ok((range.upto, text.clone()));
        }
        let (upto, text) = store.portion(range)?;
        self.0.truncate(CACHED_PORTIONS - 1);
        self.0.push_front(CachedPortion {
            range: SeqRange { upto, ..range },
            text: text.clone(),
        });
        Ok((upto, text))
    }

    /// Forgets the portions, because the log was deleted.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl ActiveRoom {
    /// Sends the next portions of the log to connections that catch up.
    pub(super) fn send_portions(&mut self, state: &State) {
        if self.room.portions_waiting() > 0 {
            self.apply_retention();
        }
        let mut length = 0;
        for _ in 0..TURN_PORTIONS {
            if self.storage_failed || length >= TURN_LENGTH {
                return;
            }
            let mut out = Vec::new();
            let read = self.room.next_replay(&mut out);
            self.run(state, out);
            let Some(read) = read else {
                return;
            };
            if self.room.is_stalled(read.conn) {
                continue;
            }
            let mut out = Vec::new();
            match self.portions.portion(&self.store, read.portion.range) {
                Ok((last, text)) => {
                    self.room.replayed(read, last, &mut out);
                    let units = text.length() as usize;
                    self.send(state, read.conn, &text, units);
                    length += units;
                }
                Err(error) => {
                    self.log(LogRecord::error(format!("replay failed: {error}")));
                    self.room.replay_failed(read.conn, now(), &mut out);
                }
            }
            self.run(state, out);
        }
    }
}

impl Store {
    /// Reads the next portion of the log at the start of `range`. Returns its last event and
    /// its text.
    pub(super) fn portion(&self, range: SeqRange) -> Result<(u64, JsString)> {
        let SeqRange { after, upto } = range;
        let (mut last, mut text) = (after, JsString::from(""));
        self.rows_while(after, upto, |first, last_of_row, body| {
            let body = cut(first, last_of_row, body, range);
            text = append_lines(&text, body);
            last = last_of_row.min(upto);
            (text.length() as usize) < PORTION_BYTES
        })?;
        if last == after {
            return Err(Error::RustError(format!(
                "the log lacks event {}",
                after + 1
            )));
        }
        Ok((last, text))
    }
}

/// Returns the part of a log row that is in `range`. Only rows at the ends of the range are
/// copied out of JavaScript.
fn cut(first: u64, last: u64, body: JsString, range: SeqRange) -> JsString {
    let SeqRange { after, upto } = range;
    if first > after && last <= upto {
        body
    } else {
        JsString::from(slice(first, &String::from(&body), after, upto))
    }
}
