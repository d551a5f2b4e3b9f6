//! The room: a log; everything else is a cursor into it or a rumour about it.
//!
//! A state machine without I/O. It is told what happened and when, and answers
//! with [`Output`]s for the shell to carry out: store this, send that. Its whole
//! state is rebuilt from what was stored ([`Snapshot`]) and from what its
//! sockets carry ([`Attachment`]), so hibernation, a crash and a new deploy are
//! the same to it.

pub mod dedupe;
pub mod limits;
pub mod log;
pub mod member;
pub mod output;
pub mod presence;
pub mod service;
pub mod tick;

pub use member::Member;
pub use output::{CallId, Change, ConnId, Custom, Delivery, Output};

use crate::auth::Rights;
use crate::config::{Config, RoomConfig};
use crate::eventlog::Entry;
use crate::fault::{Code, Fault, Result};
use crate::name::UserId;
use crate::time::{Millis, rfc3339};
use crate::wire::command::{Body, Command, Position, Send, Status};
use crate::wire::event::{self, Stamp};
use crate::wire::native::{self, Close};
use dedupe::{Dedupe, Key, Seen};
use limits::{Bucket, Overrun, Verdict};
use log::{Bounds, Range};
use member::{Cursor, MAX_JOURNAL};
use presence::{Ended, Roster};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use tick::{Arrival, Except, Tick};

/// How long cursors wait to be stored together: one row for all that moved. A
/// room with a message in flight at a time has its receipts cost less than one
/// row per 20 messages; an acknowledgement waits no longer than this.
const CURSOR_DELAY: Millis = 50;

/// How long rumours wait to go out together: a millisecond for each socket they
/// go to, within these bounds. What n users say to n users grows with the
/// square; this keeps the frames of it linear.
const RUMOUR_DELAY: (Millis, Millis) = (50, 1_000);

/// What lives in storage, as read when the object wakes.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub epoch: String,
    pub bounds: Bounds,
    pub members: Vec<(String, Member)>,
    /// Cursors that moved since the members were written.
    pub journal: Vec<String>,
    /// Rows within the dedupe window: their first event and their body.
    pub recent: Vec<(u64, String)>,
}

/// What lives with a socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    pub id: String,
    pub user: String,
    pub rights: Rights,
    pub expires: Millis,
    pub status: Status,
    pub joined: bool,
    /// The connection has been given every event after this one.
    pub from: u64,
}

/// Somebody at the door, already authenticated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub connection_id: String,
    pub user: String,
    pub rights: Rights,
    pub expires: Millis,
    /// Where it comes from, for the limit per address.
    #[serde(default)]
    pub address: Option<String>,
    #[serde(default)]
    pub position: Position,
}

/// One socket.
#[derive(Debug)]
struct Conn {
    id: String,
    user: UserId,
    rights: Rights,
    expires: Millis,
    status: Status,
    /// Gets what the room sends. Ends with membership.
    joined: bool,
    /// The first tick whose delivery it gets; what was before comes by replay.
    live_from: u64,
    from: u64,
    commands: Bucket,
    messages: Bucket,
    signals: Bucket,
    joins: Bucket,
    overrun: Overrun,
    /// Bytes sent since the last sign of life.
    unacked: usize,
    /// When that was.
    alive_at: Millis,
}

impl Conn {
    fn new(attachment: Attachment, config: &RoomConfig, now: Millis) -> Self {
        Conn {
            id: attachment.id,
            user: attachment.user.into(),
            rights: attachment.rights,
            expires: attachment.expires,
            status: attachment.status,
            joined: attachment.joined,
            live_from: 0,
            from: attachment.from,
            commands: Bucket::full(config.commands, now),
            messages: Bucket::full(config.messages, now),
            signals: Bucket::full(config.signals, now),
            joins: Bucket::full(config.joins, now),
            overrun: Overrun::default(),
            unacked: 0,
            alive_at: now,
        }
    }

    fn require(&self, right: Rights) -> Result<()> {
        if !self.joined {
            return Err(Fault::not_joined());
        }
        if !self.rights.has(right) {
            return Err(Fault::forbidden("the token does not allow this here"));
        }
        Ok(())
    }
}

/// What came in over a socket.
#[derive(Clone, Copy, Debug)]
pub enum Frame<'a> {
    Text(&'a str),
    Binary,
}

