//! The stored form of the log: one row for each batch, and the bounds of the log.

use crate::config::RoomConfig;
use roomcast_proto::time::Millis;
use std::rc::Rc;

/// A row of the log: the events of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogBatch {
    /// Sequence number of the first event.
    pub first: u64,
    /// Sequence number of the last event.
    pub last: u64,
    /// The time at which the batch ended. Never before that of the previous row.
    pub at: Millis,
    /// The envelopes of the events as they are sent, one per line. Shared with the
    /// [`Delivery`](crate::Delivery) of the batch. Not an `Rc<str>`, because the conversion
    /// of the `String` that the batch filled would copy the text.
    pub body: Rc<String>,
}

/// A part of the log as it was read from storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredText {
    /// Sequence number of the first event.
    pub first: u64,
    /// The envelopes of consecutive events, one per line.
    pub body: String,
}

/// The bounds of the log. `trimmed <= expired <= head`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// Sequence number of the last stored event; 0 if there is none.
    pub head: u64,
    /// The time at which the last row was stored.
    pub last_at: Millis,
    /// Sequence number up to which events are older than `RETENTION_DAYS`.
    pub expired: u64,
    /// The time at which the row after `expired` was stored. That row expires next.
    pub oldest_at: Option<Millis>,
    /// Sequence number up to which events were deleted from storage.
    pub trimmed: u64,
}

impl LogBounds {
    /// Includes a stored row. It is sufficient to include the oldest and the last row.
    pub fn extend(&mut self, first: u64, last: u64, at: Millis) {
        if self.oldest_at.is_none() || first <= self.trimmed {
            self.trimmed = first.saturating_sub(1);
            self.expired = self.trimmed;
            self.oldest_at = Some(at);
        }
        if last >= self.head {
            self.head = last;
            self.last_at = at;
        }
    }

    /// Returns the sequence number up to which events have expired, by number or by age.
    pub fn floor(&self, config: &RoomConfig) -> u64 {
        self.head
            .saturating_sub(config.retention_events)
            .max(self.expired)
    }

    /// Returns the time at which the next row expires by age.
    pub fn next_expiry(&self, config: &RoomConfig) -> Option<Millis> {
        self.oldest_at
            .map(|at| at.saturating_add(config.retention_age))
    }

    /// Returns `true` if so many expired events are stored that deleting them in bulk is
    /// worth the cost: a tenth of the events that are kept.
    pub fn is_trim_due(&self, config: &RoomConfig) -> bool {
        self.floor(config).saturating_sub(self.trimmed) > config.retention_events / 10 + 16
    }
}
