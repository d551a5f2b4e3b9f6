//! The frames that are sent at the end of a batch.

use crate::ids::ConnId;
use crate::seq_range::SeqRange;
use roomcast_proto::link::PresenceVersion;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// The frames of a batch, one for each connection.
#[derive(Debug, Default)]
pub struct Delivery {
    /// The number of the batch. [`Room::receives`](crate::Room::receives) tells which
    /// connections receive the shared frame.
    pub batch: u64,
    /// The frame for all connections without a custom frame. It is the body of the
    /// [`LogBatch`](crate::log::LogBatch) itself, if the batch has one row and no
    /// ephemeral events.
    pub shared: Option<Rc<String>>,
    /// The frames for single connections. These connections do not receive the shared
    /// frame.
    pub custom: Vec<CustomFrame>,
    /// The logged events in the shared frame.
    pub events: SeqRange,
    /// The version of the presence after the batch.
    pub presence: PresenceVersion,
    /// The shared frame announces all changes of the presence so far.
    pub announces: bool,
}

/// A frame for a single connection: private lines, then parts of the shared frame.
#[derive(Debug)]
pub struct CustomFrame {
    /// The connection.
    pub conn: ConnId,
    /// The private lines.
    pub private: String,
    /// `true` if the parts contain the logged events.
    pub with_events: bool,
    /// The parts of the shared frame in UTF-16 code units, to be joined by line breaks.
    /// The host cuts them out in JavaScript, which already has the shared frame.
    pub shared: Vec<Range<usize>>,
}

impl CustomFrame {
    /// Returns the frame as text; empty if there is no frame.
    pub fn text(&self, shared: &str) -> String {
        let mut text = self.private.clone();
        for part in &self.shared {
            let part = slice_utf16(shared, part.clone());
            if !text.is_empty() && !part.is_empty() {
                text.push('\n');
            }
            text.push_str(&part);
        }
        text
    }
}

impl Delivery {
    /// Returns the custom frames as text; `None` for a connection that receives no frame.
    pub fn frames(&self) -> HashMap<ConnId, Option<String>> {
        let shared = self.shared.as_deref().map_or("", String::as_str);
        let frame =
            |custom: &CustomFrame| Some(custom.text(shared)).filter(|text| !text.is_empty());
        let custom = self.custom.iter();
        custom.map(|custom| (custom.conn, frame(custom))).collect()
    }
}

/// Returns the length of a text in UTF-16 code units, which JavaScript uses.
pub(crate) fn utf16_length(text: &str) -> usize {
    if text.is_ascii() {
        text.len()
    } else {
        text.encode_utf16().count()
    }
}

fn slice_utf16(text: &str, range: Range<usize>) -> Cow<'_, str> {
    if text.is_ascii() {
        return text.get(range).unwrap_or_default().into();
    }
    let units: Vec<u16> = text
        .encode_utf16()
        .skip(range.start)
        .take(range.len())
        .collect();
    String::from_utf16_lossy(&units).into()
}
