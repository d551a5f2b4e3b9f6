//! Members and their cursors.

use crate::config::RoomConfig;
use crate::log::LogBounds;
use roomcast_proto::id::UserId;
use roomcast_proto::time::{Millis, rfc3339};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A member: a user that has joined the room and not left it. `read <= delivered <= head`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// The time at which the user joined.
    pub joined_at: Millis,
    /// Sequence number up to which the user has acknowledged delivery.
    pub delivered: u64,
    /// Sequence number up to which the user has read.
    pub read: u64,
    /// The time at which the last connection closed; 0 if the user never connected.
    pub last_seen: Millis,
}

/// The two cursors of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cursor {
    Delivered,
    Read,
}

impl Member {
    /// Creates a member that has received all events up to `delivered`.
    pub fn new(now: Millis, delivered: u64) -> Self {
        Member {
            joined_at: now,
            delivered,
            read: delivered,
            last_seen: 0,
        }
    }

    /// Moves the delivered cursor forward, never back.
    pub fn deliver(&mut self, seq: u64) {
        self.delivered = self.delivered.max(seq);
    }

    /// Moves the read cursor forward, never back, and the delivered cursor with it.
    pub fn read(&mut self, seq: u64) {
        self.deliver(seq);
        self.read = self.read.max(seq);
    }

    /// Applies an entry of the journal. The order of the entries does not matter.
    pub(crate) fn restore(&mut self, cursors: &JournalEntry) {
        self.read(cursors.read);
        self.deliver(cursors.delivered);
        self.last_seen = self.last_seen.max(cursors.last_seen);
    }

    /// Returns `{ userId, joinedAt, delivered, read, queued }`. `queued` is the number of
    /// events after the delivered cursor that have not expired.
    pub fn json(&self, user: &UserId, bounds: &LogBounds, config: &RoomConfig) -> Value {
        json!({
            "userId": user,
            "joinedAt": rfc3339(self.joined_at),
            "delivered": self.delivered,
            "read": self.read,
            "queued": bounds.head - self.delivered.max(bounds.floor(config)).min(bounds.head),
        })
    }
}

/// The moved cursors of a member. A row of the journal is a JSON list of these entries,
/// each of them an array: `[user, delivered, read, lastSeen]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredEntry", into = "StoredEntry")]
pub(crate) struct JournalEntry {
    pub(crate) user: UserId,
    pub(crate) delivered: u64,
    pub(crate) read: u64,
    pub(crate) last_seen: Millis,
}

/// The stored form of a [`JournalEntry`].
#[derive(Serialize, Deserialize)]
struct StoredEntry(UserId, u64, u64, Millis);

impl From<StoredEntry> for JournalEntry {
    fn from(StoredEntry(user, delivered, read, last_seen): StoredEntry) -> Self {
        JournalEntry {
            user,
            delivered,
            read,
            last_seen,
        }
    }
}

impl From<JournalEntry> for StoredEntry {
    fn from(entry: JournalEntry) -> Self {
        StoredEntry(entry.user, entry.delivered, entry.read, entry.last_seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_proto::reader;

    #[test]
    fn cursors_never_move_back_and_read_is_at_most_delivered() {
        let mut member = Member::new(0, 5);
        member.deliver(4);
        assert_eq!((member.delivered, member.read), (5, 5));
        member.read(9);
        assert_eq!((member.delivered, member.read), (9, 9));
        member.deliver(12);
        assert_eq!((member.delivered, member.read), (12, 9));
        member.restore(&JournalEntry {
            user: UserId::trusted("x"),
            delivered: 3,
            read: 3,
            last_seen: 7,
        });
        assert_eq!(
            (member.delivered, member.read, member.last_seen),
            (12, 9, 7)
        );
    }

    #[test]
    fn a_journal_entry_is_stored_as_an_array() {
        let stored = r#"["alice",3,2,7]"#;
        let entry: JournalEntry = reader::from_str(stored).expect("an entry");
        assert_eq!((entry.delivered, entry.read, entry.last_seen), (3, 2, 7));
        assert_eq!(serde_json::to_string(&entry).expect("JSON"), stored);
    }

    #[test]
    fn queued_counts_the_kept_events_after_the_delivered_cursor() {
        let config = RoomConfig {
            retention_events: 10,
            ..RoomConfig::default()
        };
        let bounds = LogBounds {
            head: 30,
            ..LogBounds::default()
        };
        let user = UserId::trusted("a");
        assert_eq!(
            Member::new(0, 28).json(&user, &bounds, &config)["queued"],
            2
        );
        assert_eq!(
            Member::new(0, 3).json(&user, &bounds, &config)["queued"],
            10
        );
        assert_eq!(
            Member::new(0, 30).json(&user, &bounds, &config)["queued"],
            0
        );
    }
}
