//! The last packets of sessions on long-polling that the server has ended.
//!
//! If no poll was waiting when the session ended, the next poll of the client gets them. Without
//! its DISCONNECT, the client would see an error of the transport, and reconnect.

use std::collections::VecDeque;

/// Maximum number of sessions. The oldest one is dropped first.
const MAX_SESSIONS: usize = 64;

/// Maximum size in bytes of the packets of a session. Larger ones are dropped: then most of them
/// are events, which the client reads again after it has reconnected.
const MAX_BYTES: usize = 16 * 1024;

/// The session ids, each with the body of the answer to its next poll.
#[derive(Debug, Default)]
pub(super) struct LastPackets(VecDeque<(String, String)>);

impl LastPackets {
    pub(super) fn insert(&mut self, sid: String, body: String) {
        if body.len() > MAX_BYTES {
            return;
        }
        if self.0.len() == MAX_SESSIONS {
            self.0.pop_front();
        }
        self.0.push_back((sid, body));
    }

    /// Returns the body of the answer to the next poll of a session, once.
    pub(super) fn take(&mut self, sid: &str) -> Option<String> {
        let index = self.0.iter().position(|(ended, _)| ended == sid)?;
        self.0.remove(index).map(|(_, body)| body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_small_bodies_are_kept_and_each_is_returned_once() {
        let mut packets = LastPackets::default();
        packets.insert("large".into(), "x".repeat(MAX_BYTES + 1));
        assert_eq!(packets.take("large"), None);
        for number in 0..=MAX_SESSIONS {
            packets.insert(number.to_string(), "41".into());
        }
        assert_eq!(packets.take("0"), None, "the oldest one is dropped");
        assert_eq!(packets.take("1").as_deref(), Some("41"));
        assert_eq!(packets.take("1"), None);
    }
}
