//! Detection of repeated sends.
//!
//! A send with a `messageId` of the sender is remembered by a 128-bit hash of both. The hashes
//! are stored with the log, so that a restart reads no events. An id that the server has
//! created contains the position of its event, so it need not be remembered.
//!
//! The hash is SipHash-2-4 with the [`Secret`] of the room. Its values are stored and kept by
//! clients, so they must be the same in all builds, and nobody may compute them.

use crate::log::{KeyRow, Sends, StoredSends};
use roomcast_proto::raw_object::{RawObject, TEXT};
use roomcast_proto::time::{Millis, parse_rfc3339};
use siphasher::sip128::{Hash128, Hasher128, SipHasher24};
use std::collections::{HashMap, VecDeque};
use std::hash::Hasher;

/// The maximum number of remembered sends, about 20 MB. A room with more sends within the
/// dedupe window forgets the oldest early.
const MAX_REMEMBERED: usize = 250_000;

/// The size in bytes of a stored hash: [`push_key`] describes the form.
const KEY_BYTES: usize = 28;

/// The event of an accepted send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Sequence number of the event.
    pub(crate) seq: u64,
    /// The time at which it was accepted.
    pub(crate) at: Millis,
}

/// The key of the hashes of a room. It is random and stored with the room.
#[derive(Clone, Copy, Default)]
pub struct Secret(u64, u64);

impl Secret {
    /// The number of hexadecimal digits of a secret.
    pub const DIGITS: usize = 32;

    /// Parses the hexadecimal digits of a secret. Returns `None` if `text` is not a secret.
    pub fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.split_at_checked(Secret::DIGITS / 2)?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some(Secret(number(high)?, number(low)?))
    }

    /// Returns the hash of texts and numbers. The texts contain no NUL, so different inputs
    /// are different sequences of bytes.
    fn hash(self, texts: [&str; 2], numbers: &[u64]) -> Hash128 {
        let mut hasher = SipHasher24::new_with_keys(self.0, self.1);
        for text in texts {
            hasher.write(text.as_bytes());
            hasher.write(&[0]);
        }
        for number in numbers {
            hasher.write(&number.to_le_bytes());
        }
        hasher.finish128()
    }
}

/// The hash of a sender and a message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DedupeKey(u128);

impl DedupeKey {
    pub(crate) fn new(secret: Secret, sender: &str, message_id: &str) -> Self {
        DedupeKey(secret.hash([sender, message_id], &[]).as_u128())
    }
}

/// The accepted sends of the dedupe window.
#[derive(Debug, Default)]
pub(crate) struct Dedupe {
    seen: HashMap<DedupeKey, Seen>,
    /// The keys in the order in which they were added, with the time of each.
    order: VecDeque<(Millis, DedupeKey)>,
}

impl Dedupe {
    /// Adds the sends of a stored row at or after `since`. The rows must come newest first,
    /// before [`Dedupe::insert`]. Returns `false` if no further send can be added.
    pub(crate) fn restore(&mut self, secret: Secret, row: &StoredSends, since: Millis) -> bool {
        for (key, seen) in sends(secret, row).into_iter().rev() {
            if self.order.len() >= MAX_REMEMBERED {
                return false;
            }
            if seen.at >= since {
                // The newer of two sends with the same key counts.
                if let Some(newer) = self.seen.insert(key, seen) {
                    self.seen.insert(key, newer);
                }
                self.order.push_front((seen.at, key));
            }
        }
        true
    }

    /// Returns the event of a send within the window.
    pub(crate) fn get(&self, key: DedupeKey, now: Millis, window: Millis) -> Option<Seen> {
        self.seen
            .get(&key)
            .copied()
            .filter(|seen| seen.at + window > now)
    }

    /// Adds a send. Forgets the sends before the window.
    pub(crate) fn insert(&mut self, key: DedupeKey, seen: Seen, window: Millis) {
        while self
            .order
            .front()
            .is_some_and(|(at, _)| at + window <= seen.at || self.order.len() >= MAX_REMEMBERED)
        {
            if let Some((at, old)) = self.order.pop_front()
                && self.seen.get(&old).is_some_and(|seen| seen.at == at)
            {
                self.seen.remove(&old);
            }
        }
        self.seen.insert(key, seen);
        self.order.push_back((seen.at, key));
    }
}

