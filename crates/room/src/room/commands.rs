//! Frames of clients and the commands in them.

use super::Room;
use super::send::Origin;
use crate::batch::Acknowledgement;
use crate::ephemeral::{EphemeralEvent, Except};
use crate::event_log::Start;
use crate::frame::Frame;
use crate::history::HistoryQuery;
use crate::ids::ConnId;
use crate::member::Cursor;
use crate::members::CursorAck;
use crate::output::Output;
use crate::seq_range::SeqRange;
use crate::timers::Timer;
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::answer::{Joined, Left, to_json};
use roomcast_proto::command::Command;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::framing::{Idle, Incoming};
use roomcast_proto::id::{ConnectionId, MessageId, UserId};
use roomcast_proto::limits::{Kind, Penalty};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::position::Position;
use roomcast_proto::status::Status;
use roomcast_proto::time::{Millis, rfc3339};
use roomcast_proto::{framing, name};
use serde_json::value::RawValue;

/// How a command is answered.
pub(super) enum Answer {
    /// With this data.
    Now(String),
    /// Later, or not at all.
    Later,
}

/// Returns the data of the answer to an acknowledgement.
pub(super) fn acknowledgement(seq: u64) -> String {
    format!(r#"{{"seq":{seq}}}"#)
}

/// The state of a connection after a penalty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterPenalty {
    Open,
    Closed,
}

impl Room {
    /// Handles a frame of a client.
    pub fn receive(&mut self, conn: ConnId, frame: Frame<'_>, now: Millis, out: &mut Vec<Output>) {
        if !self.begin_input(conn, now, out) {
            return;
        }
        let limit = self.config.limits.max_frame_bytes;
        let text = match frame {
            Frame::Text(text) if text.len() > limit => {
                return self.reject(conn, Disconnect::TooLarge, now, out);
            }
            Frame::Binary => return self.reject(conn, Disconnect::Malformed, now, out),
            Frame::Text(text) => text,
        };
        if let Some(idle) = framing::idle(text) {
            return self.receive_idle(conn, idle, now, out);
        }
        let incoming = match framing::decode(text) {
            Ok(incoming) => incoming,
            Err(reason) => return self.reject(conn, reason, now, out),
        };
        for Incoming { line, id, command } in incoming {
            let bytes = self.take_bytes(conn, line.len(), now);
            let command = bytes.and(command);
            if !self.run(conn, id, command, now, out) {
                return;
            }
        }
    }

    /// Handles a frame without a command. It counts as a command.
    fn receive_idle(&mut self, conn: ConnId, idle: Idle, now: Millis, out: &mut Vec<Output>) {
        if let Err(error) = self.take_token(conn, Kind::Command, now) {
            self.batch.send(conn, &framing::error(None, &error));
            self.penalize(conn, now, out);
        } else if idle == Idle::Ping {
            let frame = framing::PONG.to_owned();
            out.push(Output::Send { conn, frame });
        }
    }

    /// Handles a command of a connection at a gateway, which the gateway has parsed.
    pub(super) fn receive_command(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        command: Command,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if !self.begin_input(conn, now, out) {
            return;
        }
        match command {
            // The gateway has counted it. It does not expect that the room refuses it.
            Command::Leave { .. } => {
                self.run_uncounted(conn, id, Ok(command), now, out);
            }
            command => {
                self.run(conn, id, Ok(command), now, out);
            }
        }
    }

    /// Prepares the room for an input of a client. Returns `false` if the connection is
    /// closed.
    fn begin_input(&mut self, conn: ConnId, now: Millis, out: &mut Vec<Output>) -> bool {
        if self.batch.is_arriving(conn) {
            // `connected` comes before any answer.
            self.flush(now, out);
        }
        let Some(connection) = self.connections.get_mut(conn) else {
            return false;
        };
        connection.slow_consumer.on_activity(now);
        if connection.attachment.expires <= now {
            self.close(conn, Disconnect::Expired, now, out);
            return false;
        }
        if connection.stalled_at.is_some() {
            self.resume(conn);
        }
        true
    }

