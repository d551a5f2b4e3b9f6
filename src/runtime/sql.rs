//! SQLite of an object. Rows written are the largest item of the bill, so they are counted.

use super::Result;
use js_sys::{Array, ArrayBuffer, JsString, Uint8Array};
use roomcast_room::log::LogBatch;
use wasm_bindgen::prelude::*;
use worker::Error;
use worker::worker_sys::DurableObjectStorage;

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
        keys: &JsValue,
        total: f64,
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
        take: &mut dyn FnMut(&Array) -> bool,
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
    storage: DurableObjectStorage,
    sql: Sql,
    schema: &'static [&'static str],
    /// `true` if the tables exist. Otherwise the first write creates them.
    exists: bool,
    meta: Vec<(String, String)>,
    /// Rows written since [`Db::take_rows_written`].
    rows_written: f64,
}

impl Db {
    /// Opens the database and creates its tables. Each statement of `schema` is executed once,
    /// in order. New statements must be added at the end.
    pub(crate) fn open(storage: &worker::Storage, schema: &'static [&'static str]) -> Result<Self> {
        let mut db = Db::open_existing(storage, schema)?;
        if !db.exists {
            db.create()?;
        }
        Ok(db)
    }

    /// Opens the database as [`Db::open`] does, but leaves the creation of the tables to the first
    /// write. Until then there is nothing to read: see [`Db::exists`].
    pub(crate) fn open_existing(
        storage: &worker::Storage,
        schema: &'static [&'static str],
    ) -> Result<Self> {
        let storage: &JsValue = storage.as_raw();
        let storage: DurableObjectStorage = storage.clone().unchecked_into();
        let mut db = Db {
            sql: storage.sql().unchecked_into(),
            storage,
            schema,
            exists: false,
            meta: Vec::new(),
            rows_written: 0.0,
        };
        let tables = db.query("SELECT 1 FROM sqlite_master WHERE name = 'meta'", &[])?;
        if tables.is_empty() {
            return Ok(db);
        }
        db.exists = true;
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

    /// Returns `true` if the tables exist.
    pub(crate) fn exists(&self) -> bool {
        self.exists
    }

    /// Creates the tables, and stores the values of `meta` that are in memory. All statements
    /// are one call.
    fn create(&mut self) -> Result<()> {
        let schema = self.schema.len().to_string();
        self.meta.push((SCHEMA_KEY.to_owned(), schema));
        let values = vec!["(?, ?)"; self.meta.len()].join(", ");
        let values = format!("INSERT INTO meta (key, value) VALUES {values}");
        let mut statements = vec![META];
        statements.extend(self.schema);
        statements.push(&values);
        let bindings = Array::new();
        for (key, value) in &self.meta {
            bindings.push(&key.into());
            bindings.push(&value.into());
        }
        let cursor = self
            .sql
            .exec(&statements.join(";\n").as_str().into(), &bindings)?;
        self.rows_written += cursor.rows_written();
        self.exists = true;
        Ok(())
    }

    /// Deletes the whole storage of the object, its alarm included. The values of the keys `kept`
    /// stay in memory.
    pub(crate) fn delete_all(&mut self, kept: &[&str]) -> Result<()> {
        if self.exists {
            // The storage is empty after the call. The promise ends with the commit, and the
            // runtime holds outgoing messages until then.
            let _committed = self.storage.delete_all()?;
            self.exists = false;
        }
        self.meta.retain(|(key, _)| kept.contains(&&**key));
        Ok(())
    }

    /// Returns the database without the table `meta`, for reads.
    pub(crate) fn sql(&self) -> &Sql {
        &self.sql
    }

    /// Executes a statement that writes.
    pub(crate) fn write(&mut self, query: &str, bindings: &[JsValue]) -> Result<()> {
        if !self.exists {
            self.create()?;
        }
        let cursor = self.sql.exec(&query.into(), &bindings.iter().collect())?;
        self.rows_written += cursor.rows_written();
        Ok(())
    }

    /// Inserts a log row by `query`, whose parameters are `last`, `first`, `at`, `body`, `keys`
    /// and `total`. Stores null for empty `keys`.
    pub(crate) fn append(
        &mut self,
        query: &JsString,
        row: &LogBatch,
        body: &JsString,
    ) -> Result<()> {
        if !self.exists {
            self.create()?;
        }
        let (last, first, at) = (row.last as f64, row.first as f64, row.at as f64);
        let (keys, total) = (&row.keys, row.total as f64);
        let keys = match keys.is_empty() {
            true => JsValue::NULL,
            false => bytes_js(keys),
        };
        let cursor = self
            .sql
            .exec_append(query, last, first, at, body, &keys, total)?;
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

    /// Sets a value of the table `meta`. Only in memory if the tables do not exist.
    pub(crate) fn set_meta(&mut self, key: &str, value: &str) -> Result<()> {
        if self.exists {
            self.write(
                "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)",
                &[key.into(), value.into()],
            )?;
        }
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

/// Returns bytes as a binding.
pub(crate) fn bytes_js(bytes: &[u8]) -> JsValue {
    Uint8Array::from(bytes).into()
}

/// Returns a column as a number, or 0.
pub(crate) fn number(row: &Array, column: u32) -> u64 {
    row.get(column).as_f64().unwrap_or(0.0) as u64
}

/// Returns a column as a text, or an empty one.
pub(crate) fn text(row: &Array, column: u32) -> String {
    row.get(column).as_string().unwrap_or_default()
}

/// Returns a column as bytes, or `None` if it is null.
pub(crate) fn bytes(row: &Array, column: u32) -> Option<Vec<u8>> {
    let buffer = row.get(column).dyn_into::<ArrayBuffer>().ok()?;
    Some(Uint8Array::new(&buffer).to_vec())
}
