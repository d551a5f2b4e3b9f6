//! What connections ask for.

use super::connections::Start;
use super::log::Range;
use super::tick::Except;
use super::{ConnId, Output, Room};
use roomcast_proto::access::{Identity, Rights};
use roomcast_proto::command::Command;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::limits::{Kind, Penalty};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::name::UserId;
use roomcast_proto::position::Position;
use roomcast_proto::time::{Millis, rfc3339};
use roomcast_proto::{event, framing};
use serde_json::json;

/// What came in over a socket.
#[derive(Clone, Copy, Debug)]
pub enum Frame<'a> {
    Text(&'a str),
    Binary,
}

/// What a command is answered with.
pub(super) enum Answer {
    Now(String),
    /// By other means, or not at all.
    Later,
}

impl Room {
    /// A frame came in.
    pub fn receive(&mut self, conn: ConnId, frame: Frame, now: Millis, out: &mut Vec<Output>) {
        let config = self.config.clone();
        let limit = config.limits.max_frame_bytes;
        if self.tick.arrivals.iter().any(|one| one.conn == conn) {
            // `connected` comes before any answer.
            self.advance(now, out);
        }
        let Some(this) = self.conn_mut(conn) else {
            return;
        };
        this.reader.on_activity(now);
        if this.expires <= now {
            return self.close(conn, Disconnect::Expired, now, out);
        }
        let text = match frame {
            Frame::Text(text) if text.len() > limit => {
                return self.reject(conn, Disconnect::TooLarge, now, out);
            }
            Frame::Binary => return self.reject(conn, Disconnect::Malformed, now, out),
            Frame::Text(text) => text,
        };
        if text == framing::PING {
            out.push(Output::Send {
                conn,
                frame: framing::PONG.to_owned(),
            });
            return;
        }
        let incoming = match framing::decode(text) {
            Ok(incoming) => incoming,
            Err(why) => return self.reject(conn, why, now, out),
        };
        for one in incoming {
            let flood = self.take(conn, Kind::Command, now);
            if let Err(error) = flood {
                // An answer to each would give a flood more than it brought:
                // the rest of the frame gets none.
                self.tick.tell(conn, &framing::error(one.id, &error));
                self.patience(conn, now, out);
                return;
            }
            let done = one
                .command
                .and_then(|command| self.command(conn, one.id, command, now, out));
            match (done, one.id) {
                (Ok(Answer::Now(data)), Some(id)) => self.tick.tell(conn, &framing::ack(id, &data)),
                (Ok(_), _) => {}
                (Err(error), id) => {
                    self.tick.tell(conn, &framing::error(id, &error));
                    if error.code == ErrorCode::RateLimited && !self.patience(conn, now, out) {
                        return;
                    }
                }
            }
            // A command may have closed the connection.
            if self.conn(conn).is_none() {
                return;
            }
        }
    }

    pub(super) fn reject(
        &mut self,
        conn: ConnId,
        why: Disconnect,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if let Some(this) = self.conn(conn) {
            out.push(Output::Log(
                LogRecord::reject("malformed")
                    .user(&this.user)
                    .connection(&this.id)
                    .with("code", why.code()),
            ));
        }
        self.close(conn, why, now, out);
    }

    /// After a refusal: whether the connection may go on.
    pub(super) fn patience(&mut self, conn: ConnId, now: Millis, out: &mut Vec<Output>) -> bool {
        let config = self.config.clone();
        let Some(this) = self.conns.get_mut(conn) else {
            return false;
        };
        let floods = &mut self.floods;
        let verdict = this
            .allowance
            .refuse(floods, &this.user, &config.limits, now);
        if verdict != Penalty::Again {
            let entry = LogRecord::reject("rate")
                .user(&this.user)
                .connection(&this.id);
            out.push(Output::Log(entry.with("closed", verdict.is_final())));
        }
        if verdict.is_final() {
            self.close(conn, Disconnect::TooFast, now, out);
        }
        !verdict.is_final()
    }

    pub(super) fn take(&mut self, conn: ConnId, kind: Kind, now: Millis) -> Result<()> {
        let config = self.config.clone();
        let this = self.conn_mut(conn).ok_or_else(Error::internal)?;
        this.allowance.take(kind, &config.limits, now)
    }

    /// A page of so many bytes was read for a connection.
    pub fn paged(&mut self, conn: ConnId, bytes: usize) {
        let config = self.config.clone();
        if let Some(this) = self.conn_mut(conn) {
            this.allowance.charge_page(bytes, &config.limits);
        }
    }