    /// Counts a command, executes it and sends its answer or its error. Returns `false` if
    /// the connection was closed or is over its limit of commands, so that the rest of the
    /// frame is dropped.
    fn run(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        command: Result<Command>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        if let Err(error) = self.take_token(conn, Kind::Command, now) {
            // Answers to all commands would be larger than the flood itself, so the rest of
            // the frame is not answered.
            self.batch.send(conn, &framing::error(id, &error));
            self.penalize(conn, now, out);
            return false;
        }
        self.run_uncounted(conn, id, command, now, out)
    }

    /// Executes a command and sends its answer or its error. Returns `false` if the connection
    /// was closed, so that the rest of the frame is dropped.
    fn run_uncounted(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        command: Result<Command>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let done = command.and_then(|command| self.execute(conn, id, command, now, out));
        match (done, id) {
            (Ok(Answer::Now(data)), Some(id)) => {
                self.batch.send(conn, &framing::ack(id, &data));
            }
            (Ok(_), _) => {}
            (Err(error), id) => {
                self.batch.send(conn, &framing::error(id, &error));
                if error.code == ErrorCode::RateLimited
                    && self.penalize(conn, now, out) == AfterPenalty::Closed
                {
                    return false;
                }
            }
        }
        // A command may have closed the connection.
        self.connections.contains(conn)
    }

    /// Closes a connection because of a malformed or too large frame.
    fn reject(&mut self, conn: ConnId, reason: Disconnect, now: Millis, out: &mut Vec<Output>) {
        if let Some(connection) = self.connections.get(conn) {
            out.push(Output::Log(
                LogRecord::reject("malformed")
                    .user(&connection.attachment.user)
                    .connection(&connection.attachment.id)
                    .with("code", reason.code()),
            ));
        }
        self.close(conn, reason, now, out);
    }

    /// Counts a rejected command. Closes the connection if there were too many.
    fn penalize(&mut self, conn: ConnId, now: Millis, out: &mut Vec<Output>) -> AfterPenalty {
        let Some(connection) = self.connections.get_mut(conn) else {
            return AfterPenalty::Closed;
        };
        let limits = &self.config.limits;
        let penalty = self.admission.penalize(connection, limits, now);
        if penalty != Penalty::Again {
            let record = LogRecord::reject("rate")
                .user(&connection.attachment.user)
                .connection(&connection.attachment.id);
            out.push(Output::Log(record.with("closed", penalty.is_final())));
        }
        if !penalty.is_final() {
            return AfterPenalty::Open;
        }
        self.close(conn, Disconnect::TooFast, now, out);
        AfterPenalty::Closed
    }

    fn take_token(&mut self, conn: ConnId, kind: Kind, now: Millis) -> Result<()> {
        let limits = &self.config.limits;
        self.connections.take_token(conn, kind, limits, now)
    }

    fn take_bytes(&mut self, conn: ConnId, bytes: usize, now: Millis) -> Result<()> {
        let connection = self.connections.get_mut(conn).ok_or_else(Error::internal)?;
        let limits = &self.config.limits;
        connection.allowance.take_bytes(bytes, limits, now)
    }

    /// Records that a page of this number of bytes was read for a connection. A large page
    /// counts as several requests.
    pub fn page_sent(&mut self, conn: ConnId, bytes: usize) {
        if let Some(connection) = self.connections.get_mut(conn) {
            let limits = &self.config.limits;
            connection.allowance.charge_page(bytes, limits);
        }
    }

