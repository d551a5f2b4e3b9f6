//! SQLite of an object. Rows written are the largest item of the bill, so they are counted.

use super::Result;
use js_sys::{Array, JsString};
use wasm_bindgen::prelude::*;
use worker::Error;

#[wasm_bindgen]
extern "C" {
    /// `ctx.storage.sql`.
    #[derive(Clone)]
    pub type Sql;

    #[wasm_bindgen(method, catch, variadic)]
    fn exec(this: &Sql, query: &JsString, bindings: &Array) -> Result<Cursor, JsValue>;

    /// `exec` with the bindings of a log row. It runs once for each batch, so it avoids the
    /// array of bindings.
    #[wasm_bindgen(method, catch, js_name = exec)]
    fn exec_append(
        this: &Sql,
        query: &JsString,
        last: f64,
        first: f64,
        at: f64,
        body: &JsString,
    ) -> Result<Cursor, JsValue>;

    type Cursor;

    #[wasm_bindgen(method, catch)]
    fn raw(this: &Cursor) -> Result<RawCursor, JsValue>;

    #[wasm_bindgen(method, getter, js_name = rowsWritten)]
    fn rows_written(this: &Cursor) -> f64;

    type RawCursor;

    #[wasm_bindgen(method, catch, js_name = toArray)]
    fn to_array(this: &RawCursor) -> Result<Array, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn next(this: &RawCursor) -> Result<js_sys::IteratorNext, JsValue>;
}

impl Sql {
    /// Reads rows as long as `take` returns `true`. Each row is an array of its columns.
    pub fn query_while(
        &self,
        query: &str,
        bindings: &[JsValue],
        mut take: impl FnMut(&Array) -> bool,
    ) -> Result<()> {
        let cursor = self
            .exec(&query.into(), &bindings.iter().collect())?
            .raw()?;
        loop {
            let next = cursor.next()?;
            if next.done() || !take(next.value().unchecked_ref()) {
                return Ok(());
            }
        }
    }

    /// Returns all rows at once, because a cursor is invalid after an `await`. Each row is an
    /// array of its columns.
    pub fn query(&self, query: &str, bindings: &[JsValue]) -> Result<Vec<Array>> {
        Ok(self
            .exec(&query.into(), &bindings.iter().collect())?
            .raw()?
            .to_array()?
            .iter()
            .map(|row| row.unchecked_into())
            .collect())
    }
}

const META: &str =
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID";

/// The key in `meta` of the number of schema statements that were executed.
const SCHEMA_KEY: &str = "schema";

/// The database of an object. Each database has a table of keys and values, `meta`, which
/// is also kept in memory.
pub(crate) struct Db {
    sql: Sql,
    meta: Vec<(String, String)>,
    /// Rows written since [`Db::take_rows_written`].
    rows_written: f64,
}

impl Db {
    /// Opens the database. Each statement of `schema` is executed once, in order. New
    /// statements must be added at the end.
    pub(crate) fn open(storage: &worker::Storage, schema: &[&str]) -> Result<Self> {
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
        let executed = db.meta(SCHEMA_KEY).and_then(|count| count.parse().ok());
        let missing = schema.get(executed.unwrap_or(0)..).unwrap_or_default();
        for statement in missing {
            db.write(statement, &[])?;
        }
        if !missing.is_empty() {
            db.set_meta(SCHEMA_KEY, &schema.len().to_string())?;
        }
        Ok(db)
    }

    /// Returns the database without the table `meta`, for reads.
    pub(crate) fn sql(&self) -> &Sql {
        &self.sql
    }

    /// Executes a statement that writes.
    pub(crate) fn write(&mut self, query: &str, bindings: &[JsValue]) -> Result<()> {
        let cursor = self.sql.exec(&query.into(), &bindings.iter().collect())?;
        self.rows_written += cursor.rows_written();
        Ok(())
    }

    /// Inserts a log row by `query`, whose parameters are `last`, `first`, `at` and `body`.
    pub(crate) fn append(
        &mut self,
        query: &JsString,
        last: u64,
        first: u64,
        at: u64,
        body: &JsString,
    ) -> Result<()> {
        let (last, first, at) = (last as f64, first as f64, at as f64);
        let cursor = self.sql.exec_append(query, last, first, at, body)?;
        self.rows_written += cursor.rows_written();
        Ok(())
    }

    /// Returns all rows of a query. See [`Sql::query`].
    pub(crate) fn query(&self, query: &str, bindings: &[JsValue]) -> Result<Vec<Array>> {
        self.sql.query(query, bindings)
    }

    /// Returns a value of the table `meta`.
    pub(crate) fn meta(&self, key: &str) -> Option<&str> {
        let mut meta = self.meta.iter();
        meta.find(|(known, _)| known == key)
            .map(|(_, value)| value.as_str())
    }

    /// Sets a value of the table `meta`.
    pub(crate) fn set_meta(&mut self, key: &str, value: &str) -> Result<()> {
        self.write(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)",
            &[key.into(), value.into()],
        )?;
        self.meta.retain(|(known, _)| known != key);
        self.meta.push((key.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Returns the name of the object, which is stored in `meta` under `key`. If it is not
    /// stored yet, stores the name that `given` returns.
    ///
    /// # Errors
    ///
    /// Fails if the name is neither stored nor given. The runtime does not always know the
    /// name of an object that it wakes.
    pub(crate) fn name(
        &mut self,
        key: &str,
        given: impl FnOnce() -> Option<String>,
    ) -> Result<String> {
        if let Some(name) = self.meta(key) {
            return Ok(name.to_owned());
        }
        let unnamed = || Error::RustError(format!("the name of the {key} is unknown"));
        let name = given().ok_or_else(unnamed)?;
        self.set_meta(key, &name)?;
        Ok(name)
    }

    /// Returns the number of rows written since the last call.
    pub(crate) fn take_rows_written(&mut self) -> u64 {
        std::mem::take(&mut self.rows_written) as u64
    }
}

/// Returns a number as a binding. Numbers are below 2^53, so a double holds them.
pub(crate) fn js(number: u64) -> JsValue {
    (number as f64).into()
}

/// Returns a column as a number, or 0.
pub(crate) fn number(row: &Array, column: u32) -> u64 {
    row.get(column).as_f64().unwrap_or(0.0) as u64
}

/// Returns a column as a text, or an empty one.
pub(crate) fn text(row: &Array, column: u32) -> String {
    row.get(column).as_string().unwrap_or_default()
}
