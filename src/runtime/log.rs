//! Log records of failures that are not reported by a request or an object.

use super::time::now;
use roomcast_proto::log_record::LogRecord;
use std::fmt::Display;

/// Writes a log record at level `error`, for the operator.
pub(crate) fn log_error(error: impl Display) {
    write_error(error.to_string());
}

/// Separate from [`log_error`], which is compiled for each type.
fn write_error(error: String) {
    worker::console_error!("{}", LogRecord::error(error).line(now()));
}
