//! The end of a batch, timers and the alarm.

use super::Room;
use super::commands::Answer;
use crate::connection::Connection;
use crate::ephemeral::{EphemeralEvent, Except};
use crate::ids::ConnId;
use crate::member::Cursor;
use crate::output::{Change, Output};
use crate::roster::Ended;
use crate::seq_range::SeqRange;
use crate::timers::Timer;
use roomcast_proto::access::Rights;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::id::UserId;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::status::Status;
use roomcast_proto::time::Millis;
use roomcast_proto::{event, framing};

/// Delay after which moved cursors are stored together, in one row, and acknowledgements are
/// answered. With one message in flight in a room, this keeps the cost of receipts below one
/// row per 20 messages.
const CURSOR_FLUSH_DELAY: Millis = 50;

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
                    let line = event::user_typing(&self.name, &user, false);
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
    }

    fn flush_batch(&mut self, now: Millis, out: &mut Vec<Output>) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        self.batches += 1;
        let head = self.log.head();
        self.store_members(batch.take_changes(), out);
        let rows = batch.take_rows(head + 1, self.log.storage_time(now));
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
        for arrival in batch.take_arrivals() {
            self.welcome(&arrival, head, out);
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
        let catching_up = self
            .connections
            .filter(|connection| connection.catch_up.is_some() && connection.stalled_at.is_none());
        out.push(Output::Deliver(batch.into_delivery(
            self.batches,
            events,
            &logged,
            |user| self.presence.roster.connections(user).collect(),
            |conn| self.connections.receives(conn, self.batches),
            catching_up,
        )));
        self.finish_leave(now, out);
        if self.log.bounds().is_trim_due(&self.config) {
            self.trim(now, out);
        }
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
                self.disconnect(conn, Disconnect::Forbidden.code(), now, out);
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
        for moved in flushed.moved {
            let name = match moved.cursor {
                Cursor::Delivered => "messageDelivered",
                Cursor::Read => "messageRead",
            };
            let line = event::cursor_moved(name, &self.name, &moved.user, moved.seq);
            self.queue_event(&moved.user, line, now);
        }
        out.extend(flushed.change.map(Output::Store));
        for ack in flushed.acks {
            let answer = framing::ack(ack.id, &ack.data);
            self.batch.send(ack.conn, &answer);
        }
    }

    /// Moves the queued ephemeral events and the presence updates into the batch.
    fn flush_presence(&mut self) {
        self.timers.stop(Timer::PresenceFlush);
        for event in self.presence.take_queue() {
            self.batch.broadcast(event);
        }
        for change in self.presence.roster.take_changes() {
            let line = self.presence_update(&change.user, change.status);
            let except = Except::User(change.user);
            self.batch.broadcast(EphemeralEvent { except, line });
        }
    }

    fn presence_update(&self, user: &UserId, status: Status) -> String {
        let member = self.members.get(user);
        let last_seen = member
            .map(|member| member.last_seen)
            .filter(|at| status == Status::Offline && *at > 0);
        event::presence_update(&self.name, user, status, last_seen)
    }

    /// Called after the room was restored from storage because of a failure, while its
    /// sockets stayed open. The room's own sockets catch up from `sent_upto`. Sends the presence of all members to all connections, because queued
    /// presence updates are lost.
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
        let users: Vec<UserId> = self.members.users().cloned().collect();
        for user in users {
            let line = self.presence_update(&user, self.presence.roster.status(&user));
            self.queue_event(&user, line, now);
        }
    }

    /// Handles a failure of storage. `rest` are the outputs that the host has not carried
    /// out. Returns the outputs that it carries out instead, each after [`Room::route`]: the
    /// closes among them, and an error for each command that was not answered, those of the
    /// open batch included. The host then creates the room again from storage.
    pub fn fail(&mut self, rest: impl IntoIterator<Item = Output>, now: Millis) -> Vec<Output> {
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
                        fail(custom.conn, framing::failed(&custom.private));
                    }
                }
                Output::Send { conn, frame } => fail(conn, framing::failed(&frame)),
                Output::Page { conn, id, .. } => {
                    fail(conn, framing::error(Some(id), &Error::internal()));
                }
                Output::Authenticate { connection, id, .. } => {
                    let id_of = |one: &Connection| one.attachment.id == connection;
                    if let Some(conn) = self.connections.find(id_of) {
                        fail(conn, framing::error(id, &Error::internal()));
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

    /// Deletes expired events from storage.
    fn trim(&mut self, now: Millis, out: &mut Vec<Output>) {
        let upto = self.log.trim(&self.config);
        // After a restart, rows within the dedupe window are needed to recognise repeated
        // sends.
        let before = now.saturating_sub(self.config.dedupe_window);
        out.push(Output::Store(Change::Trim { upto, before }));
    }

    /// Returns the time before which rows have expired by age, if there is such a row. The
    /// host looks up the rows and calls [`Room::expire_log`].
    pub fn retention_cutoff(&self, now: Millis) -> Option<Millis> {
        self.timers
            .get(Timer::LogRetention)
            .filter(|at| *at < now)
            .map(|_| now - self.config.retention_age)
    }

    /// Records that the events up to `upto` have expired by age. The next row was stored at
    /// `oldest_at`.
    pub fn expire_log(&mut self, upto: u64, oldest_at: Option<Millis>) {
        self.log.expire(upto, oldest_at);
        self.schedule_retention();
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
        self.gateways.probe(now);
        if self.timers.is_due(Timer::DeliveryRetry, now) {
            self.timers.stop(Timer::DeliveryRetry);
        }
        let stale = self.find_stale(pinged, now);
        out.push(Output::Log(
            LogRecord::info("alarm").with("ghosts", stale.len()),
        ));
        for conn in stale {
            self.close(conn, Disconnect::Stale, now, out);
        }
        self.flush(now, out);
        if self.floor() > self.bounds().trimmed {
            self.trim(now, out);
        }
    }

    /// Returns the connections whose keepalive has timed out, and schedules the next check.
    /// Clients that never ping have not opted in to keepalive, so they do not time out.
    fn find_stale(
        &mut self,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
    ) -> Vec<ConnId> {
        self.timers.stop(Timer::KeepaliveCheck);
        let mut stale = Vec::new();
        for (conn, connection) in self.connections.iter() {
            let Some(pinged) = pinged(conn) else {
                continue;
            };
            let active_at = pinged.max(connection.slow_consumer.active_at());
            let stale_at = active_at + self.config.limits.ghost_timeout;
            if stale_at <= now {
                stale.push(conn);
            } else {
                self.timers.set_earliest(Timer::KeepaliveCheck, stale_at);
            }
        }
        stale
    }
}