    pub(super) fn command(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        command: Command,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        // Left out it is this one.
        if command.room().is_some_and(|room| room != self.name) {
            return Err(match command {
                Command::Join { .. } => Error::bad_request("this socket belongs to another room"),
                _ => Error::not_joined(),
            });
        }
        match command {
            Command::Join { position, .. } => {
                self.take(conn, Kind::Join, now)?;
                self.rejoin(conn, id, &position, now, out)
            }
            Command::Leave { .. } => {
                self.take(conn, Kind::Join, now)?;
                let user = self.require(conn, Rights::NONE)?;
                self.remove_member(&user, Some(conn), now, out);
                Ok(Answer::Now(format!(r#"{{"roomId":"{}"}}"#, self.name)))
            }
            Command::Send(send) => {
                let user = self.require(conn, Rights::WRITE)?;
                self.take(conn, Kind::Message, now)?;
                if send.volatile {
                    let (line, _) = self.ephemeral(&user, &send, now, false);
                    self.tick.tell_others(Except::Conn(conn), line);
                    return Ok(Answer::Now("{}".into()));
                }
                let accepted = self.accept(&user, &send, now, false)?;
                if let Some(id) = id {
                    self.tick
                        .answer(conn, id, &framing::ack(id, &accepted.receipt()));
                }
                Ok(Answer::Later)
            }
            Command::Delivered { seq, .. } => self.acknowledge(conn, id, seq, false, now),
            Command::Read { seq, .. } => self.acknowledge(conn, id, seq, true, now),
            Command::Typing { is_typing, .. } => {
                let user = self.require(conn, Rights::PRESENCE)?;
                self.take(conn, Kind::Signal, now)?;
                let until = is_typing.then(|| now + self.config.typing_ttl);
                if self.roster.typing(&user, until) {
                    self.rumour_of(&user, event::user_typing(&self.name, &user, is_typing), now);
                }
                Ok(Answer::Now("{}".into()))
            }
            Command::Presence { status } => {
                let user = self.require(conn, Rights::PRESENCE)?;
                self.take(conn, Kind::Signal, now)?;
                if let Some(this) = self.conn_mut(conn) {
                    this.status = status;
                }
                self.roster.set(&user, conn, status);
                self.expect_news(now);
                out.push(Output::Attach { conn });
                Ok(Answer::Now(format!(
                    r#"{{"status":"{}"}}"#,
                    status.as_str()
                )))
            }
            Command::Sync { after, limit, .. } => {
                self.require(conn, Rights::READ)?;
                self.take(conn, Kind::Request, now)?;
                if let Some(id) = id {
                    out.push(Output::Page {
                        conn,
                        id,
                        range: Range {
                            after,
                            before: u64::MAX,
                            limit,
                            newest: false,
                        },
                    });
                }
                Ok(Answer::Later)
            }
            Command::Refresh { token } => {
                self.take(conn, Kind::Request, now)?;
                let this = self.conn(conn).ok_or_else(Error::internal)?;
                out.push(Output::Authenticate {
                    connection: this.id.clone(),
                    id,
                    token,
                });
                Ok(Answer::Later)
            }
        }
    }

    /// The user of a joined connection that has `right`.
    pub(super) fn require(&self, conn: ConnId, right: Rights) -> Result<UserId> {
        let this = self.conn(conn).ok_or_else(Error::internal)?;
        this.require(right)?;
        Ok(this.user.clone())
    }

    /// `joinRoom` on a socket of the room's own: joins again after a leave, or
    /// asks for more of the past than the connection has been given.
    pub(super) fn rejoin(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        position: &Position,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        // A connection at a gateway whose membership has just ended stays, for it
        // joins again.
        self.parting.retain(|one| *one != conn);
        // What was accepted before goes out before, so that the head is where
        // the replay ends and what is live begins.
        self.advance(now, out);
        let this = self.conn(conn).ok_or_else(Error::internal)?;
        if !this.rights.has(Rights::READ) {
            return Err(Error::forbidden("the token does not allow this here"));
        }
        let (user, given) = (this.user.clone(), this.joined.then_some(this.from));
        self.admit_member(&user)?;
        let asks_for_past = position.since.is_some() || position.history.is_some();
        let start = match given {
            None => self.join(conn, position, now, out),
            Some(_) if asks_for_past => self.start(&user, position),
            Some(from) => Start {
                after: from,
                reset: false,
            },
        };
        // What it was given already does not come a second time.
        let upto = given.unwrap_or(self.bounds.head);
        if let Some(this) = self.conn_mut(conn) {
            this.from = this.from.min(start.after);
        }
        out.push(Output::Attach { conn });
        // A membership that is new is stored before it is told.
        out.extend(self.tick.changes.drain(..).map(Output::Store));
        if let Some(id) = id {
            out.push(Output::Send {
                conn,
                frame: framing::ack(id, &self.joined_json(&user, self.bounds.head, start)),
            });
        }
        let remote = self.conn(conn).is_some_and(|conn| conn.remote);
        match given {
            _ if !remote => self.replay(conn, start.after, upto, out),
            None if start.after < upto => self.fall_behind(conn, start.after, out),
            None => {}
            Some(_) => self.give_past(conn, start.after, upto, out),
        }
        Ok(Answer::Later)
    }

    /// The answer to `joinRoom`.
    pub(super) fn joined_json(&self, user: &str, head: u64, start: Start) -> String {
        let member = self.members.get(user).cloned().unwrap_or_default();
        let mut users: Vec<&UserId> = self.members.keys().collect();
        users.sort();
        let mut answer = json!({
            "roomId": self.name,
            "epoch": self.epoch,
            "seq": head,
            "delivered": member.delivered,
            "read": member.read,
            "members": users
                .iter()
                .map(|user| json!({ "userId": &***user, "status": self.roster.status(user) }))
                .collect::<Vec<_>>(),
        });
        if start.reset {
            answer["reset"] = true.into();
        }
        answer.to_string()
    }

    pub(super) fn acknowledge(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        seq: u64,
        read: bool,
        now: Millis,
    ) -> Result<Answer> {
        let user = self.require(conn, Rights::READ)?;
        if seq > self.bounds.head {
            return Err(Error::bad_field(
                "seq",
                "no higher than the room's last event",
            ));
        }
        let member = self.members.get_mut(&user).ok_or_else(Error::not_joined)?;
        let before = (member.delivered, member.read);
        if read {
            member.read(seq);
        } else {
            member.deliver(seq);
        }
        let answer = format!(
            r#"{{"seq":{}}}"#,
            if read { member.read } else { member.delivered }
        );
        let moved = (member.delivered != before.0, member.read != before.1);
        if moved.0 || moved.1 {
            let told = self.cursors.entry(user).or_default();
            *told = (told.0 || moved.0, told.1 || moved.1);
            self.expect_cursors(now);
        }
        if self.cursors_due.is_none() {
            return Ok(Answer::Now(answer));
        }
        if let Some(id) = id {
            self.cursor_answers.push((conn, id, answer));
        }
        Ok(Answer::Later)
    }

    /// The host has judged the token of [`Output::Authenticate`]: its identity, or
    /// why it is refused. Commands of the connection that came meanwhile have been
    /// executed.
    pub fn authenticated(
        &mut self,
        connection: &str,
        id: Option<u32>,
        identity: Result<Identity>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let mut conns = self.conns.iter();
        let conn = conns.find(|(_, conn)| conn.id == connection);
        let conn = conn.map(|(conn, _)| conn);
        // It may have gone meanwhile.
        let Some(conn) = conn else {
            return;
        };
        let done = identity.and_then(|identity| self.refresh(conn, identity, now, out));
        match (done, id) {
            (Ok(Answer::Now(data)), Some(id)) => self.tick.tell(conn, &framing::ack(id, &data)),
            (Ok(_), _) => {}
            (Err(error), id) => self.tick.tell(conn, &framing::error(id, &error)),
        }
    }

    pub(super) fn refresh(
        &mut self,
        conn: ConnId,
        identity: Identity,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        let rights = identity.rights(&self.name);
        let this = self.conn_mut(conn).ok_or_else(Error::internal)?;
        if identity.user != *this.user || !rights.has(Rights::READ) {
            out.push(Output::Log(
                LogRecord::reject("auth")
                    .user(&this.user)
                    .connection(&this.id),
            ));
            self.close(conn, Disconnect::Forbidden, now, out);
            return Ok(Answer::Later);
        }
        this.token = identity.token;
        let expiry = identity.expires;
        self.refreshed(conn, rights, expiry, now, out);
        Ok(Answer::Now(format!(
            r#"{{"expiresAt":"{}"}}"#,
            rfc3339(expiry)
        )))
    }
}
