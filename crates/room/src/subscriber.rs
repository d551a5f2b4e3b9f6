//! The stored form of connections at gateways.

use crate::attachment::Attachment;
use roomcast_proto::link::Item;
use roomcast_proto::reader;

/// The stored record of a connection at a gateway. The JSON of the two variants has no field
/// in common, so it needs no tag.
#[derive(Debug)]
pub enum StoredSubscriber {
    /// The connection is subscribed to the room.
    Subscribed(Attachment),
    /// The connection has ended, and the gateway has not acknowledged this item yet.
    Ended(Item),
}

impl StoredSubscriber {
    /// Returns the JSON to store.
    ///
    /// # Errors
    ///
    /// Fails if serialisation fails, which does not happen.
    pub fn json(&self) -> serde_json::Result<String> {
        match self {
            StoredSubscriber::Subscribed(attachment) => serde_json::to_string(attachment),
            StoredSubscriber::Ended(item) => serde_json::to_string(item),
        }
    }

    /// Parses stored JSON. Returns `None` for the JSON of a later version.
    pub fn parse(json: &str) -> Option<Self> {
        let attachment = reader::from_str(json).map(StoredSubscriber::Subscribed);
        attachment
            .or_else(|_| reader::from_str(json).map(StoredSubscriber::Ended))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_json_keeps_its_form() {
        let subscribed = r#"{"id":"c:1","user":"alice","rights":7,"expires":9,"status":"online","joined":true,"from":3,"remote":true,"token":{}}"#;
        let parsed = StoredSubscriber::parse(subscribed).expect("an attachment");
        let StoredSubscriber::Subscribed(attachment) = &parsed else {
            panic!("a connection");
        };
        assert_eq!((&*attachment.user, attachment.from), ("alice", 3));
        let again = parsed.json().expect("JSON");
        let again = StoredSubscriber::parse(&again);
        assert!(matches!(again, Some(StoredSubscriber::Subscribed(again)) if again == *attachment));
        let ended = r#"{"Lost":{"to":"c:1"}}"#;
        let parsed = StoredSubscriber::parse(ended).expect("an item");
        assert_eq!(parsed.json().expect("JSON"), ended);
    }
}
