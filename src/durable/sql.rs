//! SQL, and how many rows it wrote: the dearest line of the bill.

use super::runtime::{Cursor, Sql};
use js_sys::Array;
use wasm_bindgen::{JsCast, JsValue};
use worker::Result;

/// An object's database.
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
        for statement in schema {
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
