//! Connections and membership: connect, welcome, disconnect, join, leave, replay.

use super::Room;
use crate::attachment::Attachment;
use crate::batch::{Arrival, Welcome};
use crate::connection::Connection;
use crate::event_log::Start;
use crate::ids::ConnId;
use crate::member::Member;
use crate::output::Output;
use crate::seq_range::SeqRange;
use crate::timers::Timer;
use roomcast_proto::access::{Rights, TokenId};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::event;
use roomcast_proto::limits::Limits;
use roomcast_proto::link::Hello as ConnectRequest;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::name::UserId;
use roomcast_proto::position::Position;
use roomcast_proto::status::Status;
use roomcast_proto::time::{Millis, rfc3339};
use serde::Serialize;

/// The data of the event `connected`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connected<'a> {
    connection_id: &'a str,
    user_id: &'a str,
    room_id: &'a str,
    epoch: &'a str,
    seq: u64,
    delivered: u64,
    expires_at: String,
    limits: Limits,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reset: bool,
}

impl Room {
    /// Checks the limits for a new connection.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` if the address connects too often, the user is banned after a
    /// flood or has too many connections, and `conflict` if the room is full.
    pub fn admit(&mut self, request: &ConnectRequest, now: Millis) -> Result<()> {
        self.admission.admit(request, &self.config.limits, now)?;
        self.admit_connection(&request.user)
    }

    /// Checks the limits that also hold for a connection that subscribes again.
    pub(super) fn admit_connection(&self, user: &str) -> Result<()> {
        let connections = self.presence.roster.connections(user).count();
        if connections >= self.config.max_connections_per_user {
            return Err(Error::rate_limited("connections of this user", 1_000));
        }
        self.admit_member(user)
    }

    /// Checks that the user is a member or can become one.
    pub(super) fn admit_member(&self, user: &str) -> Result<()> {
        if !self.members.contains(user) && self.members.len() >= self.config.max_members {
            return Err(Error::new(ErrorCode::Conflict, "the room is full"));
        }
        Ok(())
    }

