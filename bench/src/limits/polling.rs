//! A minimal Socket.IO client over HTTP long-polling.

use crate::target::Endpoint;
use serde_json::Value;

/// Separates the packets of a body (Engine.IO 4).
pub(super) const SEPARATOR: char = '\u{1e}';

/// An Engine.IO session on long-polling.
#[derive(Clone)]
pub(super) struct Polling {
    http: reqwest::Client,
    url: String,
}

impl Polling {
    /// Opens a session. `token` is empty for a session without a token.
    pub(super) async fn open(
        http: &reqwest::Client,
        endpoint: &Endpoint,
        token: &str,
    ) -> Result<Self, String> {
        let host = &endpoint.host;
        let mut url = format!("http://{host}/socket.io/?EIO=4&transport=polling");
        if !token.is_empty() {
            url = format!("{url}&token={token}");
        }
        let opened = text(http.get(url)).await?;
        let handshake: Value = opened
            .strip_prefix('0')
            .and_then(|data| serde_json::from_str(data).ok())
            .ok_or_else(|| format!("not an open packet: {opened}"))?;
        let sid = handshake["sid"].as_str().unwrap_or_default();
        Ok(Polling {
            http: http.clone(),
            url: format!("http://{host}/socket.io/?EIO=4&transport=polling&sid={sid}"),
        })
    }

    /// Returns the path of the session's requests.
    pub(super) fn path(&self) -> &str {
        let path = self.url.find("/socket.io/").unwrap_or_default();
        &self.url[path..]
    }

    /// Sends packets. Fails unless the server accepts them.
    pub(super) async fn post(&self, body: String) -> Result<(), String> {
        text(self.http.post(&self.url).body(body)).await.map(drop)
    }

    /// Waits for packets and returns them.
    pub(super) async fn poll(&self) -> Result<Vec<String>, String> {
        let body = text(self.http.get(&self.url)).await?;
        Ok(body.split(SEPARATOR).map(str::to_owned).collect())
    }
}

/// Returns the body of a response. Fails on an error status.
async fn text(request: reqwest::RequestBuilder) -> Result<String, String> {
    let answer = request.send().await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = answer.text().await.map_err(|error| error.to_string())?;
    match status.is_success() {
        true => Ok(body),
        false => Err(format!("{status} {body}")),
    }
}
