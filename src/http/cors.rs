//! The headers that allow pages of other origins to read responses (CORS).

use super::entry::Handler;
use super::response::{HandlerResult, internal, problem_response};
use super::route::Readers;
use worker::{Headers, Response, ResponseBuilder};

impl Handler<'_> {
    /// Answers the preflight request of a browser.
    pub(super) fn preflight(&self) -> HandlerResult {
        Ok(ResponseBuilder::new().with_status(204).empty().into())
    }

    /// Adds the headers that allow pages of other origins to read the response, or the
    /// problem.
    pub(super) fn with_cors(&self, readers: Readers, result: HandlerResult) -> HandlerResult {
        let Some(origin) = self.header("origin") else {
            return result;
        };
        if readers == Readers::AllowedOrigins && !self.is_allowed_origin(Some(&origin)) {
            return result;
        }
        let response = match result {
            Ok(response) => response,
            Err(problem) => problem_response(&problem).map_err(internal)?,
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
            ("access-control-allow-methods", "GET, HEAD, POST"),
            (
                "access-control-allow-headers",
                requested.as_deref().unwrap_or(""),
            ),
            // Pages cannot read these headers otherwise (Fetch Standard, 3.3.3).
            (
                "access-control-expose-headers",
                "Link, Retry-After, X-Total-Count",
            ),
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
