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
    /// The hashes of the sends with a `messageId` of the sender, for [`Sends::Keys`].
    pub keys: Vec<u8>,
    /// The bytes of the bodies of all rows of the log so far, including this row and the rows
    /// that were deleted.
    pub total: u64,
}

/// The sends of a stored row, which must be recognised if they are repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSends {
    /// Sequence number from which the events are counted.
    pub first: u64,
    /// The time of the row.
    pub at: Millis,
    /// The sends.
    pub sends: Sends,
}

/// The form in which the sends of a row are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sends {
    /// As hashes: [`LogBatch::keys`] or [`KeyRow::keys`].
    Keys(Vec<u8>),
    /// As the envelopes of all events, one per line. Only rows of versions that did not store
    /// hashes are read in this form.
    Events(String),
}

/// A row with the sends of deleted rows of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Sequence number from which the events are counted.
    pub first: u64,
    /// The time of the last send.
    pub at: Millis,
    /// The hashes.
    pub keys: Vec<u8>,
}

/// The oldest row of the log that has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldestRow {
    /// Sequence number of its first event.
    pub first: u64,
    /// Its time.
    pub at: Millis,
    /// Its [`LogBatch::total`].
    pub total: u64,
}

/// The maximum number of events that are deleted at once, so that other inputs do not wait for
/// a long deletion. Deleting 5,000 rows takes about 10 ms.
const MAX_TRIM_EVENTS: u64 = 5_000;

/// The bounds of the log. `trimmed <= expired <= head`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// Sequence number of the last stored event; 0 if there is none.
    pub head: u64,
    /// The time at which the last row was stored.
    pub last_at: Millis,
    /// Sequence number up to which events are older than `RETENTION_DAYS` or beyond
    /// `RETENTION_BYTES`.
    pub expired: u64,
    /// The time at which the row after `expired` was stored. That row expires next.
    pub oldest_at: Option<Millis>,
    /// Sequence number up to which events were deleted from storage.
    pub trimmed: u64,
    /// [`LogBatch::total`] of the last row.
    pub total: u64,
    /// A lower limit of the part of `total` that belongs to expired rows. The bytes of the
    /// oldest row are a part of it.
    pub expired_bytes: u64,
}

impl LogBounds {
    /// Includes a stored row, whose last event is `last`. It is sufficient to include the oldest
    /// and the last row.
    pub fn extend(&mut self, row: OldestRow, last: u64) {
        if self.oldest_at.is_none() || row.first <= self.trimmed {
            self.trimmed = row.first.saturating_sub(1);
            self.expired = self.trimmed;
            self.oldest_at = Some(row.at);
            self.expired_bytes = row.total;
        }
        if last >= self.head {
            self.head = last;
            self.last_at = row.at;
            self.total = row.total;
        }
    }

    /// Returns the sequence number up to which events have expired, by number, age or bytes.
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

    /// Returns the [`LogBatch::total`] up to which rows expire, if the log has more bytes than it
    /// may have. A tenth more than necessary expires, so that not every batch expires a row.
    pub fn byte_cutoff(&self, config: &RoomConfig) -> Option<u64> {
        let limit = config.retention_bytes;
        (self.total.saturating_sub(self.expired_bytes) > limit).then(|| self.total - limit / 10 * 9)
    }

    /// Returns the end of the oldest part of the log, which is deleted if storage is full: a tenth
    /// of the events.
    pub fn oldest_part(&self) -> u64 {
        let part = self.head.saturating_sub(self.trimmed) / 10;
        self.trimmed + part.min(MAX_TRIM_EVENTS)
    }

    /// Returns the sequence number up to which the next deletion goes.
    pub fn next_trim(&self, config: &RoomConfig) -> u64 {
        self.floor(config).min(self.trimmed + MAX_TRIM_EVENTS)
    }

    /// Returns `true` if so many expired events are stored that deleting them in bulk is
    /// worth the cost: a tenth of the events that are kept.
    pub fn is_trim_due(&self, config: &RoomConfig) -> bool {
        self.floor(config).saturating_sub(self.trimmed) > config.retention_events / 10 + 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(first: u64, at: Millis, total: u64) -> OldestRow {
        OldestRow { first, at, total }
    }

    #[test]
    fn the_log_expires_by_bytes_down_to_nine_tenths_of_the_limit() {
        let config = RoomConfig {
            retention_bytes: 1_000,
            ..RoomConfig::default()
        };
        let mut bounds = LogBounds::default();
        bounds.extend(row(5, 10, 300), 6);
        bounds.extend(row(9, 20, 1_300), 9);
        assert_eq!((bounds.head, bounds.trimmed), (9, 4));
        assert_eq!(bounds.byte_cutoff(&config), None);
        bounds.total += 1;
        assert_eq!(bounds.byte_cutoff(&config), Some(401));
    }

    #[test]
    fn a_deletion_has_a_maximum_size() {
        let config = RoomConfig::default();
        let mut bounds = LogBounds {
            head: 30_000,
            trimmed: 12_000,
            ..LogBounds::default()
        };
        assert_eq!(bounds.next_trim(&config), 12_000 + MAX_TRIM_EVENTS);
        bounds.trimmed = 19_000;
        assert_eq!(bounds.next_trim(&config), 20_000);
    }
}
