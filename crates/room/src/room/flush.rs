//! The end of a batch, timers and the alarm.

use super::Room;
use super::commands::Answer;
use super::connect::Shared;
use crate::connection::Connection;
use crate::delivery::Delivery;
use crate::ids::ConnId;
use crate::log::OldestRow;
use crate::member::Cursor;
use crate::members::CursorMoved;
use crate::output::{Change, Output};
use crate::roster::Ended;
use crate::seq_range::SeqRange;
use crate::timers::Timer;
use roomcast_proto::access::Rights;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::id::{Epoch, UserId};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use roomcast_proto::{event, framing};

/// Delay after which moved cursors are stored together, in one row, and acknowledgements are
/// answered. With one message in flight in a room, this keeps the cost of receipts below one
/// row per 20 messages.
const CURSOR_FLUSH_DELAY: Millis = 50;

/// The maximum number of receipts whose message ids are looked up at a time. Each may read a row
/// of the log. Clients that need the ids do not get further receipts.
const MAX_LOOKUPS: usize = 256;

/// The number of deleted events whose hashes are kept at most, 70 MB. It is ten times the number
/// of sends that the room remembers, because not every event has a message id of its sender.
const MAX_KEPT_SENDS: u64 = 2_500_000;

impl Room {
    /// Handles the timers that are due, then ends the batch: one row, one commit, one frame
    /// for each socket. The host calls it when [`Batcher`](crate::batcher::Batcher) ends the
    /// batch and at [`Room::timer_at`]. It does nothing if no timer is due and the batch is
    /// empty.
    pub fn flush(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.handle_timeouts(now, out);
        self.flush_batch(now, out);
    }

    fn handle_timeouts(&mut self, now: Millis, out: &mut Vec<Output>) {
        if self.timers.is_due(Timer::TokenExpiry, now) {
            self.close_expired(now, out);
        }
        if self.timers.is_due(Timer::PresenceTimeout, now) {
            let expired = self.presence.roster.expire(now);
            self.timers.set(Timer::PresenceTimeout, expired.next);
            for ended in expired.ended {
                if let Ended::Typing(user) = ended {
                    let line = self.typing_event(&user, false);
                    self.queue_event(&user, line, now);
                }
            }
        }
        self.schedule_presence(now);
        if self.timers.is_due(Timer::CursorFlush, now) {
            self.flush_cursors(now, out);
        }
        if self.timers.is_due(Timer::PresenceFlush, now) {
            self.flush_presence();
        }
        if self.timers.is_due(Timer::Replacement, now) {
            self.finish_replacements(now, out);
        }
        if self.timers.is_due(Timer::PresenceFeed, now) {
            self.run_presence_feeds(now, out);
        }
    }

