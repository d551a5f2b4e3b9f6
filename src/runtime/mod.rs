//! What the `worker` crate does not wrap: a few methods of the runtime's own
//! objects, and sends that take a JavaScript string, so that one string is made
//! a tick, whatever number of sockets it goes to.

pub mod alarm_clock;
pub mod failpoint;
pub mod headers;
pub mod keys;
pub mod settings;
pub mod sql;

use js_sys::{Array, JsString, Object, Promise, Reflect};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use slotmap::{Key, KeyData};
use std::fmt::Display;
use wasm_bindgen::prelude::*;
use worker::wasm_bindgen_futures::JsFuture;
use worker::{Env, State, worker_sys};

/// The bindings of wrangler.toml.
pub const ROOMS: &str = "ROOMS";
pub const GATEWAYS: &str = "GATEWAYS";
pub const REVOCATIONS: &str = "REVOCATIONS";
pub const TICKETS: &str = "TICKETS";

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
    fn conn(this: &Socket) -> Option<f64>;

    #[wasm_bindgen(method, setter, js_name = roomcastConn)]
    fn set_conn(this: &Socket, conn: Option<f64>);

    /// The object's state, for what `worker::State` lacks.
    pub type StateExt;

    /// What is kept on it outlives this instance of WebAssembly, which a panic
    /// ends, though not the object's sleep.
    #[wasm_bindgen(method, getter, js_name = roomcastTold)]
    pub fn told(this: &StateExt) -> JsValue;

    #[wasm_bindgen(method, setter, js_name = roomcastTold)]
    pub fn set_told(this: &StateExt, told: &JsValue);

    #[wasm_bindgen(method, catch, js_name = getWebSocketAutoResponseTimestamp)]
    fn auto_response_timestamp(
        this: &StateExt,
        socket: &Socket,
    ) -> Result<Option<js_sys::Date>, JsValue>;

    /// Where requests to an object go in.
    type Stub;

    #[wasm_bindgen(method, catch)]
    fn fetch(this: &Stub, url: &str, init: &web_sys::RequestInit) -> Result<Promise, JsValue>;

    #[derive(Clone)]
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

    #[wasm_bindgen(method, catch)]
    fn next(this: &RawCursor) -> Result<js_sys::IteratorNext, JsValue>;
}

impl Sql {
    /// Reads rows one by one as long as `take` wants more.
    pub fn query_while(
        &self,
        query: &str,
        bindings: &[JsValue],
        mut take: impl FnMut(&Array) -> bool,
    ) -> Result<(), JsValue> {
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

    /// All rows, each a list of its columns. Read out at once: a cursor must
    /// not live past an await.
    pub fn query(&self, query: &str, bindings: &[JsValue]) -> Result<Vec<Array>, JsValue> {
        Ok(self
            .exec(&query.into(), &bindings.iter().collect())?
            .raw()?
            .to_array()?
            .iter()
            .map(|row| row.unchecked_into())
            .collect())
    }
}

/// Bits of a slot's index on a socket: with the 32 of its generation they fit
/// the 53 of a JavaScript number. An object has 32,768 sockets at the most, and
/// no memory for two million connections at gateways besides.
const INDEX_BITS: u32 = 21;

impl Socket {
    /// The key of the connection in its object's memory.
    pub fn place<K: From<KeyData>>(&self) -> Option<K> {
        let packed = self.conn()? as u64;
        let (generation, index) = (packed >> INDEX_BITS, packed & ((1 << INDEX_BITS) - 1));
        Some(KeyData::from_ffi((generation << 32) | index).into())
    }

    pub fn set_place(&self, place: impl Key) {
        let key = place.data().as_ffi();
        let (generation, index) = (key >> 32, key & u64::from(u32::MAX));
        debug_assert!(index < 1 << INDEX_BITS);
        self.set_conn(Some(((generation << INDEX_BITS) | index) as f64));
    }

    /// It had a place in a memory that is no more.
    pub fn forget_place(&self) {
        self.set_conn(None);
    }