    fn execute(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        command: Command,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        // Without `roomId`, the command is for this room.
        if command.room().is_some_and(|room| *room != self.name) {
            return Err(match command {
                Command::Join { .. } => {
                    Error::bad_request("`roomId` must be the room of this socket")
                }
                _ => Error::not_joined(),
            });
        }
        match command {
            Command::Join { position, .. } => {
                self.take_token(conn, Kind::Join, now)?;
                self.rejoin(conn, id, &position, now, out)
            }
            Command::Leave { .. } => {
                let connection = self.connections.get(conn).ok_or_else(Error::internal)?;
                if !connection.attachment.remote {
                    self.take_token(conn, Kind::Join, now)?;
                }
                let user = self.connections.require(conn, Rights::NONE)?;
                if name::personal_room_owner(&self.name).is_some() {
                    return Err(Error::forbidden("a personal room cannot be left"));
                }
                self.remove_member(&user, Some(conn), now, out);
                let head = self.log.head();
                if let Some(connection) = self.connections.get_mut(conn)
                    && connection.catch_up.is_none()
                {
                    connection.left_at = Some(head);
                }
                let room_id = &self.name;
                Ok(Answer::Now(to_json(&Left { room_id })))
            }
            Command::Send(send) => {
                let user = self.connections.require(conn, Rights::WRITE)?;
                self.take_token(conn, Kind::Message, now)?;
                if self.is_overloaded {
                    return Err(Error {
                        code: ErrorCode::RateLimited,
                        ..Error::overloaded()
                    });
                }
                let bytes = send.body.size();
                self.admission.take_bytes(bytes, &self.config, now)?;
                if send.volatile {
                    let envelope = self.ephemeral(&user, &send, Origin::Client, now);
                    self.batch.broadcast(EphemeralEvent {
                        except: Except::Connection(conn),
                        line: envelope.line,
                    });
                    return Ok(Answer::Now("{}".into()));
                }
                let accepted = self.accept(&user, &send, Origin::Client, now)?;
                if let Some(id) = id {
                    let answer = framing::ack(id, &accepted.receipt());
                    self.batch.send(conn, &answer);
                }
                Ok(Answer::Later)
            }
            Command::Delivered { seq, .. } => {
                self.acknowledge(conn, id, Cursor::Delivered, seq, now)
            }
            Command::Read { seq, .. } => self.acknowledge(conn, id, Cursor::Read, seq, now),
            Command::ReadMessage { message_id, .. } => {
                let user = self.connections.require(conn, Rights::READ)?;
                let seq = self.find_message(conn, &message_id, now, out)?;
                self.members.read_message(&user, seq, message_id);
                self.acknowledge(conn, id, Cursor::Read, seq, now)
            }
            Command::Typing { is_typing, .. } => self.set_typing(conn, is_typing, now),
            Command::Presence { status } => self.set_status(conn, status, now, out),
            Command::Sync { after, limit, .. } => {
                self.connections.require(conn, Rights::READ)?;
                self.take_token(conn, Kind::Request, now)?;
                if let Some(id) = id {
                    let query = HistoryQuery {
                        after,
                        before: u64::MAX,
                        limit,
                        newest: false,
                    };
                    out.push(Output::Page { conn, id, query });
                }
                Ok(Answer::Later)
            }
            Command::SyncMessages { after, limit, .. } => {
                self.connections.require(conn, Rights::READ)?;
                self.take_token(conn, Kind::Request, now)?;
                let query = HistoryQuery {
                    after: match &after {
                        Some(message) => self.find_message(conn, message, now, out)?,
                        None => 0,
                    },
                    before: u64::MAX,
                    limit,
                    newest: after.is_none(),
                };
                if let Some(id) = id {
                    out.push(Output::Page { conn, id, query });
                }
                Ok(Answer::Later)
            }
            Command::Members { after, limit, .. } => {
                self.connections.require(conn, Rights::READ)?;
                self.take_token(conn, Kind::Request, now)?;
                if let Some(id) = id {
                    let page = self.member_page(after.as_ref(), limit);
                    self.page_sent(conn, page.len());
                    let frame = framing::ack(id, &page);
                    out.push(Output::Send { conn, frame });
                }
                Ok(Answer::Later)
            }
            Command::Refresh { token } => {
                self.take_token(conn, Kind::Request, now)?;
                let connection = self.connections.get(conn).ok_or_else(Error::internal)?;
                out.push(Output::Authenticate {
                    connection: connection.attachment.id.clone(),
                    id,
                    token,
                });
                Ok(Answer::Later)
            }
        }
    }

