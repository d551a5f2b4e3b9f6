//! Events that clients and services send.

use super::Room;
use crate::event_log::Accepted;
use roomcast_proto::command::Send;
use roomcast_proto::envelope::{self, Stamp};
use roomcast_proto::error::Result;
use roomcast_proto::id::{MessageId, UserId};
use roomcast_proto::time::{Millis, rfc3339};

/// The origin of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Client,
    /// A service. Its events carry the stamp in `meta` as well.
    Service,
}

/// The envelope of an ephemeral event.
#[derive(Debug)]
pub(super) struct EphemeralEnvelope {
    pub(super) line: String,
    pub(super) message_id: MessageId,
}

impl Room {
    /// Adds an event to the batch, unless it repeats an earlier one.
    pub(super) fn accept(
        &mut self,
        sender: &UserId,
        send: &Send,
        origin: Origin,
        now: Millis,
    ) -> Result<Accepted> {
        let pending = self.batch.events();
        let accepted = self.log.accept(sender, send, pending, &self.config, now)?;
        if !accepted.duplicate {
            let stamp = Stamp {
                room: &self.name,
                message_id: &accepted.message_id,
                sender,
                seq: Some(accepted.seen.seq),
                timestamp: &rfc3339(now),
            };
            let line = self.batch.next_event(sender, now);
            envelope::push_envelope(line, &send.body, stamp, origin == Origin::Service);
            if let Some(key) = accepted.key {
                self.batch.add_key(key, now);
            }
        }
        Ok(accepted)
    }

    /// Returns the envelope of an event that is not logged.
    pub(super) fn ephemeral(
        &mut self,
        sender: &UserId,
        send: &Send,
        origin: Origin,
        now: Millis,
    ) -> EphemeralEnvelope {
        let message_id = match &send.message_id {
            Some(id) => id.clone(),
            None => self.log.ephemeral_id(sender, now),
        };
        let stamp = Stamp {
            room: &self.name,
            message_id: &message_id,
            sender,
            seq: None,
            timestamp: &rfc3339(now),
        };
        let mut line = String::with_capacity(160);
        envelope::push_envelope(&mut line, &send.body, stamp, origin == Origin::Service);
        EphemeralEnvelope { line, message_id }
    }
}
