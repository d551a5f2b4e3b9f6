//! What time does: events are taken into the tick, ticks end, cursors and
//! rumours go out, tokens and sockets come to their end, the log is trimmed.

use super::dedupe::{Key, Seen};
use super::member::{Cursor, MAX_JOURNAL};
use super::presence::Ended;
use super::tick::Except;
use super::{Change, Conn, ConnId, Output, Room, dedupe};
use crate::auth::Rights;
use crate::eventlog::Entry;
use crate::fault::{Fault, Result};
use crate::name::UserId;
use crate::time::{Millis, rfc3339, sooner};
use crate::wire::command::{Send, Status};
use crate::wire::event::Stamp;
use crate::wire::native::Close;
use crate::wire::{event, native};
use serde_json::json;

/// How long cursors wait to be stored together: one row for all that moved. A
/// room with a message in flight at a time has its receipts cost less than one
/// row per 20 messages; an acknowledgement waits no longer than this.
const CURSOR_DELAY: Millis = 50;

/// How long rumours wait to go out together: a millisecond for each socket they
/// go to, within these bounds. What n users say to n users grows with the
/// square; this keeps the frames of it linear.
const RUMOUR_DELAY: (Millis, Millis) = (50, 1_000);

/// Who comes meanwhile puts them off by this, until they have waited so long in
/// all: when a thousand come at once, to get them in is what matters.
const RUSH: (Millis, Millis) = (2, 4_000);

/// What became of a send.
pub(super) struct Accepted {
    pub(super) message_id: String,
    pub(super) seen: Seen,
    pub(super) duplicate: bool,
}

impl Accepted {
    pub(super) fn receipt(&self) -> String {
        event::receipt(
            &self.message_id,
            self.seen.seq,
            &rfc3339(self.seen.at),
            self.duplicate,
        )
    }
}

