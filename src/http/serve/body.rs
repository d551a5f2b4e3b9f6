//! The body of a request, within its limit.

use super::Call;
use crate::fault::{Code, Fault, Result};
use futures_util::StreamExt;
use worker::Request;

/// How much of a body that is too large is read all the same, and dropped: a
/// client that is still sending when it is answered sees a broken pipe instead
/// of the answer.
const MAX_DRAIN: usize = 32 << 20;

impl Call<'_> {
    /// The body as text, within its limit.
    pub(super) async fn body(&self) -> Result<String> {
        let body = self.read_body(self.config.max_body_bytes).await?;
        String::from_utf8(body).map_err(|_| Fault::bad_request("the body must be JSON in UTF-8"))
    }

    pub(super) async fn read_body(&self, limit: usize) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        let mut length = 0;
        // The handle is cloned; the request's own `clone` would copy its body.
        let mut request = Request::from(Clone::clone(&self.request));
        if let Ok(mut chunks) = request.stream() {
            while let Some(chunk) = chunks.next().await {
                let chunk =
                    chunk.map_err(|_| Fault::bad_request("the body ended before its time"))?;
                length += chunk.len();
                if length <= limit {
                    body.extend_from_slice(&chunk);
                } else if length > MAX_DRAIN {
                    break;
                }
            }
        }
        if length > limit {
            let fault = format!("a body may have up to {limit} bytes");
            return Err(Fault::new(Code::TooLarge, fault));
        }
        Ok(body)
    }
}
