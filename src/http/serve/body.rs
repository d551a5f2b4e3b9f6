//! The body of a request, within its limit.

use super::Call;
use crate::runtime::body::{MAX_DRAIN, read_body};
use roomcast_proto::error::{Error, ErrorCode, Result};

impl Call<'_> {
    /// The body as text, within its limit.
    pub(super) async fn body(&self) -> Result<String> {
        let limit = self.config.worker.max_body_bytes;
        let body = read_body(self.request.body(), limit, MAX_DRAIN)
            .await
            .map_err(|_| Error::bad_request("the body ended before its time"))?;
        let body = body.ok_or_else(|| {
            let error = format!("a body may have up to {limit} bytes");
            Error::new(ErrorCode::TooLarge, error)
        })?;
        String::from_utf8(body).map_err(|_| Error::bad_request("the body must be JSON in UTF-8"))
    }
}
