//! Who is connected and who is a member: coming, being told where one stands,
//! going, and starting to read.

use super::tick::{Arrival, Except, Greeting};
use super::{Attachment, Change, Conn, ConnId, Hello, Member, Output, Room};
use roomcast_proto::access::{Rights, TokenId};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::event;
use roomcast_proto::limits::{CONNECTS, Limits, SlowConsumerGuard, network_of};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::name::UserId;
use roomcast_proto::position::Position;
use roomcast_proto::status::Status;
use roomcast_proto::time::{Millis, rfc3339, sooner};
use serde::Serialize;

/// Where a connection starts, and whether its `since` made no sense any more.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Start {
    pub(super) after: u64,
    pub(super) reset: bool,
}

impl Room {
    /// Whether somebody may come in: the limits that count connections.
    pub fn admit(&mut self, hello: &Hello, now: Millis) -> Result<()> {
        if let Some(address) = &hello.address {
            let connects = self.config.limits.connects;
            self.doors
                .admit(&network_of(address), CONNECTS, connects, now)?;
        }
        self.floods.admit(&hello.user, now)?;
        self.admit_user(hello)
    }

    /// The same, of who is in already and comes again.
    pub(super) fn admit_user(&self, hello: &Hello) -> Result<()> {
        let user = hello.user.as_str();
        if self.roster.sockets(user).count() >= self.config.max_connections_per_user {
            return Err(Error::rate_limited("connections of this user", 1_000));
        }
        self.admit_member(user)
    }

    pub(super) fn admit_member(&self, user: &str) -> Result<()> {
        if !self.members.contains_key(user) && self.members.len() >= self.config.max_members {
            return Err(Error::new(
                ErrorCode::Conflict,
                "the room has as many members as it may",
            ));
        }
        Ok(())
    }

    /// A socket of the room's own: joins at once. With the end of the tick it is
    /// told where it stands and gets what it missed, so that memberships of
    /// connections that come together are stored together.
    pub fn connect(&mut self, hello: Hello, now: Millis, out: &mut Vec<Output>) -> ConnId {
        self.arrive(hello, Greeting::Connected, now, out)
    }

