//! What the `worker` crate does not wrap: a few methods of the runtime's own
//! objects, and sends that take a JavaScript string, so that one string is made
//! a tick, whatever number of sockets it goes to.

use crate::time::Millis;
use js_sys::{Array, JsString};
use wasm_bindgen::prelude::*;
use worker::worker_sys;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_name = setTimeout)]
    pub fn set_timeout(callback: &Closure<dyn FnMut()>, millis: i32) -> i32;

    /// A hibernatable socket.
    #[wasm_bindgen(extends = web_sys::WebSocket)]
    #[derive(Clone)]
    pub type Socket;

    #[wasm_bindgen(method, catch, js_name = send)]
    pub fn send_string(this: &Socket, frame: &JsString) -> Result<(), JsValue>;

    #[wasm_bindgen(method, catch, js_name = serializeAttachment)]
    pub fn attach(this: &Socket, attachment: &JsString) -> Result<(), JsValue>;

    #[wasm_bindgen(method, catch, js_name = deserializeAttachment)]
    pub fn attachment(this: &Socket) -> Result<JsValue, JsValue>;

    /// The connection's place in the room, kept on the socket itself: a lookup
    /// that costs nothing. Gone when the object is rebuilt.
    #[wasm_bindgen(method, getter, js_name = roomcastConn)]
    pub fn conn(this: &Socket) -> Option<f64>;

    #[wasm_bindgen(method, setter, js_name = roomcastConn)]
    pub fn set_conn(this: &Socket, conn: Option<f64>);

    /// The object's state, for what `worker::State` lacks.
    pub type StateExt;

    #[wasm_bindgen(method, catch, js_name = getWebSocketAutoResponseTimestamp)]
    fn auto_response_timestamp(
        this: &StateExt,
        socket: &Socket,
    ) -> Result<Option<js_sys::Date>, JsValue>;

    pub type Sql;

    #[wasm_bindgen(method, catch, variadic)]
    pub fn exec(this: &Sql, query: &JsString, bindings: &Array) -> Result<Cursor, JsValue>;

    /// `exec` with the bindings of a row of the log: what is done once a tick
    /// needs no list of them.
    #[wasm_bindgen(method, catch, js_name = exec)]
    pub fn append(
        this: &Sql,
        query: &JsString,
        last: f64,
        first: f64,
        at: f64,
        body: &JsString,
    ) -> Result<Cursor, JsValue>;

    pub type Cursor;

    #[wasm_bindgen(method, catch)]
    fn raw(this: &Cursor) -> Result<RawCursor, JsValue>;

    #[wasm_bindgen(method, getter, js_name = rowsWritten)]
    pub fn rows_written(this: &Cursor) -> f64;

    type RawCursor;

    #[wasm_bindgen(method, catch, js_name = toArray)]
    fn to_array(this: &RawCursor) -> Result<Array, JsValue>;
}

impl Cursor {
    /// All rows, each a list of its columns. Read out at once: a cursor must
    /// not live past an await.
    pub fn rows(&self) -> Result<Vec<Array>, JsValue> {
        Ok(self
            .raw()?
            .to_array()?
            .iter()
            .map(|row| row.unchecked_into())
            .collect())
    }
}

/// When the runtime last answered a ping of this socket by itself. A hint: the
/// runtime has been seen to report it late.
pub fn pinged(state: &worker::State, socket: &Socket) -> Option<Millis> {
    let state: &worker_sys::DurableObjectState = state.as_raw();
    let state: &StateExt = state.unchecked_ref();
    let at = state.auto_response_timestamp(socket).ok().flatten()?;
    Some(at.get_time() as Millis)
}

/// The time. Stands still while a handler runs.
pub fn now() -> Millis {
    js_sys::Date::now() as Millis
}

/// Answers a client's close frame. The runtime answers by itself from
/// compatibility date 2026-04-07 on, except where it does not: workerd
/// 1.20261117 leaves some hibernatable sockets without an answer, so that their
/// clients wait for it in vain. On one that was answered this does nothing.
pub fn answer_close(socket: &Socket, code: u16) {
    let _ = match code {
        // No status and abnormal closure must not be sent (RFC 6455, 7.4.1).
        1005 => socket.close(),
        1006 | 1015 => Ok(()),
        code => socket.close_with_code(code),
    };
}

/// Fails only on a socket that is closed already.
pub fn close(socket: &Socket, code: u16, reason: &str) {
    let _ = socket.close_with_code_and_reason(code, reason);
}

/// An id that nobody has had: 64 random bits.
pub fn fresh_id() -> String {
    let bits = getrandom::u64().expect("the runtime has a random generator");
    format!("{bits:016x}")
}
