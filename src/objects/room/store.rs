//! The storage of a room: SQLite, four tables.
//!
//! | table | a row is |
//! | --- | --- |
//! | `log` | a batch: its first and last event, its time, and its events, one per line |
//! | `members` | a member with its cursors as of the last checkpoint |
//! | `cursors` | a row of the journal: the cursors of members that moved after that checkpoint and were stored together |
//! | `subscribers` | a connection at a gateway: its attachment, or, when it has ended, the item that its gateway has not acknowledged yet |
//!
//! The table `meta` has the name of the room, the epoch of the log, and the registration with
//! the revocation registry.

use crate::runtime::Result;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::log::log_error;
use crate::runtime::sql::{Db, js, number, text};
use js_sys::JsString;
use roomcast_proto::id::{Epoch, GatewayName, UserId};
use roomcast_proto::time::Millis;
use roomcast_room::history::{HistoryPage, HistoryQuery};
use roomcast_room::log::{LogBatch, LogBounds, StoredText};
use roomcast_room::{Change, Member, ReadFailed, ReadRecent, Snapshot, StoredSubscriber};
use wasm_bindgen::JsCast;
use worker::Error;

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

/// Number of log rows that are read at a time, so that a long log is never in memory as a
/// whole.
const CHUNK: u32 = 256;

/// The key in `meta` of the end of the registration with the revocation registry.
const REGISTERED_KEY: &str = "registered";
/// The key in `meta` of the epoch of the log.
const EPOCH_KEY: &str = "epoch";

/// The name of a gateway, and a connection there.
type Subscriber = (GatewayName, StoredSubscriber);

/// The storage of a room.
pub(super) struct Store {
    db: Db,
    /// The statement that stores a batch, as a JavaScript string.
    append: JsString,
}

impl Store {
    /// Opens the storage of a room and returns its name. Creates the storage if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the name is neither stored nor given.
    pub(super) fn open(
        storage: &worker::Storage,
        name: impl FnOnce() -> Option<String>,
        epoch: impl FnOnce() -> String,
    ) -> Result<(Self, String)> {
        let mut store = Store {
            db: Db::open(storage, SCHEMA)?,
            append: "INSERT INTO log (last, first, at, body) VALUES (?, ?, ?, ?)".into(),
        };
        if store.db.meta(EPOCH_KEY).is_none() {
            store.db.set_meta(EPOCH_KEY, &epoch())?;
        }
        let name = store.db.name("room", name)?;
        Ok((store, name))
    }

    /// Returns the end of the registration with the revocation registry, or 0.
    pub(super) fn registered(&self) -> Millis {
        let until = self.db.meta(REGISTERED_KEY);
        until.and_then(|until| until.parse().ok()).unwrap_or(0)
    }

    /// Stores the end of the registration.
    pub(super) fn set_registered(&mut self, until: Millis) -> Result<()> {
        self.db.set_meta(REGISTERED_KEY, &until.to_string())
    }

    /// Reads the state of the room and its connections at gateways. `life` is the id of this
    /// restoration.
    pub(super) fn load(&self, life: String) -> Result<(Snapshot, Vec<Subscriber>)> {
        // One statement, because a further one would cost about as much as these rows.
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
                    members.push((UserId::trusted(text(row, 1)), member));
                }
                1 => journal.push(text(row, 1)),
                2 => {
                    let subscriber = StoredSubscriber::parse(&text(row, 2));
                    let gateway = GatewayName::trusted(text(row, 1));
                    subscribers.extend(subscriber.map(|subscriber| (gateway, subscriber)));
                }
                _ => bounds.extend(number(row, 2), number(row, 3), number(row, 4)),
            }
        }
        let snapshot = Snapshot {
            life,
            epoch: Epoch::trusted(self.db.meta(EPOCH_KEY).unwrap_or_default()),
            bounds,
            members,
            journal,
            recent: Some(self.recent()),
        };
        Ok((snapshot, subscribers))
    }

    /// Returns the function that reads the log since a time. It reads backwards from the end,
    /// because there is no index by time.
    fn recent(&self) -> ReadRecent {
        let sql = self.db.sql().clone();
        Box::new(move |since| {
            failpoint::fails(Point::Read).map_err(read_failed)?;
            let mut recent = Vec::new();
            let mut before = js(i64::MAX as u64);
            loop {
                let rows = sql.query(
                    "SELECT first, at, body FROM log WHERE last < ? ORDER BY last DESC LIMIT ?",
                    &[before, CHUNK.into()],
                );
                let rows = rows.map_err(read_failed)?;
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
    pub(super) fn apply(&mut self, change: &Change, body: &JsString) -> Result<()> {
        failpoint::fails(Point::Write)?;
        match change {
            Change::Append(row) => self.append(row, body),
            Change::PutMember(user, member) => self.put_member(user, member),
            Change::RemoveMember(user) => self.db.write(
                "DELETE FROM members WHERE user = ?",
                &[user.as_str().into()],
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
                // The last row stays, although it is no longer sent, because the log continues
                // with the number after it.
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
                self.db.set_meta(EPOCH_KEY, epoch)
            }
        }
    }

    /// Stores a batch.
    fn append(&mut self, row: &LogBatch, body: &JsString) -> Result<()> {
        self.db
            .append(&self.append, row.last, row.first, row.at, body)
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

    /// Reads the log after `after` up to `upto`. Calls `take` with the first event, the last
    /// event and the body of each row, as long as it returns `true`. The body stays in
    /// JavaScript. A row is a whole batch, so the last one may have events after `upto`.
    pub(super) fn rows_while(
        &self,
        after: u64,
        upto: u64,
        mut take: impl FnMut(u64, u64, JsString) -> bool,
    ) -> Result<()> {
        self.db.sql().query_while(
            "SELECT first, last, body FROM log WHERE last > ? AND first <= ? ORDER BY last",
            &[js(after), js(upto)],
            |row| take(number(row, 0), number(row, 1), row.get(2).unchecked_into()),
        )
    }

    /// Reads a page of the log.
    pub(super) fn page(&self, range: HistoryQuery, floor: u64) -> Result<HistoryPage> {
        let mut page = HistoryPage::new(range, floor);
        let (mut after, mut before) = (range.after.max(floor), range.before.min(i64::MAX as u64));
        let order = if range.newest { "DESC" } else { "ASC" };
        let query = format!(
            "SELECT first, last, body FROM log WHERE last > ? AND first < ? ORDER BY last {order} LIMIT ?"
        );
        loop {
            let rows = self
                .db
                .query(&query, &[js(after), js(before), CHUNK.into()])?;
            for row in &rows {
                let (first, last) = (number(row, 0), number(row, 1));
                if !page.add(first, &text(row, 2)) {
                    return Ok(page);
                }
                (after, before) = if range.newest {
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

    /// Returns the last event of the rows that were stored before `limit`, and the time of the
    /// next row.
    pub(super) fn expired(&self, limit: Millis) -> Result<(u64, Option<Millis>)> {
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

    /// Returns the number of rows written since the last call.
    pub(super) fn take_rows_written(&mut self) -> u64 {
        self.db.take_rows_written()
    }
}

/// Logs why the recent events cannot be read.
fn read_failed(error: Error) -> ReadFailed {
    log_error(error);
    ReadFailed
}
