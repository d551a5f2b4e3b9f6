//! `GET /healthz`. The entry point answers 503 itself if the settings are not valid.

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
