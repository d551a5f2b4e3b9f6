//! Frames of clients.

/// A frame of a client.
#[derive(Clone, Copy, Debug)]
pub enum Frame<'a> {
    /// A text frame.
    Text(&'a str),
    /// A binary frame, which the protocol does not allow.
    Binary,
}
