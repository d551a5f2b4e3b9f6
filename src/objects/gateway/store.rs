//! A gateway's storage: SQLite, three tables.
//!
//! - `clients`: what a client is and in which rooms, for after hibernation and,
//!   once it is gone, for when it comes back
//! - `positions`: up to which event the sockets of a room have had it
//! - `spills`: attachments that are too long for a socket

use crate::objects::revocations::REGISTERED_KEY;
use crate::runtime::sql::{Db, js, number, text};
use roomcast_proto::time::Millis;
use std::collections::HashMap;
use worker::Result;

const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS clients (
        id TEXT PRIMARY KEY, user TEXT NOT NULL, gone INTEGER, record TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS positions (room TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spills (key TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID",
];

pub struct ClientStore {
    db: Db,
}

impl ClientStore {
    /// Opens the storage of the gateway `name`, and says its name: without one,
    /// which a woken object may lack, it must be there.
    pub fn open(
        storage: &worker::Storage,
        name: impl FnOnce() -> Option<String>,
    ) -> Result<(Self, String)> {
        let mut db = Db::open(storage, SCHEMA)?;
        let name = db.name("gateway", name)?;
        Ok((ClientStore { db }, name))
    }

    /// Whether the registry of revocations knows of this gateway.
    pub fn registered(&self) -> bool {
        self.db.meta(REGISTERED_KEY) == Some("true")
    }

    pub fn set_registered(&mut self, registered: bool) -> Result<()> {
        let registered = if registered { "true" } else { "false" };
        self.db.set_meta(REGISTERED_KEY, registered)
    }

    /// The clients that are not gone.
    pub fn clients(&self) -> Result<Vec<String>> {
        let rows = self
            .db
            .query("SELECT record FROM clients WHERE gone IS NULL", &[])?;
        Ok(rows.iter().map(|row| text(row, 0)).collect())
    }

    pub fn save(&mut self, id: &str, user: &str, gone: Option<Millis>, record: &str) -> Result<()> {
        let gone = gone.map_or(wasm_bindgen::JsValue::NULL, js);
        self.db.write(
            "INSERT OR REPLACE INTO clients (id, user, gone, record) VALUES (?, ?, ?, ?)",
            &[id.into(), user.into(), gone, record.into()],
        )
    }

    pub fn forget(&mut self, id: &str) -> Result<()> {
        self.db
            .write("DELETE FROM clients WHERE id = ?", &[id.into()])
    }

    /// What was saved of a user, which is here no more from now on.
    pub fn take(&mut self, id: &str, user: &str) -> Result<Option<String>> {
        let rows = self.db.query(
            "SELECT record FROM clients WHERE id = ? AND user = ?",
            &[id.into(), user.into()],
        )?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        self.forget(id)?;
        Ok(Some(text(row, 0)))
    }

    pub fn positions(&self) -> Result<HashMap<String, u64>> {
        let rows = self.db.query("SELECT room, at FROM positions", &[])?;
        Ok(rows
            .iter()
            .map(|row| (text(row, 0), number(row, 1)))
            .collect())
    }

    pub fn set_position(&mut self, room: &str, at: u64) -> Result<()> {
        self.db.write(
            "INSERT OR REPLACE INTO positions (room, at) VALUES (?, ?)",
            &[room.into(), js(at)],
        )
    }

    /// An attachment that is too long for its socket.
    pub fn spill(&mut self, key: &str, record: &str) -> Result<()> {
        self.db.write(
            "INSERT OR REPLACE INTO spills (key, record) VALUES (?, ?)",
            &[key.into(), record.into()],
        )
    }

    pub fn spilled(&self, key: &str) -> Result<Option<String>> {
        let rows = self
            .db
            .query("SELECT record FROM spills WHERE key = ?", &[key.into()])?;
        Ok(rows.first().map(|row| text(row, 0)))
    }

    /// Forgets clients that went before `limit`, spills but those in `used`,
    /// and, where nobody is left, positions.
    pub fn clean(&mut self, limit: Millis, used: &[String]) -> Result<()> {
        self.db
            .write("DELETE FROM clients WHERE gone < ?", &[js(limit)])?;
        for row in self.db.query("SELECT key FROM spills", &[])? {
            let key = text(&row, 0);
            if !used.contains(&key) {
                self.db
                    .write("DELETE FROM spills WHERE key = ?", &[key.into()])?;
            }
        }
        self.db.write(
            "DELETE FROM positions WHERE NOT EXISTS (SELECT 1 FROM clients WHERE gone IS NULL)",
            &[],
        )
    }
}
