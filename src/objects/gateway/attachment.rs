//! Attachments of sockets.

/// Maximum length of an attachment in characters. The platform allows 16,384 bytes, and a
/// character can take two of them.
pub(super) const MAX_ATTACHMENT: usize = 8_000;

/// The text that is attached to a socket.
pub(super) enum Attachment {
    /// The record of the socket.
    Record(String),
    /// The record is in storage under this key, because it is longer than [`MAX_ATTACHMENT`].
    Spilled { key: String },
}

impl Attachment {
    const SPILLED: &str = "spilled:";

    /// Parses an attachment.
    pub(super) fn parse(text: String) -> Self {
        match text.strip_prefix(Self::SPILLED) {
            Some(key) => Attachment::Spilled {
                key: key.to_owned(),
            },
            None => Attachment::Record(text),
        }
    }

    /// Returns the text to attach for a record that is in storage.
    pub(super) fn spilled(key: &str) -> String {
        format!("{}{key}", Self::SPILLED)
    }
}
