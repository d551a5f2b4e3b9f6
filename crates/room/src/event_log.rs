//! The state that a room keeps of its log: the epoch, the bounds and the recent sends.
//!
//! The events themselves are in storage.

use crate::config::RoomConfig;
use crate::dedupe::{self, Dedupe, DedupeKey, Secret, Seen};
use crate::log::{LogBatch, LogBounds, OldestRow};
use crate::message_ids::{MessageIds, Searched};
use crate::seq_range::SeqRange;
use crate::snapshot::{ReadRecent, ReadRows};
use roomcast_proto::command::Send;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::event;
use roomcast_proto::id::{Epoch, MessageId, UserId};
use roomcast_proto::position::Position;
use roomcast_proto::time::{Millis, rfc3339};

/// The epoch, the bounds and the recent sends of a log.
pub(crate) struct EventLog {
    epoch: Epoch,
    secret: Secret,
    bounds: LogBounds,
    dedupe: Dedupe,
    /// Reads the sends from before the restart. `None` after they have been read.
    recent: Option<ReadRecent>,
    message_ids: MessageIds,
    /// The number of ephemeral events since the restart.
    ephemeral_events: u64,
}

/// The position from which a connection receives the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Start {
    /// Sequence number of the last event before it.
    pub(crate) after: u64,
    /// `true` if the requested position belongs to another log, so that the client must
    /// drop its events.
    pub(crate) reset: bool,
}

/// An accepted send.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) message_id: MessageId,
    pub(crate) seen: Seen,
    /// The hash to store with the event, if the sender has chosen the message id.
    pub(crate) key: Option<DedupeKey>,
    /// `true` if the send repeats an earlier one, so that it is not logged again.
    pub(crate) duplicate: bool,
}

impl Accepted {
    /// Returns the answer to the send.
    pub(crate) fn receipt(&self) -> String {
        event::receipt(
            &self.message_id,
            self.seen.seq,
            &rfc3339(self.seen.at),
            self.duplicate,
        )
    }
}

impl EventLog {
    pub(crate) fn new(
        epoch: Epoch,
        secret: Secret,
        bounds: LogBounds,
        recent: Option<ReadRecent>,
        rows: Option<ReadRows>,
    ) -> Self {
        EventLog {
            epoch,
            secret,
            bounds,
            dedupe: Dedupe::default(),
            recent,
            message_ids: MessageIds::new(rows),
            ephemeral_events: 0,
        }
    }

    pub(crate) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    pub(crate) fn secret(&self) -> Secret {
        self.secret
    }

    pub(crate) fn bounds(&self) -> &LogBounds {
        &self.bounds
    }

    /// Returns the sequence number of the last stored event.
    pub(crate) fn head(&self) -> u64 {
        self.bounds.head
    }

    /// Returns the sequence number up to which events have expired.
    pub(crate) fn floor(&self, config: &RoomConfig) -> u64 {
        self.bounds.floor(config)
    }

    /// Returns the stored event with a message id; see [`MessageIds::locate`].
    pub(crate) fn locate_message(
        &mut self,
        id: &MessageId,
        config: &RoomConfig,
    ) -> Result<Option<u64>> {
        let position = dedupe::position_in(&self.epoch, id);
        let events = self.kept_events(config);
        self.message_ids.locate(id, position, events)
    }

    /// Searches a message id in the stored events; see [`MessageIds::search`].
    pub(crate) fn search_message(
        &mut self,
        id: &MessageId,
        config: &RoomConfig,
    ) -> Result<Searched> {
        let events = self.kept_events(config);
        self.message_ids.search(id, events)
    }

    fn kept_events(&self, config: &RoomConfig) -> SeqRange {
        SeqRange {
            after: self.floor(config),
            upto: self.head(),
        }
    }

    /// Returns the message id of a stored event; see [`MessageIds::id_of`].
    pub(crate) fn message_id_of(&mut self, seq: u64, config: &RoomConfig) -> Option<MessageId> {
        let is_kept = seq > self.floor(config) && seq <= self.head();
        is_kept.then(|| self.message_ids.id_of(seq)).flatten()
    }

    /// Removes the function that reads the log and returns it.
    pub(crate) fn take_reader(&mut self) -> Option<ReadRows> {
        self.message_ids.take_reader()
    }

