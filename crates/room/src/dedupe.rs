//! Which sends were seen already. A send with the sender's own `messageId` is
//! remembered by a 128-bit hash of both; an id the server made says by itself
//! where its event is, so it need not be remembered at all.

use roomcast_proto::raw_object::{RawObject, TEXT};
use roomcast_proto::time::{Millis, parse_rfc3339};
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// How many sends are remembered at the most, about 20 MB of them. A room that
/// takes more than this within the window forgets the oldest early.
pub const MAX_REMEMBERED: usize = 250_000;

/// Where a send went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub seq: u64,
    pub at: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u128);

impl Key {
    pub fn new(sender: &str, message_id: &str) -> Self {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, sender, message_id).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        Key(half(0) << 64 | half(1))
    }
}

#[derive(Debug, Default)]
pub struct Dedupe {
    seen: HashMap<Key, Seen>,
    order: VecDeque<(Millis, Key)>,
}

impl Dedupe {
    /// Takes in stored events, a line each, the first being number `first`.
    pub fn recall(&mut self, first: u64, body: &str, window: Millis) {
        for (seq, line) in (first..).zip(body.split('\n')) {
            if let Some((key, at)) = remembered(line) {
                self.insert(key, Seen { seq, at }, window);
            }
        }
    }

    pub fn get(&self, key: Key, now: Millis, window: Millis) -> Option<Seen> {
        self.seen
            .get(&key)
            .copied()
            .filter(|seen| seen.at + window > now)
    }

    pub fn insert(&mut self, key: Key, seen: Seen, window: Millis) {
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

/// Under what key a stored event is remembered, and when it was accepted.
fn remembered(line: &str) -> Option<(Key, Millis)> {
    // Looks at what the server wrote and at nothing else: what senders gave may
    // be JSON that is not text, such as half a surrogate pair.
    let envelope = RawObject::parse(line, "an envelope").ok()?;
    let stamp = envelope.raw("meta").or_else(|| envelope.raw("data"))?;
    let stamp = RawObject::parse(stamp.get(), "a stamp").ok()?;
    let field = |name| stamp.required(name, TEXT).ok();
    Some((
        Key::new(&field("senderId")?, &field("messageId")?),
        parse_rfc3339(&field("timestamp")?)?,
    ))
}

/// An id for a send that came without one: `{epoch}-{seq}-{at}-{check}`, the
/// numbers in base 16. The check ties it to its sender, so that sent again by
/// the same sender it is known, and by another it is not.
pub fn make_id(epoch: &str, sender: &str, seen: Seen) -> String {
    let check = check(epoch, sender, seen);
    format!("{epoch}-{:x}-{:x}-{check:x}", seen.seq, seen.at)
}

/// What [`make_id`] put into `id`, if it made it for this sender and epoch.
pub fn read_id(epoch: &str, sender: &str, id: &str) -> Option<Seen> {
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
        let key = Key::new("alice", "m1");
        dedupe.insert(key, Seen { seq: 1, at: 100 }, 1000);
        assert_eq!(dedupe.get(key, 1099, 1000), Some(Seen { seq: 1, at: 100 }));
        assert_eq!(dedupe.get(key, 1100, 1000), None);
        assert_eq!(dedupe.get(Key::new("bob", "m1"), 100, 1000), None);
        dedupe.insert(Key::new("alice", "m2"), Seen { seq: 2, at: 2000 }, 1000);
        assert_eq!(dedupe.seen.len(), 1, "the old one is forgotten");
    }

    #[test]
    fn an_id_of_the_server_is_known_again_from_its_sender_alone() {
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