    fn flush_batch(&mut self, now: Millis, out: &mut Vec<Output>) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        self.batches += 1;
        let head = self.log.head();
        self.store_members(batch.take_changes(), out);
        let at = self.log.storage_time(now);
        let rows = batch.take_rows(head + 1, at, self.log.bounds().total);
        let mut logged = Vec::with_capacity(rows.len());
        for row in rows {
            self.log.append(&row);
            logged.push(row.body.clone());
            out.push(Output::Store(Change::Append(row)));
        }
        if batch.events() > 0 {
            self.schedule_retention();
            let mut record = LogRecord::info("publish")
                .with("first", head + 1)
                .with("count", batch.events())
                .took(now.saturating_sub(batch.since()));
            if let Some(sender) = batch.sender() {
                record = record.user(sender);
            }
            out.push(Output::Log(record));
        }
        for ack in batch.take_acknowledgements() {
            let answer = match self.acknowledge(ack.conn, ack.id, ack.cursor, ack.seq, now) {
                Ok(Answer::Now(data)) => ack.id.map(|id| framing::ack(id, &data)),
                Ok(Answer::Later) => None,
                Err(error) => Some(framing::error(ack.id, &error)),
            };
            if let Some(answer) = answer {
                batch.send(ack.conn, &answer);
            }
        }
        let attached = batch.take_attached().into_iter();
        out.extend(attached.map(|conn| Output::Attach { conn }));
        self.close_unauthorized(now, out);
        // New connections receive the log up to the head before this batch, and then the
        // batch like all other connections.
        let mut shared = Shared::default();
        for arrival in batch.take_arrivals() {
            self.welcome(&arrival, &mut shared, head, now, out);
        }
        for reply in batch.take_replies() {
            out.push(Output::Reply {
                call: reply.call,
                answers: reply.answers,
            });
        }
        let events = SeqRange {
            after: head,
            upto: self.log.head(),
        };
        let catching_up = self.connections.filter(|connection| {
            let is_own = !connection.attachment.remote;
            is_own && connection.catch_up.is_some() && connection.stalled_at.is_none()
        });
        let announces = batch.announces;
        let delivery = batch.into_delivery(
            self.batches,
            events,
            &logged,
            |user| self.connections_of(user),
            |conn| self.connections.receives(conn, self.batches),
            catching_up,
        );
        let presence = self.presence.log.version();
        out.push(Output::Deliver(Delivery {
            presence,
            announces,
            ..delivery
        }));
        self.finish_leave(now, out);
        if self.log.bounds().is_trim_due(&self.config) {
            let trim = self.trim(now);
            out.push(Output::Store(trim));
        }
    }

    /// Returns the connections of a user, including those at gateways whose membership has ended
    /// with the batch: their gateways still deliver the batch to them.
    fn connections_of(&self, user: &UserId) -> Vec<ConnId> {
        let joined = self.presence.roster.connections(user);
        let is_of_user = |conn: &ConnId| {
            let connection = self.connections.get(*conn);
            connection.is_some_and(|connection| connection.attachment.user == *user)
        };
        let leaving = self.gateways.leaving().iter().copied().filter(is_of_user);
        joined.chain(leaving).collect()
    }

    /// Stores the changes of the members, and a checkpoint if one is due.
    pub(super) fn store_members(&mut self, changes: Vec<Change>, out: &mut Vec<Output>) {
        let changes = changes.into_iter().chain(self.members.take_checkpoint());
        out.extend(changes.map(Output::Store));
    }

    /// Closes joined connections whose token does not allow reading. Called immediately
    /// before events are sent. Only a bug can cause such a connection, so it is logged as an
    /// error.
    fn close_unauthorized(&mut self, now: Millis, out: &mut Vec<Output>) {
        let is_unauthorized = |connection: &Connection| {
            let attachment = &connection.attachment;
            attachment.joined && !attachment.rights.has(Rights::READ)
        };
        for conn in self.connections.filter(is_unauthorized) {
            let Some(connection) = self.connections.get(conn) else {
                continue;
            };
            let attachment = &connection.attachment;
            let record =
                LogRecord::error("the connection's token does not allow access to the room");
            let record = record.user(&attachment.user).connection(&attachment.id);
            out.push(Output::Log(record));
            if attachment.remote {
                // The client stays in its other rooms.
                out.push(Output::Unsubscribed { conn });
                self.remove_connection(conn, Disconnect::Forbidden.code(), now, now, out);
            } else {
                self.close(conn, Disconnect::Forbidden, now, out);
            }
        }
    }

    /// Schedules the storage of moved cursors.
    pub(super) fn schedule_cursor_flush(&mut self, now: Millis) {
        self.timers
            .start(Timer::CursorFlush, now + CURSOR_FLUSH_DELAY);
    }

    /// Stores moved cursors, announces them, and answers the acknowledgements.
    pub(super) fn flush_cursors(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.timers.stop(Timer::CursorFlush);
        let flushed = self.members.flush_cursors();
        let is_by_seq =
            |moved: &CursorMoved| moved.cursor == Cursor::Read && moved.message_id.is_none();
        let needs_ids = flushed.moved.iter().any(is_by_seq) && self.needs_message_ids();
        let mut lookups = if needs_ids { MAX_LOOKUPS } else { 0 };
        for moved in flushed.moved {
            let name = match moved.cursor {
                Cursor::Delivered => "messageDelivered",
                Cursor::Read => "messageRead",
            };
            let id = match moved.message_id {
                None if lookups > 0 && moved.cursor == Cursor::Read => {
                    lookups -= 1;
                    self.log.message_id_of(moved.seq, &self.config)
                }
                id => id,
            };
            let id = id.as_deref();
            let line = event::cursor_moved(name, &self.name, &moved.user, moved.seq, id);
            self.queue_event(&moved.user, line, now);
        }
        out.extend(flushed.changes.into_iter().map(Output::Store));
        for ack in flushed.acks {
            let answer = framing::ack(ack.id, &ack.data);
            self.batch.send(ack.conn, &answer);
        }
    }

    /// Returns `true` if receipts must name messages by their ids.
    fn needs_message_ids(&self) -> bool {
        let needs_ids = |connection: &Connection| connection.attachment.needs_message_ids;
        self.connections.find(needs_ids).is_some()
    }

    /// Called after the room was restored from storage because of a failure, while its
    /// sockets stayed open. The room's own sockets catch up from `sent_upto`. Sends the presence
    /// of all members to all connections, because queued presence updates are lost.
    pub fn recover(&mut self, sent_upto: u64, now: Millis) {
        let head = self.log.head();
        let own = self.connections.filter(|connection| {
            let attachment = &connection.attachment;
            attachment.joined && !attachment.remote && attachment.from.max(sent_upto) < head
        });
        for conn in own {
            if let Some(connection) = self.connections.get(conn) {
                let after = connection.attachment.from.max(sent_upto);
                self.start_replay(conn, after);
            }
        }
        self.announce_everybody(now);
    }

    /// Handles a failure of storage. `rest` are the outputs that the host has not carried
    /// out. Returns the outputs that it carries out instead, each after [`Room::route`]: the
    /// closes among them, and `error` for each command that was not answered, those of the
    /// open batch included. The host then creates the room again from storage.
    pub fn fail(
        &mut self,
        rest: impl IntoIterator<Item = Output>,
        error: &Error,
        now: Millis,
    ) -> Vec<Output> {
        let mut lost: Vec<Output> = rest.into_iter().collect();
        // The end of the batch moves cursors, whose acknowledgements are in the next batch.
        self.flush_batch(now, &mut lost);
        self.flush_cursors(now, &mut lost);
        self.flush_batch(now, &mut lost);
        let mut out = Vec::new();
        let mut fail = |conn: ConnId, frame: String| {
            if !frame.is_empty() {
                out.push(Output::Send { conn, frame });
            }
        };
        let mut closes = Vec::new();
        for output in lost {
            match output {
                Output::Deliver(delivery) => {
                    for custom in delivery.custom {
                        fail(custom.conn, framing::failed(&custom.private, error));
                    }
                }
                Output::Send { conn, frame } => fail(conn, framing::failed(&frame, error)),
                Output::Page { conn, id, .. } => {
                    fail(conn, framing::error(Some(id), error));
                }
                Output::Authenticate { connection, id, .. } => {
                    let id_of = |one: &Connection| one.attachment.id == connection;
                    if let Some(conn) = self.connections.find(id_of) {
                        fail(conn, framing::error(id, error));
                    }
                }
                close @ Output::Close { .. } => closes.push(close),
                _ => {}
            }
        }
        out.extend(closes);
        out
    }

    /// Closes connections whose token has expired.
    fn close_expired(&mut self, now: Millis, out: &mut Vec<Output>) {
        let expired = |connection: &Connection| connection.attachment.expires <= now;
        for conn in self.connections.filter(expired) {
            self.close(conn, Disconnect::Expired, now, out);
        }
        let next = self.connections.next_token_expiry();
        self.timers.set(Timer::TokenExpiry, next);
    }

    /// Returns the change that deletes expired events from storage. If it does not delete all
    /// of them, the alarm continues.
    pub fn trim(&mut self, now: Millis) -> Change {
        let upto = self.log.trim(&self.config);
        let rest = (upto < self.floor()).then_some(now);
        self.timers.set(Timer::LogTrim, rest);
        let since = now.saturating_sub(self.config.dedupe_window);
        let first = upto.saturating_sub(MAX_KEPT_SENDS);
        Change::Trim { upto, since, first }
    }

    /// Returns the time before which rows have expired by age, if there is such a row. The
    /// host looks up the oldest row that was stored at this time or later, and calls
    /// [`Room::expire_log`].
    pub fn retention_cutoff(&self, now: Millis) -> Option<Millis> {
        self.timers
            .get(Timer::LogRetention)
            .filter(|at| *at < now)
            .map(|_| now - self.config.retention_age)
    }

    /// Returns the [`LogBatch::total`](crate::log::LogBatch::total) up to which rows expire, if
    /// the log has more than `RETENTION_BYTES`. The host looks up the oldest row with a larger
    /// total and calls [`Room::expire_log`] and [`Room::trim`].
    pub fn byte_cutoff(&self) -> Option<u64> {
        self.log.bounds().byte_cutoff(&self.config)
    }

    /// Records that the events before the row `oldest` have expired, or all events if it is
    /// `None`.
    pub fn expire_log(&mut self, oldest: Option<OldestRow>) {
        self.log.expire(oldest);
        self.schedule_retention();
    }

    /// Returns the time from which the stored state of the room is worth nothing: it has no
    /// members, no connections and no items for gateways, its events have expired, and no
    /// repeated send can be recognised. Returns `None` while it has one of them. The host then
    /// calls [`Room::release`], with an alarm if the time is in the future.
    pub fn release_at(&self) -> Option<Millis> {
        let is_used = self.members.len() > 0
            || self.connections.len() > 0
            || !self.gateways.is_idle()
            || !self.batch.is_empty();
        let bounds = self.log.bounds();
        let kept_for = self.config.retention_age.max(self.config.dedupe_window);
        (!is_used).then(|| match bounds.head {
            0 => 0,
            _ => bounds.last_at.saturating_add(kept_for),
        })
    }

    /// Frees the storage of the room. If the log has had events, `epoch` becomes its epoch,
    /// because the sequence numbers begin again.
    pub fn release(&mut self, epoch: Epoch, out: &mut Vec<Output>) {
        let epoch = match self.log.head() {
            0 => self.epoch().clone(),
            _ => epoch,
        };
        self.wipe(epoch, out);
        out.push(Output::Log(LogRecord::info("release")));
    }

    /// Handles the alarm: expired tokens, stale connections, expired events, probes of
    /// gateways. `pinged` returns the time of the last ping on a socket. The alarm may come
    /// at any time.
    pub fn handle_alarm(
        &mut self,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        self.gateways.retry(now);
        if self.timers.is_due(Timer::DeliveryRetry, now) {
            self.timers.stop(Timer::DeliveryRetry);
        }
        let stale = self.find_stale(pinged, now);
        out.push(Output::Log(
            LogRecord::info("alarm").with("ghosts", stale.len()),
        ));
        for (conn, pinged) in stale {
            self.close_silent(conn, Disconnect::Stale, Some(pinged), now, out);
        }
        self.flush(now, out);
        if self.floor() > self.bounds().trimmed {
            let trim = self.trim(now);
            out.push(Output::Store(trim));
        }
    }

    /// Returns the connections whose keepalive has timed out, with the times of their last pings,
    /// and schedules the next check.
    /// Clients that never ping have not opted in to keepalive, so they do not time out.
    fn find_stale(
        &mut self,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
    ) -> Vec<(ConnId, Millis)> {
        self.timers.stop(Timer::KeepaliveCheck);
        let mut stale = Vec::new();
        for (conn, connection) in self.connections.iter() {
            let Some(pinged) = pinged(conn) else {
                continue;
            };
            let active_at = pinged.max(connection.slow_consumer.active_at());
            let stale_at = active_at + self.config.limits.ghost_timeout;
            if stale_at <= now {
                stale.push((conn, pinged));
            } else {
                self.timers.set_earliest(Timer::KeepaliveCheck, stale_at);
            }
        }
        stale
    }
}
