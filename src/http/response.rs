//! Responses: JSON and problems.

use super::problem::{CONTENT_TYPE, Problem};
use crate::runtime::log::log_error;
use roomcast_proto::error::Error;
use std::fmt::Display;
use worker::ResponseBuilder;

/// The response to a request, or the problem that refuses it.
pub(super) type HandlerResult = Result<web_sys::Response, Problem>;

/// Logs a failure of the platform. The client gets a 500 problem without the cause.
pub(super) fn internal(error: impl Display) -> Problem {
    log_error(error);
    Problem::from(Error::internal())
}

/// Returns a response with these headers.
///
/// # Errors
///
/// Fails if the runtime refuses a header.
pub(super) fn respond(
    status: u16,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> worker::Result<web_sys::Response> {
    let mut response = ResponseBuilder::new().with_status(status);
    for (name, value) in headers {
        response = response.with_header(name, value)?;
    }
    Ok(response.fixed(body).into())
}

/// Returns the response of a problem.
///
/// # Errors
///
/// Fails if the runtime refuses a header.
pub(super) fn problem_response(problem: &Problem) -> worker::Result<web_sys::Response> {
    let mut headers = vec![("content-type", CONTENT_TYPE)];
    for (name, value) in &problem.headers {
        headers.push((name, value));
    }
    respond(problem.status, &headers, problem.json().into_bytes())
}

/// Returns a response with a JSON body.
pub(super) fn json_response(status: u16, json: Vec<u8>) -> HandlerResult {
    let headers = [
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
    ];
    respond(status, &headers, json).map_err(internal)
}
