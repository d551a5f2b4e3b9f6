//! Failures on demand, to test what becomes of them: with the feature `failpoint`
//! only, which is in no build that is deployed.
//!
//! `POST /failpoints` with `{"points":["Tick"],"ahead":-2000}` has the code fail the
//! next time it passes each of these [`Point`]s, once for each time it is named,
//! and steps the clock to so many milliseconds ahead of the machine's.

/// Where the code can be made to fail.
#[derive(Clone, Copy, Debug)]
pub enum Point {
    /// Panics after a room has taken a frame in.
    Frame,
    /// Panics with a tick decided and nothing of it stored.
    Tick,
    /// Panics with a tick stored and nobody told.
    Stored,
    /// Panics in a room's alarm.
    Alarm,
    /// Panics after a gateway has taken a frame in.
    GatewayFrame,
    /// Panics in what a gateway is sent by a room.
    GatewayPush,
    /// Panics in a gateway's alarm.
    GatewayAlarm,
    /// Has storage fail to write.
    Write,
    /// Has storage fail to read the log.
    Read,
}

#[cfg(not(feature = "failpoints"))]
mod imp {
    use super::Point;

    pub fn panics(_: Point) {}

    pub fn fails(_: Point) -> worker::Result<()> {
        Ok(())
    }

    pub fn ahead() -> f64 {
        0.0
    }
}

#[cfg(feature = "failpoints")]
mod imp {
    use super::Point;
    use js_sys::{Array, JsString, Reflect, global};
    use wasm_bindgen::{JsCast, JsValue};
    use worker::Error;
    use worker::wasm_bindgen_futures::JsFuture;

    /// Where it is kept: by JavaScript, for a panic takes the memory of
    /// everything else.
    const KEPT: &str = "failpoints";

    fn kept(field: &str) -> JsValue {
        Reflect::get(&global(), &KEPT.into())
            .and_then(|kept| Reflect::get(&kept, &field.into()))
            .unwrap_or_default()
    }

    /// Does what a request asks for.
    pub async fn plan(request: &web_sys::Request) -> Result<(), JsValue> {
        let plan = JsFuture::from(request.json()?).await?;
        Reflect::set(&global(), &KEPT.into(), &plan)?;
        Ok(())
    }

    /// Milliseconds.
    pub fn ahead() -> f64 {
        kept("ahead").as_f64().unwrap_or(0.0)
    }

    fn is_due(point: Point) -> bool {
        let Ok(planned) = kept("points").dyn_into::<Array>() else {
            return false;
        };
        let name: JsString = format!("{point:?}").into();
        let at = planned.index_of(&name, 0);
        if at >= 0 {
            // It stays a list of as many, which hurts nobody.
            planned.set(at as u32, JsValue::NULL);
        }
        at >= 0
    }

    pub fn panics(point: Point) {
        assert!(!is_due(point), "failpoint: {point:?}");
    }

    pub fn fails(point: Point) -> worker::Result<()> {
        match is_due(point) {
            true => Err(Error::RustError(format!("failpoint: {point:?}"))),
            false => Ok(()),
        }
    }
}

pub use imp::*;