    /// Accepts a send and gives it a sequence number, or recognises it as a repetition.
    /// `pending` is the number of events in the batch, which are not stored yet.
    pub(crate) fn accept(
        &mut self,
        sender: &UserId,
        send: &Send,
        pending: u64,
        config: &RoomConfig,
        now: Millis,
    ) -> Result<Accepted> {
        let window = config.dedupe_window;
        let last = self.bounds.head + pending;
        let seen = Seen {
            seq: last + 1,
            at: now,
        };
        let Some(id) = &send.message_id else {
            return Ok(Accepted {
                message_id: MessageId::trusted(self.make_id(sender, seen)),
                seen,
                key: None,
                duplicate: false,
            });
        };
        let key = DedupeKey::new(self.secret, sender, id);
        self.read_recent(window, now)?;
        let before = self.dedupe.get(key, now, window).or_else(|| {
            dedupe::read_id(self.secret, &self.epoch, sender, id)
                .filter(|before| before.seq <= last)
        });
        if before.is_none() {
            self.dedupe.insert(key, seen, window);
        }
        Ok(Accepted {
            message_id: id.clone(),
            seen: before.unwrap_or(seen),
            key: Some(key),
            duplicate: before.is_some(),
        })
    }

    /// Reads the sends from before the restart, once.
    fn read_recent(&mut self, window: Millis, now: Millis) -> Result<()> {
        let Some(recent) = &self.recent else {
            return Ok(());
        };
        let since = now.saturating_sub(window);
        let mut dedupe = Dedupe::default();
        recent(since, &mut |row| dedupe.restore(self.secret, row, since))
            .map_err(|_| Error::internal())?;
        self.dedupe = dedupe;
        self.recent = None;
        Ok(())
    }

    fn make_id(&self, sender: &UserId, seen: Seen) -> String {
        dedupe::make_id(self.secret, &self.epoch, sender, seen)
    }

    /// Returns an id for an ephemeral event without one.
    pub(crate) fn ephemeral_id(&mut self, sender: &UserId, now: Millis) -> MessageId {
        let at = Seen {
            seq: self.bounds.head,
            at: now,
        };
        self.ephemeral_events += 1;
        let id = self.make_id(sender, at);
        // The event has no position in the log, so `read_id` must not recognise the id.
        MessageId::trusted(format!("{id}-{:x}", self.ephemeral_events))
    }

    /// Returns the position from which a user receives the log. `delivered` is the
    /// delivered cursor of a member.
    pub(crate) fn start(
        &self,
        position: &Position,
        delivered: Option<u64>,
        config: &RoomConfig,
    ) -> Start {
        let (head, floor) = (self.head(), self.floor(config));
        let epoch = position.epoch.as_ref();
        let other_epoch = epoch.is_some_and(|epoch| *epoch != self.epoch);
        match position.since {
            Some(since) if other_epoch || since > head => Start {
                after: floor,
                reset: true,
            },
            Some(since) => Start {
                after: since,
                reset: false,
            },
            None => {
                let history = position
                    .history
                    .map_or(head, |events| head.saturating_sub(events).max(floor));
                Start {
                    after: delivered.unwrap_or(head).min(history),
                    reset: false,
                }
            }
        }
    }

    /// Returns the time at which a batch is stored. It is never before that of the last
    /// batch, even if the clock was set back.
    pub(crate) fn storage_time(&self, now: Millis) -> Millis {
        now.max(self.bounds.last_at)
    }

    /// Appends a batch.
    pub(crate) fn append(&mut self, batch: &LogBatch) {
        self.bounds.head = batch.last;
        self.bounds.last_at = batch.at;
        self.bounds.total = batch.total;
        self.bounds.oldest_at.get_or_insert(batch.at);
    }

    /// Marks expired events as deleted, at most as many as may be deleted at once. Returns the
    /// sequence number up to which events are deleted.
    pub(crate) fn trim(&mut self, config: &RoomConfig) -> u64 {
        self.bounds.trimmed = self.bounds.next_trim(config);
        self.bounds.trimmed
    }

    /// Marks the events before `oldest` as expired, or all events if it is `None`.
    pub(crate) fn expire(&mut self, oldest: Option<OldestRow>) {
        let bounds = &mut self.bounds;
        let (upto, bytes) = oldest.map_or((bounds.head, bounds.total), |row| {
            (row.first.saturating_sub(1), row.total)
        });
        bounds.expired = bounds.expired.max(upto);
        bounds.expired_bytes = bounds.expired_bytes.max(bytes);
        bounds.oldest_at = oldest.map(|row| row.at);
    }
}