pub struct Room {
    name: String,
    config: Rc<Config>,
    epoch: String,
    bounds: Bounds,
    members: HashMap<UserId, Member>,
    conns: Vec<Option<Conn>>,
    free: Vec<ConnId>,
    roster: Roster,
    dedupe: Dedupe,
    tick: Tick,
    /// Ticks that were delivered since the room woke.
    ticks: u64,
    /// Lines about users, waiting for [`RUMOUR_DELAY`].
    rumours: Vec<(Except, String)>,
    rumours_due: Option<Millis>,
    /// Members whose cursors moved, waiting for [`CURSOR_DELAY`]: whether the
    /// others are to be told of `(delivered, read)`.
    cursors: HashMap<UserId, (bool, bool)>,
    cursors_due: Option<Millis>,
    /// Answers that wait for the cursors: id and data.
    cursor_answers: Vec<(ConnId, u32, String)>,
    /// Rows in the journal, and whose cursors they hold.
    journal: usize,
    journalled: HashSet<UserId>,
    /// Connects per address.
    doors: HashMap<String, Bucket>,
    /// No token expires before this.
    expiry: Option<Millis>,
    /// When to look for sockets that are gone without a close.
    ghost_check: Option<Millis>,
}

impl Room {
    pub fn new(name: String, config: Rc<Config>, snapshot: Snapshot) -> Self {
        let mut members: HashMap<UserId, Member> = snapshot
            .members
            .into_iter()
            .map(|(user, member)| (user.into(), member))
            .collect();
        let mut journalled = HashSet::new();
        for entry in &snapshot.journal {
            // Written by this very code; what cannot be read is from a version
            // to come, and cursors that stay behind only repeat events.
            let cursors: Vec<Cursor> = serde_json::from_str(entry).unwrap_or_default();
            for cursor in &cursors {
                if let Some((user, member)) = members.get_key_value(cursor.0.as_str()) {
                    let (user, mut member) = (user.clone(), member.clone());
                    member.recall(cursor);
                    members.insert(user.clone(), member);
                    journalled.insert(user);
                }
            }
        }
        let mut dedupe = Dedupe::default();
        for (first, body) in &snapshot.recent {
            for (seq, line) in (*first..).zip(body.split('\n')) {
                if let Some((key, at)) = remembered(line) {
                    dedupe.insert(key, Seen { seq, at }, config.room.dedupe_window);
                }
            }
        }
        Room {
            name,
            config,
            epoch: snapshot.epoch,
            bounds: snapshot.bounds,
            members,
            conns: Vec::new(),
            free: Vec::new(),
            roster: Roster::default(),
            dedupe,
            tick: Tick::default(),
            ticks: 0,
            rumours: Vec::new(),
            rumours_due: None,
            cursors: HashMap::new(),
            cursors_due: None,
            cursor_answers: Vec::new(),
            journal: snapshot.journal.len(),
            journalled,
            doors: HashMap::new(),
            expiry: None,
            ghost_check: None,
        }
    }

    // ---- what the shell asks

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Events up to this one are past retention.
    pub fn floor(&self) -> u64 {
        self.bounds.floor(&self.config.room)
    }

    pub fn attachment(&self, conn: ConnId) -> Option<Attachment> {
        self.conn(conn).map(|conn| Attachment {
            id: conn.id.clone(),
            user: conn.user.to_string(),
            rights: conn.rights,
            expires: conn.expires,
            status: conn.status,
            joined: conn.joined,
            from: conn.from,
        })
    }

    /// Whether a connection gets what a tick delivers to everybody.
    pub fn receives(&self, conn: ConnId, tick: u64) -> bool {
        self.conn(conn)
            .is_some_and(|conn| conn.joined && conn.live_from <= tick)
    }

    /// How many things wait for the end of the tick.
    pub fn waiting(&self) -> usize {
        self.tick.waiting()
    }

    /// Whether the tick should end without waiting for more.
    pub fn is_full(&self) -> bool {
        self.tick.is_full()
    }

