//! A room's storage: SQLite, four tables.
//!
//! - `log`: a row a tick: the number of its last event, that of its first, when
//!   it was stored, and the envelopes, a line each
//! - `members`: a row a member, with its cursors as of the last checkpoint
//! - `cursors`: the journal of what moved since, a row for all members that
//!   moved together
//! - `subscribers`: a row a connection at a gateway: what an own socket would have
//!   as its attachment, or, until the gateway has heard it, the last word to it
//!
//! Rows written are the dearest line of the bill, so they are counted.

use crate::objects::revocations::REGISTERED_KEY;
use crate::runtime;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::sql::{Db, js, number, text};
use js_sys::JsString;
use roomcast_proto::time::Millis;
use roomcast_room::history::{HistoryPage, HistoryQuery};
use roomcast_room::log::{LogBatch, LogBounds, StoredText};
use roomcast_room::{Change, Member, ReadFailed, ReadRecent, Snapshot, StoredSubscriber};
use wasm_bindgen::JsCast;
use worker::{Error, Result};

const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS log (
        last INTEGER PRIMARY KEY, first INTEGER NOT NULL, at INTEGER NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS members (
        user TEXT PRIMARY KEY, joined INTEGER NOT NULL, delivered INTEGER NOT NULL,
        read INTEGER NOT NULL, seen INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS cursors (n INTEGER PRIMARY KEY, moved TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS subscribers (
        id TEXT PRIMARY KEY, gateway TEXT NOT NULL, attachment TEXT NOT NULL) WITHOUT ROWID",
];

/// Rows read from the log at a time, so that a long log is never in memory as a
/// whole.
const CHUNK: u32 = 256;

/// A connection at a gateway, and the gateway.
type Subscriber = (String, StoredSubscriber);

pub struct Store {
    db: Db,
    append: JsString,
}

impl Store {
    /// Opens the storage of the room `name`, which is made if it is not there.
    /// Without a name, which a woken object may lack, it must be.
    pub fn open(
        storage: &worker::Storage,
        name: impl FnOnce() -> Option<String>,
        epoch: impl FnOnce() -> String,
    ) -> Result<(Self, String)> {
        let mut store = Store {
            db: Db::open(storage, SCHEMA)?,
            append: "INSERT INTO log (last, first, at, body) VALUES (?, ?, ?, ?)".into(),
        };
        if store.db.meta("epoch").is_none() {
            store.db.set_meta("epoch", &epoch())?;
        }
        let name = store.db.name("room", name)?;
        Ok((store, name))
    }

    /// Until when the registry of revocations knows of this room's sockets.
    pub fn registered(&self) -> Millis {
        let until = self.db.meta(REGISTERED_KEY);
        until.and_then(|until| until.parse().ok()).unwrap_or(0)
    }

    pub fn set_registered(&mut self, until: Millis) -> Result<()> {
        self.db.set_meta(REGISTERED_KEY, &until.to_string())
    }

    /// All that a room knows when it wakes, and its connections at gateways.
    /// `life` names this waking of the room.
    pub fn load(&self, life: String) -> Result<(Snapshot, Vec<Subscriber>)> {
        // One statement: each takes as long as what it reads here.
        let rows = self.db.query(
            "SELECT 0, user, joined, delivered, read, seen FROM members
             UNION ALL SELECT 1, moved, 0, 0, 0, 0 FROM cursors
             UNION ALL SELECT 2, gateway, attachment, 0, 0, 0 FROM subscribers
             UNION ALL SELECT 3, '', first, last, at, 0 FROM log
                WHERE last IN ((SELECT min(last) FROM log), (SELECT max(last) FROM log))",
            &[],
        )?;
        let mut bounds = LogBounds::default();
        let (mut members, mut journal, mut subscribers) = (Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            match number(row, 0) {
                0 => {
                    let member = Member {
                        joined_at: number(row, 2),
                        delivered: number(row, 3),
                        read: number(row, 4),
                        last_seen: number(row, 5),
                    };
                    members.push((text(row, 1), member));
                }
                1 => journal.push(text(row, 1)),
                2 => {
                    let subscriber = StoredSubscriber::parse(&text(row, 2));
                    subscribers.extend(subscriber.map(|subscriber| (text(row, 1), subscriber)));
                }
                _ => bounds.extend(number(row, 2), number(row, 3), number(row, 4)),
            }
        }
        let snapshot = Snapshot {
            life,
            epoch: self.db.meta("epoch").unwrap_or_default().to_owned(),
            bounds,
            members,
            journal,
            recent: Some(self.recent()),
        };
        Ok((snapshot, subscribers))
    }

    /// Reads the log since a time, from its end: there is no index by time.
    fn recent(&self) -> ReadRecent {
        let sql = self.db.sql.clone();
        Box::new(move |since| {
            failpoint::fails(Point::Read).map_err(failed)?;
            let mut recent = Vec::new();
            let mut before = js(i64::MAX as u64);
            loop {
                let rows = sql.query(
                    "SELECT first, at, body FROM log WHERE last < ? ORDER BY last DESC LIMIT ?",
                    &[before, CHUNK.into()],
                );
                let rows = rows.map_err(|error| failed(error.into()))?;
                let young = rows.iter().take_while(|row| number(row, 1) >= since);
                recent.extend(young.map(|row| StoredText {
                    first: number(row, 0),
                    body: text(row, 2),
                }));
                match rows.last() {
                    Some(last) if rows.len() as u32 == CHUNK && number(last, 1) >= since => {
                        before = last.get(0);
                    }
                    _ => break,
                }
            }
            recent.reverse();
            Ok(recent)
        })
    }

    /// Stores a change. `body` is the text of the row to append.
    pub fn apply(&mut self, change: &Change, body: &JsString) -> Result<()> {
        failpoint::fails(Point::Write)?;
        match change {
            Change::Append(row) => self.append(row, body),
            Change::PutMember(user, member) => self.put_member(user, member),
            Change::RemoveMember(user) => self.db.write(
                "DELETE FROM members WHERE user = ?",
                &[user.as_ref().into()],
            ),
            Change::AppendJournal(moved) => self
                .db
                .write("INSERT INTO cursors (moved) VALUES (?)", &[moved.into()]),
            Change::Checkpoint(members) => {
                for (user, member) in members {
                    self.put_member(user, member)?;
                }
                self.db.write("DELETE FROM cursors", &[])
            }
            Change::Trim { upto, before } => {
                // The last row stays, though nobody is shown it any more: by it
                // the log is known to go on where it ended.
                self.db.write(
                    "DELETE FROM log WHERE last <= ? AND at < ?
                     AND last < (SELECT max(last) FROM log)",
                    &[js(*upto), js(*before)],
                )
            }
            Change::PutSubscriber {
                id,
                gateway,
                subscriber,
            } => self.put_subscriber(id, gateway, subscriber),
            Change::RemoveSubscriber(id) => self.db.write(
                "DELETE FROM subscribers WHERE id = ?",
                &[id.as_str().into()],
            ),
            Change::Wipe { epoch } => {
                for table in ["log", "members", "cursors"] {
                    self.db.write(&format!("DELETE FROM {table}"), &[])?;
                }
                self.db.set_meta("epoch", epoch)
            }
        }
    }

    fn append(&mut self, row: &LogBatch, body: &JsString) -> Result<()> {
        let cursor = self.db.sql.append(
            &self.append,
            row.last as f64,
            row.first as f64,
            row.at as f64,
            body,
        )?;
        self.db.count(&cursor);
        Ok(())
    }

    fn put_member(&mut self, user: &str, member: &Member) -> Result<()> {
        self.db.write(
            "INSERT OR REPLACE INTO members (user, joined, delivered, read, seen)
             VALUES (?, ?, ?, ?, ?)",
            &[
                user.into(),
                js(member.joined_at),
                js(member.delivered),
                js(member.read),
                js(member.last_seen),
            ],
        )
    }

    /// The log after `after` up to `upto`: each row's first and last event and
    /// its body, which never leaves JavaScript.
    pub fn rows(
        &self,
        after: u64,
        upto: u64,
        mut take: impl FnMut(u64, u64, JsString),
    ) -> Result<()> {
        let mut at = after;
        loop {
            let rows = self.db.query(
                "SELECT first, last, body FROM log WHERE last > ? AND first <= ? ORDER BY last LIMIT ?",
                &[js(at), js(upto), CHUNK.into()],
            )?;
            for row in &rows {
                at = number(row, 1);
                take(number(row, 0), at, row.get(2).unchecked_into());
            }
            if (rows.len() as u32) < CHUNK {
                return Ok(());
            }
        }
    }

    /// As [`Store::rows`], but a row is read only as long as `take` wants more.
    /// Rows are whole batches, so the last may go beyond `upto`.
    pub fn rows_while(
        &self,
        after: u64,
        upto: u64,
        mut take: impl FnMut(u64, u64, JsString) -> bool,
    ) -> Result<()> {
        let rows = self.db.sql.query_while(
            "SELECT first, last, body FROM log WHERE last > ? AND first <= ? ORDER BY last",
            &[js(after), js(upto)],
            |row| take(number(row, 0), number(row, 1), row.get(2).unchecked_into()),
        );
        Ok(rows?)
    }

    /// A page of the log.
    pub fn page(&self, query: HistoryQuery, floor: u64) -> Result<HistoryPage> {
        let mut page = HistoryPage::new(query, floor);
        let (mut after, mut before) = (query.after.max(floor), query.before.min(i64::MAX as u64));
        let order = if query.newest { "DESC" } else { "ASC" };
        let sql = format!(
            "SELECT first, last, body FROM log WHERE last > ? AND first < ? ORDER BY last {order} LIMIT ?"
        );
        loop {
            let rows = self
                .db
                .query(&sql, &[js(after), js(before), CHUNK.into()])?;
            for row in &rows {
                let (first, last) = (number(row, 0), number(row, 1));
                if !page.add(first, &text(row, 2)) {
                    return Ok(page);
                }
                (after, before) = if query.newest {
                    (after, first)
                } else {
                    (last, before)
                };
            }
            if (rows.len() as u32) < CHUNK {
                return Ok(page);
            }
        }
    }

    /// Up to which event rows were stored before `limit`, and when the next
    /// one was.
    pub fn aged(&self, limit: Millis) -> Result<(u64, Option<Millis>)> {
        let next = self.db.query(
            "SELECT first, at FROM log WHERE at >= ? ORDER BY last LIMIT 1",
            &[js(limit)],
        )?;
        if let Some(next) = next.first() {
            return Ok((number(next, 0) - 1, Some(number(next, 1))));
        }
        let last = self
            .db
            .query("SELECT coalesce(max(last), 0) FROM log", &[])?;
        Ok((last.first().map_or(0, |row| number(row, 0)), None))
    }

    fn put_subscriber(
        &mut self,
        id: &str,
        gateway: &str,
        subscriber: &StoredSubscriber,
    ) -> Result<()> {
        let json = subscriber.json()?;
        self.db.write(
            "INSERT OR REPLACE INTO subscribers (id, gateway, attachment) VALUES (?, ?, ?)",
            &[id.into(), gateway.into(), json.into()],
        )
    }

    /// Rows written since this was asked last.
    pub fn take_rows_written(&mut self) -> u64 {
        self.db.take_rows_written()
    }
}

/// Logs why the recent events cannot be read.
fn failed(error: Error) -> ReadFailed {
    runtime::complain(error);
    ReadFailed
}