impl Room {
    /// Takes an event into the tick, or finds that it was there before.
    pub(super) fn accept(
        &mut self,
        sender: &UserId,
        send: &Send,
        now: Millis,
        with_meta: bool,
    ) -> Result<Accepted> {
        let window = self.config.room.dedupe_window;
        let key = send.message_id.as_ref().map(|id| Key::new(sender, id));
        if let (Some(key), Some(id)) = (key, &send.message_id) {
            self.recall_sends(now)?;
            let seen = self.dedupe.get(key, now, window).or_else(|| {
                dedupe::read_id(&self.epoch, sender, id)
                    .filter(|seen| seen.seq <= self.bounds.head + self.tick.events)
            });
            if let Some(seen) = seen {
                return Ok(Accepted {
                    message_id: id.clone(),
                    seen,
                    duplicate: true,
                });
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
        Ok(Accepted {
            message_id,
            seen,
            duplicate: false,
        })
    }

    /// Takes in what was sent before the room woke, to know what comes again.
    fn recall_sends(&mut self, now: Millis) -> Result<()> {
        let Some(recent) = &self.recent else {
            return Ok(());
        };
        let window = self.config.room.dedupe_window;
        let rows = recent(now.saturating_sub(window)).map_err(|()| Fault::internal())?;
        for (first, body) in rows {
            self.dedupe.recall(first, &body, window);
        }
        self.recent = None;
        Ok(())
    }

    /// The envelope of an event that is not stored.
    pub(super) fn ephemeral(
        &mut self,
        sender: &str,
        send: &Send,
        now: Millis,
        with_meta: bool,
    ) -> (String, String) {
        let at = Seen {
            seq: self.bounds.head,
            at: now,
        };
        let given = send.message_id.clone();
        self.ephemerals += 1;
        // Of no place in the log, so it is not to be taken for one.
        let message_id = given.unwrap_or_else(|| {
            let made = dedupe::make_id(&self.epoch, sender, at);
            format!("{made}-{:x}", self.ephemerals)
        });
        let stamp = Stamp {
            room: &self.name,
            message_id: &message_id,
            sender,
            seq: None,
            timestamp: &rfc3339(now),
        };
        let mut line = String::with_capacity(160);
        event::push_envelope(&mut line, &send.body, stamp, with_meta);
        (line, message_id)
    }

    /// A line about `user`, for the others.
    pub(super) fn rumour_of(&mut self, user: &UserId, line: String, now: Millis) {
        self.rumours.push((Except::User(user.clone()), line));
        self.expect_rumours(now);
    }

    /// A cursor moved, or has something to remember.
    pub(super) fn expect_cursors(&mut self, now: Millis) {
        self.cursors_due.get_or_insert(now + CURSOR_DELAY);
    }

    pub(super) fn expect_news(&mut self, now: Millis) {
        if self.roster.has_news() {
            self.expect_rumours(now);
        }
    }

    pub(super) fn expect_rumours(&mut self, now: Millis) {
        let sockets = self.conns.len() as Millis;
        let due = now + sockets.clamp(RUMOUR_DELAY.0, RUMOUR_DELAY.1);
        self.rumours_due.get_or_insert((due, now + RUSH.1));
    }

    /// Somebody came: the others hear of it a little later.
    pub(super) fn put_off_rumours(&mut self) {
        if let Some((due, latest)) = &mut self.rumours_due {
            *due = (*due + RUSH.0).min(*latest);
        }
    }

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
        if self.rumours_due.is_some_and(|(due, _)| due <= now) {
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
        for row in tick.rows(head + 1, stored_at) {
            self.bounds.head = row.last;
            self.bounds.last_at = row.at;
            self.bounds.oldest_at.get_or_insert(row.at);
            out.push(Output::Store(Change::Append(row)));
        }
        if tick.events > 0 {
            let mut entry = Entry::info("publish")
                .with("first", head + 1)
                .with("count", tick.events)
                .took(now.saturating_sub(tick.since));
            if let Some(sender) = &tick.sender {
                entry = entry.user(sender);
            }
            out.push(Output::Log(entry));
        }
        self.close_wrong(now, out);
        // Who came gets what was there, and then with the others what is new.
        for arrival in tick.arrivals.drain(..) {
            self.welcome(&arrival, head, out);
        }
        for (call, answers) in tick.calls.drain(..) {
            out.push(Output::Reply { call, answers });
        }
        let behind = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.catch_up.is_some());
        let behind: Vec<ConnId> = behind.map(|(conn, _)| conn).collect();
        out.push(Output::Deliver(tick.deliver(
            self.ticks,
            (head, self.bounds.head),
            |user| self.roster.sockets(user).collect(),
            |conn| self.gets(conn, self.ticks),
            behind,
        )));
        self.part(now, out);
        if self.bounds.trim_due(&self.config.room) {
            self.trim(now, out);
        }
    }

    /// The last check before events go out: a joined connection whose token does
    /// not open the room is a mistake of ours, and is closed.
    fn close_wrong(&mut self, now: Millis, out: &mut Vec<Output>) {
        let wrong = |conn: &Conn| conn.joined && !conn.rights.has(Rights::READ);
        let wrong = self.conns.iter().filter(|(_, conn)| wrong(conn));
        for conn in wrong.map(|(conn, _)| conn).collect::<Vec<_>>() {
            if let Some(this) = self.conn(conn) {
                let entry = Entry::error("the connection's token does not open the room");
                let entry = entry.user(&this.user).connection(&this.id);
                out.push(Output::Log(entry));
            }
            if self.conn(conn).is_some_and(|conn| conn.remote) {
                // The others of its rooms go on.
                out.push(Output::Parted { conn });
                self.disconnect(conn, Close::Forbidden.code(), now, out);
            } else {
                self.close(conn, Close::Forbidden, now, out);
            }
        }
    }

    pub(super) fn flush_cursors(&mut self, now: Millis, out: &mut Vec<Output>) {
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

    pub(super) fn flush_rumours(&mut self) {
        self.rumours_due = None;
        for (except, line) in std::mem::take(&mut self.rumours) {
            self.tick.tell_others(except, line);
        }
        for (user, status) in self.roster.news() {
            let line = self.presence_line(&user, status);
            self.tick.tell_others(Except::User(user), line);
        }
    }

    fn presence_line(&self, user: &UserId, status: Status) -> String {
        let last_seen = self
            .members
            .get(user)
            .map(|member| member.last_seen)
            .filter(|_| status == Status::Offline)
            .filter(|at| *at > 0);
        event::presence_update(&self.name, user, status, last_seen)
    }

    /// The room was read again from storage while its sockets stayed, for
    /// something had failed: they get what is stored after event `told` and was
    /// not sent to them. All are told who is there: what waited to be told of
    /// that is lost.
    pub fn recover(&mut self, told: u64, now: Millis, out: &mut Vec<Output>) {
        let upto = self.bounds.head;
        for (conn, here) in &self.conns {
            if here.joined && !here.remote && here.from.max(told) < upto {
                let after = here.from.max(told);
                out.push(Output::Replay { conn, after, upto });
            }
        }
        let users: Vec<UserId> = self.members.keys().cloned().collect();
        for user in users {
            let line = self.presence_line(&user, self.roster.status(&user));
            self.rumour_of(&user, line, now);
        }
    }

    /// Closes what outlived its token.
    pub(super) fn expire(&mut self, now: Millis, out: &mut Vec<Output>) {
        let expired = self.conns.iter().filter(|(_, conn)| conn.expires <= now);
        for conn in expired.map(|(conn, _)| conn).collect::<Vec<_>>() {
            self.close(conn, Close::Expired, now, out);
        }
        self.expiry = self.conns.values().map(|conn| conn.expires).min();
    }

    pub(super) fn trim(&mut self, now: Millis, out: &mut Vec<Output>) {
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
        for (conn, this) in &self.conns {
            // Who never pings has not promised to.
            if let Some(pinged) = pinged(conn) {
                let gone_at = pinged.max(this.reader.heard_at()) + timeout;
                if gone_at <= now {
                    ghosts.push(conn);
                } else {
                    sooner(&mut self.ghost_check, gone_at);
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
