//! Connections: connect, welcome, disconnect.

use super::Room;
use crate::attachment::Attachment;
use crate::batch::{Arrival, Welcome};
use crate::connection::Connection;
use crate::ids::ConnId;
use crate::output::Output;
use crate::seq_range::SeqRange;
use crate::timers::Timer;
use roomcast_proto::access::{Rights, TokenId};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Result;
use roomcast_proto::event;
use roomcast_proto::id::UserId;
use roomcast_proto::limits::Limits;
use roomcast_proto::link::ConnectRequest;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::status::Status;
use roomcast_proto::time::{Millis, rfc3339};
use serde::Serialize;
use serde_json::value::RawValue;

/// Close code of a connection that ended without a close frame (RFC 6455, 7.4.1).
pub(super) const ABNORMAL: u16 = 1006;

/// The parts of first messages that all connections of a batch have in common. Each is made for
/// the first connection that needs it.
#[derive(Default)]
pub(super) struct Shared {
    /// The list of [`Room::join_list`].
    pub(super) members: Option<Box<RawValue>>,
    /// The users who are typing, each with its event `userTyping`.
    pub(super) typing: Option<Vec<(UserId, String)>>,
}

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
    /// Returns `rateLimited` if the address connects too often or the user is banned after a
    /// flood, and `conflict` if the room is full.
    pub fn admit(&mut self, request: &ConnectRequest, now: Millis) -> Result<()> {
        self.admission.admit(request, &self.config.limits, now)?;
        self.admit_member(&request.user)
    }

    /// Returns `true` if the user has as many connections as are allowed. Sockets that have
    /// not joined count as well, because they can join later.
    pub(super) fn is_at_connection_limit(&self, user: &UserId) -> bool {
        let connections = self.connections.of_user(user).count();
        connections >= self.config.max_connections_per_user
    }

    /// Adds a connection with its own socket, which joins immediately. [`Room::admit`] has
    /// accepted the request. If the user has too many connections, the one that has been
    /// silent longest is closed; `pinged` returns the time of the last ping on a socket.
    ///
    /// The event `connected` and the missed events are sent with the next flush, so that the
    /// memberships of all clients that connect in the same batch are stored together.
    pub fn connect(
        &mut self,
        request: ConnectRequest,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> ConnId {
        self.add_connection(request, Welcome::Connected, pinged, now, out)
    }

    /// Adds a connection that joins the room.
    pub(super) fn add_connection(
        &mut self,
        request: ConnectRequest,
        welcome: Welcome,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> ConnId {
        let profile = request.profile();
        let attachment = Attachment {
            id: request.connection_id,
            user: request.user,
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
            caught_up_to: None,
            requested_past: false,
            needs_message_ids: request.needs_message_ids,
        };
        let connection = Connection::new(attachment, &self.config.limits, now, now);
        let conn = self.insert_connection(connection, now);
        let start = self.join(conn, &request.position, Some(profile), now, out);
        self.replace_silent(conn, pinged, now, out);
        self.batch.welcome(Arrival {
            conn,
            start,
            welcome,
        });
        conn
    }

    /// Restores a connection after hibernation.
    pub fn restore_connection(&mut self, mut attachment: Attachment, now: Millis) -> ConnId {
        let caught_up_to = attachment.caught_up_to.take();
        // Only the runtime knows the time of the last activity, so it is 0 here.
        let connection = Connection::new(attachment, &self.config.limits, 0, now);
        let attachment = &connection.attachment;
        let (user, status) = (attachment.user.clone(), attachment.status);
        let (joined, remote) = (attachment.joined, attachment.remote);
        let conn = self.insert_connection(connection, now);
        if joined {
            let (before, status) = self.presence.roster.restore(&user, conn, status);
            self.presence.log.restore_status(&user, before, status);
            if let Some(at) = caught_up_to.filter(|_| !remote) {
                self.start_replay(conn, at);
            }
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
    /// of the room at `head`, or the answer to `joinRoom`; then who is typing, and the catch-up
    /// to `head`.
    pub(super) fn welcome(
        &mut self,
        arrival: &Arrival,
        shared: &mut Shared,
        head: u64,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if let Welcome::JoinAnswer(id) = arrival.welcome {
            return self.welcome_remote(arrival, id, shared, head, now, out);
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
        let (user, is_joined) = (attachment.user.clone(), attachment.joined);
        self.send_typing(conn, &user, shared, out);
        let range = SeqRange {
            after: arrival.start.after,
            upto: head,
        };
        // Another connection of the user may have left the room meanwhile.
        if is_joined && !range.is_empty() {
            self.log_replay(conn, range, out);
            self.start_replay(conn, range.after);
        }
    }

    /// Tells a connection that has joined which other users are typing.
    pub(super) fn send_typing(
        &mut self,
        conn: ConnId,
        user: &UserId,
        shared: &mut Shared,
        out: &mut Vec<Output>,
    ) {
        if self.presence.roster.typing().is_empty() {
            return;
        }
        let typing = shared.typing.get_or_insert_with(|| self.typing_now());
        let others = typing.iter().filter(|(other, _)| other != user);
        let lines: Vec<&str> = others.map(|(_, line)| line.as_str()).collect();
        if !lines.is_empty() {
            let frame = lines.join("\n");
            out.push(Output::Send { conn, frame });
        }
    }

    /// Handles the end of a connection's socket. `code` is the close code, `pinged` the time of
    /// the last ping on the socket.
    pub fn disconnect(
        &mut self,
        conn: ConnId,
        code: u16,
        pinged: Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let seen = match code {
            ABNORMAL => self.last_sign(conn, pinged, now),
            _ => now,
        };
        self.remove_connection(conn, code, seen, now, out);
    }

    /// Returns the time of the last sign of life of a connection, or `now` if it is not known.
    fn last_sign(&self, conn: ConnId, pinged: Option<Millis>, now: Millis) -> Millis {
        let connection = self.connections.get(conn);
        let active_at = connection.map_or(0, |connection| connection.slow_consumer.active_at());
        match active_at.max(pinged.unwrap_or(0)) {
            0 => now,
            at => at.min(now),
        }
    }

    /// Removes a connection that has ended. `seen` is the time of its last sign of life.
    pub(super) fn remove_connection(
        &mut self,
        conn: ConnId,
        code: u16,
        seen: Millis,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(connection) = self.connections.remove(conn) else {
            return;
        };
        if connection.catch_up.is_some() || connection.stalled_at.is_some() {
            self.catch_ups.remove(conn);
        }
        self.batch.forget(conn);
        self.members.forget(conn);
        self.gateways.cancel_leave(conn);
        let attachment = connection.attachment;
        let user = attachment.user;
        self.replacements.answered(conn);
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
            let line = self.typing_event(&user, false);
            self.queue_event(&user, line, now);
        }
        if departure.was_last {
            self.timers
                .set_earliest(Timer::PresenceTimeout, grace_until);
            if self.members.set_last_seen(&user, seen) {
                self.schedule_cursor_flush(now);
            }
        }
        self.schedule_presence(now);
    }

    /// Closes the socket of a connection that shows no sign of life.
    pub(super) fn close_silent(
        &mut self,
        conn: ConnId,
        reason: Disconnect,
        pinged: Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if self.connections.contains(conn) {
            let seen = self.last_sign(conn, pinged, now);
            out.push(Output::Close { conn, reason });
            self.remove_connection(conn, reason.code(), seen, now, out);
        }
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
            self.remove_connection(conn, reason.code(), now, now, out);
        }
    }

    /// Closes the room's own sockets for which `is_revoked` returns `true`. Gateways close
    /// their sockets themselves. Returns `true` if the room still has sockets.
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

    /// Logs that a connection receives events from the log.
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
