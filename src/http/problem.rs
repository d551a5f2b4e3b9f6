//! RFC 9457 problems: the one place where an error becomes an HTTP answer.

use roomcast_proto::error::Error;
use serde_json::json;

pub const CONTENT_TYPE: &str = "application/problem+json";

/// What went wrong with a request, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: u16,
    /// Stable, for programs.
    pub code: String,
    /// For developers.
    pub detail: String,
    /// The field that is wrong, where one is.
    pub field: Option<String>,
    /// Headers the status calls for: `Allow`, `Retry-After`, `Upgrade`, …
    pub headers: Vec<(&'static str, String)>,
}

impl Problem {
    pub fn new(status: u16, code: &str, detail: impl Into<String>) -> Self {
        Problem {
            status,
            code: code.to_owned(),
            detail: detail.into(),
            field: None,
            headers: Vec::new(),
        }
    }

    pub fn not_found() -> Self {
        Problem::new(404, "notFound", "there is no such route")
    }

    pub fn method_not_allowed(allowed: &[&str]) -> Self {
        Problem {
            headers: vec![("Allow", allowed.join(", "))],
            ..Problem::new(
                405,
                "methodNotAllowed",
                format!("this route takes {}", allowed.join(", ")),
            )
        }
    }

    pub fn upgrade_required() -> Self {
        Problem {
            headers: vec![("Upgrade", "websocket".to_owned())],
            ..Problem::new(
                426,
                "upgradeRequired",
                "this route takes WebSocket upgrades: send `Upgrade: websocket`",
            )
        }
    }

    /// `{ type, title, status, code, detail, field? }`.
    pub fn json(&self) -> String {
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
            _ => "Internal Server Error",
        };
        let mut problem = json!({
            "type": "about:blank",
            "title": title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        });
        if let Some(field) = &self.field {
            problem["field"] = field.as_str().into();
        }
        problem.to_string()
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = error.code.status();
        let mut headers = Vec::new();
        if let Some(wait) = error.retry_after {
            headers.push(("Retry-After", wait.div_ceil(1000).to_string()));
        }
        if status == 401 {
            headers.push(("WWW-Authenticate", "Bearer".to_owned()));
        }
        Problem {
            status,
            code: error.code.as_str().to_owned(),
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
    fn a_problem_names_the_field_and_has_a_stable_code() {
        let problem = Problem::from(Error::bad_field("since", "a whole number"));
        let json: serde_json::Value = serde_json::from_str(&problem.json()).expect("JSON");
        assert_eq!(json["status"], 400);
        assert_eq!(json["code"], "badRequest");
        assert_eq!(json["field"], "since");
        assert_eq!(json["type"], "about:blank");
    }

    #[test]
    fn a_limit_says_when_to_try_again() {
        let problem = Problem::from(Error::rate_limited("connects", 1_200));
        assert_eq!(problem.headers, vec![("Retry-After", "2".to_owned())]);
    }
}
