//! Problems (RFC 9457). This is the only place where an error becomes an HTTP response.

use roomcast_proto::answer::to_json;
use roomcast_proto::error::Error;
use roomcast_proto::http;

/// The content type of a problem (RFC 9457, 3).
pub const CONTENT_TYPE: &str = "application/problem+json";

/// The error of a request, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The code for programs.
    pub code: &'static str,
    /// The message for developers.
    pub detail: String,
    /// The name of the field with the wrong value, if there is one.
    pub field: Option<String>,
    /// The headers that the status requires, such as `Allow`, `Retry-After` and `Upgrade`.
    pub headers: Vec<(&'static str, String)>,
}

impl Problem {
    /// Creates a problem without field and headers.
    pub fn new(status: u16, code: &'static str, detail: &str) -> Self {
        Problem {
            status,
            code,
            detail: detail.to_owned(),
            field: None,
            headers: Vec::new(),
        }
    }

    /// Creates the 404 problem for a path without a route.
    pub fn not_found() -> Self {
        Problem::new(404, "notFound", "there is no such route")
    }

    /// Creates the 405 problem for a method that the route does not accept.
    pub fn method_not_allowed(allowed: &[&str]) -> Self {
        let allowed = allowed.join(", ");
        let detail = format!("the methods of this route are {allowed}");
        Problem {
            headers: vec![("Allow", allowed)],
            ..Problem::new(405, "methodNotAllowed", &detail)
        }
    }

    /// Creates the 426 problem for a request to a WebSocket route that is not an upgrade.
    pub fn upgrade_required() -> Self {
        Problem {
            headers: vec![("Upgrade", "websocket".to_owned())],
            ..Problem::new(
                426,
                "upgradeRequired",
                "this route accepts WebSocket upgrades only: send `Upgrade: websocket`",
            )
        }
    }

    /// Returns the body: `{ code, detail, field?, status, title, type }`.
    pub fn json(&self) -> String {
        // The names of RFC 9110, 15, and for 429 of RFC 6585, 4.
        let title = match self.status {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            413 => "Content Too Large",
            426 => "Upgrade Required",
            429 => "Too Many Requests",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        to_json(&http::Problem {
            code: self.code,
            detail: &self.detail,
            field: self.field.as_deref(),
            status: self.status,
            title,
            kind: "about:blank",
        })
    }
}

/// Longest reason of a close frame, in bytes (RFC 6455, 5.5).
const MAX_REASON: usize = 123;

impl Problem {
    /// Returns the code with which a socket is closed that is accepted only to tell the client of
    /// the problem: the status with 4000 added, as in [`Disconnect`].
    ///
    /// [`Disconnect`]: roomcast_proto::disconnect::Disconnect
    pub fn close_code(&self) -> u16 {
        4_000 + self.status
    }

    /// Returns the reason of the close frame: `code: detail`, or
    /// `code (retry after 2 s): detail`.
    pub fn close_reason(&self) -> String {
        let (code, detail) = (self.code, &self.detail);
        let mut reason = match self.retry_after() {
            Some(seconds) => format!("{code} (retry after {seconds} s): {detail}"),
            None => format!("{code}: {detail}"),
        };
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        reason
    }

    /// Returns the payload of a CONNECT_ERROR of Socket.IO, as gateways send it.
    pub fn connect_error(&self) -> String {
        let code = to_json(&self.code);
        let message = to_json(&self.detail);
        let seconds = self.retry_after().and_then(|seconds| seconds.parse().ok());
        let retry = seconds.map_or_else(String::new, |seconds: u64| {
            format!(r#","retryAfterMs":{}"#, seconds * 1_000)
        });
        format!(r#"{{"message":{message},"data":{{"code":{code},"message":{message}{retry}}}}}"#)
    }

    fn retry_after(&self) -> Option<&str> {
        let mut headers = self.headers.iter();
        let retry = headers.find(|(name, _)| *name == "Retry-After");
        retry.map(|(_, seconds)| seconds.as_str())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = error.code.status();
        let mut headers = Vec::new();
        if let Some(wait) = error.retry_after {
            // In seconds (RFC 9110, 10.2.3).
            headers.push(("Retry-After", wait.div_ceil(1000).to_string()));
        }
        if status == 401 {
            // Required with 401 (RFC 9110, 15.5.2).
            headers.push(("WWW-Authenticate", "Bearer".to_owned()));
        }
        Problem {
            status,
            code: error.code.as_str(),
            detail: error.message,
            field: error.field,
            headers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_code_and_the_field_of_its_error() {
        let problem = Problem::from(Error::bad_field("since", "a whole number"));
        let json: serde_json::Value = serde_json::from_str(&problem.json()).expect("JSON");
        assert_eq!(json["status"], 400);
        assert_eq!(json["code"], "badRequest");
        assert_eq!(json["field"], "since");
        assert_eq!(json["type"], "about:blank");
    }

    #[test]
    fn a_socket_is_closed_with_the_status_and_the_reason() {
        let problem = Problem::from(Error::unauthorized("the token has expired"));
        assert_eq!(problem.close_code(), 4401);
        assert_eq!(
            problem.close_reason(),
            "unauthorized: the token has expired"
        );
        let problem = Problem::from(Error::rate_limited("connects", 1_200));
        let reason = problem.close_reason();
        assert_eq!(reason, "rateLimited (retry after 2 s): too many connects");
        let error = problem.connect_error();
        let expected = r#"{"message":"too many connects","data":{"code":"rateLimited","message":"too many connects","retryAfterMs":2000}}"#;
        assert_eq!(error, expected);
        let long = Problem::from(Error::unauthorized("é".repeat(100)));
        assert_eq!(long.close_reason().len(), 122);
    }

    #[test]
    fn a_rate_limit_has_retry_after_in_seconds_rounded_up() {
        let problem = Problem::from(Error::rate_limited("connects", 1_200));
        assert_eq!(problem.headers, vec![("Retry-After", "2".to_owned())]);
    }
}
