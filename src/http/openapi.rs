//! `GET /openapi.json`: the description of all routes, in OpenAPI 3.1. The build puts
//! `src/http/openapi.json` into the JavaScript module of the Worker. In the WebAssembly
//! module it would be 1 % of its size.

use super::response::{HandlerResult, json_response};
use js_sys::JsString;
use wasm_bindgen::prelude::*;

#[wasm_bindgen(raw_module = "./openapi.json")]
extern "C" {
    #[wasm_bindgen(thread_local_v2, js_name = default)]
    static DOCUMENT: JsString;
}

/// Returns the response with the document.
pub(super) fn respond() -> HandlerResult {
    let document = DOCUMENT.with(|document| String::from(document));
    json_response(200, document.into_bytes())
}
