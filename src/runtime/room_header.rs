//! The name of a room in the header [`ROOM`](super::headers::ROOM).

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::borrow::Cow;

/// The characters that are encoded, besides those that are not ASCII. A header has no white
/// space at its ends (RFC 9110, 5.5).
const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// Returns the header for a room. The name of a personal room may have characters that a header
/// cannot have. Names without them are not changed, so that older versions read them.
pub(crate) fn encode(room: &str) -> Cow<'_, str> {
    utf8_percent_encode(room, UNSAFE).into()
}

/// Returns the name of the room of a header.
pub(crate) fn decode(header: &str) -> String {
    percent_decode_str(header).decode_utf8_lossy().into_owned()
}
