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

    /// Closes the connections that have been silent longest, if the user of the new
    /// connection `conn` has too many. The room does not know of the pings of clients at
    /// gateways, so only their joins and commands in this room count.
    ///
    /// The new connection has a slot already. Otherwise it could get the slot of a closed
    /// one, for which the host has outputs to carry out.
    fn replace_silent(
        &mut self,
        conn: ConnId,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(connection) = self.connections.get(conn) else {
            return;
        };
        let user = &connection.attachment.user;
        let connections = self.connections.of_user(user);
        let excess = connections
            .count()
            .saturating_sub(self.config.max_connections_per_user);
        if excess == 0 {
            return;
        }
        let connections = self.connections.of_user(user);
        let mut others: Vec<(Option<Millis>, ConnId)> = connections
            .filter(|(one, _)| *one != conn)
            .map(|(one, connection)| {
                let active_at = connection.slow_consumer.active_at();
                (pinged(one).max(Some(active_at)), one)
            })
            .collect();
        others.sort_by_key(|(active_at, _)| *active_at);
        for (_, silent) in others.into_iter().take(excess) {
            if let Some(connection) = self.connections.get(silent) {
                let record = LogRecord::reject("rate")
                    .user(&connection.attachment.user)
                    .connection(&connection.attachment.id)
                    .with("code", Disconnect::Replaced.code());
                out.push(Output::Log(record));
            }
            self.close(silent, Disconnect::Replaced, now, out);
        }
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
        let start = self.join(conn, &request.position, now, out);
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
    /// of the room at `head`, or the answer to `joinRoom`; then the catch-up to
    /// `head`.
    /// `members` is the list of [`Room::join_list`], which is made for the first answer of a
    /// batch.
    pub(super) fn welcome(
        &mut self,
        arrival: &Arrival,
        members: &mut Option<Box<RawValue>>,
        head: u64,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if let Welcome::JoinAnswer(id) = arrival.welcome {
            return self.welcome_remote(arrival, id, members, head, now, out);
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
        let range = SeqRange {
            after: arrival.start.after,
            upto: head,
        };
        // Another connection of the user may have left the room meanwhile.
        if attachment.joined && !range.is_empty() {
            self.log_replay(conn, range, out);
            self.start_replay(conn, range.after);
        }
    }

    /// Handles the end of a connection's socket. `code` is the close code.
    pub fn disconnect(&mut self, conn: ConnId, code: u16, now: Millis, out: &mut Vec<Output>) {
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
