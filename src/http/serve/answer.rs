//! Answers: JSON, problems, and the headers by which a page of another origin may
//! read them.

use super::Call;
use crate::http::problem::{CONTENT_TYPE, Problem};
use crate::runtime::log::log_error;
use roomcast_proto::error::Error;
use worker::{Headers, Response, ResponseBuilder};

/// What a request is answered, or refused with.
pub(super) type Handled = Result<web_sys::Response, Problem>;

/// A failure of the platform, not of the request: logged, not told.
pub(super) fn failed(error: impl std::fmt::Display) -> Problem {
    log_error(error);
    Problem::from(Error::internal())
}

pub(super) fn answer_problem(problem: &Problem) -> worker::Result<web_sys::Response> {
    let mut response = ResponseBuilder::new()
        .with_status(problem.status)
        .with_header("content-type", CONTENT_TYPE)?;
    for (name, value) in &problem.headers {
        response = response.with_header(name, value)?;
    }
    Ok(response.fixed(problem.json().into_bytes()).into())
}

pub(super) fn answer_json(status: u16, json: Vec<u8>) -> Handled {
    Ok(ResponseBuilder::new()
        .with_status(status)
        .with_header("content-type", "application/json")
        .map_err(failed)?
        .with_header("cache-control", "no-store")
        .map_err(failed)?
        .fixed(json)
        .into())
}

impl Call<'_> {
    /// The headers by which a page of an allowed origin may read the answer.
    pub(super) fn with_cors(&self, response: impl Into<Response>) -> Handled {
        let response = response.into();
        let Some(origin) = self.header("origin") else {
            return Ok(response.into());
        };
        let headers = Headers::new();
        for (name, value) in response.headers().entries() {
            headers.set(&name, &value).map_err(failed)?;
        }
        let asked = self.header("access-control-request-headers");
        for (name, value) in [
            ("access-control-allow-origin", origin.as_str()),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET, POST"),
            (
                "access-control-allow-headers",
                asked.as_deref().unwrap_or(""),
            ),
            ("access-control-max-age", "86400"),
            ("vary", "Origin"),
        ] {
            if !value.is_empty() {
                headers.set(name, value).map_err(failed)?;
            }
        }
        Ok(response.with_headers(headers).into())
    }
}