    /// A connection that joins.
    pub(super) fn arrive(
        &mut self,
        hello: Hello,
        greeting: Greeting,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> ConnId {
        // A client at a gateway has one status for all its rooms.
        let status = match hello.rights.has(Rights::PRESENCE) {
            true => hello.status,
            false => Status::default(),
        };
        let attachment = Attachment {
            id: hello.connection_id,
            user: hello.user,
            rights: hello.rights,
            expires: hello.expires,
            status,
            joined: false,
            from: 0,
            remote: greeting != Greeting::Connected,
            token: hello.token,
        };
        let conn = self.place(Conn::new(attachment, &self.config.limits, now), now);
        let start = self.join(conn, &hello.position, now, out);
        self.tick.arrivals.push(Arrival {
            conn,
            after: start.after,
            reset: start.reset,
            greeting,
        });
        conn
    }

    /// The first thing on a socket: where the room stood at `head`, and what
    /// comes up to there.
    pub(super) fn welcome(&mut self, arrival: &Arrival, head: u64, out: &mut Vec<Output>) {
        let conn = arrival.conn;
        let Some(this) = self.conn(conn) else {
            return;
        };
        let joined = this.joined;
        if let Greeting::Joined(id) = arrival.greeting {
            return self.welcome_remote(arrival, id, head, out);
        }
        let connected = Connected {
            connection_id: &this.id,
            user_id: &this.user,
            room_id: &self.name,
            epoch: &self.epoch,
            seq: head,
            delivered: self
                .members
                .get(&this.user)
                .map_or(0, |member| member.delivered),
            expires_at: rfc3339(this.expires),
            limits: Limits::of(&self.config.limits),
            reset: arrival.reset,
        };
        out.push(Output::Log(
            LogRecord::info("connect")
                .user(&this.user)
                .connection(&this.id),
        ));
        out.push(Output::Attach { conn });
        out.push(Output::Send {
            conn,
            frame: event::connected(&connected),
        });
        // Another connection of the user may have left the room meanwhile.
        if joined {
            self.replay(conn, arrival.after, head, out);
        }
    }

    /// After hibernation: a socket that is still there.
    pub fn recall(&mut self, attachment: Attachment, now: Millis) -> ConnId {
        let mut conn = Conn::new(attachment, &self.config.limits, now);
        // When it was heard last only the runtime knows.
        conn.reader = SlowConsumerGuard::new(0);
        let (user, status, joined) = (conn.user.clone(), conn.status, conn.joined);
        let conn = self.place(conn, now);
        if joined {
            self.roster.recall(&user, conn, status);
        }
        conn
    }

    pub(super) fn place(&mut self, conn: Conn, now: Millis) -> ConnId {
        sooner(&mut self.expiry, conn.expires);
        let check = now + self.config.limits.ghost_timeout;
        sooner(&mut self.ghost_check, check);
        self.conns.insert(conn)
    }

    /// The socket is gone, however it went.
    pub fn disconnect(&mut self, conn: ConnId, code: u16, now: Millis, out: &mut Vec<Output>) {
        let Some(gone) = self.conns.remove(conn) else {
            return;
        };
        self.tick.forget(conn);
        self.cursor_answers.retain(|(one, ..)| *one != conn);
        self.parting.retain(|one| *one != conn);
        self.rumours
            .retain(|(except, _)| !matches!(except, Except::Conn(one) if *one == conn));
        if !gone.remote {
            out.push(Output::Log(
                LogRecord::info("disconnect")
                    .user(&gone.user)
                    .connection(&gone.id)
                    .with("code", code),
            ));
        }
        if !gone.joined {
            return;
        }
        let grace_until = now + self.config.presence_grace;
        let (last, was_typing) = self.roster.depart(&gone.user, conn, grace_until);
        if was_typing {
            self.rumour_of(
                &gone.user,
                event::user_typing(&self.name, &gone.user, false),
                now,
            );
        }
        if last && let Some(member) = self.members.get_mut(&gone.user) {
            member.last_seen = now;
            self.cursors.entry(gone.user).or_default();
            self.expect_cursors(now);
        }
        self.expect_news(now);
    }

    pub(super) fn close(
        &mut self,
        conn: ConnId,
        why: Disconnect,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if self.conn(conn).is_some() {
            out.push(Output::Close { conn, why });
            self.disconnect(conn, why.code(), now, out);
        }
    }

    /// Closes the room's own sockets whose user and token are revoked; gateways
    /// close theirs. Returns `true` if own sockets are left.
    pub fn close_revoked(
        &mut self,
        is_revoked: impl Fn(&str, &TokenId) -> bool,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let own = self.conns.iter().filter(|(_, conn)| !conn.remote);
        let mut left = false;
        for conn in own.map(|(conn, _)| conn).collect::<Vec<_>>() {
            let revoked = self
                .conn(conn)
                .filter(|this| is_revoked(&this.user, &this.token));
            match revoked {
                Some(this) => {
                    let entry = LogRecord::info("revoke").user(&this.user);
                    out.push(Output::Log(entry.connection(&this.id)));
                    self.close(conn, Disconnect::Revoked, now, out);
                }
                None => left = true,
            }
        }
        left
    }

    /// Something was written to a socket. `true` when so much was written since
    /// its last sign of life that it should be looked at.
    pub fn sent(&mut self, conn: ConnId, bytes: usize) -> bool {
        let limit = self.config.limits.max_unacked_bytes;
        self.conn_mut(conn)
            .is_some_and(|conn| conn.reader.on_sent(bytes, limit))
    }

    /// A socket that [`Room::sent`] pointed out: its last ping, if it ever sent
    /// one, decides. One that gave no sign since is cut; it can resume.
    pub fn judge_slow(
        &mut self,
        conn: ConnId,
        pinged: Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(this) = self.conn_mut(conn) else {
            return;
        };
        if this.reader.check_ping(pinged, now) {
            return;
        }
        let entry = LogRecord::reject("slow")
            .user(&this.user)
            .connection(&this.id)
            .with("unackedBytes", this.reader.unacked());
        out.push(Output::Log(entry));
        self.close(conn, Disconnect::TooSlow, now, out);
    }

    pub(super) fn join(
        &mut self,
        conn: ConnId,
        position: &Position,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Start {
        let Some(this) = self.conn(conn) else {
            return Start::default();
        };
        let user = this.user.clone();
        let start = self.start(&user, position);
        let live_from = self.ticks + 1;
        let Some(this) = self.conn_mut(conn) else {
            return start;
        };
        this.joined = true;
        this.live_from = live_from;
        this.from = start.after;
        let (status, id) = (this.status, this.id.clone());
        self.add_member(&user, start.after, Some(&id), now, out);
        self.roster.arrive(&user, conn, status);
        self.expect_news(now);
        self.put_off_rumours();
        start
    }

    /// Makes `user` a member unless it is one. Whether it was not.
    pub(super) fn add_member(
        &mut self,
        user: &UserId,
        delivered: u64,
        connection: Option<&str>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        if self.members.contains_key(user) {
            return false;
        }
        let mut member = Member::new(now, delivered);
        if connection.is_some() {
            // Should the end of its connection not be noticed, for a crash.
            member.last_seen = now;
        }
        self.tick
            .changes
            .push(Change::PutMember(user.clone(), member.clone()));
        self.members.insert(user.clone(), member);
        let entry = LogRecord::info("join").user(user);
        out.push(Output::Log(match connection {
            Some(id) => entry.connection(id),
            None => entry,
        }));
        self.rumour_of(user, event::user_joined(&self.name, user), now);
        true
    }

    /// Ends a membership: cursors and queue go, sockets stay but get nothing
    /// more, and are told, but for the one that asked. Whether there was one.
    pub(super) fn remove_member(
        &mut self,
        user: &str,
        asked_by: Option<ConnId>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        if !self.members.contains_key(user) {
            return false;
        }
        if !self.cursor_answers.is_empty() {
            // A connection at a gateway goes with its membership, and with it
            // the answers that it waits for.
            self.flush_cursors(now, out);
        }
        let Some((user, _)) = self.members.remove_entry(user) else {
            return false;
        };
        self.tick.changes.push(Change::RemoveMember(user.clone()));
        self.cursors.remove(&user);
        self.journalled.remove(&user);
        let (conns, was_typing) = self.roster.remove(&user);
        if was_typing {
            let line = event::user_typing(&self.name, &user, false);
            self.rumour_of(&user, line, now);
        }
        for conn in conns {
            if let Some(this) = self.conn_mut(conn) {
                this.joined = false;
                // One at a gateway hears of it there, for that must come through.
                // What is stored of it changes with the end of the tick, as the
                // membership does.
                if this.remote {
                    self.parting.push(conn);
                    continue;
                }
                if asked_by != Some(conn) {
                    self.tick.tell(conn, &event::user_left(&self.name, &user));
                }
                out.push(Output::Attach { conn });
            }
        }
        out.push(Output::Log(LogRecord::info("leave").user(&user)));
        self.rumour_of(&user, event::user_left(&self.name, &user), now);
        true
    }

    /// Where a connection starts to read.
    pub(super) fn start(&self, user: &str, position: &Position) -> Start {
        let head = self.bounds.head;
        let other_epoch = position
            .epoch
            .as_ref()
            .is_some_and(|epoch| *epoch != self.epoch);
        match position.since {
            Some(since) if other_epoch || since > head => Start {
                after: self.floor(),
                reset: true,
            },
            Some(since) => Start {
                after: since,
                reset: false,
            },
            None => {
                let cursor = self
                    .members
                    .get(user)
                    .map_or(head, |member| member.delivered);
                let history = position
                    .history
                    .map_or(head, |events| head.saturating_sub(events).max(self.floor()));
                Start {
                    after: cursor.min(history),
                    reset: false,
                }
            }
        }
    }

    /// What comes after `after`, with a word on what is past retention.
    pub(super) fn replay(&mut self, conn: ConnId, after: u64, upto: u64, out: &mut Vec<Output>) {
        let floor = self.floor().min(upto);
        if after < floor {
            out.push(Output::Send {
                conn,
                frame: event::gap(&self.name, after + 1, floor),
            });
        }
        let after = after.max(floor);
        if after >= upto {
            return;
        }
        self.log_replay(conn, after, upto, out);
        out.push(Output::Replay { conn, after, upto });
    }

    pub(super) fn log_replay(&self, conn: ConnId, after: u64, upto: u64, out: &mut Vec<Output>) {
        if let Some(this) = self.conn(conn) {
            out.push(Output::Log(
                LogRecord::info("replay")
                    .user(&this.user)
                    .connection(&this.id)
                    .with("after", after)
                    .with("events", upto - after),
            ));
        }
    }
}

/// The data of `connected` on a room's own socket.
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
