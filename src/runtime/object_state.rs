//! The state of a Durable Object (`ctx`), with the members that `worker` does not wrap.

use super::failpoint;
use super::socket::Socket;
use roomcast_proto::time::Millis;
use wasm_bindgen::prelude::*;
use worker::{State, worker_sys};

#[wasm_bindgen]
extern "C" {
    /// The state of an object.
    pub type ObjectState;

    /// The position up to which the object has sent events. JavaScript holds the value, so
    /// it survives a panic, which ends the WebAssembly instance and its memory. It does
    /// not survive hibernation. `undefined` if it was never set.
    #[wasm_bindgen(method, getter, js_name = roomcastDelivered)]
    pub fn delivered(this: &ObjectState) -> JsValue;

    /// Sets [`ObjectState::delivered`].
    #[wasm_bindgen(method, setter, js_name = roomcastDelivered)]
    pub fn set_delivered(this: &ObjectState, delivered: &JsValue);

    #[wasm_bindgen(method, catch, js_name = getWebSocketAutoResponseTimestamp)]
    fn auto_response_timestamp(
        this: &ObjectState,
        socket: &Socket,
    ) -> Result<Option<js_sys::Date>, JsValue>;
}

/// Returns the state of an object.
pub(crate) fn object_state(state: &State) -> &ObjectState {
    let state: &worker_sys::DurableObjectState = state.as_raw();
    state.unchecked_ref()
}

/// Returns the time at which the runtime last answered a ping of the socket by itself. The
/// runtime may report it late.
pub(crate) fn last_ping(state: &State, socket: &Socket) -> Option<Millis> {
    let at = object_state(state)
        .auto_response_timestamp(socket)
        .ok()
        .flatten()?;
    Some((at.get_time() + failpoint::clock_offset()) as Millis)
}
