//! The storage of a room: SQLite, six tables. The first write creates them, so a room that was
//! only read stores nothing.
//!
//! | table | a row is |
//! | --- | --- |
//! | `log` | a batch: its first and last event, its time, its events, one per line, the hashes of the events with a `messageId` of the sender (null if there are none), and the bytes of the log up to this row. Rows of older versions have null for the bytes and no hashes |
//! | `keys` | the hashes of rows that were deleted from the log within the dedupe window |
//! | `members` | a member with its cursors as of the last checkpoint, its profile and the age of the token with it (null if there is none) |
//! | `departed` | a user who has left the room lately, with the time |
//! | `cursors` | a row of the journal: the cursors of members that moved after that checkpoint and were stored together |
//! | `subscribers` | a connection at a gateway: its attachment, or, when it has ended, the item that its gateway has not acknowledged yet |
//!
//! The table `meta` has the name of the room, the epoch of the log, the secret of the hashes, and
//! the registration with the revocation registry.

use crate::runtime::Result;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::ids::fresh_id;
use crate::runtime::log::log_error;
use crate::runtime::sql::{Db, bytes, bytes_js, js, number, text};
use js_sys::{Array, JsString};
use roomcast_proto::answer::to_json;
use roomcast_proto::id::{Epoch, GatewayName, UserId};
use roomcast_proto::time::Millis;
use roomcast_proto::user_info::UserInfo;
use roomcast_room::history::{HistoryPage, HistoryQuery};
use roomcast_room::log::{LogBatch, LogBounds, OldestRow, Sends, StoredSends};
use roomcast_room::{
    Change, KeptSends, Member, ReadFailed, ReadProfiles, ReadRecent, ReadRows, Secret, Snapshot,
    StoredSubscriber,
};
use wasm_bindgen::{JsCast, JsValue};
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
    "ALTER TABLE log ADD COLUMN keys BLOB",
    "ALTER TABLE log ADD COLUMN total INTEGER",
    "CREATE TABLE IF NOT EXISTS keys (
        n INTEGER PRIMARY KEY, first INTEGER NOT NULL, at INTEGER NOT NULL, keys BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS departed (user TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID",
    "ALTER TABLE members ADD COLUMN info TEXT",
    "ALTER TABLE members ADD COLUMN informed INTEGER",
];

/// The key in `meta` of the end of the registration with the revocation registry.
const REGISTERED_KEY: &str = "registered";
/// The key in `meta` of the name of the room.
const NAME_KEY: &str = "room";
/// The key in `meta` of the epoch of the log.
const EPOCH_KEY: &str = "epoch";
/// The key in `meta` of the secret of the hashes, in hexadecimal.
const SECRET_KEY: &str = "secret";

/// The name of a gateway, and a connection there.
type Subscriber = (GatewayName, StoredSubscriber);

/// The storage of a room.
pub(super) struct Store {
    db: Db,
    secret: Secret,
    /// The statement that stores a batch, as a JavaScript string.
    append: JsString,
}

impl Store {
    /// Opens the storage of a room and returns its name. If there is none, it is created with a
    /// new epoch by the first write.
    ///
    /// # Errors
    ///
    /// Fails if the name is neither stored nor given.
    pub(super) fn open(
        storage: &worker::Storage,
        name: impl FnOnce() -> Option<String>,
    ) -> Result<(Self, String)> {
        let mut db = Db::open_existing(storage, SCHEMA)?;
        if db.meta(EPOCH_KEY).is_none() {
            db.set_meta(EPOCH_KEY, &fresh_id())?;
        }
        let secret = match db.meta(SECRET_KEY).and_then(Secret::parse) {
            Some(secret) => secret,
            None => {
                let digits = fresh_id() + &fresh_id();
                db.set_meta(SECRET_KEY, &digits)?;
                Secret::parse(&digits).unwrap_or_default()
            }
        };
        let name = db.name(NAME_KEY, name)?;
        let store = Store {
            db,
            secret,
            append:
                "INSERT INTO log (last, first, at, body, keys, total) VALUES (?, ?, ?, ?, ?, ?)"
                    .into(),
        };
        Ok((store, name))
    }

