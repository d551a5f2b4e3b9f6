//! Requests between the Worker and its Durable Objects.
//!
//! | file | requests to |
//! | --- | --- |
//! | `mod.rs` | any object: [`call`], [`ask`], [`read`], and [`RequestError`] for the answer |
//! | [`broadcast`] | all rooms and gateways with connections |
//! | [`gateways`] | gateways |
//! | [`revocations`] | the revocation registry, and its notices to rooms and gateways |
//! | [`tickets`] | the objects that store tickets |
//!
//! [`crate::slots`] limits the number of requests, and [`Deadline`] their time.
//!
//! The client functions and the types of the requests are here, so that no object imports
//! another. Requests to rooms are types of the core: [`roomcast_room::service`] and
//! [`roomcast_proto::link`]. The [`headers`](super::headers) identify the request.

pub(crate) mod broadcast;
pub(crate) mod gateways;
pub(crate) mod revocations;
pub(crate) mod tickets;

use crate::runtime::deadline::Deadline;
use crate::runtime::log::log_error;
use js_sys::{Object, Promise, Reflect};
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::retry::{Failure, OVERLOAD_PAUSE, PlatformError, REQUEST_DEADLINE};
use std::time::Duration;
use wasm_bindgen::prelude::*;
use worker::wasm_bindgen_futures::JsFuture;
use worker::{Delay, Env, Error, Response, ResponseBuilder};

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

/// Sends a request to an object once, by POST if it has a body. Fails at the deadline.
///
/// Without a deadline: upgrades to WebSockets, whose clients have their own; and polls and
/// POSTs of Engine.IO, which wait for an event or for the body of the client.
///
/// Uses the runtime's own objects: `worker` would create one more request and one more
/// response, which is measurable when thousands of clients connect.
pub(crate) async fn call(
    env: &Env,
    binding: &str,
    name: &str,
    headers: &[(&str, &str)],
    body: Option<JsValue>,
    deadline: Option<&Deadline>,
) -> Result<web_sys::Response, CallError> {
    let answer = JsFuture::from(start(env, binding, name, headers, body, deadline)?);
    match answer.await {
        Ok(answer) => Ok(answer.unchecked_into()),
        Err(error) => Err(failed(error, deadline)),
    }
}

/// Starts a request. Returns the promise of its answer. Not a part of [`call`], so that it is
/// compiled once.
#[inline(never)]
fn start(
    env: &Env,
    binding: &str,
    name: &str,
    headers: &[(&str, &str)],
    body: Option<JsValue>,
    deadline: Option<&Deadline>,
) -> Result<Promise, CallError> {
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
    // A new client for each attempt, because one whose request has failed may be unusable.
    let object: Stub = env.durable_object(binding)?.get_by_name(name)?.into_rpc();
    if let Some(deadline) = deadline {
        Reflect::set(&init, &"signal".into(), deadline.signal())?;
    }
    Ok(object.fetch("https://object/", &init)?)
}

/// Sends a request by [`call`] and returns the status and the text of the answer. All attempts
/// together have one deadline.
pub(crate) async fn ask(
    env: &Env,
    binding: &str,
    name: &str,
    headers: &[(&str, &str)],
    body: String,
    repeat: Repeat,
) -> Result<(u16, String), CallError> {
    let deadline = Deadline::after(REQUEST_DEADLINE)?;
    let body = JsValue::from(body);
    let mut attempts = 0;
    loop {
        let body = Some(body.clone());
        let result = match call(env, binding, name, headers, body, Some(&deadline)).await {
            Ok(answer) => read(&answer, Some(&deadline)).await,
            Err(error) => Err(error),
        };
        attempts += 1;
        let delay = match (&result, repeat) {
            (Err(error), Repeat::IfTransient) => error.retry_delay(attempts),
            _ => None,
        };
        match delay {
            Some(delay) => Delay::from(delay).await,
            None => return result,
        }
    }
}

/// Returns the status and the text of an answer. `deadline` is that of the request.
pub(crate) async fn read(
    answer: &web_sys::Response,
    deadline: Option<&Deadline>,
) -> Result<(u16, String), CallError> {
    match JsFuture::from(answer.text()?).await {
        Ok(text) => Ok((answer.status(), text.as_string().unwrap_or_default())),
        Err(error) => Err(failed(error, deadline)),
    }
}

/// Returns the failure of a request from the error of its promise. `deadline` is that of the
/// request.
#[inline(never)]
fn failed(error: JsValue, deadline: Option<&Deadline>) -> CallError {
    match deadline.and_then(Deadline::exceeded) {
        Some(late) => late.into(),
        None => error.into(),
    }
}

/// Tells [`ask`] when to send a request again after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// After a [`Failure::Transient`]. Only for idempotent requests.
    IfTransient,
    /// Never: the request is not idempotent, or the core repeats it.
    Never,
}

/// The failure of a request to an object.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub(crate) struct CallError {
    /// The kind of the failure.
    pub failure: Failure,
    /// The text of the error; a whole [`Error`] is five times as large.
    cause: String,
}

impl CallError {
    /// Returns the time after which an idempotent request may be sent again: see
    /// [`Failure::retry_delay`].
    pub(crate) fn retry_delay(&self, attempts: usize) -> Option<Duration> {
        let random = getrandom::u32().unwrap_or_default();
        let delay = self.failure.retry_delay(attempts, random);
        delay.map(Duration::from_millis)
    }

    /// Logs the error and returns the error for the client: `rateLimited` if the object is
    /// overloaded, otherwise `internal`.
    #[inline(never)]
    pub(crate) fn into_client_error(self) -> ClientError {
        log_error(&self);
        match self.failure {
            Failure::Overloaded => ClientError::rate_limited("requests", OVERLOAD_PAUSE),
            Failure::Transient | Failure::Other => ClientError::internal(),
        }
    }
}

impl From<JsValue> for CallError {
    #[inline(never)]
    fn from(error: JsValue) -> Self {
        let is_set = |property: &str| {
            Reflect::get(&error, &property.into()).is_ok_and(|value| value.is_truthy())
        };
        let properties = PlatformError {
            retryable: is_set("retryable"),
            overloaded: is_set("overloaded"),
        };
        CallError {
            failure: properties.into(),
            cause: Error::from(error).to_string(),
        }
    }
}

impl From<Error> for CallError {
    #[inline(never)]
    fn from(error: Error) -> Self {
        CallError {
            failure: Failure::Other,
            cause: error.to_string(),
        }
    }
}

impl From<serde_json::Error> for CallError {
    fn from(error: serde_json::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        Error::RustError(error.cause)
    }
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
