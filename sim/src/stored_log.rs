//! The stored log of a simulated room: what the tables of a room's storage have.

use roomcast_proto::time::Millis;
use roomcast_room::log::{KeyRow, LogBatch, LogBounds, OldestRow, Sends, StoredSends};
use roomcast_room::{KeptSends, ReadRecent, ReadRows, Secret};
use std::cell::RefCell;
use std::rc::Rc;

/// The stored log of a room.
#[derive(Clone, Default)]
pub struct StoredLog {
    /// The batches.
    pub rows: Vec<LogBatch>,
    /// The sends of deleted batches.
    keys: Vec<KeyRow>,
    /// The batches, for [`StoredLog::reader`]: see [`StoredLog::push`].
    shared: Rc<RefCell<Vec<LogBatch>>>,
}

impl StoredLog {
    /// Appends a batch.
    pub fn push(&mut self, row: LogBatch) {
        self.shared.borrow_mut().push(row.clone());
        self.rows.push(row);
    }

    /// Returns the function that reads the log as it is at each call. It reads the batches of
    /// [`StoredLog::push`] alone.
    pub fn reader(&self) -> ReadRows {
        let rows = self.shared.clone();
        Box::new(move |range, take| {
            for row in rows.borrow().iter().rev() {
                let is_in_range = row.last > range.after && row.first <= range.upto;
                if is_in_range && !take(row.first, &row.body) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Returns the bounds of the log.
    pub fn bounds(&self) -> LogBounds {
        let mut bounds = LogBounds::default();
        for row in self.rows.first().into_iter().chain(self.rows.last()) {
            bounds.extend(oldest_row(row), row.last);
        }
        bounds
    }

    /// Returns the oldest batch that was stored at this time or later.
    pub fn oldest(&self, since: Millis) -> Option<OldestRow> {
        self.rows.iter().find(|row| row.at >= since).map(oldest_row)
    }

    /// Carries out [`Change::Trim`](roomcast_room::Change::Trim).
    pub fn trim(&mut self, upto: u64, since: Millis, first: u64) {
        let head = self.rows.last().map_or(0, |row| row.last);
        let mut kept = KeptSends::default();
        self.rows.retain(|row| {
            let stays = row.last > upto || row.last == head;
            if !stays {
                kept.add(Secret::default(), &sends(row), since);
            }
            stays
        });
        self.shared.borrow_mut().clone_from(&self.rows);
        self.keys
            .retain(|row| row.at >= since && row.first >= first);
        self.keys.extend(kept.finish());
    }

    /// Returns the function that reads the recent sends of the log as it is now.
    pub fn recent(&self) -> ReadRecent {
        let log = self.clone();
        Box::new(move |since, take| {
            let rows = log.rows.iter().rev();
            let rows = rows.take_while(|row| row.at >= since).map(sends);
            let keys = log.keys.iter().rev().map(|row| StoredSends {
                first: row.first,
                at: row.at,
                sends: Sends::Keys(row.keys.clone()),
            });
            // The order of the calls matters, not their results.
            let _ = rows.chain(keys).all(|row| take(&row));
            Ok(())
        })
    }
}

fn oldest_row(row: &LogBatch) -> OldestRow {
    OldestRow {
        first: row.first,
        at: row.at,
        total: row.total,
    }
}

fn sends(row: &LogBatch) -> StoredSends {
    StoredSends {
        first: row.first,
        at: row.at,
        sends: Sends::Keys(row.keys.clone()),
    }
}
