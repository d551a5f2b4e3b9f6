//! The record that a gateway stores under the `pid` of a Socket.IO client, so that the
//! client can resume at another gateway.
//!
//! The gateway that created a `pid` is its home; the `pid` begins with the number of the
//! home. The home stores the record of the client until the client resumes at another
//! gateway. After that, the home stores the name of the other gateway, which stores the
//! record.

use roomcast_proto::time::{DAY, Millis};
use std::fmt::{self, Display};

/// Time for which the home of a `pid` stores the gateway of the client. Longer than most
/// connections last.
pub const MOVED_LIFETIME: Millis = 7 * DAY;

/// The value that a gateway stores under a `pid`. Its text form is stored and sent
/// between gateways, so it must not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedClient {
    /// The record of the client, from [`crate::Output::Save`].
    Record(String),
    /// The client has moved to the gateway with this name.
    Moved(String),
}

impl SavedClient {
    const MOVED: &str = "moved:";

    /// Parses the text form. A record is JSON, so it cannot begin with `moved:`.
    pub fn parse(text: String) -> Self {
        match text.strip_prefix(Self::MOVED) {
            Some(gateway) => SavedClient::Moved(gateway.to_owned()),
            None => SavedClient::Record(text),
        }
    }
}

impl Display for SavedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SavedClient::Record(record) => f.write_str(record),
            SavedClient::Moved(gateway) => write!(f, "{}{gateway}", Self::MOVED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_stable() {
        for (saved, text) in [
            (SavedClient::Record("{}".into()), "{}"),
            (SavedClient::Moved("3".into()), "moved:3"),
        ] {
            assert_eq!(saved.to_string(), text);
            assert_eq!(SavedClient::parse(text.to_owned()), saved);
        }
    }
}
