//! Failpoints: failures that tests request. Compiled only with the feature `failpoints`,
//! which no deployed build has.
//!
//! `POST /failpoints` with `{"points":["Flush"],"ahead":-2000}` makes the code fail the next
//! time it passes each of these [`Point`]s, once for each time it is listed. It also sets the
//! clock `ahead` milliseconds ahead of the clock of the machine. With `"stopped":true` gateways
//! fail all deliveries of rooms until the next request. `GET /failpoints` returns the
//! [memory account](super::memory).

/// A place in the code that can fail.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Point {
    /// Panics after a room has handled a frame.
    Frame,
    /// Panics after a batch has ended, before any of it is stored.
    Flush,
    /// Panics after a batch was stored, before any of it is sent.
    Stored,
    /// Panics in the alarm of a room.
    Alarm,
    /// Panics after a gateway has handled a frame.
    GatewayFrame,
    /// Panics in the delivery of a room to a gateway.
    GatewayPush,
    /// Fails to accept a socket at a gateway.
    GatewayAccept,
    /// Panics in the alarm of a gateway.
    GatewayAlarm,
    /// Panics in the alarm of the revocation registry, after a notice.
    Notice,
    /// Fails to handle a request to the revocation registry.
    Registry,
    /// Fails to write to storage.
    Write,
    /// Fails to read the log.
    Read,
    /// Fails to store a batch because the storage is full.
    Full,
}

#[cfg(not(feature = "failpoints"))]
mod imp {
    use super::Point;

    /// Panics if a test has requested it.
    pub(crate) fn panics(_: Point) {}

    /// Fails if a test has requested it.
    pub(crate) fn fails(_: Point) -> worker::Result<()> {
        Ok(())
    }

    /// Returns `true` if gateways must not accept deliveries.
    pub(crate) fn is_stopped() -> bool {
        false
    }

    /// Returns the difference to the clock of the machine, in milliseconds.
    pub(crate) fn clock_offset() -> f64 {
        0.0
    }
}

#[cfg(feature = "failpoints")]
mod imp {
    use super::Point;
    use js_sys::{Array, JsString, Reflect, global};
    use std::cell::RefCell;
    use wasm_bindgen::{JsCast, JsValue};
    use worker::Error;
    use worker::wasm_bindgen_futures::JsFuture;

    /// The global property with the request. JavaScript keeps it, because a panic ends the
    /// memory of the WebAssembly instance.
    const PLAN: &str = "failpoints";

    thread_local! {
        /// The request, once it was read. Without a request, a failpoint costs no call of
        /// JavaScript, so that measurements of this build are true for the deployed build.
        static REQUEST: RefCell<Option<JsValue>> = const { RefCell::new(None) };
    }

    /// Returns a field of the request; `undefined` if there is no request.
    fn planned(field: &str) -> JsValue {
        let read = |request: &mut Option<JsValue>| {
            let read_global = || Reflect::get(&global(), &PLAN.into()).unwrap_or_default();
            let request = request.get_or_insert_with(read_global);
            match request.is_undefined() {
                true => JsValue::UNDEFINED,
                false => Reflect::get(request, &field.into()).unwrap_or_default(),
            }
        };
        REQUEST.with_borrow_mut(read)
    }

    /// Takes a request of a test.
    pub(crate) async fn plan(request: &web_sys::Request) -> Result<(), JsValue> {
        let plan = JsFuture::from(request.json()?).await?;
        Reflect::set(&global(), &PLAN.into(), &plan)?;
        REQUEST.set(Some(plan));
        Ok(())
    }

    /// Returns the difference to the clock of the machine, in milliseconds.
    pub(crate) fn clock_offset() -> f64 {
        planned("ahead").as_f64().unwrap_or(0.0)
    }

    /// Returns `true` if gateways must not accept deliveries.
    pub(crate) fn is_stopped() -> bool {
        planned("stopped").is_truthy()
    }

    fn is_due(point: Point) -> bool {
        let Ok(points) = planned("points").dyn_into::<Array>() else {
            return false;
        };
        let name: JsString = format!("{point:?}").into();
        let at = points.index_of(&name, 0);
        if at >= 0 {
            points.set(at as u32, JsValue::NULL);
        }
        at >= 0
    }

    /// Panics if a test has requested it.
    pub(crate) fn panics(point: Point) {
        assert!(!is_due(point), "failpoint: {point:?}");
    }

    /// Fails if a test has requested it.
    pub(crate) fn fails(point: Point) -> worker::Result<()> {
        match is_due(point) {
            true => Err(Error::RustError(format!("failpoint: {point:?}"))),
            false => Ok(()),
        }
    }
}

pub(crate) use imp::*;
