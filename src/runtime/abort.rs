//! Requests that their client aborts, or whose connection is lost. The runtime reports them
//! only with the compatibility flag `enable_request_signal`.

use super::log::log_error;
use wasm_bindgen::JsCast;
use wasm_bindgen::closure::Closure;

/// Calls a function if the client aborts a request. Dropping it removes the listener, so that
/// a later abort does not call a function that no longer exists.
pub(crate) struct OnAbort {
    signal: web_sys::AbortSignal,
    listener: Closure<dyn FnMut()>,
}

impl OnAbort {
    /// Adds a listener to the request.
    pub(crate) fn new(request: &web_sys::Request, act: impl FnMut() + 'static) -> Self {
        let (signal, listener) = (request.signal(), Closure::new(act));
        let function = listener.as_ref().unchecked_ref();
        if signal
            .add_event_listener_with_callback("abort", function)
            .is_err()
        {
            log_error("a request without an abort signal");
        }
        OnAbort { signal, listener }
    }
}

impl Drop for OnAbort {
    fn drop(&mut self) {
        let function = self.listener.as_ref().unchecked_ref();
        // Fails only if the listener was not added.
        let _ = self
            .signal
            .remove_event_listener_with_callback("abort", function);
    }
}
