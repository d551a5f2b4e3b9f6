//! The storage of a gateway: SQLite, three tables.
//!
//! | table | a row is |
//! | --- | --- |
//! | `clients` | a client and its rooms, for hibernation and, after it has disconnected, for resuming |
//! | `positions` | the last event of a room that the sockets have received, or the version of its presence that they were told |
//! | `spills` | an attachment that is too long for its socket |
//!
//! The table `meta` has the name of the gateway and whether it is registered with the
//! revocation registry.

use crate::runtime::Result;
use crate::runtime::sql::{Db, js, number, text};
use roomcast_gateway::{MAX_CLEANED, PositionKey, RECOVERY_WINDOW, SocketId};
use roomcast_proto::time::Millis;
use slotmap::SecondaryMap;
use std::collections::{HashMap, HashSet};

const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS clients (
        id TEXT PRIMARY KEY, user TEXT NOT NULL, gone INTEGER, record TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS positions (room TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spills (key TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID",
];

/// The key in `meta` of the registration with the revocation registry.
const REGISTERED_KEY: &str = "registered";

/// The storage of a gateway.
pub(super) struct ClientStore {
    db: Db,
}

impl ClientStore {
    /// Opens the storage of a gateway and returns its name.
    ///
    /// # Errors
    ///
    /// Fails if the name is neither stored nor given.
    pub(super) fn open(
        storage: &worker::Storage,
        name: impl FnOnce() -> Option<String>,
    ) -> Result<(Self, String)> {
        let mut db = Db::open(storage, SCHEMA)?;
        let name = db.name("gateway", name)?;
        Ok((ClientStore { db }, name))
    }

    /// Returns `true` if the gateway is registered with the revocation registry.
    pub(super) fn registered(&self) -> bool {
        self.db.meta(REGISTERED_KEY) == Some("true")
    }

    /// Stores whether the gateway is registered.
    pub(super) fn set_registered(&mut self, registered: bool) -> Result<()> {
        let registered = if registered { "true" } else { "false" };
        self.db.set_meta(REGISTERED_KEY, registered)
    }

    /// Returns the records of the clients that are connected.
    pub(super) fn clients(&self) -> Result<Vec<String>> {
        let rows = self
            .db
            .query("SELECT record FROM clients WHERE gone IS NULL", &[])?;
        Ok(rows.iter().map(|row| text(row, 0)).collect())
    }

    /// Stores the record of a client. `gone` is the time at which the client disconnected.
    pub(super) fn save(
        &mut self,
        id: &str,
        user: &str,
        gone: Option<Millis>,
        record: &str,
    ) -> Result<()> {
        let gone = gone.map_or(wasm_bindgen::JsValue::NULL, js);
        self.db.write(
            "INSERT OR REPLACE INTO clients (id, user, gone, record) VALUES (?, ?, ?, ?)",
            &[id.into(), user.into(), gone, record.into()],
        )
    }

    /// Deletes the record of a client.
    pub(super) fn forget(&mut self, id: &str) -> Result<()> {
        self.db
            .write("DELETE FROM clients WHERE id = ?", &[id.into()])
    }

    /// Deletes the record of a client of `user` and returns it.
    pub(super) fn take(&mut self, id: &str, user: &str) -> Result<Option<String>> {
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

    /// Returns the stored positions.
    pub(super) fn positions(&self) -> Result<HashMap<PositionKey, u64>> {
        let rows = self.db.query("SELECT room, at FROM positions", &[])?;
        Ok(rows
            .iter()
            .map(|row| (PositionKey::parse(&text(row, 0)), number(row, 1)))
            .collect())
    }

    /// Stores a position of a room.
    pub(super) fn set_position(&mut self, key: &PositionKey, at: u64) -> Result<()> {
        self.db.write(
            "INSERT OR REPLACE INTO positions (room, at) VALUES (?, ?)",
            &[key.to_string().into(), js(at)],
        )
    }

    /// Stores an attachment that is too long for its socket.
    pub(super) fn spill(&mut self, key: &str, record: &str) -> Result<()> {
        self.db.write(
            "INSERT OR REPLACE INTO spills (key, record) VALUES (?, ?)",
            &[key.into(), record.into()],
        )
    }

    /// Returns a stored attachment.
    pub(super) fn spilled(&self, key: &str) -> Result<Option<String>> {
        let rows = self
            .db
            .query("SELECT record FROM spills WHERE key = ?", &[key.into()])?;
        Ok(rows.first().map(|row| text(row, 0)))
    }

    /// Deletes the records of clients that can no longer resume, at most [`MAX_CLEANED`].
    /// Returns their number.
    pub(super) fn delete_gone(&mut self, now: Millis) -> Result<usize> {
        let limit = js(now.saturating_sub(RECOVERY_WINDOW));
        let deleted = self.db.query(
            "DELETE FROM clients WHERE id IN (SELECT id FROM clients WHERE gone < ? LIMIT ?)
             RETURNING 1",
            &[limit, js(MAX_CLEANED as u64)],
        )?;
        Ok(deleted.len())
    }

    /// Deletes a stored attachment.
    pub(super) fn forget_spill(&mut self, key: &str) -> Result<()> {
        self.db
            .write("DELETE FROM spills WHERE key = ?", &[key.into()])
    }

    /// Deletes the attachments of sockets that have closed without an event: during
    /// hibernation or in a crash.
    pub(super) fn delete_unused_spills(
        &mut self,
        used: &SecondaryMap<SocketId, String>,
    ) -> Result<()> {
        let used: HashSet<&str> = used.values().map(String::as_str).collect();
        for row in self.db.query("SELECT key FROM spills", &[])? {
            let key = text(&row, 0);
            if !used.contains(key.as_str()) {
                self.forget_spill(&key)?;
            }
        }
        Ok(())
    }

    /// Deletes a position of a room.
    pub(super) fn forget_position(&mut self, key: &PositionKey) -> Result<()> {
        self.db.write(
            "DELETE FROM positions WHERE room = ?",
            &[key.to_string().into()],
        )
    }

    /// Deletes all positions if no client is connected.
    pub(super) fn delete_unused_positions(&mut self) -> Result<()> {
        self.db.write(
            "DELETE FROM positions WHERE NOT EXISTS (SELECT 1 FROM clients WHERE gone IS NULL)",
            &[],
        )
    }
}
