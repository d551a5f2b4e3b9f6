//! Reads the body of a request.

use super::entry::Handler;
use crate::runtime::body::{MAX_DRAIN, read_body};
use roomcast_proto::error::{Error, ErrorCode, Result};

impl Handler<'_> {
    /// Reads the body as text.
    ///
    /// # Errors
    ///
    /// Returns `tooLarge` if the body has more than `MAX_BODY_BYTES`, and `badRequest` if it is
    /// incomplete or not UTF-8.
    pub(super) async fn body(&self) -> Result<String> {
        let limit = self.config.worker.max_body_bytes;
        let body = read_body(self.request.body(), limit, MAX_DRAIN)
            .await
            .map_err(|_| Error::bad_request("the body is incomplete"))?;
        let body = body.ok_or_else(|| {
            let error = format!("the body must have at most {limit} bytes");
            Error::new(ErrorCode::TooLarge, error)
        })?;
        String::from_utf8(body).map_err(|_| Error::bad_request("the body must be JSON in UTF-8"))
    }
}
