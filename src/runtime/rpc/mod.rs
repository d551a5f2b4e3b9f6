//! Requests between the Worker and its Durable Objects.
//!
//! | file | requests to |
//! | --- | --- |
//! | `mod.rs` | any object: [`call`], [`ask`], [`read`], and [`RequestError`] for the answer |
//! | [`gateways`] | gateways |
//! | [`revocations`] | the revocation registry, and its notices to rooms and gateways |
//! | [`tickets`] | the objects that store tickets |
//!
//! The client functions and the types of the requests are here, so that no object imports
//! another. Requests to rooms are types of the core: [`roomcast_room::service`] and
//! [`roomcast_proto::link`]. The [`headers`](super::headers) identify the request.

pub(crate) mod gateways;
pub(crate) mod revocations;
pub(crate) mod tickets;

use js_sys::{Object, Promise, Reflect};
use roomcast_proto::error::Error as ClientError;
use wasm_bindgen::prelude::*;
use worker::wasm_bindgen_futures::JsFuture;
use worker::{Env, Error, Response, ResponseBuilder};

/// The binding of the rooms in wrangler.toml.
pub(crate) const ROOMS: &str = "ROOMS";
/// The binding of the gateways.
pub(crate) const GATEWAYS: &str = "GATEWAYS";
/// The binding of the revocation registry.
pub(crate) const REVOCATIONS: &str = "REVOCATIONS";
/// The binding of the objects that store tickets.
pub(crate) const TICKETS: &str = "TICKETS";

#[wasm_bindgen]
extern "C" {
    /// The client of an object.
    type Stub;

    #[wasm_bindgen(method, catch)]
    fn fetch(this: &Stub, url: &str, init: &web_sys::RequestInit) -> Result<Promise, JsValue>;
}

/// Sends a request to an object, by POST if it has a body.
///
/// Uses the runtime's own objects: `worker` would create one more request and one more
/// response, which is measurable when thousands of clients connect.
pub(crate) async fn call(
    env: &Env,
    binding: &str,
    name: &str,
    headers: &[(&str, &str)],
    body: Option<JsValue>,
) -> worker::Result<web_sys::Response> {
    let init = web_sys::RequestInit::new();
    let fields = Object::new();
    for (header, value) in headers {
        Reflect::set(&fields, &(*header).into(), &(*value).into())?;
    }
    init.set_headers(&fields);
    if let Some(body) = body {
        init.set_method("POST");
        init.set_body(&body);
    }
    let object: Stub = env.durable_object(binding)?.get_by_name(name)?.into_rpc();
    let answer = JsFuture::from(object.fetch("https://object/", &init)?).await?;
    Ok(answer.unchecked_into())
}

/// Sends a request by [`call`] and returns the status and the text of the answer.
pub(crate) async fn ask(
    env: &Env,
    binding: &str,
    name: &str,
    headers: &[(&str, &str)],
    body: String,
) -> worker::Result<(u16, String)> {
    read(&call(env, binding, name, headers, Some(body.into())).await?).await
}

/// Returns the status and the text of an answer.
pub(crate) async fn read(answer: &web_sys::Response) -> worker::Result<(u16, String)> {
    let text = JsFuture::from(answer.text()?).await?;
    Ok((answer.status(), text.as_string().unwrap_or_default()))
}

/// The reason why an object cannot carry out a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The client or the service that sent the request gets this error.
    #[error(transparent)]
    Refused(#[from] ClientError),
    /// The object has failed. The request fails, and the error is logged.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl From<serde_json::Error> for RequestError {
    fn from(error: serde_json::Error) -> Self {
        RequestError::Failed(error.into())
    }
}

/// Returns the answer of an object: the body, or the error of a refusal as JSON.
///
/// # Errors
///
/// Fails if the object has failed.
pub(crate) fn respond(result: Result<Vec<u8>, RequestError>) -> worker::Result<Response> {
    match result {
        Ok(body) => Ok(ResponseBuilder::new().fixed(body)),
        Err(RequestError::Refused(error)) => refuse(&error),
        Err(RequestError::Failed(error)) => Err(error),
    }
}

/// Returns the answer of an object that refuses a request. The Worker turns it into
/// `application/problem+json`.
pub(crate) fn refuse(error: &ClientError) -> worker::Result<Response> {
    Ok(ResponseBuilder::new()
        .with_status(error.code.status())
        .fixed(serde_json::to_vec(error)?))
}