    /// When [`Room::advance`] is to be called next: soon, so by a timer.
    pub fn timer(&self) -> Option<Millis> {
        [self.rumours_due, self.cursors_due, self.roster.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// When [`Room::alarm`] is to be called next: later, so by an alarm that
    /// lets the object sleep.
    pub fn alarm_at(&self) -> Option<Millis> {
        [
            self.expiry,
            self.ghost_check,
            self.bounds.ages_at(&self.config.room),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn conn(&self, conn: ConnId) -> Option<&Conn> {
        self.conns.get(conn)?.as_ref()
    }

    fn conn_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(conn)?.as_mut()
    }

    // ---- connections

    /// Whether somebody may come in: the limits that count connections.
    pub fn admit(&mut self, hello: &Hello, now: Millis) -> Result<()> {
        if let Some(address) = &hello.address {
            let rate = self.config.room.connects;
            if self.doors.len() > 1_000 {
                self.doors.retain(|_, bucket| !bucket.is_full(rate, now));
            }
            self.doors
                .entry(address.clone())
                .or_insert_with(|| Bucket::full(rate, now))
                .take(rate, now)
                .map_err(|wait| Fault::rate_limited("connects from this address", wait))?;
        }
        let user = hello.user.as_str();
        if self.roster.sockets(user).count() >= self.config.room.max_connections_per_user {
            return Err(Fault::rate_limited("connections of this user", 1_000));
        }
        self.admit_member(user)
    }

    fn admit_member(&self, user: &str) -> Result<()> {
        if !self.members.contains_key(user) && self.members.len() >= self.config.room.max_members {
            return Err(Fault::new(
                Code::Conflict,
                "the room has as many members as it may",
            ));
        }
        Ok(())
    }

    /// A socket of the room's own: joins at once. With the end of the tick it is
    /// told where it stands and gets what it missed, so that memberships of
    /// connections that come together are stored together.
    pub fn connect(&mut self, hello: Hello, now: Millis, out: &mut Vec<Output>) -> ConnId {
        let attachment = Attachment {
            id: hello.connection_id,
            user: hello.user,
            rights: hello.rights,
            expires: hello.expires,
            status: Status::Online,
            joined: false,
            from: 0,
        };
        let conn = self.place(Conn::new(attachment, &self.config.room, now), now);
        let start = self.join(conn, &hello.position, now, out);
        self.tick.arrivals.push(Arrival {
            conn,
            after: start.after,
            reset: start.reset,
        });
        conn
    }

    /// The first thing on a socket: where the room stood at `head`, and what
    /// comes up to there.
    fn welcome(&mut self, arrival: &Arrival, head: u64, out: &mut Vec<Output>) {
        let conn = arrival.conn;
        let Some(this) = self.conn(conn) else {
            return;
        };
        let joined = this.joined;
        let mut connected = json!({
            "connectionId": this.id,
            "userId": &*this.user,
            "roomId": self.name,
            "epoch": self.epoch,
            "seq": head,
            "delivered": self.members.get(&this.user).map_or(0, |member| member.delivered),
            "expiresAt": rfc3339(this.expires),
            "limits": limits_json(&self.config.room),
        });
        if arrival.reset {
            connected["reset"] = true.into();
        }
        out.push(Output::Log(
            Entry::info("connect").user(&this.user).connection(&this.id),
        ));
        out.push(Output::Attach { conn });
        out.push(Output::Send {
            conn,
            frame: json!({ "event": "connected", "data": connected }).to_string(),
        });
        // Another connection of the user may have left the room meanwhile.
        if joined {
            self.replay(conn, arrival.after, head, out);
        }
    }

    /// After hibernation: a socket that is still there.
    pub fn recall(&mut self, attachment: Attachment, now: Millis) -> ConnId {
        let mut conn = Conn::new(attachment, &self.config.room, now);
        // When it was heard last only the runtime knows.
        conn.alive_at = 0;
        let (user, status, joined) = (conn.user.clone(), conn.status, conn.joined);
        let conn = self.place(conn, now);
        if joined {
            self.roster.recall(&user, conn, status);
        }
        conn
    }

    fn place(&mut self, conn: Conn, now: Millis) -> ConnId {
        self.expiry = Some(self.expiry.map_or(conn.expires, |at| at.min(conn.expires)));
        let check = now + self.config.room.ghost_timeout;
        self.ghost_check = Some(self.ghost_check.map_or(check, |at| at.min(check)));
        match self.free.pop() {
            Some(place) => {
                self.conns[place] = Some(conn);
                place
            }
            None => {
                self.conns.push(Some(conn));
                self.conns.len() - 1
            }
        }
    }

    /// The socket is gone, however it went.
    pub fn disconnect(&mut self, conn: ConnId, code: u16, now: Millis, out: &mut Vec<Output>) {
        let Some(gone) = self.conns.get_mut(conn).and_then(Option::take) else {
            return;
        };
        self.free.push(conn);
        self.tick.forget(conn);
        self.cursor_answers.retain(|(one, ..)| *one != conn);
        self.rumours
            .retain(|(except, _)| !matches!(except, Except::Conn(one) if *one == conn));
        out.push(Output::Log(
            Entry::info("disconnect")
                .user(&gone.user)
                .connection(&gone.id)
                .with("code", code),
        ));
        if !gone.joined {
            return;
        }
        let grace_until = now + self.config.room.presence_grace;
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
            self.cursors_due.get_or_insert(now + CURSOR_DELAY);
        }
        self.expect_news(now);
    }

    fn close(&mut self, conn: ConnId, why: Close, now: Millis, out: &mut Vec<Output>) {
        if self.conn(conn).is_some() {
            out.push(Output::Close { conn, why });
            self.disconnect(conn, why.code(), now, out);
        }
    }

    /// Something was written to a socket. `true` when so much was written since
    /// its last sign of life that it should be looked at.
    pub fn sent(&mut self, conn: ConnId, bytes: usize) -> bool {
        let limit = self.config.room.max_unacked_bytes;
        self.conn_mut(conn).is_some_and(|conn| {
            conn.unacked += bytes;
            conn.unacked > limit
        })
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
        if pinged.is_some_and(|at| at > this.alive_at) {
            this.alive_at = now;
            this.unacked = 0;
            return;
        }
        let entry = Entry::reject("slow")
            .user(&this.user)
            .connection(&this.id)
            .with("unackedBytes", this.unacked);
        out.push(Output::Log(entry));
        self.close(conn, Close::TooSlow, now, out);
    }

    // ---- membership

    fn join(
        &mut self,
        conn: ConnId,
        position: &Position,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Start {
        let Some(this) = self.conns.get_mut(conn).and_then(Option::as_mut) else {
            return Start::default();
        };
        let user = this.user.clone();
        let start = self.start(&user, position);
        let Some(this) = self.conns.get_mut(conn).and_then(Option::as_mut) else {
            return start;
        };
        this.joined = true;
        this.live_from = self.ticks + 1;
        this.from = start.after;
        let (status, id) = (this.status, this.id.clone());
        self.add_member(&user, start.after, Some(&id), now, out);
        self.roster.arrive(&user, conn, status);
        self.expect_news(now);
        start
    }

    /// Makes `user` a member unless it is one. Whether it was not.
    fn add_member(
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
        let member = Member::new(now, delivered);
        self.tick
            .changes
            .push(Change::PutMember(user.clone(), member.clone()));
        self.members.insert(user.clone(), member);
        let entry = Entry::info("join").user(user);
        out.push(Output::Log(match connection {
            Some(id) => entry.connection(id),
            None => entry,
        }));
        self.rumour_of(user, event::user_joined(&self.name, user), now);
        true
    }

    /// Ends a membership: cursors and queue go, sockets stay but get nothing
    /// more, and are told, but for the one that asked. Whether there was one.
    fn remove_member(
        &mut self,
        user: &str,
        asked_by: Option<ConnId>,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some((user, _)) = self.members.remove_entry(user) else {
            return false;
        };
        self.tick.changes.push(Change::RemoveMember(user.clone()));
        self.cursors.remove(&user);
        self.journalled.remove(&user);
        for conn in self.roster.remove(&user) {
            if let Some(this) = self.conn_mut(conn) {
                this.joined = false;
                out.push(Output::Attach { conn });
                if asked_by != Some(conn) {
                    self.tick.tell(conn, &event::user_left(&self.name, &user));
                }
            }
        }
        out.push(Output::Log(Entry::info("leave").user(&user)));
        self.rumour_of(&user, event::user_left(&self.name, &user), now);
        true
    }

    /// Where a connection starts to read.
    fn start(&self, user: &str, position: &Position) -> Start {
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
    fn replay(&mut self, conn: ConnId, after: u64, upto: u64, out: &mut Vec<Output>) {
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
        if let Some(this) = self.conn(conn) {
            out.push(Output::Log(
                Entry::info("replay")
                    .user(&this.user)
                    .connection(&this.id)
                    .with("after", after)
                    .with("events", upto - after),
            ));
        }
        out.push(Output::Replay { conn, after, upto });
    }

    // ---- commands

    /// A frame came in.
    pub fn receive(&mut self, conn: ConnId, frame: Frame, now: Millis, out: &mut Vec<Output>) {
        let limit = self.config.room.max_frame_bytes;
        if self.tick.arrivals.iter().any(|one| one.conn == conn) {
            // `connected` comes before any answer.
            self.advance(now, out);
        }
        let Some(this) = self.conn_mut(conn) else {
            return;
        };
        this.alive_at = now;
        this.unacked = 0;
        if this.expires <= now {
            return self.close(conn, Close::Expired, now, out);
        }
        let text = match frame {
            Frame::Text(text) if text.len() > limit => {
                return self.reject(conn, Close::TooLarge, now, out);
            }
            Frame::Binary => return self.reject(conn, Close::Malformed, now, out),
            Frame::Text(text) => text,
        };
        if text == native::PING {
            out.push(Output::Send {
                conn,
                frame: native::PONG.to_owned(),
            });
            return;
        }
        let incoming = match native::decode(text) {
            Ok(incoming) => incoming,
            Err(why) => return self.reject(conn, why, now, out),
        };
        for one in incoming {
            let done = self
                .take(
                    conn,
                    |conn| &mut conn.commands,
                    |limits| limits.commands,
                    "commands",
                    now,
                )
                .and(one.command)
                .and_then(|command| self.command(conn, one.id, command, now, out));
            match (done, one.id) {
                (Ok(Answer::Now(data)), Some(id)) => self.tick.tell(conn, &native::ack(id, &data)),
                (Ok(_), _) => {}
                (Err(fault), id) => {
                    self.tick.tell(conn, &native::fault(id, &fault));
                    if fault.code == Code::RateLimited && !self.patience(conn, now, out) {
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

    fn reject(&mut self, conn: ConnId, why: Close, now: Millis, out: &mut Vec<Output>) {
        if let Some(this) = self.conn(conn) {
            out.push(Output::Log(
                Entry::reject("malformed")
                    .user(&this.user)
                    .connection(&this.id)
                    .with("code", why.code()),
            ));
        }
        self.close(conn, why, now, out);
    }

    /// After a refusal: whether the connection may go on.
    fn patience(&mut self, conn: ConnId, now: Millis, out: &mut Vec<Output>) -> bool {
        let Some(this) = self.conn_mut(conn) else {
            return false;
        };
        let verdict = this.overrun.refuse(now);
        if verdict != Verdict::Again {
            let entry = Entry::reject("rate").user(&this.user).connection(&this.id);
            out.push(Output::Log(
                entry.with("closed", verdict == Verdict::Enough),
            ));
        }
        if verdict == Verdict::Enough {
            self.close(conn, Close::TooFast, now, out);
        }
        verdict != Verdict::Enough
    }

    fn take(
        &mut self,
        conn: ConnId,
        bucket: impl Fn(&mut Conn) -> &mut Bucket,
        rate: impl Fn(&RoomConfig) -> crate::config::Rate,
        what: &str,
        now: Millis,
    ) -> Result<()> {
        let rate = rate(&self.config.room);
        let this = self.conn_mut(conn).ok_or_else(Fault::internal)?;
        bucket(this)
            .take(rate, now)
            .map_err(|wait| Fault::rate_limited(what, wait))
    }

    fn command(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        command: Command,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        match command {
            Command::Join { room, position } => {
                self.own_room(
                    room.as_deref(),
                    Fault::bad_request("this socket belongs to another room"),
                )?;
                self.take(
                    conn,
                    |conn| &mut conn.joins,
                    |limits| limits.joins,
                    "joins",
                    now,
                )?;
                self.rejoin(conn, id, &position, now, out)
            }
            Command::Leave { room } => {
                self.own_room(room.as_deref(), Fault::not_joined())?;
                self.take(
                    conn,
                    |conn| &mut conn.joins,
                    |limits| limits.joins,
                    "joins",
                    now,
                )?;
                let user = self.require(conn, Rights::NONE)?;
                self.remove_member(&user, Some(conn), now, out);
                Ok(Answer::Now(format!(r#"{{"roomId":"{}"}}"#, self.name)))
            }
            Command::Send(send) => {
                self.own_room(send.room.as_deref(), Fault::not_joined())?;
                let user = self.require(conn, Rights::WRITE)?;
                self.take(
                    conn,
                    |conn| &mut conn.messages,
                    |limits| limits.messages,
                    "messages",
                    now,
                )?;
                if send.volatile {
                    let line = self.ephemeral(&user, &send.body, now, false);
                    self.tick.tell_others(Except::Conn(conn), line);
                    return Ok(Answer::Now("{}".into()));
                }
                let accepted = self.accept(&user, &send, now, false);
                if let Some(id) = id {
                    self.tick
                        .answer(conn, id, &native::ack(id, &accepted.receipt()));
                }
                Ok(Answer::Later)
            }
            Command::Delivered { room, seq } => {
                self.own_room(room.as_deref(), Fault::not_joined())?;
                self.acknowledge(conn, id, seq, false, now)
            }
            Command::Read { room, seq } => {
                self.own_room(room.as_deref(), Fault::not_joined())?;
                self.acknowledge(conn, id, seq, true, now)
            }
            Command::Typing { room, is_typing } => {
                self.own_room(room.as_deref(), Fault::not_joined())?;
                let user = self.require(conn, Rights::PRESENCE)?;
                self.take(
                    conn,
                    |conn| &mut conn.signals,
                    |limits| limits.signals,
                    "signals",
                    now,
                )?;
                let until = is_typing.then(|| now + self.config.room.typing_ttl);
                if self.roster.typing(&user, until) {
                    self.rumour_of(&user, event::user_typing(&self.name, &user, is_typing), now);
                }
                Ok(Answer::Now("{}".into()))
            }
            Command::Presence { status } => {
                let user = self.require(conn, Rights::PRESENCE)?;
                self.take(
                    conn,
                    |conn| &mut conn.signals,
                    |limits| limits.signals,
                    "signals",
                    now,
                )?;
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
            Command::Sync { room, after, limit } => {
                self.own_room(room.as_deref(), Fault::not_joined())?;
                self.require(conn, Rights::READ)?;
                self.take(
                    conn,
                    |conn| &mut conn.joins,
                    |limits| limits.joins,
                    "requests",
                    now,
                )?;
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
                self.take(
                    conn,
                    |conn| &mut conn.joins,
                    |limits| limits.joins,
                    "requests",
                    now,
                )?;
                self.refresh(conn, &token, now, out)
            }
        }
    }

    /// `room` is this one or left out; else `otherwise`.
    fn own_room(&self, room: Option<&str>, otherwise: Fault) -> Result<()> {
        match room {
            Some(room) if room != self.name => Err(otherwise),
            _ => Ok(()),
        }
    }

    /// The user of a joined connection that has `right`.
    fn require(&self, conn: ConnId, right: Rights) -> Result<UserId> {
        let this = self.conn(conn).ok_or_else(Fault::internal)?;
        this.require(right)?;
        Ok(this.user.clone())
    }

    /// `joinRoom` on a socket of the room's own: joins again after a leave, or
    /// asks for more of the past than the connection has been given.
    fn rejoin(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        position: &Position,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        // What was accepted before goes out before, so that the head is where
        // the replay ends and what is live begins.
        self.advance(now, out);
        let this = self.conn(conn).ok_or_else(Fault::internal)?;
        if !this.rights.has(Rights::READ) {
            return Err(Fault::forbidden("the token does not allow this here"));
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
                frame: native::ack(id, &self.joined_json(&user, start)),
            });
        }
        self.replay(conn, start.after, upto, out);
        Ok(Answer::Later)
    }

    /// The answer to `joinRoom`.
    fn joined_json(&self, user: &str, start: Start) -> String {
        let member = self.members.get(user).cloned().unwrap_or_default();
        let mut users: Vec<&UserId> = self.members.keys().collect();
        users.sort();
        let mut answer = json!({
            "roomId": self.name,
            "epoch": self.epoch,
            "seq": self.bounds.head,
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

    fn acknowledge(
        &mut self,
        conn: ConnId,
        id: Option<u32>,
        seq: u64,
        read: bool,
        now: Millis,
    ) -> Result<Answer> {
        let user = self.require(conn, Rights::READ)?;
        if seq > self.bounds.head {
            return Err(Fault::bad_field(
                "seq",
                "no higher than the room's last event",
            ));
        }
        let member = self.members.get_mut(&user).ok_or_else(Fault::not_joined)?;
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
            self.cursors_due.get_or_insert(now + CURSOR_DELAY);
        }
        if self.cursors_due.is_none() {
            return Ok(Answer::Now(answer));
        }
        if let Some(id) = id {
            self.cursor_answers.push((conn, id, answer));
        }
        Ok(Answer::Later)
    }

    fn refresh(
        &mut self,
        conn: ConnId,
        token: &str,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Answer> {
        let identity = crate::auth::verify(&self.config, token, now)?;
        let rights = identity.rights(&self.name);
        let this = self.conn_mut(conn).ok_or_else(Fault::internal)?;
        if identity.user != *this.user || !rights.has(Rights::READ) {
            out.push(Output::Log(
                Entry::reject("auth").user(&this.user).connection(&this.id),
            ));
            self.close(conn, Close::Forbidden, now, out);
            return Ok(Answer::Later);
        }
        this.expires = identity.expires;
        this.rights = rights;
        let expiry = this.expires;
        self.expiry = Some(self.expiry.map_or(expiry, |at| at.min(expiry)));
        out.push(Output::Attach { conn });
        Ok(Answer::Now(format!(
            r#"{{"expiresAt":"{}"}}"#,
            rfc3339(expiry)
        )))
    }

    // ---- the log

    /// Takes an event into the tick, or finds that it was there before.
    fn accept(&mut self, sender: &UserId, send: &Send, now: Millis, with_meta: bool) -> Accepted {
        let window = self.config.room.dedupe_window;
        let key = send.message_id.as_ref().map(|id| Key::new(sender, id));
        if let (Some(key), Some(id)) = (key, &send.message_id) {
            let seen = self.dedupe.get(key, now, window).or_else(|| {
                dedupe::read_id(&self.epoch, sender, id)
                    .filter(|seen| seen.seq <= self.bounds.head + self.tick.events)
            });
            if let Some(seen) = seen {
                return Accepted {
                    message_id: id.clone(),
                    seen,
                    duplicate: true,
                };
            }
        }
        let seen = Seen {
            seq: self.bounds.head + self.tick.events + 1,
            at: now,
        };
        let message_id = send
            .message_id
            .clone()
            .unwrap_or_else(|| dedupe::make_id(&self.epoch, sender, seen));
        if let Some(key) = key {
            self.dedupe.insert(key, seen, window);
        }
        let stamp = Stamp {
            room: &self.name,
            message_id: &message_id,
            sender,
            seq: Some(seen.seq),
            timestamp: &rfc3339(now),
        };
        event::push_envelope(
            self.tick.next_event(sender, now),
            &send.body,
            stamp,
            with_meta,
        );
        Accepted {
            message_id,
            seen,
            duplicate: false,
        }
    }

    /// The envelope of an event that is not stored.
    fn ephemeral(&self, sender: &str, body: &Body, now: Millis, with_meta: bool) -> String {
        let at = Seen {
            seq: self.bounds.head,
            at: now,
        };
        let stamp = Stamp {
            room: &self.name,
            message_id: &dedupe::make_id(&self.epoch, sender, at),
            sender,
            seq: None,
            timestamp: &rfc3339(now),
        };
        let mut line = String::with_capacity(160);
        event::push_envelope(&mut line, body, stamp, with_meta);
        line
    }

    // ---- rumours

    /// A line about `user`, for the others.
    fn rumour_of(&mut self, user: &UserId, line: String, now: Millis) {
        self.rumours.push((Except::User(user.clone()), line));
        self.expect_rumours(now);
    }

    fn expect_news(&mut self, now: Millis) {
        if self.roster.has_news() {
            self.expect_rumours(now);
        }
    }

    fn expect_rumours(&mut self, now: Millis) {
        let sockets = (self.conns.len() - self.free.len()) as Millis;
        self.rumours_due
            .get_or_insert(now + sockets.clamp(RUMOUR_DELAY.0, RUMOUR_DELAY.1));
    }

    // ---- time

    /// Ends the tick: one row, one commit, one frame a socket. Also does what
    /// is due by now.
    pub fn advance(&mut self, now: Millis, out: &mut Vec<Output>) {
        if self.expiry.is_some_and(|at| at <= now) {
            self.expire(now, out);
        }
        for ended in self.roster.expire(now) {
            if let Ended::Typing(user) = ended {
                self.rumour_of(&user, event::user_typing(&self.name, &user, false), now);
            }
        }
        self.expect_news(now);
        if self.cursors_due.is_some_and(|at| at <= now) {
            self.flush_cursors(now, out);
        }
        if self.rumours_due.is_some_and(|at| at <= now) {
            self.flush_rumours();
        }
        if self.tick.is_empty() {
            return;
        }
        let mut tick = std::mem::take(&mut self.tick);
        self.ticks += 1;
        let head = self.bounds.head;
        out.extend(tick.changes.drain(..).map(Output::Store));
        // The clock may be set back; the log's does not follow it.
        let stored_at = now.max(self.bounds.last_at);
        if let Some(row) = tick.row(head + 1, stored_at) {
            self.bounds.head = row.last;
            self.bounds.last_at = row.at;
            self.bounds.oldest_at.get_or_insert(row.at);
            let mut entry = Entry::info("publish")
                .with("first", row.first)
                .with("count", tick.events)
                .took(now.saturating_sub(tick.since));
            if let Some(sender) = &tick.sender {
                entry = entry.user(sender);
            }
            out.push(Output::Store(Change::Append(row)));
            out.push(Output::Log(entry));
        }
        // Who came gets what was there, and then with the others what is new.
        for arrival in tick.arrivals.drain(..) {
            self.welcome(&arrival, head, out);
        }
        for (call, answers) in tick.calls.drain(..) {
            out.push(Output::Reply { call, answers });
        }
        out.push(Output::Deliver(tick.deliver(
            self.ticks,
            |user| self.roster.sockets(user).collect(),
            |conn| self.receives(conn, self.ticks),
        )));
        if self.bounds.trim_due(&self.config.room) {
            self.trim(now, out);
        }
    }

    fn flush_cursors(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.cursors_due = None;
        let moved = std::mem::take(&mut self.cursors);
        let mut entry = Vec::with_capacity(moved.len());
        for (user, (delivered, read)) in moved {
            let Some(member) = self.members.get(&user) else {
                continue;
            };
            entry.push(Cursor(
                user.to_string(),
                member.delivered,
                member.read,
                member.last_seen,
            ));
            let lines = [
                (delivered, "messageDelivered", member.delivered),
                (read, "messageRead", member.read),
            ];
            for (moved, name, seq) in lines {
                if moved {
                    let line = event::cursor_moved(name, &self.name, &user, seq);
                    self.rumour_of(&user, line, now);
                }
            }
            self.journalled.insert(user);
        }
        if !entry.is_empty() {
            self.journal += 1;
            let change = if self.journal > MAX_JOURNAL {
                self.journal = 0;
                let members = std::mem::take(&mut self.journalled)
                    .into_iter()
                    .filter_map(|user| Some((user.clone(), self.members.get(&user)?.clone())))
                    .collect();
                Change::Checkpoint(members)
            } else {
                Change::Cursors(json!(entry).to_string())
            };
            out.push(Output::Store(change));
        }
        for (conn, id, answer) in std::mem::take(&mut self.cursor_answers) {
            self.tick.answer(conn, id, &native::ack(id, &answer));
        }
    }

    fn flush_rumours(&mut self) {
        self.rumours_due = None;
        for (except, line) in std::mem::take(&mut self.rumours) {
            self.tick.tell_others(except, line);
        }
        for (user, status) in self.roster.news() {
            let last_seen = self
                .members
                .get(&user)
                .map(|member| member.last_seen)
                .filter(|_| status == Status::Offline)
                .filter(|at| *at > 0);
            let line = event::presence_update(&self.name, &user, status, last_seen);
            self.tick.tell_others(Except::User(user), line);
        }
    }

    /// Closes what outlived its token.
    fn expire(&mut self, now: Millis, out: &mut Vec<Output>) {
        let expired: Vec<ConnId> = (0..self.conns.len())
            .filter(|conn| self.conn(*conn).is_some_and(|conn| conn.expires <= now))
            .collect();
        for conn in expired {
            self.close(conn, Close::Expired, now, out);
        }
        self.expiry = self.conns.iter().flatten().map(|conn| conn.expires).min();
    }

    fn trim(&mut self, now: Millis, out: &mut Vec<Output>) {
        let upto = self.floor();
        self.bounds.trimmed = upto;
        // A row within the dedupe window is still needed to know a repetition
        // after a restart.
        let before = now.saturating_sub(self.config.room.dedupe_window);
        out.push(Output::Store(Change::Trim { upto, before }));
    }

    /// Whether a row is past `RETENTION_DAYS`, so that [`Room::aged`] is due:
    /// the time before which rows are.
    pub fn age_limit(&self, now: Millis) -> Option<Millis> {
        let age = self.config.room.retention_age;
        self.bounds
            .ages_at(&self.config.room)
            .filter(|at| *at < now)
            .map(|_| now - age)
    }

    /// Rows up to event `aged` are past the age; the next was stored at
    /// `oldest_at`.
    pub fn aged(&mut self, aged: u64, oldest_at: Option<Millis>) {
        self.bounds.aged = self.bounds.aged.max(aged);
        self.bounds.oldest_at = oldest_at;
    }

    /// The alarm: tokens that expired, sockets that are gone without a close,
    /// rows past retention. `pinged` says when a socket was last heard by the
    /// runtime. Does no harm when nothing is due.
    pub fn alarm(
        &mut self,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let timeout = self.config.room.ghost_timeout;
        let mut ghosts = Vec::new();
        self.ghost_check = None;
        for (conn, this) in self.conns.iter().enumerate() {
            // Who never pings has not promised to.
            if let (Some(this), Some(pinged)) = (this, pinged(conn)) {
                let gone_at = pinged.max(this.alive_at) + timeout;
                if gone_at <= now {
                    ghosts.push(conn);
                } else {
                    self.ghost_check = Some(self.ghost_check.map_or(gone_at, |at| at.min(gone_at)));
                }
            }
        }
        out.push(Output::Log(
            Entry::info("alarm").with("ghosts", ghosts.len()),
        ));
        for conn in ghosts {
            self.close(conn, Close::Ghost, now, out);
        }
        self.advance(now, out);
        if self.floor() > self.bounds.trimmed {
            self.trim(now, out);
        }
    }
}

/// Where a connection starts, and whether its `since` made no sense any more.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    after: u64,
    reset: bool,
}

/// What a command is answered with.
enum Answer {
    Now(String),
    /// By other means, or not at all.
    Later,
}

/// What became of a send.
struct Accepted {
    message_id: String,
    seen: Seen,
    duplicate: bool,
}

impl Accepted {
    fn receipt(&self) -> String {
        event::receipt(
            &self.message_id,
            self.seen.seq,
            &rfc3339(self.seen.at),
            self.duplicate,
        )
    }
}

/// Under what key a stored event is remembered, and when it was accepted.
fn remembered(line: &str) -> Option<(Key, Millis)> {
    #[derive(Deserialize)]
    struct Envelope {
        data: serde_json::Value,
        meta: Option<StampFields>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct StampFields {
        message_id: String,
        sender_id: String,
        timestamp: String,
    }
    let envelope: Envelope = serde_json::from_str(line).ok()?;
    let stamp = match envelope.meta {
        Some(meta) => meta,
        None => serde_json::from_value(envelope.data).ok()?,
    };
    Some((
        Key::new(&stamp.sender_id, &stamp.message_id),
        crate::time::parse_rfc3339(&stamp.timestamp)?,
    ))
}

/// What `connected` says of the limits that a client can keep to.
fn limits_json(config: &RoomConfig) -> serde_json::Value {
    json!({
        "maxFrameBytes": config.max_frame_bytes,
        "messagesPerSecond": config.messages.per_second,
        "messagesBurst": config.messages.burst,
        "signalsPerSecond": config.signals.per_second,
        "signalsBurst": config.signals.burst,
        "joinsPerSecond": config.joins.per_second,
        "joinsBurst": config.joins.burst,
    })
}
