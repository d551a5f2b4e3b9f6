//! The current time.

use super::failpoint;
use roomcast_proto::time::Millis;

/// Returns the current time. It does not change while a handler runs.
pub(crate) fn now() -> Millis {
    (js_sys::Date::now() + failpoint::clock_offset()) as Millis
}
