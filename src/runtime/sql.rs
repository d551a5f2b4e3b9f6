//! SQL, and how many rows it wrote: the dearest line of the bill.

use super::{Cursor, Sql};
use js_sys::Array;
use wasm_bindgen::{JsCast, JsValue};
use worker::{Error, Result};

const META: &str =
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID";

/// The key under which it stands how many statements of the schema were carried
/// out.
const SCHEMA_KEY: &str = "schema";

/// An object's database. Every one has a table of keys and values, `meta`, which
/// is kept in memory as well.
pub struct Db {
    pub sql: Sql,
    meta: Vec<(String, String)>,
    /// Rows written since [`Db::take_rows_written`].
    rows_written: f64,
}

impl Db {
    /// Opens it. Each statement of `schema` is carried out once, in order; new
    /// ones are to be put at the end.
    pub fn open(storage: &worker::Storage, schema: &[&str]) -> Result<Self> {
        let sql = storage.sql();
        let sql: &JsValue = sql.as_ref();
        let mut db = Db {
            sql: sql.clone().unchecked_into(),
            meta: Vec::new(),
            rows_written: 0.0,
        };
        db.write(META, &[])?;
        let meta = db.query("SELECT key, value FROM meta", &[])?;
        db.meta = meta
            .iter()
            .map(|row| (text(row, 0), text(row, 1)))
            .collect();
        let made = db.meta(SCHEMA_KEY).and_then(|made| made.parse().ok());
        let missing = schema.get(made.unwrap_or(0)..).unwrap_or_default();
        for statement in missing {
            db.write(statement, &[])?;
        }
        if !missing.is_empty() {
            db.set_meta(SCHEMA_KEY, &schema.len().to_string())?;
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
        Ok(self.sql.query(query, bindings)?)
    }

    pub fn meta(&self, key: &str) -> Option<&str> {
        let mut meta = self.meta.iter();
        meta.find(|(known, _)| known == key)
            .map(|(_, value)| value.as_str())
    }

    pub fn set_meta(&mut self, key: &str, value: &str) -> Result<()> {
        self.write(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)",
            &[key.into(), value.into()],
        )?;
        self.meta.retain(|(known, _)| known != key);
        self.meta.push((key.to_owned(), value.to_owned()));
        Ok(())
    }

    /// The object's name, kept under `key`: a woken object may lack it.
    pub fn name(&mut self, key: &str, given: impl FnOnce() -> Option<String>) -> Result<String> {
        if let Some(name) = self.meta(key) {
            return Ok(name.to_owned());
        }
        let unnamed = || Error::RustError(format!("the {key} has no name yet"));
        let name = given().ok_or_else(unnamed)?;
        self.set_meta(key, &name)?;
        Ok(name)
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