    /// Returns the sequence number of the event with a message id. A search counts as a request
    /// of the connection, and a long one as several.
    ///
    /// # Errors
    ///
    /// Returns `notFound` if no event has the id.
    fn find_message(
        &mut self,
        conn: ConnId,
        id: &MessageId,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<u64> {
        if self.batch.events() > 0 {
            // The message may be in the batch.
            self.flush(now, out);
        }
        if let Some(seq) = self.log.locate_message(id, &self.config)? {
            return Ok(seq);
        }
        self.take_token(conn, Kind::Request, now)?;
        let searched = self.log.search_message(id, &self.config)?;
        self.page_sent(conn, searched.bytes);
        searched.seq.ok_or_else(|| {
            let message = "the room has no message with this id, or it has expired";
            Error {
                field: Some("messageId".into()),
                ..Error::new(ErrorCode::NotFound, message)
            }
        })
    }

    fn set_typing(&mut self, conn: ConnId, is_typing: bool, now: Millis) -> Result<Answer> {
        let user = self.connections.require(conn, Rights::PRESENCE)?;
        self.take_token(conn, Kind::Signal, now)?;
        let until = is_typing.then(|| now + self.config.typing_ttl);
        if let Some(until) = until {
            self.timers.set_earliest(Timer::PresenceTimeout, until);
        }
        if self.presence.roster.set_typing(&user, until) {
            self.load_profiles();
            let line = self.typing_event(&user, is_typing);
            self.queue_event(&user, line, now);
        }
        Ok(Answer::Now("{}".into()))
    }

    fn set_status(
        &mut self,
        conn: ConnId,
        status: Status,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        let user = self.connections.require(conn, Rights::PRESENCE)?;
        self.take_token(conn, Kind::Signal, now)?;
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.attachment.status = status;
        }
        self.presence.roster.set_status(&user, conn, status);
        self.schedule_presence(now);
        out.push(Output::Attach { conn });
        let status = status.as_str();
        Ok(Answer::Now(format!(r#"{{"status":"{status}"}}"#)))
    }

    /// Executes `joinRoom` on a connection of the room. Joins again after a leave, or
    /// requests events before those that the connection has received.
    fn rejoin(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        position: &Position,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        let connection = self.connections.get(conn).ok_or_else(Error::internal)?;
        let attachment = &connection.attachment;
        if !attachment.rights.has(Rights::READ) {
            return Err(Error::forbidden(
                "the token does not allow this in the room",
            ));
        }
        let (user, remote) = (attachment.user.clone(), attachment.remote);
        // The membership of a connection at a gateway has just ended, and since then the
        // connection is not counted.
        if remote && !attachment.joined && self.is_at_connection_limit(&user) {
            return Err(Error::rate_limited("connections of this user", 1_000));
        }
        self.admit_member(&user)?;
        // If the membership of a connection at a gateway has just ended, the connection
        // stays.
        self.gateways.cancel_leave(conn);
        // The events of the batch are sent first, so that the replay ends at the head and
        // live events begin after it.
        self.flush(now, out);
        // The flush may have closed the connection.
        let connection = self.connections.get(conn).ok_or_else(Error::internal)?;
        let attachment = &connection.attachment;
        // All events after this one have been sent to the connection.
        let sent_after = attachment.joined.then_some(attachment.from);
        let requests_past = position.since.is_some() || position.history.is_some();
        // The first event that was sent to the connection before it left the room, if the
        // events go on without a hole.
        let mut sent_before = None;
        let start = match sent_after {
            None => {
                let (from, left_at) = (attachment.from, connection.left_at);
                let position = connection.continue_after_leave(position, self.log.epoch());
                let start = self.join(conn, &position, None, now, out);
                sent_before = (left_at == Some(start.after) && !start.reset).then_some(from);
                start
            }
            Some(_) if requests_past => self.start(&user, position),
            Some(from) => Start {
                after: from,
                reset: false,
            },
        };
        let head = self.log.head();
        if let Some(connection) = self.connections.get_mut(conn) {
            let from = &mut connection.attachment.from;
            *from = (*from).min(sent_before.unwrap_or(start.after));
            connection.left_at = None;
        }
        // A new membership is stored before the socket's record changes and before it is
        // announced.
        let changes = self.batch.take_changes();
        self.store_members(changes, out);
        out.push(Output::Attach { conn });
        if let Some(id) = id {
            let members = self.join_list();
            let answer = self.join_answer(&user, &members, head, start);
            out.push(Output::Send {
                conn,
                frame: framing::ack(id, &answer),
            });
        }
        // Events that were sent to the connection are not sent again.
        let range = SeqRange {
            after: start.after,
            upto: sent_after.unwrap_or(head),
        };
        match sent_after {
            _ if range.is_empty() => {}
            None if remote => self.start_catch_up(conn, range.after, out),
            None => {
                self.log_replay(conn, range, out);
                self.start_replay(conn, range.after);
            }
            Some(_) => self.send_past(conn, range, out),
        }
        Ok(Answer::Later)
    }

    /// Returns the answer to `joinRoom`. `members` is [`Room::join_list`].
    pub(super) fn join_answer(
        &self,
        user: &UserId,
        members: &RawValue,
        head: u64,
        start: Start,
    ) -> String {
        let member = self.members.get(user);
        to_json(&Joined {
            delivered: member.map_or(0, |member| member.delivered),
            epoch: self.log.epoch(),
            member_count: self.members.len(),
            members,
            read: member.map_or(0, |member| member.read),
            reset: start.reset,
            room_id: &self.name,
            seq: head,
        })
    }

    /// Moves a cursor. The command is answered when the cursor is stored.
    pub(super) fn acknowledge(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        cursor: Cursor,
        seq: u64,
        now: Millis,
    ) -> Result<Answer> {
        let user = self.connections.require(conn, Rights::READ)?;
        let head = self.log.head();
        if seq > head + self.batch.events() {
            return Err(Error::bad_field(
                "seq",
                "at most the `seq` of the room's last event",
            ));
        }
        if seq > head {
            // The event is not stored yet, so its cursor moves at the end of the batch.
            self.batch.acknowledge(Acknowledgement {
                conn,
                id,
                cursor,
                seq,
            });
            return Ok(Answer::Later);
        }
        let acknowledged = self.members.acknowledge(&user, cursor, seq)?;
        if acknowledged.moved {
            self.schedule_cursor_flush(now);
        }
        let data = acknowledgement(acknowledged.seq);
        if self.timers.get(Timer::CursorFlush).is_none() {
            return Ok(Answer::Now(data));
        }
        if let Some(id) = id {
            self.members.wait_for_flush(CursorAck { conn, id, data });
        }
        Ok(Answer::Later)
    }

    /// Handles the result of [`Output::Authenticate`]. Other commands of the connection may
    /// have been executed meanwhile.
    pub fn authenticated(
        &mut self,
        connection: &ConnectionId,
        id: Option<u32>,
        identity: Result<Identity>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        // The connection may have been closed meanwhile.
        let Some(conn) = self
            .connections
            .find(|one| one.attachment.id == *connection)
        else {
            return;
        };
        let done = identity.and_then(|identity| self.replace_token(conn, identity, now, out));
        match (done, id) {
            (Ok(Answer::Now(data)), Some(id)) => self.batch.send(conn, &framing::ack(id, &data)),
            (Ok(_), _) => {}
            (Err(error), id) => self.batch.send(conn, &framing::error(id, &error)),
        }
    }

    fn replace_token(
        &mut self,
        conn: ConnId,
        identity: Identity,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        let rights = identity.rights(&self.name);
        let connection = self.connections.get_mut(conn).ok_or_else(Error::internal)?;
        let attachment = &mut connection.attachment;
        if identity.user != attachment.user || !rights.has(Rights::READ) {
            out.push(Output::Log(
                LogRecord::reject("auth")
                    .user(&attachment.user)
                    .connection(&attachment.id),
            ));
            self.close(conn, Disconnect::Forbidden, now, out);
            return Ok(Answer::Later);
        }
        let profile = identity.profile();
        let user = identity.user.clone();
        attachment.token = identity.token;
        let expires = identity.expires;
        self.set_profile(&user, profile, now);
        self.set_rights(conn, rights, expires, now, out);
        Ok(Answer::Now(format!(
            r#"{{"expiresAt":"{}"}}"#,
            rfc3339(expires)
        )))
    }

    /// Gives a connection the rights of its new token. A connection at a gateway is
    /// unsubscribed if the token no longer grants `read`. Only gateways of older versions
    /// send such rights.
    pub(super) fn set_rights(
        &mut self,
        conn: ConnId,
        rights: Rights,
        expires: Millis,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        let attachment = &mut connection.attachment;
        if attachment.remote && !rights.has(Rights::READ) {
            out.push(Output::Unsubscribed { conn });
            return self.remove_connection(conn, Disconnect::Forbidden.code(), now, now, out);
        }
        attachment.rights = rights;
        attachment.expires = expires;
        if !rights.has(Rights::PRESENCE) && attachment.status != Status::default() {
            attachment.status = Status::default();
            let user = attachment.user.clone();
            let roster = &mut self.presence.roster;
            roster.set_status(&user, conn, Status::default());
            self.schedule_presence(now);
        }
        self.timers.set_earliest(Timer::TokenExpiry, expires);
        out.push(Output::Attach { conn });
    }
}