/// Appends the stored form of a send: the distance of its event from `first` (32 bits), the time
/// at which it was accepted (64 bits) and the hash (128 bits), all of them little-endian.
pub(crate) fn push_key(keys: &mut Vec<u8>, first: u64, (key, seen): (DedupeKey, Seen)) {
    let offset = seen.seq.saturating_sub(first) as u32;
    keys.extend_from_slice(&offset.to_le_bytes());
    keys.extend_from_slice(&seen.at.to_le_bytes());
    keys.extend_from_slice(&key.0.to_le_bytes());
}

/// Returns the send that [`push_key`] has written at the start of `bytes`.
fn read_key(bytes: &[u8], first: u64) -> Option<(DedupeKey, Seen)> {
    let (offset, bytes) = bytes.split_first_chunk()?;
    let (at, bytes) = bytes.split_first_chunk()?;
    let (key, _) = bytes.split_first_chunk()?;
    let seen = Seen {
        seq: first + u64::from(u32::from_le_bytes(*offset)),
        at: u64::from_le_bytes(*at),
    };
    Some((DedupeKey(u128::from_le_bytes(*key)), seen))
}

/// Returns the sends of a stored row.
fn sends(secret: Secret, row: &StoredSends) -> Vec<(DedupeKey, Seen)> {
    match &row.sends {
        Sends::Keys(keys) => {
            let keys = keys.chunks_exact(KEY_BYTES);
            keys.filter_map(|bytes| read_key(bytes, row.first))
                .collect()
        }
        Sends::Events(body) => {
            let lines = (row.first..).zip(body.split('\n'));
            let send = |(seq, line)| {
                let (sender, message_id, at) = stamp_of(line)?;
                let key = DedupeKey::new(secret, &sender, &message_id);
                Some((key, Seen { seq, at }))
            };
            lines.filter_map(send).collect()
        }
    }
}

/// Returns the sender, the message id and the time of a stored event.
fn stamp_of(line: &str) -> Option<(String, String, Millis)> {
    // Decodes only the fields that the server wrote. A sender's strings may contain a lone
    // surrogate, which cannot be decoded.
    let envelope = RawObject::parse(line, "an envelope").ok()?;
    let stamp = envelope.raw("meta").or_else(|| envelope.raw("data"))?;
    let stamp = RawObject::parse(stamp.get(), "a stamp").ok()?;
    let field = |name| stamp.required(name, TEXT).ok();
    Some((
        field("senderId")?,
        field("messageId")?,
        parse_rfc3339(&field("timestamp")?)?,
    ))
}

/// The sends of rows that are deleted from the log within the dedupe window. They are stored
/// in one row, so that the deletion costs one row more and not one for each batch.
#[derive(Default)]
pub struct KeptSends(Vec<(DedupeKey, Seen)>);

impl KeptSends {
    /// Adds the sends of a row at or after `since`. The rows come oldest first.
    pub fn add(&mut self, secret: Secret, row: &StoredSends, since: Millis) {
        let sends = sends(secret, row).into_iter();
        self.0.extend(sends.filter(|(_, seen)| seen.at >= since));
    }

    /// Returns the row to store, if it has a send.
    pub fn finish(self) -> Option<KeyRow> {
        let first = self.0.first()?.1.seq;
        let at = self.0.iter().map(|(_, seen)| seen.at).max()?;
        let mut keys = Vec::with_capacity(self.0.len() * KEY_BYTES);
        for send in self.0 {
            push_key(&mut keys, first, send);
        }
        Some(KeyRow { first, at, keys })
    }
}

/// Returns an id for a send without one: `{epoch}-{seq}-{at}-{check}`, with the numbers in
/// base 16. The check is a hash that includes the sender, so that the id is recognised only
/// if the same sender uses it.
pub(crate) fn make_id(secret: Secret, epoch: &str, sender: &str, seen: Seen) -> String {
    let check = check(secret, epoch, sender, seen);
    format!("{epoch}-{:x}-{:x}-{check:x}", seen.seq, seen.at)
}

