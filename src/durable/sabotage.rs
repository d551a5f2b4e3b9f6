//! Failures on demand, to test what becomes of them: with the feature `sabotage`
//! only, which is in no build that is deployed.
//!
//! `POST /sabotage` with a list of [`Point`]s, `["Tick"]`, has the code fail the
//! next time it passes each of them, once for each time it is in the list.

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

#[cfg(not(feature = "sabotage"))]
mod imp {
    use super::Point;

    pub fn panics(_: Point) {}

    pub fn fails(_: Point) -> worker::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "sabotage")]
mod imp {
    use super::Point;
    use js_sys::{Array, JsString, Reflect, global};
    use wasm_bindgen::{JsCast, JsValue};
    use worker::Error;
    use worker::wasm_bindgen_futures::JsFuture;

    /// Kept by JavaScript, for a panic takes the memory of everything else.
    fn planned() -> Array {
        let planned = Reflect::get(&global(), &"sabotage".into());
        planned
            .ok()
            .and_then(|planned| planned.dyn_into().ok())
            .unwrap_or_default()
    }

    /// Does what a request asks for.
    pub async fn plan(request: &web_sys::Request) -> Result<(), JsValue> {
        let list: Array = JsFuture::from(request.json()?).await?.dyn_into()?;
        Reflect::set(&global(), &"sabotage".into(), &list)?;
        Ok(())
    }

    fn is_due(point: Point) -> bool {
        let planned = planned();
        let name: JsString = format!("{point:?}").into();
        let at = planned.index_of(&name, 0);
        if at >= 0 {
            // It stays a list of as many, which hurts nobody.
            planned.set(at as u32, JsValue::NULL);
        }
        at >= 0
    }

    pub fn panics(point: Point) {
        assert!(!is_due(point), "sabotaged: {point:?}");
    }

    pub fn fails(point: Point) -> worker::Result<()> {
        match is_due(point) {
            true => Err(Error::RustError(format!("sabotaged: {point:?}"))),
            false => Ok(()),
        }
    }
}

pub use imp::*;
