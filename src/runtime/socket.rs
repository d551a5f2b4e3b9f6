//! The sockets of an object.
//!
//! [`Sockets`] maps the keys of a core to sockets. The socket has its key as a property, so
//! an event of the runtime finds it without a lookup. The attachment of a hibernatable
//! socket survives hibernation and panics; the property does not survive hibernation, and is
//! invalid after a panic.

use js_sys::{JsString, Reflect};
use roomcast_proto::disconnect::Disconnect;
use slotmap::{Key, KeyData, SecondaryMap};
use wasm_bindgen::prelude::*;
use worker::{State, WebSocketPair};

/// The close code of a socket that ended without a close frame (RFC 6455, 7.4.1).
pub(crate) const ABNORMAL_CLOSURE: u16 = 1006;

#[wasm_bindgen]
extern "C" {
    /// A socket of the runtime.
    #[wasm_bindgen(extends = web_sys::WebSocket)]
    #[derive(Clone)]
    pub type Socket;

    /// Sends a JavaScript string. The caller creates one string for all recipients of a
    /// frame.
    #[wasm_bindgen(method, catch, js_name = send)]
    pub fn send_string(this: &Socket, frame: &JsString) -> Result<(), JsValue>;

    /// Sets the attachment.
    #[wasm_bindgen(method, catch, js_name = serializeAttachment)]
    pub fn attach(this: &Socket, attachment: &JsString) -> Result<(), JsValue>;

    #[wasm_bindgen(method, catch, js_name = deserializeAttachment)]
    fn deserialize_attachment(this: &Socket) -> Result<JsValue, JsValue>;

    #[wasm_bindgen(method, getter, js_name = roomcastKey)]
    fn packed_key(this: &Socket) -> Option<f64>;

    #[wasm_bindgen(method, setter, js_name = roomcastKey)]
    fn set_packed_key(this: &Socket, key: Option<f64>);
}

/// Bits of a slot's index in the key on a socket. With the 32 bits of the generation they
/// fit the 53 bits of a JavaScript number. They are enough: an object has at most 32,768
/// sockets, and its memory does not hold two million connections at gateways.
const INDEX_BITS: u32 = 21;

impl Socket {
    /// Returns the key of the socket in the memory of its object, if it has one.
    pub fn key<K: From<KeyData>>(&self) -> Option<K> {
        let packed = self.packed_key()? as u64;
        let (generation, index) = (packed >> INDEX_BITS, packed & ((1 << INDEX_BITS) - 1));
        Some(KeyData::from_ffi((generation << 32) | index).into())
    }

    fn set_key(&self, key: impl Key) {
        let key = key.data().as_ffi();
        let (generation, index) = (key >> 32, key & u64::from(u32::MAX));
        debug_assert!(index < 1 << INDEX_BITS);
        self.set_packed_key(Some(((generation << INDEX_BITS) | index) as f64));
    }

    /// Returns the attachment, if it is a string.
    pub fn attachment(&self) -> Option<String> {
        self.deserialize_attachment().ok()?.as_string()
    }

    /// Removes the key and the attachment. Later events of the socket are ignored.
    fn detach(&self) {
        self.set_packed_key(None);
        // Fails only on a socket that is closed already.
        let _ = self.attach(&JsString::from(""));
    }

    /// Closes the socket.
    pub fn close_with(&self, code: u16, reason: &str) {
        // Fails only on a socket that is closed already.
        let _ = self.close_with_code_and_reason(code, reason);
    }

    /// Answers the client's close frame. The runtime does this from compatibility date
    /// 2026-04-07 on, but workerd 1.20261117 does not answer on some hibernatable sockets,
    /// and their clients wait until they time out. Has no effect on a socket that was
    /// answered.
    pub fn answer_close(&self, code: u16) {
        let _ = match code {
            // A close frame must not have the codes "no status" and "abnormal closure"
            // (RFC 6455, 7.4.1).
            1005 => self.close(),
            ABNORMAL_CLOSURE | 1015 => Ok(()),
            code => self.close_with_code(code),
        };
    }
}

/// The open sockets of an object, by their keys in the core.
pub(crate) struct Sockets<K: Key>(SecondaryMap<K, Socket>);

impl<K: Key> Sockets<K> {
    /// Returns an empty map.
    pub(crate) fn new() -> Self {
        Sockets(SecondaryMap::new())
    }

    /// Adds a socket and writes the key on it.
    pub(crate) fn add(&mut self, key: K, socket: Socket) {
        socket.set_key(key);
        self.0.insert(key, socket);
    }

    /// Removes a socket. Its later events, such as its close event, are ignored.
    pub(crate) fn remove(&mut self, key: K) -> Option<Socket> {
        let socket = self.0.remove(key)?;
        socket.detach();
        Some(socket)
    }

    /// Returns the socket with a key.
    pub(crate) fn get(&self, key: K) -> Option<&Socket> {
        self.0.get(key)
    }

    /// Returns the keys of all sockets.
    pub(crate) fn keys(&self) -> impl Iterator<Item = K> {
        self.0.keys()
    }
}

/// Returns the hibernatable sockets that are open, without the keys that they had in an
/// earlier memory of the object.
pub(crate) fn open_sockets(state: &State) -> impl Iterator<Item = Socket> {
    state.get_websockets().into_iter().filter_map(|socket| {
        let socket: Socket = socket.as_ref().clone().unchecked_into();
        socket.set_packed_key(None);
        (socket.ready_state() == web_sys::WebSocket::OPEN).then_some(socket)
    })
}

/// Returns the response to an upgrade request. The runtime gives `client` to the client.
pub(crate) fn upgrade_response(client: &web_sys::WebSocket) -> worker::Result<web_sys::Response> {
    let init = web_sys::ResponseInit::new();
    init.set_status(101);
    Reflect::set(&init, &"webSocket".into(), client)?;
    Ok(web_sys::Response::new_with_opt_str_and_init(None, &init)?)
}

/// Accepts an upgrade request outside of an object, sends these text frames and closes the
/// socket. Returns the response.
pub(crate) fn send_and_close(
    frames: &[String],
    why: Disconnect,
) -> worker::Result<web_sys::Response> {
    let pair = WebSocketPair::new()?;
    let socket: &web_sys::WebSocket = pair.server.as_ref();
    pair.server.accept()?;
    for frame in frames {
        socket.send_with_str(frame)?;
    }
    socket.close_with_code_and_reason(why.code(), why.reason())?;
    upgrade_response(pair.client.as_ref())
}