    /// Adds a connection with a socket of its own, which joins at once. [`Room::admit`] has
    /// accepted the request. The event `connected` and the missed events are sent with the
    /// next flush, so that the memberships of all clients that connect in the same batch
    /// are stored together.
    pub fn connect(
        &mut self,
        request: ConnectRequest,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> ConnId {
        self.add_connection(request, Welcome::Connected, now, out)
    }

    /// Adds a connection that joins the room.
    pub(super) fn add_connection(
        &mut self,
        request: ConnectRequest,
        welcome: Welcome,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> ConnId {
        let attachment = Attachment {
            id: request.connection_id,
            user: request.user.into(),
            rights: request.rights,
            expires: request.expires,
            // A client at a gateway has one status for all its rooms.
            status: match request.rights.has(Rights::PRESENCE) {
                true => request.status,
                false => Status::default(),
            },
            joined: false,
            from: 0,
            remote: welcome != Welcome::Connected,
            token: request.token,
        };
        let connection = Connection::new(attachment, &self.config.limits, now, now);
        let conn = self.insert_connection(connection, now);
        let start = self.join(conn, &request.position, now, out);
        self.batch.welcome(Arrival {
            conn,
            start,
            welcome,
        });
        conn
    }

    /// Restores a connection after hibernation.
    pub fn restore_connection(&mut self, attachment: Attachment, now: Millis) -> ConnId {
        // Only the runtime knows when the client was active last.
        let connection = Connection::new(attachment, &self.config.limits, 0, now);
        let attachment = &connection.attachment;
        let (user, status) = (attachment.user.clone(), attachment.status);
        let joined = attachment.joined;
        let conn = self.insert_connection(connection, now);
        if joined {
            self.presence.roster.restore(&user, conn, status);
        }
        conn
    }

    fn insert_connection(&mut self, connection: Connection, now: Millis) -> ConnId {
        let expires = connection.attachment.expires;
        self.timers.set_earliest(Timer::TokenExpiry, expires);
        let check = now + self.config.limits.ghost_timeout;
        self.timers.set_earliest(Timer::KeepaliveCheck, check);
        self.connections.insert(connection)
    }

    /// Sends the first message to a connection that has joined: `connected` with the state
    /// of the room at `head`, or the answer to `joinRoom`; then the events up to `head`.
    pub(super) fn welcome(&mut self, arrival: &Arrival, head: u64, out: &mut Vec<Output>) {
        if let Welcome::JoinAnswer(id) = arrival.welcome {
            return self.welcome_remote(arrival, id, head, out);
        }
        let conn = arrival.conn;
        let Some(connection) = self.connections.get(conn) else {
            return;
        };
        let attachment = &connection.attachment;
        let member = self.members.get(&attachment.user);
        let connected = Connected {
            connection_id: &attachment.id,
            user_id: &attachment.user,
            room_id: &self.name,
            epoch: self.log.epoch(),
            seq: head,
            delivered: member.map_or(0, |member| member.delivered),
            expires_at: rfc3339(attachment.expires),
            limits: Limits::of(&self.config.limits),
            reset: arrival.start.reset,
        };
        out.push(Output::Log(
            LogRecord::info("connect")
                .user(&attachment.user)
                .connection(&attachment.id),
        ));
        out.push(Output::Attach { conn });
        out.push(Output::Send {
            conn,
            frame: event::connected(&connected),
        });
        // Another connection of the user may have left the room since.
        if attachment.joined {
            let range = SeqRange {
                after: arrival.start.after,
                upto: head,
            };
            self.replay(conn, range, out);
        }
    }

    /// The socket of a connection was closed, with this close code.
    pub fn disconnect(&mut self, conn: ConnId, code: u16, now: Millis, out: &mut Vec<Output>) {
        let Some(connection) = self.connections.remove(conn) else {
            return;
        };
        self.batch.forget(conn);
        self.members.forget(conn);
        self.gateways.cancel_leave(conn);
        let attachment = connection.attachment;
        let user = attachment.user;
        if !attachment.remote {
            out.push(Output::Log(
                LogRecord::info("disconnect")
                    .user(&user)
                    .connection(&attachment.id)
                    .with("code", code),
            ));
        }
        if !attachment.joined {
            return;
        }
        let grace_until = now + self.config.presence_grace;
        let departure = self.presence.roster.leave(&user, conn, grace_until);
        if departure.was_typing {
            let line = event::user_typing(&self.name, &user, false);
            self.queue_event(&user, line, now);
        }
        if departure.was_last {
            self.timers
                .set_earliest(Timer::PresenceTimeout, grace_until);
            if self.members.set_last_seen(&user, now) {
                self.schedule_cursor_flush(now);
            }
        }
        self.schedule_presence(now);
    }

    /// Closes the socket of a connection.
    pub(super) fn close(
        &mut self,
        conn: ConnId,
        reason: Disconnect,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if self.connections.contains(conn) {
            out.push(Output::Close { conn, reason });
            self.disconnect(conn, reason.code(), now, out);
        }
    }

    /// Closes the room's own sockets whose user and token are revoked; gateways close
    /// theirs. Returns `true` if own sockets are left.
    pub fn close_revoked(
        &mut self,
        is_revoked: impl Fn(&str, &TokenId) -> bool,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let is_own_and_revoked = |connection: &Connection| {
            let attachment = &connection.attachment;
            !attachment.remote && is_revoked(&attachment.user, &attachment.token)
        };
        for conn in self.connections.filter(is_own_and_revoked) {
            if let Some(connection) = self.connections.get(conn) {
                let attachment = &connection.attachment;
                let record = LogRecord::info("revoke").user(&attachment.user);
                out.push(Output::Log(record.connection(&attachment.id)));
            }
            self.close(conn, Disconnect::Revoked, now, out);
        }
        let own = self
            .connections
            .find(|connection| !connection.attachment.remote);
        own.is_some()
    }

    /// The host has sent this number of bytes to a socket. Returns `true` if the client may
    /// be a slow consumer, so that the host must call [`Room::check_slow`].
    pub fn sent(&mut self, conn: ConnId, bytes: usize) -> bool {
        let limit = self.config.limits.max_unacked_bytes;
        self.connections
            .get_mut(conn)
            .is_some_and(|connection| connection.slow_consumer.on_sent(bytes, limit))
    }

    /// Closes a slow consumer, which can resume. `pinged` is the time of the last ping on
    /// its socket: the connection stays open if that is newer than its last activity.
    pub fn check_slow(
        &mut self,
        conn: ConnId,
        pinged: Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        if connection.slow_consumer.check_ping(pinged, now) {
            return;
        }
        let record = LogRecord::reject("slow")
            .user(&connection.attachment.user)
            .connection(&connection.attachment.id)
            .with("unackedBytes", connection.slow_consumer.unacked());
        out.push(Output::Log(record));
        self.close(conn, Disconnect::TooSlow, now, out);
    }

    /// Joins a connection to the room, and its user if it is not a member. Returns the
    /// position from which the connection receives the log.
    pub(super) fn join(
        &mut self,
        conn: ConnId,
        position: &Position,
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
        let status = attachment.status;
        self.add_member(&user, start.after, Some(&id), now, out);
        self.presence.roster.join(&user, conn, status);
        self.schedule_presence(now);
        self.presence.postpone_flush(&mut self.timers);
        start
    }

    /// Returns the position from which a user receives the log.
    pub(super) fn start(&self, user: &str, position: &Position) -> Start {
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
        connection: Option<&str>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        if self.members.contains(user) {
            return false;
        }
        let mut member = Member::new(now, delivered);
        if connection.is_some() {
            // A crash can prevent the room from noticing the end of the connection.
            member.last_seen = now;
        }
        let change = self.members.add(user, member);
        self.batch.store(change);
        let record = LogRecord::info("join").user(user);
        out.push(Output::Log(match connection {
            Some(id) => record.connection(id),
            None => record,
        }));
        let line = event::user_joined(&self.name, user);
        self.queue_event(user, line, now);
        true
    }

    /// Ends the membership of a user and deletes its cursors. Its sockets stay open but
    /// receive nothing more. They are sent `userLeft`, except the one that asked. Returns
    /// `false` if the user is not a member.
    pub(super) fn remove_member(
        &mut self,
        user: &str,
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
        let removed = self.presence.roster.remove(&user);
        if removed.was_typing {
            let line = event::user_typing(&self.name, &user, false);
            self.queue_event(&user, line, now);
        }
        for conn in removed.connections {
            let Some(connection) = self.connections.get_mut(conn) else {
                continue;
            };
            connection.attachment.joined = false;
            if connection.attachment.remote {
                // The item for its gateway must arrive, and its stored record changes with
                // the membership. Both happen at the end of the batch.
                self.gateways.start_leave(conn);
                continue;
            }
            if asked_by != Some(conn) {
                self.batch.send(conn, &event::user_left(&self.name, &user));
            }
            out.push(Output::Attach { conn });
        }
        out.push(Output::Log(LogRecord::info("leave").user(&user)));
        let line = event::user_left(&self.name, &user);
        self.queue_event(&user, line, now);
        true
    }

    /// Sends a part of the log to one of the room's own sockets. If some of the events have
    /// expired, sends `gap` first.
    pub(super) fn replay(&mut self, conn: ConnId, range: SeqRange, out: &mut Vec<Output>) {
        let floor = self.floor().min(range.upto);
        if range.after < floor {
            out.push(Output::Send {
                conn,
                frame: event::gap(&self.name, range.after + 1, floor),
            });
        }
        let range = SeqRange {
            after: range.after.max(floor),
            upto: range.upto,
        };
        if !range.is_empty() {
            self.log_replay(conn, range, out);
            out.push(Output::Replay { conn, range });
        }
    }

    pub(super) fn log_replay(&self, conn: ConnId, range: SeqRange, out: &mut Vec<Output>) {
        if let Some(connection) = self.connections.get(conn) {
            out.push(Output::Log(
                LogRecord::info("replay")
                    .user(&connection.attachment.user)
                    .connection(&connection.attachment.id)
                    .with("after", range.after)
                    .with("events", range.len()),
            ));
        }
    }
}
