//! Deadlines of requests to objects and of other fetches.

use js_sys::Function;
use roomcast_proto::time::Millis;
use wasm_bindgen::prelude::*;
use worker::Error;

/// The error of a request that was aborted at its deadline.
const LATE: &str = "the answer has not arrived before the deadline of the request";

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

/// Aborts requests some time after its creation. Dropping it stops the timer.
///
/// `AbortSignal.timeout` is not used, because its timer cannot be stopped: it would keep an
/// object from hibernating, and a busy object would exceed the platform's number of timers.
pub(crate) struct Deadline {
    signal: AbortSignal,
    timer: JsValue,
}

impl Deadline {
    /// Starts the timer, for a time in milliseconds.
    #[inline(never)]
    pub(crate) fn after(millis: Millis) -> Result<Self, JsValue> {
        let controller = AbortController::new()?;
        // A function of JavaScript, so that it can still be called after a panic.
        let abort = controller.abort().bind0(&controller);
        Ok(Deadline {
            signal: controller.signal(),
            timer: set_timeout(&abort, millis as f64)?,
        })
    }

    /// Returns the `AbortSignal` for a request.
    pub(crate) fn signal(&self) -> &JsValue {
        &self.signal
    }

    /// Returns an error if the deadline has passed. The runtime's own error of an aborted
    /// request looks like a failure that a retry can mend.
    pub(crate) fn exceeded(&self) -> Option<Error> {
        let late = || Error::RustError(LATE.into());
        self.signal.aborted().then(late)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        clear_timeout(&self.timer);
    }
}
