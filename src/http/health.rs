//! `GET /healthz`. If the settings are not valid, the entry point answers with 503 and
//! does not call this module.

use super::response::{HandlerResult, json_response};
use roomcast_proto::answer::to_json;
use roomcast_proto::http::Health;

/// Returns the response of a Worker with valid settings.
pub(super) fn respond() -> HandlerResult {
    let health = Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
    };
    json_response(200, to_json(&health).into_bytes())
}