/// Returns the event for which [`make_id`] created `id`. Returns `None` if the id was not
/// created for this sender and epoch.
pub(crate) fn read_id(secret: Secret, epoch: &str, sender: &str, id: &str) -> Option<Seen> {
    let mut numbers = id
        .strip_prefix(epoch)?
        .strip_prefix('-')?
        .split('-')
        .map(|part| u64::from_str_radix(part, 16).ok());
    let seen = Seen {
        seq: numbers.next()??,
        at: numbers.next()??,
    };
    (numbers.next()?? == check(secret, epoch, sender, seen) && numbers.next().is_none())
        .then_some(seen)
}

/// Returns the position in an id that [`make_id`] has created for a logged event. The id may be
/// forged: nothing is checked.
pub(crate) fn position_in(epoch: &str, id: &str) -> Option<u64> {
    let mut numbers = id.strip_prefix(epoch)?.strip_prefix('-')?.split('-');
    let seq = u64::from_str_radix(numbers.next()?, 16).ok()?;
    (numbers.count() == 2).then_some(seq)
}

fn check(secret: Secret, epoch: &str, sender: &str, seen: Seen) -> u64 {
    secret.hash([epoch, sender], &[seen.seq, seen.at]).h1
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret(1, 2);

    fn key(sender: &str, id: &str) -> DedupeKey {
        DedupeKey::new(SECRET, sender, id)
    }

    fn seen(seq: u64, at: Millis) -> Seen {
        Seen { seq, at }
    }

    fn row(first: u64, at: Millis, sends: &[(DedupeKey, Seen)]) -> StoredSends {
        let mut keys = Vec::new();
        for send in sends {
            push_key(&mut keys, first, *send);
        }
        let sends = Sends::Keys(keys);
        StoredSends { first, at, sends }
    }

    #[test]
    fn a_send_is_remembered_for_the_window() {
        let mut dedupe = Dedupe::default();
        dedupe.insert(key("alice", "m1"), seen(1, 100), 1000);
        assert_eq!(
            dedupe.get(key("alice", "m1"), 1099, 1000),
            Some(seen(1, 100))
        );
        assert_eq!(dedupe.get(key("alice", "m1"), 1100, 1000), None);
        assert_eq!(dedupe.get(key("bob", "m1"), 100, 1000), None);
        dedupe.insert(key("alice", "m2"), seen(2, 2000), 1000);
        assert_eq!(dedupe.seen.len(), 1, "the old one is forgotten");
    }

    #[test]
    fn hashes_are_the_same_in_all_builds() {
        // Stored rows have these hashes, so a change would make repeated sends new ones.
        let secret = Secret::parse("000102030405060708090a0b0c0d0e0f").expect("a secret");
        let DedupeKey(hash) = DedupeKey::new(secret, "alice", "m1");
        assert_eq!(format!("{hash:032x}"), "93491f1189747dc27daa070fddd440b1");
        let id = make_id(secret, "0af3", "alice", seen(300, 1_795_420_800_123));
        assert_eq!(id, "0af3-12c-1a2076b447b-1de0fd6a8729e716");
    }

    #[test]
    fn hashes_depend_on_the_secret_and_on_each_part() {
        let keys = [
            DedupeKey::new(Secret(1, 2), "alice", "m1"),
            DedupeKey::new(Secret(1, 3), "alice", "m1"),
            DedupeKey::new(Secret(2, 2), "alice", "m1"),
            DedupeKey::new(Secret(1, 2), "alicem", "1"),
            DedupeKey::new(Secret(1, 2), "alice", "m2"),
        ];
        for (n, key) in keys.iter().enumerate() {
            assert!(!keys[n + 1..].contains(key), "{n}");
        }
        for bad in ["", "0af3", "x00102030405060708090a0b0c0d0e0f", "é"] {
            assert!(Secret::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn stored_sends_are_restored_with_their_event_and_time() {
        let mut dedupe = Dedupe::default();
        let newer = [(key("alice", "m3"), seen(9, 520))];
        let older = [
            (key("alice", "m1"), seen(5, 90)),
            (key("bob", "m2"), seen(7, 130)),
        ];
        assert!(dedupe.restore(SECRET, &row(8, 530, &newer), 100));
        assert!(dedupe.restore(SECRET, &row(5, 110, &older), 100));
        let get = |sender, id| dedupe.get(key(sender, id), 600, 500);
        assert_eq!(get("alice", "m3"), Some(seen(9, 520)));
        assert_eq!(get("bob", "m2"), Some(seen(7, 130)));
        assert_eq!(get("alice", "m1"), None, "outside the window");
        let order: Vec<Millis> = dedupe.order.iter().map(|(at, _)| *at).collect();
        assert_eq!(order, [130, 520]);
    }

    #[test]
    fn at_most_the_newest_sends_are_restored() {
        let mut dedupe = Dedupe::default();
        let sends = |first: u64| -> Vec<(DedupeKey, Seen)> {
            let seqs = first..first + 100_000;
            seqs.map(|seq| (key("alice", &seq.to_string()), seen(seq, 1_000)))
                .collect()
        };
        assert!(dedupe.restore(SECRET, &row(200_001, 1_000, &sends(200_001)), 0));
        assert!(dedupe.restore(SECRET, &row(100_001, 1_000, &sends(100_001)), 0));
        assert!(!dedupe.restore(SECRET, &row(1, 1_000, &sends(1)), 0));
        assert_eq!(dedupe.order.len(), MAX_REMEMBERED);
        let known = |seq: u64| {
            let key = key("alice", &seq.to_string());
            dedupe.get(key, 1_000, 1_000).is_some()
        };
        assert!(known(50_001) && !known(50_000));
    }

    #[test]
    fn sends_of_deleted_rows_are_kept_in_one_row() {
        let mut kept = KeptSends::default();
        let first = [
            (key("alice", "m1"), seen(5, 90)),
            (key("alice", "m2"), seen(6, 120)),
        ];
        kept.add(SECRET, &row(5, 125, &first), 100);
        kept.add(SECRET, &row(7, 140, &[]), 100);
        // A row of an older version.
        let event = |seq: u64, id: &str| {
            format!(
                r#"{{"event":"newMessage","data":{{"content":1,"roomId":"r","messageId":"{id}","senderId":"bob","seq":{seq},"timestamp":"1970-01-01T00:00:00.150Z"}}}}"#
            )
        };
        let body = [event(8, "m3"), event(9, "m4")].join("\n");
        let sends = Sends::Events(body);
        let (at, first) = (155, 8);
        kept.add(SECRET, &StoredSends { first, at, sends }, 100);
        let row = kept.finish().expect("a row");
        assert_eq!((row.first, row.at), (6, 150));
        assert_eq!(row.keys.len(), 3 * KEY_BYTES);
        let sends = Sends::Keys(row.keys);
        let (first, at) = (row.first, row.at);
        let mut dedupe = Dedupe::default();
        dedupe.restore(SECRET, &StoredSends { first, at, sends }, 100);
        for (sender, id, expected) in [
            ("alice", "m1", None),
            ("alice", "m2", Some(seen(6, 120))),
            ("bob", "m3", Some(seen(8, 150))),
            ("bob", "m4", Some(seen(9, 150))),
        ] {
            assert_eq!(dedupe.get(key(sender, id), 160, 1_000), expected, "{id}");
        }
        assert!(KeptSends::default().finish().is_none());
    }

    #[test]
    fn an_id_of_the_server_is_recognised_from_its_sender_only() {
        let seen = seen(300, 1_795_420_800_123);
        let id = make_id(SECRET, "0af3", "alice", seen);
        assert_eq!(read_id(SECRET, "0af3", "alice", &id), Some(seen));
        assert_eq!(position_in("0af3", &id), Some(300));
        assert_eq!(position_in("0af3", &format!("{id}-1")), None, "ephemeral");
        for other in ["", "0af3", "0af3-12c", "0af4-1-2-3", "0af3-x-2-3"] {
            assert_eq!(position_in("0af3", other), None, "{other}");
        }
        assert_eq!(read_id(SECRET, "0af3", "bob", &id), None);
        assert_eq!(read_id(SECRET, "0af4", "alice", &id), None);
        assert_eq!(read_id(Secret(1, 3), "0af3", "alice", &id), None);
        for bad in ["0af3-", "0af3-1-2", "0af3-1-2-3-4", "0af3-x-1-2", "m1", ""] {
            assert_eq!(read_id(SECRET, "0af3", "alice", bad), None, "{bad}");
        }
    }
}
