//! SQL, and how many rows it wrote: the dearest line of the bill.

use super::runtime::{Cursor, Sql};
use js_sys::Array;
use wasm_bindgen::{JsCast, JsValue};
use worker::{Error, Result};

const META: &str =
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID";

/// An object's database. Every one has a table of keys and values, `meta`.
pub struct Db {
    pub sql: Sql,
    /// Rows written since [`Db::take_rows_written`].
    rows_written: f64,
}

impl Db {
    /// Opens it; `schema` makes what is not there.
    pub fn open(storage: &worker::Storage, schema: &[&str]) -> Result<Self> {
        let sql = storage.sql();
        let sql: &JsValue = sql.as_ref();
        let mut db = Db {
            sql: sql.clone().unchecked_into(),
            rows_written: 0.0,
        };
        for statement in schema.iter().chain([&META]) {
            db.write(statement, &[])?;
        }
        Ok(db)
    }

    pub fn write(&mut self, query: &str, bindings: &[JsValue]) -> Result<()> {
        let cursor = self.sql.exec(&query.into(), &bindings.iter().collect())?;
        self.count(&cursor);
        Ok(())
    }

    pub fn count(&mut self, cursor: &Cursor) {
        self.rows_written += cursor.rows_written();
    }

    pub fn query(&self, query: &str, bindings: &[JsValue]) -> Result<Vec<Array>> {
        Ok(self
            .sql
            .exec(&query.into(), &bindings.iter().collect())?
            .rows()?)
    }

    pub fn meta(&self, key: &str) -> Result<Option<String>> {
        let rows = self.query("SELECT value FROM meta WHERE key = ?", &[key.into()])?;
        Ok(rows.first().map(|row| text(row, 0)))
    }

    pub fn set_meta(&mut self, key: &str, value: &str) -> Result<()> {
        self.write(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)",
            &[key.into(), value.into()],
        )
    }

    /// The object's name, kept under `key`: a woken object may lack it.
    pub fn name(&mut self, key: &str, given: Option<String>) -> Result<String> {
        match (self.meta(key)?, given) {
            (Some(name), _) => Ok(name),
            (None, Some(name)) => {
                self.set_meta(key, &name)?;
                Ok(name)
            }
            (None, None) => Err(Error::RustError(format!("the {key} has no name yet"))),
        }
    }

    /// Rows written since this was asked last.
    pub fn take_rows_written(&mut self) -> u64 {
        std::mem::take(&mut self.rows_written) as u64
    }
}

/// Numbers are below 2^53 by contract, so a double holds them.
pub fn js(number: u64) -> JsValue {
    (number as f64).into()
}

pub fn number(row: &Array, column: u32) -> u64 {
    row.get(column).as_f64().unwrap_or(0.0) as u64
}

pub fn text(row: &Array, column: u32) -> String {
    row.get(column).as_string().unwrap_or_default()
}
