//! Membership: join and leave.

use super::Room;
use super::commands::acknowledgement;
use crate::event_log::Start;
use crate::ids::ConnId;
use crate::member::Member;
use crate::output::Output;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::id::{ConnectionId, UserId};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::position::Position;
use roomcast_proto::time::Millis;
use roomcast_proto::user_info::Profile;
use roomcast_proto::{event, framing};

impl Room {
    /// Checks that the user is a member or can become one.
    pub(super) fn admit_member(&self, user: &UserId) -> Result<()> {
        if !self.members.contains(user) && self.members.len() >= self.config.max_members {
            return Err(Error::new(ErrorCode::Conflict, "the room is full"));
        }
        Ok(())
    }

    /// Joins a connection to the room, and its user if it is not a member. `profile` is that of
    /// the token, if the connection has shown one with the request. Returns the position from
    /// which the connection receives the log.
    pub(super) fn join(
        &mut self,
        conn: ConnId,
        position: &Position,
        profile: Option<Profile>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Start {
        let Some(connection) = self.connections.get_mut(conn) else {
            return Start::default();
        };
        let attachment = &mut connection.attachment;
        let (user, id) = (attachment.user.clone(), attachment.id.clone());
        let member = self.members.get(&user);
        let delivered = member.map(|member| member.delivered);
        let start = self.log.start(position, delivered, &self.config);
        attachment.joined = true;
        attachment.from = start.after;
        connection.live_from = self.batches + 1;
        connection.live_until = u64::MAX;
        let status = attachment.status;
        self.add_member(&user, start.after, Some(&id), now, out);
        self.presence.roster.join(&user, conn, status);
        if let Some(profile) = profile {
            self.set_profile(&user, profile, now);
        }
        self.schedule_presence(now);
        self.presence.postpone_flush(&mut self.timers);
        start
    }

    /// Returns the position from which a user receives the log.
    pub(super) fn start(&self, user: &UserId, position: &Position) -> Start {
        let member = self.members.get(user);
        let delivered = member.map(|member| member.delivered);
        self.log.start(position, delivered, &self.config)
    }

    /// Makes a user a member. Returns `false` if it is one already. `connection` is the id
    /// of the connection that joins.
    pub(super) fn add_member(
        &mut self,
        user: &UserId,
        delivered: u64,
        connection: Option<&ConnectionId>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        if self.members.contains(user) {
            return false;
        }
        let mut member = Member::new(now, delivered);
        if connection.is_some() {
            // Set now, because after a crash the room does not learn of the end of the
            // connection.
            member.last_seen = now;
        }
        let change = self.members.add(user, member);
        self.batch.store(change);
        if let Some(change) = self.presence.departed.remove(user) {
            self.batch.store(change);
        }
        let record = LogRecord::info("join").user(user);
        out.push(Output::Log(match connection {
            Some(id) => record.connection(id),
            None => record,
        }));
        self.presence.log.joined(user);
        let line = event::user_joined(&self.name, user);
        self.queue_event(user, line, now);
        true
    }

    /// Answers the acknowledgements of events in the batch by a user whose cursors are deleted
    /// with the batch.
    fn answer_acknowledgements(&mut self, user: &UserId) {
        for ack in self.batch.take_acknowledgements() {
            let connection = self.connections.get(ack.conn);
            if connection.is_some_and(|connection| connection.attachment.user != *user) {
                self.batch.acknowledge(ack);
            } else if let Some(id) = ack.id {
                let answer = framing::ack(id, &acknowledgement(ack.seq));
                self.batch.send(ack.conn, &answer);
            }
        }
    }

    /// Ends the membership of a user and deletes its cursors. Its sockets stay open but
    /// receive no further events. They receive `userLeft`, except the connection that has
    /// sent the command. Returns `false` if the user is not a member.
    pub(super) fn remove_member(
        &mut self,
        user: &UserId,
        asked_by: Option<ConnId>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        if !self.members.contains(user) {
            return false;
        }
        if self.members.has_waiting_acks() {
            // A connection at a gateway is removed with its membership, and its answers
            // would be lost.
            self.flush_cursors(now, out);
        }
        let Some((user, change)) = self.members.remove(user) else {
            return false;
        };
        self.batch.store(change);
        for change in self.presence.departed.add(&user, now) {
            self.batch.store(change);
        }
        self.answer_acknowledgements(&user);
        let removed = self.presence.roster.remove(&user);
        self.presence.log.left(&user, removed.announced);
        if removed.was_typing {
            let line = self.typing_event(&user, false);
            self.queue_event(&user, line, now);
        }
        for conn in removed.connections {
            let Some(connection) = self.connections.get_mut(conn) else {
                continue;
            };
            connection.attachment.joined = false;
            // A connection that catches up receives nothing more.
            connection.live_until = match connection.catch_up {
                None => self.batches,
                Some(_) => 0,
            };
            if connection.attachment.remote {
                // The item for the gateway must arrive, and the stored record changes with
                // the membership. Both are done at the end of the batch.
                self.gateways.start_leave(conn);
                continue;
            }
            if asked_by != Some(conn) {
                self.batch.send(conn, &event::user_left(&self.name, &user));
            }
            self.end_replay(conn);
            // The socket's record changes with the membership, which is stored at the end of
            // the batch.
            self.batch.attach(conn);
        }
        out.push(Output::Log(LogRecord::info("leave").user(&user)));
        let line = event::user_left(&self.name, &user);
        self.queue_event(&user, line, now);
        true
    }
}