    /// Returns `true` if the room has storage.
    pub(super) fn exists(&self) -> bool {
        self.db.exists()
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
        let rows = match self.exists() {
            true => self.db.query(
                "SELECT 0, user, joined, delivered, read, seen, info IS NOT NULL, informed FROM members
                 UNION ALL SELECT 1, moved, 0, 0, 0, 0, 0, 0 FROM cursors
                 UNION ALL SELECT 2, gateway, attachment, 0, 0, 0, 0, 0 FROM subscribers
                 UNION ALL SELECT 3, user, at, 0, 0, 0, 0, 0 FROM departed
                 UNION ALL SELECT 4, '', first, at, total, last, 0, 0 FROM log
                    WHERE last IN ((SELECT min(last) FROM log), (SELECT max(last) FROM log))",
                &[],
            )?,
            false => Vec::new(),
        };
        let mut bounds = LogBounds::default();
        let (mut members, mut journal, mut subscribers) = (Vec::new(), Vec::new(), Vec::new());
        let mut departed: Vec<(UserId, Millis)> = Vec::new();
        for row in &rows {
            match number(row, 0) {
                0 => {
                    let member = Member {
                        joined_at: number(row, 2),
                        delivered: number(row, 3),
                        read: number(row, 4),
                        last_seen: number(row, 5),
                        has_info: number(row, 6) > 0,
                        informed: number(row, 7),
                    };
                    members.push((UserId::trusted(text(row, 1)), member));
                }
                1 => journal.push(text(row, 1)),
                2 => {
                    let subscriber = StoredSubscriber::parse(&text(row, 2));
                    let gateway = GatewayName::trusted(text(row, 1));
                    subscribers.extend(subscriber.map(|subscriber| (gateway, subscriber)));
                }
                3 => departed.push((UserId::trusted(text(row, 1)), number(row, 2))),
                _ => bounds.extend(oldest_row(row, 2), number(row, 5)),
            }
        }
        let snapshot = Snapshot {
            life,
            epoch: Epoch::trusted(self.db.meta(EPOCH_KEY).unwrap_or_default()),
            secret: self.secret,
            bounds,
            members,
            departed,
            journal,
            recent: self.exists().then(|| self.recent()),
            profiles: Some(self.profiles()),
            rows: Some(self.rows()),
        };
        Ok((snapshot, subscribers))
    }

