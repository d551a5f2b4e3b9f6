//! Members and their cursors.

use super::log::Bounds;
use crate::config::RoomConfig;
use roomcast_proto::time::{Millis, rfc3339};
use serde_json::{Value, json};

/// A user who joined and has not left. `read <= delivered <= head`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub joined_at: Millis,
    /// Highest event up to which delivery was acknowledged.
    pub delivered: u64,
    /// Highest event up to which reading was acknowledged.
    pub read: u64,
    /// When the last socket went away; 0 for never.
    pub last_seen: Millis,
}

impl Member {
    pub fn new(now: Millis, delivered: u64) -> Self {
        Member {
            joined_at: now,
            delivered,
            read: delivered,
            last_seen: 0,
        }
    }

    /// Moves the delivered cursor forward, never back. Whether it moved.
    pub fn deliver(&mut self, seq: u64) -> bool {
        let moved = seq > self.delivered;
        self.delivered = self.delivered.max(seq);
        moved
    }

    /// Moves the read cursor forward, never back, and with it the delivered.
    pub fn read(&mut self, seq: u64) -> bool {
        self.deliver(seq);
        let moved = seq > self.read;
        self.read = self.read.max(seq);
        moved
    }

    /// Takes over what a journal entry says, in whatever order entries come.
    pub fn recall(&mut self, cursor: &Cursor) {
        self.read(cursor.2);
        self.deliver(cursor.1);
        self.last_seen = self.last_seen.max(cursor.3);
    }

    /// `{ userId, joinedAt, delivered, read, queued }`. Queued are the events
    /// after the delivered cursor that are still kept.
    pub fn json(&self, user: &str, bounds: &Bounds, config: &RoomConfig) -> Value {
        json!({
            "userId": user,
            "joinedAt": rfc3339(self.joined_at),
            "delivered": self.delivered,
            "read": self.read,
            "queued": bounds.head - self.delivered.max(bounds.floor(config)).min(bounds.head),
        })
    }
}

/// A moved cursor in the journal: user, delivered, read, last seen. A list of
/// them is one row, however many members moved.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Cursor(pub String, pub u64, pub u64, pub Millis);

/// Rows the journal may have before all members are written out again.
pub const MAX_JOURNAL: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_never_move_back_and_read_is_never_ahead() {
        let mut member = Member::new(0, 5);
        assert!(!member.deliver(4) && member.delivered == 5);
        assert!(member.read(9));
        assert_eq!((member.delivered, member.read), (9, 9));
        assert!(member.deliver(12) && member.read == 9);
        member.recall(&Cursor("x".into(), 3, 3, 7));
        assert_eq!(
            (member.delivered, member.read, member.last_seen),
            (12, 9, 7)
        );
    }

    #[test]
    fn the_queue_is_what_comes_after_the_delivered_cursor() {
        let config = RoomConfig {
            retention_events: 10,
            ..RoomConfig::default()
        };
        let bounds = Bounds {
            head: 30,
            ..Bounds::default()
        };
        assert_eq!(Member::new(0, 28).json("a", &bounds, &config)["queued"], 2);
        assert_eq!(Member::new(0, 3).json("a", &bounds, &config)["queued"], 10);
        assert_eq!(Member::new(0, 30).json("a", &bounds, &config)["queued"], 0);
    }
}
