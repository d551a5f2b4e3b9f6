//! Members and their cursors.

use crate::config::RoomConfig;
use crate::log::LogBounds;
use roomcast_proto::answer::to_json;
use roomcast_proto::http;
use roomcast_proto::id::UserId;
use roomcast_proto::time::{Millis, rfc3339};
use roomcast_proto::user_info::UserInfo;
use serde::{Deserialize, Serialize};

/// A member: a user that has joined the room and not left it. `read <= delivered <= head`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// The time at which the user joined.
    pub joined_at: Millis,
    /// Sequence number up to which the user has acknowledged delivery.
    pub delivered: u64,
    /// Sequence number up to which the user has read.
    pub read: u64,
    /// The time of the last sign of life of the user's connections, as of the end of the last one;
    /// 0 if the user never connected.
    pub last_seen: Millis,
    /// `true` if the stored record has a profile of the user.
    pub has_info: bool,
    /// The time at which the token with this profile was issued, in seconds since 1970. The
    /// profile of an older token does not replace it. 0 if there never was a profile.
    pub informed: u64,
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
            has_info: false,
            informed: 0,
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

    /// Returns `{ userId, joinedAt, delivered, read, queued, info? }`. `queued` is the number of
    /// events after the delivered cursor that have not expired.
    pub fn json(
        &self,
        user: &UserId,
        info: Option<UserInfo>,
        bounds: &LogBounds,
        config: &RoomConfig,
    ) -> String {
        to_json(&http::Member {
            delivered: self.delivered,
            info,
            joined_at: rfc3339(self.joined_at),
            queued: bounds.head - self.delivered.max(bounds.floor(config)).min(bounds.head),
            read: self.read,
            user_id: user,
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
        for (delivered, queued) in [(28, 2), (3, 10), (30, 0)] {
            let json = Member::new(0, delivered).json(&user, None, &bounds, &config);
            assert!(json.contains(&format!(r#""queued":{queued},"#)), "{json}");
        }
    }
}