    /// Returns the function that reads the recent sends. It reads backwards from the end,
    /// because there is no index by time. One row is in memory at a time.
    fn recent(&self) -> ReadRecent {
        let sql = self.db.sql().clone();
        Box::new(move |since, take| {
            failpoint::fails(Point::Read).map_err(read_failed)?;
            for query in [
                "SELECT first, at, keys, iif(total IS NULL, body, NULL) FROM log ORDER BY last DESC",
                "SELECT first, at, keys, NULL FROM keys ORDER BY n DESC",
            ] {
                let mut goes_on = true;
                let read = sql.query_while(query, &[], &mut |row| {
                    let row = stored_sends(row);
                    goes_on = row.at >= since && take(&row);
                    goes_on
                });
                read.map_err(read_failed)?;
                if !goes_on {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Returns the function that reads profiles. All of them are read by one statement.
    fn profiles(&self) -> ReadProfiles {
        let sql = self.db.sql().clone();
        Box::new(move |users, take| {
            failpoint::fails(Point::Read).map_err(read_failed)?;
            let users = to_json(&users);
            let query = "SELECT user, info FROM members
                 WHERE user IN (SELECT value FROM json_each(?)) AND info IS NOT NULL";
            let read = sql.query_while(query, &[users.into()], &mut |row| {
                take(
                    UserId::trusted(text(row, 0)),
                    UserInfo::trusted(&text(row, 1)),
                );
                true
            });
            read.map_err(read_failed)
        })
    }

    /// Returns the function that reads rows of the log, newest first. One row is in memory at a
    /// time.
    fn rows(&self) -> ReadRows {
        let sql = self.db.sql().clone();
        Box::new(move |range, take| {
            failpoint::fails(Point::Read).map_err(read_failed)?;
            // A single event is in one row. From the end of the log, SQLite would read all rows
            // after it.
            let query = match range.len() {
                1 => {
                    "SELECT first, body FROM log WHERE last > ? AND first <= ? ORDER BY last LIMIT 1"
                }
                _ => "SELECT first, body FROM log WHERE last > ? AND first <= ? ORDER BY last DESC",
            };
            let bounds = [js(range.after), js(range.upto)];
            sql.query_while(query, &bounds, &mut |row| {
                take(number(row, 0), &text(row, 1))
            })
            .map_err(read_failed)
        })
    }

    /// Stores a change. `body` is the text of the row to append.
    pub(super) fn apply(&mut self, change: &Change, body: &JsString) -> Result<()> {
        failpoint::fails(Point::Write)?;
        match change {
            Change::Append(row) => self.append(row, body),
            Change::PutMember(user, member) => self.put_member(user, member),
            Change::PutProfile {
                user,
                info,
                informed,
            } => {
                let info = info.as_ref().map(UserInfo::as_json);
                self.db.write(
                    "UPDATE members SET info = ?, informed = ? WHERE user = ?",
                    &[
                        info.map_or(JsValue::NULL, JsValue::from),
                        js(*informed),
                        user.as_str().into(),
                    ],
                )
            }
            Change::RemoveMember(user) => self.db.write(
                "DELETE FROM members WHERE user = ?",
                &[user.as_str().into()],
            ),
            Change::PutDeparted(user, at) => self.db.write(
                "INSERT OR REPLACE INTO departed (user, at) VALUES (?, ?)",
                &[user.as_str().into(), js(*at)],
            ),
            Change::RemoveDeparted(user) => self.db.write(
                "DELETE FROM departed WHERE user = ?",
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
            Change::Trim { upto, since, first } => self.trim(*upto, *since, *first),
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
                if self.has_subscribers()? {
                    for table in ["log", "members", "departed", "cursors", "keys"] {
                        self.db.write(&format!("DELETE FROM {table}"), &[])?;
                    }
                } else {
                    self.db.delete_all(&[NAME_KEY, SECRET_KEY])?;
                }
                self.db.set_meta(EPOCH_KEY, epoch)
            }
        }
    }

    /// Stores a batch.
    fn append(&mut self, row: &LogBatch, body: &JsString) -> Result<()> {
        failpoint::fails(Point::Full).map_err(|_| Error::RustError(FULL.into()))?;
        self.db.append(&self.append, row, body)
    }

    /// Deletes the rows of the log up to `upto`, except for the last one. Keeps the sends at or
    /// after `since` and of events from `first_kept` on.
    fn trim(&mut self, upto: u64, since: Millis, first_kept: u64) -> Result<()> {
        let (secret, mut kept) = (self.secret, KeptSends::default());
        self.db.sql().query_while(
            "SELECT first, at, keys, iif(total IS NULL, body, NULL) FROM log
             WHERE last <= ? AND last < (SELECT max(last) FROM log) AND at >= ? ORDER BY last",
            &[js(upto), js(since)],
            &mut |row| {
                kept.add(secret, &stored_sends(row), since);
                true
            },
        )?;
        // The last row stays, although it is no longer sent, because the log continues with
        // the number after it.
        self.db.write(
            "DELETE FROM log WHERE last <= ? AND last < (SELECT max(last) FROM log)",
            &[js(upto)],
        )?;
        // The rows are in the order of their events, so this reads only the rows that it deletes.
        self.db.write(
            "DELETE FROM keys WHERE n < coalesce(
                (SELECT n FROM keys WHERE at >= ? AND first >= ? ORDER BY n LIMIT 1), ?)",
            &[js(since), js(first_kept), js(i64::MAX as u64)],
        )?;
        match kept.finish() {
            Some(row) => self.db.write(
                "INSERT INTO keys (first, at, keys) VALUES (?, ?, ?)",
                &[js(row.first), js(row.at), bytes_js(&row.keys)],
            ),
            None => Ok(()),
        }
    }

    fn has_subscribers(&self) -> Result<bool> {
        Ok(self.exists()
            && !self
                .db
                .query("SELECT 1 FROM subscribers LIMIT 1", &[])?
                .is_empty())
    }

    fn put_member(&mut self, user: &str, member: &Member) -> Result<()> {
        self.db.write(
            "INSERT INTO members (user, joined, delivered, read, seen) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (user) DO UPDATE SET joined = excluded.joined,
                delivered = excluded.delivered, read = excluded.read, seen = excluded.seen",
            &[
                user.into(),
                js(member.joined_at),
                js(member.delivered),
                js(member.read),
                js(member.last_seen),
            ],
        )
    }

    /// Reads the log after `after` up to `upto` as long as `take` returns `true`. Calls `take` with
    /// the first event, the last event and the body of each row. The body stays in JavaScript. A
    /// row is a whole batch, so the last one may have events after `upto`.
    pub(super) fn rows_while(
        &self,
        after: u64,
        upto: u64,
        mut take: impl FnMut(u64, u64, JsString) -> bool,
    ) -> Result<()> {
        let before = js(upto.saturating_add(1));
        self.read_log("ASC", js(after), before, &mut take)
    }

    /// Reads a page of the log.
    pub(super) fn page(&self, range: HistoryQuery, floor: u64) -> Result<HistoryPage> {
        let mut page = HistoryPage::new(range, floor);
        let (after, before) = (range.after.max(floor), range.before.min(i64::MAX as u64));
        let order = if range.newest { "DESC" } else { "ASC" };
        self.read_log(order, js(after), js(before), &mut |first, _, body| {
            page.add(first, &String::from(body))
        })?;
        Ok(page)
    }

    /// Reads the rows with events after `after` and before `before`, one row at a time, as long
    /// as `take` returns `true`.
    fn read_log(
        &self,
        order: &str,
        after: JsValue,
        before: JsValue,
        take: &mut dyn FnMut(u64, u64, JsString) -> bool,
    ) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        let query = format!(
            "SELECT first, last, body FROM log WHERE last > ? AND first < ? ORDER BY last {order}"
        );
        self.db
            .sql()
            .query_while(&query, &[after, before], &mut |row| {
                take(number(row, 0), number(row, 1), row.get(2).unchecked_into())
            })
    }

    /// Returns the oldest row that satisfies a condition with the parameter `value`.
    pub(super) fn oldest(&self, condition: &str, value: u64) -> Result<Option<OldestRow>> {
        if !self.exists() {
            return Ok(None);
        }
        let query =
            format!("SELECT first, at, total FROM log WHERE {condition} ORDER BY last LIMIT 1");
        let rows = self.db.query(&query, &[js(value)])?;
        Ok(rows.first().map(|row| oldest_row(row, 0)))
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

/// Returns the row whose first event, time and total are in the columns from `column` on.
fn oldest_row(row: &Array, column: u32) -> OldestRow {
    OldestRow {
        first: number(row, column),
        at: number(row, column + 1),
        total: number(row, column + 2),
    }
}

/// Returns the sends of a row with the columns `first`, `at`, the hashes, and the events of a row
/// of an older version.
fn stored_sends(row: &Array) -> StoredSends {
    StoredSends {
        first: number(row, 0),
        at: number(row, 1),
        sends: match row.get(3).as_string() {
            Some(events) => Sends::Events(events),
            None => Sends::Keys(bytes(row, 2).unwrap_or_default()),
        },
    }
}

/// The text in the errors of a write for which the storage has no space
/// (<https://www.sqlite.org/rescode.html#full>).
const FULL: &str = "SQLITE_FULL";

/// Returns `true` if a write has failed because the storage is full.
pub(super) fn is_full(error: &Error) -> bool {
    error.to_string().contains(FULL)
}

/// Logs why the recent events cannot be read.
fn read_failed(error: Error) -> ReadFailed {
    log_error(error);
    ReadFailed
}
