//! Deadlines of requests to objects.

use super::CallError;
use js_sys::Function;
use roomcast_proto::retry::REQUEST_DEADLINE;
use wasm_bindgen::prelude::*;
use worker::Error;

/// The error of a request that was aborted at its deadline.
const LATE: &str = "the object has not answered before the deadline of the request";

#[wasm_bindgen]
extern "C" {
    type AbortController;

    #[wasm_bindgen(constructor, catch)]
    fn new() -> Result<AbortController, JsValue>;

    #[wasm_bindgen(method, getter)]
    fn signal(this: &AbortController) -> AbortSignal;

    #[wasm_bindgen(method, getter)]
    fn abort(this: &AbortController) -> Function;

    type AbortSignal;

    #[wasm_bindgen(method, getter)]
    fn aborted(this: &AbortSignal) -> bool;

    #[wasm_bindgen(catch, js_name = setTimeout)]
    fn set_timeout(action: &Function, millis: f64) -> Result<JsValue, JsValue>;

    #[wasm_bindgen(js_name = clearTimeout)]
    fn clear_timeout(timer: &JsValue);
}

/// Aborts requests at [`REQUEST_DEADLINE`] after its creation. Dropping it stops the timer.
///
/// `AbortSignal.timeout` is not used, because its timer cannot be stopped: it would keep an
/// object from hibernating, and a busy object would exceed the platform's number of timers.
pub(crate) struct Deadline {
    signal: AbortSignal,
    timer: JsValue,
}

impl Deadline {
    /// Starts the timer.
    #[inline(never)]
    pub(crate) fn start() -> Result<Self, JsValue> {
        let controller = AbortController::new()?;
        // A function of JavaScript, so that it can still be called after a panic.
        let abort = controller.abort().bind0(&controller);
        Ok(Deadline {
            signal: controller.signal(),
            timer: set_timeout(&abort, REQUEST_DEADLINE as f64)?,
        })
    }

    /// Returns the `AbortSignal` for a request.
    pub(super) fn signal(&self) -> &JsValue {
        &self.signal
    }
}

/// Returns the failure of a request from the error of its promise. `deadline` is that of the
/// request.
///
/// The runtime marks the error of an aborted request as `retryable`, but a request whose time
/// is over is not sent again.
#[inline(never)]
pub(super) fn failed(error: JsValue, deadline: Option<&Deadline>) -> CallError {
    match deadline {
        Some(deadline) if deadline.signal.aborted() => Error::RustError(LATE.into()).into(),
        _ => error.into(),
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        clear_timeout(&self.timer);
    }
}
