//! HTTP requests to a [`Server`].

use crate::{Server, TIMEOUT, contract};
use reqwest::Method;
use serde_json::Value;

/// An HTTP response.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body, or `null` if it is not JSON.
    pub json: Value,
    /// The body as text.
    pub text: String,
}

impl Answer {
    /// Returns the value of a header, or the empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }

    /// Returns the body of a successful response. Panics on any other status.
    pub fn ok(self) -> Value {
        assert!(self.status < 300, "{} {}", self.status, self.text);
        self.json
    }

    /// Panics unless this is an RFC 9457 problem with this status and code.
    pub fn problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.json["status"], status);
        assert_eq!(self.json["code"], code, "{}", self.text);
        for member in ["type", "title", "detail"] {
            assert!(self.json[member].is_string(), "{member} in {}", self.text);
        }
    }
}

impl Server {
    /// Sends a GET request with a token.
    pub async fn get(&self, path: &str, token: &str) -> Answer {
        self.request("GET", path, Some(token), None).await
    }

    /// Sends a POST request with a token and a JSON body.
    pub async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.request("POST", path, Some(token), Some(body.to_string()))
            .await
    }

    /// Sends a PUT request with a token.
    pub async fn put(&self, path: &str, token: &str) -> Answer {
        self.request("PUT", path, Some(token), None).await
    }

    /// Sends a DELETE request with a token.
    pub async fn delete(&self, path: &str, token: &str) -> Answer {
        self.request("DELETE", path, Some(token), None).await
    }

    /// Sends a request with a bearer token and a body of type `application/json`.
    /// The body need not be valid JSON.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<String>,
    ) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = Vec::new();
        headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
        headers.extend(body.as_ref().map(|_| ("content-type", "application/json")));
        let body = body.unwrap_or_default();
        self.call(method, path, &headers, body.into_bytes()).await
    }

    /// Requests a WebSocket upgrade and returns the whole response. Use it for
    /// upgrades that the server must refuse.
    pub async fn request_upgrade(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut all = vec![
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        all.extend(headers);
        self.call("GET", path, &all, Vec::new()).await
    }

    /// Sends a request with a chunked body, without `Content-Length`.
    pub async fn chunked(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Answer {
        let chunks: Vec<Result<Vec<u8>, std::io::Error>> = body
            .as_bytes()
            .chunks(64 * 1024)
            .map(|chunk| Ok(chunk.to_vec()))
            .collect();
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
        self.call(method, path, headers, body).await
    }

    /// Sends a request with any method, headers and body.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let verb = Method::from_bytes(method.as_bytes()).expect("a method");
        let body = body.into();
        let sent = body.as_bytes().map(<[u8]>::to_vec);
        let mut request = reqwest::Client::new()
            .request(verb, self.url(path))
            .timeout(TIMEOUT)
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("the server answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a body");
        contract::check_exchange(method, path, sent.as_deref(), status, &headers, &text);
        Answer {
            status,
            headers,
            json: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }
}
