//! Responses: JSON, problems and the headers of CORS.

use super::entry::Handler;
use super::problem::{CONTENT_TYPE, Problem};
use crate::runtime::log::log_error;
use roomcast_proto::error::Error;
use std::fmt::Display;
use worker::{Headers, Response, ResponseBuilder};

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

impl Handler<'_> {
    /// Answers the preflight request of a browser.
    pub(super) fn preflight(&self) -> HandlerResult {
        self.with_cors(Ok(ResponseBuilder::new().with_status(204).empty().into()))
    }

    /// Adds the headers with which a page of another origin may read the response, also to a
    /// problem. The caller has checked the origin.
    pub(super) fn with_cors(&self, result: HandlerResult) -> HandlerResult {
        let response = match result {
            Ok(response) => response,
            Err(problem) => problem_response(&problem).map_err(internal)?,
        };
        let Some(origin) = self.header("origin") else {
            return Ok(response);
        };
        // CORS does not apply to WebSockets, and a response with a socket cannot be changed.
        if response.status() == 101 {
            return Ok(response);
        }
        let response = Response::from(response);
        let headers = Headers::new();
        for (name, value) in response.headers().entries() {
            headers.set(&name, &value).map_err(internal)?;
        }
        let requested = self.header("access-control-request-headers");
        for (name, value) in [
            ("access-control-allow-origin", origin.as_str()),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET, POST"),
            (
                "access-control-allow-headers",
                requested.as_deref().unwrap_or(""),
            ),
            // Pages cannot read this header otherwise (Fetch Standard, 3.3.3).
            ("access-control-expose-headers", "Retry-After"),
            // One day, the most that Firefox allows. Other browsers cap it lower.
            ("access-control-max-age", "86400"),
            ("vary", "Origin"),
        ] {
            if !value.is_empty() {
                headers.set(name, value).map_err(internal)?;
            }
        }
        Ok(response.with_headers(headers).into())
    }
}
