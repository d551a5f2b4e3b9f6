//! Detection of repeated sends.
//!
//! A send with a `messageId` of the sender is remembered by a 128-bit hash of both. An id
//! that the server has created contains the position of its event, so it need not be
//! remembered.

use roomcast_proto::raw_object::{RawObject, TEXT};
use roomcast_proto::time::{Millis, parse_rfc3339};
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The maximum number of remembered sends, about 20 MB. A room with more sends within the
/// dedupe window forgets the oldest early.
const MAX_REMEMBERED: usize = 250_000;

/// The event of an accepted send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Sequence number of the event.
    pub(crate) seq: u64,
    /// The time at which it was accepted.
    pub(crate) at: Millis,
}

/// The hash of a sender and a message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DedupeKey(u128);

impl DedupeKey {
    pub(crate) fn new(sender: &str, message_id: &str) -> Self {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, sender, message_id).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        DedupeKey(half(0) << 64 | half(1))
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
    /// Adds stored events, one per line. `first` is the sequence number of the first.
    pub(crate) fn restore(&mut self, first: u64, body: &str, window: Millis) {
        for (seq, line) in (first..).zip(body.split('\n')) {
            if let Some((key, at)) = key_of(line) {
                self.insert(key, Seen { seq, at }, window);
            }
        }
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

/// Returns the key of a stored event and the time at which it was accepted.
fn key_of(line: &str) -> Option<(DedupeKey, Millis)> {
    // Decodes only the fields that the server wrote. A sender's strings may contain a lone
    // surrogate, which cannot be decoded.
    let envelope = RawObject::parse(line, "an envelope").ok()?;
    let stamp = envelope.raw("meta").or_else(|| envelope.raw("data"))?;
    let stamp = RawObject::parse(stamp.get(), "a stamp").ok()?;
    let field = |name| stamp.required(name, TEXT).ok();
    Some((
        DedupeKey::new(&field("senderId")?, &field("messageId")?),
        parse_rfc3339(&field("timestamp")?)?,
    ))
}

/// Returns an id for a send without one: `{epoch}-{seq}-{at}-{check}`, with the numbers in
/// base 16. The check is a hash that includes the sender, so that the id is recognised only
/// if the same sender uses it.
pub(crate) fn make_id(epoch: &str, sender: &str, seen: Seen) -> String {
    let check = check(epoch, sender, seen);
    format!("{epoch}-{:x}-{:x}-{check:x}", seen.seq, seen.at)
}

/// Returns the event for which [`make_id`] created `id`. Returns `None` if the id was not
/// created for this sender and epoch.
pub(crate) fn read_id(epoch: &str, sender: &str, id: &str) -> Option<Seen> {
    let mut numbers = id
        .strip_prefix(epoch)?
        .strip_prefix('-')?
        .split('-')
        .map(|part| u64::from_str_radix(part, 16).ok());
    let seen = Seen {
        seq: numbers.next()??,
        at: numbers.next()??,
    };
    (numbers.next()?? == u64::from(check(epoch, sender, seen)) && numbers.next().is_none())
        .then_some(seen)
}

fn check(epoch: &str, sender: &str, seen: Seen) -> u32 {
    let mut hasher = DefaultHasher::new();
    (epoch, sender, seen.seq, seen.at).hash(&mut hasher);
    hasher.finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_is_remembered_for_the_window() {
        let mut dedupe = Dedupe::default();
        let key = DedupeKey::new("alice", "m1");
        dedupe.insert(key, Seen { seq: 1, at: 100 }, 1000);
        assert_eq!(dedupe.get(key, 1099, 1000), Some(Seen { seq: 1, at: 100 }));
        assert_eq!(dedupe.get(key, 1100, 1000), None);
        assert_eq!(dedupe.get(DedupeKey::new("bob", "m1"), 100, 1000), None);
        dedupe.insert(
            DedupeKey::new("alice", "m2"),
            Seen { seq: 2, at: 2000 },
            1000,
        );
        assert_eq!(dedupe.seen.len(), 1, "the old one is forgotten");
    }

    #[test]
    fn an_id_of_the_server_is_recognised_from_its_sender_only() {
        let seen = Seen {
            seq: 300,
            at: 1_795_420_800_123,
        };
        let id = make_id("0af3", "alice", seen);
        assert_eq!(read_id("0af3", "alice", &id), Some(seen));
        assert_eq!(read_id("0af3", "bob", &id), None);
        assert_eq!(read_id("0af4", "alice", &id), None);
        for bad in ["0af3-", "0af3-1-2", "0af3-1-2-3-4", "0af3-x-1-2", "m1", ""] {
            assert_eq!(read_id("0af3", "alice", bad), None, "{bad}");
        }
    }
}
