//! Events that clients and services send.

use super::Room;
use crate::event_log::Accepted;
use roomcast_proto::command::Send;
use roomcast_proto::envelope::{self, Body, Stamp};
use roomcast_proto::error::Result;
use roomcast_proto::id::{MessageId, UserId};
use roomcast_proto::time::{Millis, rfc3339};
use roomcast_proto::user_info::UserInfo;
use std::borrow::Cow;

/// The origin of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin<'a> {
    Client,
    /// A service, with the profile in its token. Its events carry the stamp in `meta` as well.
    Service(Option<&'a UserInfo>),
}

impl Origin<'_> {
    fn has_meta(self) -> bool {
        matches!(self, Origin::Service(_))
    }
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
        origin: Origin<'_>,
        now: Millis,
    ) -> Result<Accepted> {
        let pending = self.batch.events();
        let info = self.sender_info(sender, origin);
        let accepted = self.log.accept(sender, send, pending, &self.config, now)?;
        if !accepted.duplicate {
            let stamp = Stamp {
                room: &self.name,
                message_id: &accepted.message_id,
                sender,
                seq: Some(accepted.seen.seq),
                timestamp: &rfc3339(now),
                info: info.as_ref(),
            };
            let body = self.body(&send.body);
            let line = self.batch.next_event(sender, now);
            envelope::push_envelope(line, &body, stamp, origin.has_meta());
            if let Some(key) = accepted.key {
                self.batch.add_key(key, now);
            }
        }
        Ok(accepted)
    }

    /// Returns the profile of a sender, if messages have it: that of a service, or that of a
    /// connected user.
    fn sender_info(&mut self, sender: &UserId, origin: Origin<'_>) -> Option<UserInfo> {
        if !self.config.sender_info {
            return None;
        }
        match origin {
            Origin::Service(info) => info.cloned(),
            Origin::Client => {
                self.load_profiles();
                self.presence.roster.info(sender).cloned()
            }
        }
    }

    /// Returns the body of an event, without the field that the room sets.
    fn body<'a>(&self, body: &'a Body) -> Cow<'a, Body> {
        match self.config.sender_info {
            true => body.without_sender(),
            false => Cow::Borrowed(body),
        }
    }

    /// Returns the envelope of an event that is not logged.
    pub(super) fn ephemeral(
        &mut self,
        sender: &UserId,
        send: &Send,
        origin: Origin<'_>,
        now: Millis,
    ) -> EphemeralEnvelope {
        let message_id = match &send.message_id {
            Some(id) => id.clone(),
            None => self.log.ephemeral_id(sender, now),
        };
        let info = self.sender_info(sender, origin);
        let stamp = Stamp {
            room: &self.name,
            message_id: &message_id,
            sender,
            seq: None,
            timestamp: &rfc3339(now),
            info: info.as_ref(),
        };
        let body = self.body(&send.body);
        let mut line = String::with_capacity(160);
        envelope::push_envelope(&mut line, &body, stamp, origin.has_meta());
        EphemeralEnvelope { line, message_id }
    }
}