    /// It is of nobody any more: its close event, should one come, neither.
    pub fn disown(&self) {
        self.forget_place();
        // Fails only on a socket that is gone already.
        let _ = self.attach(&JsString::from(""));
    }
}

/// Maximum number of bytes beyond its limit that are read of a body and dropped. A
/// client that is still sending when it is answered sees a broken pipe instead of the
/// answer.
pub const MAX_DRAIN: usize = 32 << 20;

/// Maximum number of bytes of a body that are read at a time.
const BODY_CHUNK: usize = 64 * 1024;

/// Reads the body of a request. Returns `None` if it is larger than `limit` bytes; then
/// up to `drain` more bytes are read and dropped. All chunks are read into one buffer,
/// because JavaScript frees a buffer only some time after its last use.
pub async fn read_body(
    request: &web_sys::Request,
    limit: usize,
    drain: usize,
) -> Result<Option<Vec<u8>>, JsValue> {
    let Some(stream) = request.body() else {
        return Ok(Some(Vec::new()));
    };
    let options = web_sys::ReadableStreamGetReaderOptions::new();
    options.set_mode(web_sys::ReadableStreamReaderMode::Byob);
    let reader: web_sys::ReadableStreamByobReader =
        stream.get_reader_with_options(&options).unchecked_into();
    let mut body = Vec::new();
    let mut length = 0;
    let mut buffer = js_sys::ArrayBuffer::new(BODY_CHUNK.min(limit + 1) as u32);
    while length <= limit + drain {
        let view = js_sys::Uint8Array::new(&buffer);
        let read = JsFuture::from(reader.read_with_array_buffer_view(&view)).await?;
        if Reflect::get(&read, &"done".into())?.is_truthy() {
            break;
        }
        let chunk: js_sys::Uint8Array = Reflect::get(&read, &"value".into())?.unchecked_into();
        length += chunk.length() as usize;
        if length <= limit {
            body.extend_from_slice(&chunk.to_vec());
        } else {
            body = Vec::new();
        }
        buffer = chunk.buffer();
    }
    Ok((length <= limit).then_some(body))
}

/// A failure of the platform: for the operator, nobody else is told.
pub fn complain(error: impl Display) {
    worker::console_error!("{}", LogRecord::error(error.to_string()).line(now()));
}

/// Lets an object go on with something after what called it has ended.
pub fn spawn(state: &State, work: impl Future<Output = worker::Result<()>> + 'static) {
    state.wait_until(async move {
        if let Err(error) = work.await {
            complain(error);
        }
    });
}

/// A request to an object, with a body by POST. A request from outside never
/// reaches an object as it is, so nobody else can set these headers.
///
/// Made and answered by the runtime's own objects: `worker` would make one more
/// of each, which is felt when thousands connect.
pub async fn call(
    env: &Env,
    binding: &str,
    name: &str,
    headers: &[(&str, &str)],
    body: Option<JsValue>,
) -> worker::Result<web_sys::Response> {
    let init = web_sys::RequestInit::new();
    let fields = Object::new();
    for (header, value) in headers {
        Reflect::set(&fields, &(*header).into(), &(*value).into())?;
    }
    init.set_headers(&fields);
    if let Some(body) = body {
        init.set_method("POST");
        init.set_body(&body);
    }
    let object: Stub = env.durable_object(binding)?.get_by_name(name)?.into_rpc();
    let answer = JsFuture::from(object.fetch("https://object/", &init)?).await?;
    Ok(answer.unchecked_into())
}

/// The status and the text of what [`call`] is answered.
pub async fn ask(
    env: &Env,
    binding: &str,
    name: &str,
    headers: &[(&str, &str)],
    body: String,
) -> worker::Result<(u16, String)> {
    read(&call(env, binding, name, headers, Some(body.into())).await?).await
}

/// The status and the text of an answer.
pub async fn read(answer: &web_sys::Response) -> worker::Result<(u16, String)> {
    let text = JsFuture::from(answer.text()?).await?;
    Ok((answer.status(), text.as_string().unwrap_or_default()))
}

/// The answer to who gets the other end of a socket.
pub fn switch(socket: &web_sys::WebSocket) -> worker::Result<web_sys::Response> {
    let init = web_sys::ResponseInit::new();
    init.set_status(101);
    Reflect::set(&init, &"webSocket".into(), socket)?;
    Ok(web_sys::Response::new_with_opt_str_and_init(None, &init)?)
}

/// The object's state with what `worker` lacks.
pub fn ext(state: &State) -> &StateExt {
    let state: &worker_sys::DurableObjectState = state.as_raw();
    state.unchecked_ref()
}

/// When the runtime last answered a ping of this socket by itself. A hint: the
/// runtime has been seen to report it late.
pub fn pinged(state: &State, socket: &Socket) -> Option<Millis> {
    let at = ext(state).auto_response_timestamp(socket).ok().flatten()?;
    Some((at.get_time() + failpoint::ahead()) as Millis)
}

/// The time. Stands still while a handler runs.
pub fn now() -> Millis {
    (js_sys::Date::now() + failpoint::ahead()) as Millis
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
