//! Messages between rooms and gateways, and the request to join a room.
//!
//! A gateway holds sockets that are subscribed to many rooms. For a room, each of these
//! subscriptions is a connection, like its own sockets. The room sends one request
//! ([`Push`]) per batch to each gateway, whatever the number of connections. A text for
//! all connections is in the request once.
//!
//! During a deploy the two objects may run different versions, and both may read what the
//! other version stored. Therefore the serialised names of fields and variants never
//! change, none is removed, and new fields have a default. A room of an older version
//! refuses a request with an unknown variant; the gateway treats this as a failed
//! request.

use crate::access::{Rights, TokenId};
use crate::command;
use crate::disconnect::Disconnect;
use crate::id::{ConnectionId, Epoch, GatewayName, RoomName, UserId};
use crate::position::Position;
use crate::reader;
use crate::status::Status;
use crate::time::Millis;
use crate::user_info::{Profile, UserInfo};
use serde::{Deserialize, Serialize};

/// Request of a connection to join a room. Its token has been verified.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// The id of the connection, unique for each connection.
    pub connection_id: ConnectionId,
    /// The user.
    pub user: UserId,
    /// The rights of the user in the room.
    pub rights: Rights,
    /// The time at which the token expires.
    pub expires: Millis,
    /// The address of the client, for the limit of connections per address.
    #[serde(default)]
    pub address: Option<String>,
    /// The position from which the client reads the log.
    #[serde(default)]
    pub position: Position,
    /// The presence status of the connection.
    #[serde(default)]
    pub status: Status,
    /// The claims by which the token can be revoked.
    #[serde(default)]
    pub token: TokenId,
    /// The profile of the user in the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<UserInfo>,
    /// The client speaks a dialect in which receipts name messages by their ids.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_message_ids: bool,
}

impl ConnectRequest {
    /// Returns the profile of the user, with the age of the token that it comes from.
    pub fn profile(&self) -> Profile {
        Profile {
            issued: self.token.issued,
            info: self.info.clone(),
        }
    }
}

/// Request of a gateway to a room.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The name of the gateway.
    pub gateway: GatewayName,
    /// The commands of its connections, in the order in which they arrived.
    pub commands: Vec<Command>,
}

/// The version of the presence that a room has announced: a hash of all members and their
/// statuses. Two versions are equal if they describe the same presence. Below 2^53, so that
/// JavaScript can hold it.
pub type PresenceVersion = u64;

/// The version of a gateway that does not know which presence its clients were told. No
/// room has it: the version of a room is even.
pub const UNKNOWN_PRESENCE: PresenceVersion = 1;

/// Separates the id of a client at a gateway from the rest of a connection id. A client
/// gets a new connection id each time it joins a room.
pub const CLIENT_SEPARATOR: char = ':';

/// Returns the id of the client that a connection of a gateway belongs to.
pub fn client_of(connection: &str) -> &str {
    connection
        .split(CLIENT_SEPARATOR)
        .next()
        .unwrap_or_default()
}

/// A command of a connection of a gateway to a room. Connections are identified by their
/// ids, which are never used twice.
#[derive(Debug, Serialize, Deserialize)]
pub enum Command {
    /// Joins the room. All other connections of the same client ([`client_of`]) have
    /// ended.
    Join {
        /// The request to join.
        #[serde(rename = "hello")]
        request: ConnectRequest,
        /// The id under which the client expects an answer.
        id: Option<u32>,
        /// `true` if the gateway resubscribes a client after a missed delivery. The room
        /// refuses it if the user has left the room since then.
        #[serde(default)]
        again: bool,
    },
    /// A command of a joined connection. The gateway has parsed it and has applied the
    /// limit of the size of a frame.
    Execute {
        /// The connection.
        connection: ConnectionId,
        /// The id under which the client expects an answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u32>,
        /// The command.
        command: command::Command,
    },
    /// Commands of a joined connection, as text. Gateways of older versions send this
    /// variant in place of [`Command::Execute`]; this version only reads it.
    Frame {
        /// The connection.
        connection: ConnectionId,
        /// A frame of the [native framing](crate::framing).
        frame: String,
    },
    /// The client disconnected. All its connections have ended.
    Gone {
        /// One of its connections.
        connection: ConnectionId,
        /// The close code of its socket.
        code: u16,
        /// The time of its last sign of life, if that is not the time of the command.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<Millis>,
    },
    /// The client sent a new token, which has been verified.
    Refresh {
        /// The connection.
        connection: ConnectionId,
        /// The rights that the new token grants in the room.
        rights: Rights,
        /// The time at which the new token expires.
        expires: Millis,
        /// The profile of the user in the new token. Gateways of older versions do not send it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        profile: Option<Profile>,
    },
    /// A connection that was [paused](Pushed::paused) can receive events again.
    Resume {
        /// The connection.
        connection: ConnectionId,
        /// Sequence number up to which the connection has received all events.
        after: u64,
    },
}

impl Command {
    /// Returns the id of the connection.
    pub fn connection(&self) -> &ConnectionId {
        match self {
            Command::Join { request, .. } => &request.connection_id,
            Command::Execute { connection, .. }
            | Command::Frame { connection, .. }
            | Command::Gone { connection, .. }
            | Command::Refresh { connection, .. }
            | Command::Resume { connection, .. } => connection,
        }
    }
}

/// Delivery of a room to a gateway. The body of the request is this header as one line of
/// JSON, followed by the texts of the items without separators, which avoids encoding
/// JSON within JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Push {
    /// The room.
    pub room: RoomName,
    /// The epoch of the room's log.
    pub epoch: Epoch,
    /// Identifies the instance of the room; changes whenever the room is restored.
    pub life: String,
    /// Counts the deliveries of this instance to this gateway. The gateway uses it to
    /// detect a delivery that is repeated because its answer was lost.
    pub number: u64,
    /// The version of the presence that the gateway must have been told before the
    /// delivery; 0 if the room is not sure of it. If the gateway was told another one, its
    /// connections may lack changes.
    #[serde(default)]
    pub presence_before: PresenceVersion,
    /// The version of the presence after the items; 0 from rooms of older versions.
    #[serde(default)]
    pub presence: PresenceVersion,
    /// The items, in order.
    pub items: Vec<Item>,
}

/// One item of a [`Push`]. The serialised names are those of the first version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Item {
    /// The connection is subscribed: it receives every [`Item::Broadcast`] after this
    /// item.
    #[serde(rename = "In")]
    Subscribed {
        /// The connection.
        to: ConnectionId,
        /// Sequence number of the last event before the subscription.
        after: u64,
    },
    /// The connection is unsubscribed.
    #[serde(rename = "Out")]
    Unsubscribed {
        /// The connection.
        to: ConnectionId,
    },
    /// The socket of the connection must be closed.
    Close {
        /// The connection.
        to: ConnectionId,
        /// The reason.
        why: Disconnect,
    },
    /// Asks whether the connection still exists.
    #[serde(rename = "Is")]
    Probe {
        /// The connection.
        to: ConnectionId,
        /// Sequence number up to which the connection should have received all events.
        at: u64,
        /// `true` if the gateway should also [answer](Pushed::active) when the connection was last
        /// active. Gateways of older versions do not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        activity: bool,
    },
    /// The connection does not exist in the room. The gateway should join it again.
    Lost {
        /// The connection.
        to: ConnectionId,
    },
    /// A text for one connection. With `after`, the text is as in [`Item::Broadcast`]. With
    /// `at` alone, it has older events that the client has requested.
    #[serde(rename = "One")]
    Unicast {
        /// The connection.
        to: ConnectionId,
        /// Length of the text.
        bytes: usize,
        /// Sequence number of the last event before those in the text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
        /// Sequence number of the last event in the text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<u64>,
    },
    /// A portion of the log for connections that have received all events up to `after`. A
    /// gateway of an older version refuses the request.
    #[serde(rename = "Many")]
    Multicast {
        /// The connections.
        to: Vec<ConnectionId>,
        /// Length of the text.
        bytes: usize,
        /// Sequence number of the last event before those in the text.
        after: u64,
        /// Sequence number of the last event in the text.
        at: u64,
    },
    /// Changes of the presence for connections that [lack](Pushed::lacking) them. A room sends it
    /// only to gateways that have answered so.
    Presence {
        /// The connections.
        to: Vec<ConnectionId>,
        /// Length of the text.
        bytes: usize,
        /// The connections lack nothing more after the text.
        is_last: bool,
    },
    /// A text for all subscribed connections. The lines of the logged events come first, one
    /// line for each event. A connection receives the events that follow its position, and
    /// the ephemeral events in any case.
    #[serde(rename = "All")]
    Broadcast {
        /// Length of the text.
        bytes: usize,
        /// Connections that do not receive the text.
        not: Vec<ConnectionId>,
        /// Sequence number of the last event before those in the text.
        after: u64,
        /// Sequence number of the last event in the text.
        at: u64,
        /// The text announces all changes of the presence so far. Connections that joined
        /// before may have been shown changes that were not announced.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        presence: bool,
    },
}

/// Answer of a gateway to a [`Push`]. Positions are those after the delivery.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pushed {
    /// Connections that do not exist at the gateway.
    pub gone: Vec<ConnectionId>,
    /// Connections that lack earlier events than those in the delivery, with the sequence
    /// number up to which they have received all events. The room sends them the log from
    /// there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<(ConnectionId, u64)>,
    /// Connections that can receive nothing more at present. They are sent no events until
    /// the gateway sends [`Command::Resume`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paused: Vec<ConnectionId>,
    /// Connections that may lack changes of the presence, by the version that they were told.
    /// The room sends them the changes since then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<(PresenceVersion, Vec<ConnectionId>)>,
    /// The times at which the connections were last active for which the room has asked. 0 if a
    /// time is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub active: Vec<(ConnectionId, Millis)>,
}

impl Item {
    /// Returns the connection that the item is for, or `None` if it is for several.
    pub fn to(&self) -> Option<&ConnectionId> {
        match self {
            Item::Subscribed { to, .. }
            | Item::Unsubscribed { to }
            | Item::Close { to, .. }
            | Item::Probe { to, .. }
            | Item::Lost { to }
            | Item::Unicast { to, .. } => Some(to),
            Item::Multicast { .. } | Item::Presence { .. } | Item::Broadcast { .. } => None,
        }
    }

    /// Returns `true` if the room must keep the item until the gateway acknowledges it.
    /// Otherwise an unsubscribed connection would receive further broadcasts, and a
    /// connection that the room has dropped would not join again. Every other item may be
    /// lost: the gateway detects missing events and asks for them.
    pub fn must_deliver(&self) -> bool {
        matches!(
            self,
            Item::Unsubscribed { .. } | Item::Close { .. } | Item::Lost { .. }
        )
    }

    /// Returns the length of the item's text in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Item::Unicast { bytes, .. }
            | Item::Multicast { bytes, .. }
            | Item::Presence { bytes, .. }
            | Item::Broadcast { bytes, .. } => *bytes,
            _ => 0,
        }
    }

    /// Sets the length of the item's text in bytes, if it has one.
    pub fn set_bytes(&mut self, length: usize) {
        match self {
            Item::Unicast { bytes, .. }
            | Item::Multicast { bytes, .. }
            | Item::Presence { bytes, .. }
            | Item::Broadcast { bytes, .. } => *bytes = length,
            _ => {}
        }
    }
}

impl Push {
    /// Returns the body of the request. `texts` holds the texts of all items without
    /// separators.
    ///
    /// # Errors
    ///
    /// Fails if the header cannot be serialised, which does not happen.
    pub fn body(&self, texts: &str) -> serde_json::Result<String> {
        let mut body = serde_json::to_string(self)?;
        body.reserve(texts.len() + 1);
        body.push('\n');
        body.push_str(texts);
        Ok(body)
    }

    /// Parses the body of a request into the header and the text of each item. Returns
    /// `None` if the body is malformed.
    pub fn parse(body: &str) -> Option<(Push, Vec<&str>)> {
        let (header, mut rest) = body.split_once('\n')?;
        let push: Push = reader::from_str(header).ok()?;
        let mut texts = Vec::with_capacity(push.items.len());
        for item in &push.items {
            let (text, after) = rest.split_at_checked(item.bytes())?;
            texts.push(text);
            rest = after;
        }
        Some((push, texts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_commands_of_connections_is_stable() {
        let json = r#"{"Execute":{"connection":"c","id":7,"command":{"Send":{"room":"r","body":{"Message":{"fields":{"content": 1.50}}},"volatile":false}}}}"#;
        let command: Command = reader::from_str(json).expect("a command");
        assert_eq!(command.connection(), "c");
        assert_eq!(serde_json::to_string(&command).expect("JSON"), json);
        let json = r#"{"Execute":{"connection":"c","command":{"Presence":{"status":"away"}}}}"#;
        let command: Command = reader::from_str(json).expect("a command");
        assert_eq!(serde_json::to_string(&command).expect("JSON"), json);
        // As older versions send it.
        let json = r#"{"Frame":{"connection":"c","frame":"{\"event\":\"sync\"}"}}"#;
        let command: Command = reader::from_str(json).expect("a command");
        assert_eq!(command.connection(), "c");
    }

    /// Rooms and gateways of other versions send and read these forms.
    #[test]
    fn the_forms_of_commands_and_items_are_stable() {
        for json in [
            r#"{"Join":{"hello":{"connection_id":"c:1","user":"alice","rights":7,"expires":9,"address":null,"position":{"since":3,"epoch":"e"},"status":"online","token":{}},"id":null,"again":true}}"#,
            r#"{"Gone":{"connection":"c:1","code":1000}}"#,
            r#"{"Gone":{"connection":"c:1","code":1006,"seen":7}}"#,
            r#"{"Refresh":{"connection":"c:1","rights":7,"expires":9,"profile":{"issued":7,"info":{"name":"A"}}}}"#,
            r#"{"Refresh":{"connection":"c:1","rights":1,"expires":9}}"#,
            r#"{"Resume":{"connection":"c:1","after":3}}"#,
        ] {
            let command: Command = reader::from_str(json).expect("a command");
            assert_eq!(serde_json::to_string(&command).expect("JSON"), json);
        }
        for json in [
            r#"{"In":{"to":"c:1","after":3}}"#,
            r#"{"Out":{"to":"c:1"}}"#,
            r#"{"Close":{"to":"c:1","why":"Kicked"}}"#,
            r#"{"Is":{"to":"c:1","at":3}}"#,
            r#"{"Lost":{"to":"c:1"}}"#,
            r#"{"One":{"to":"c:1","bytes":3}}"#,
            r#"{"One":{"to":"c:1","bytes":3,"after":1,"at":2}}"#,
            r#"{"Many":{"to":["c:1","d:1"],"bytes":3,"after":1,"at":2}}"#,
            r#"{"All":{"bytes":3,"not":["c:1"],"after":1,"at":2}}"#,
        ] {
            let item: Item = reader::from_str(json).expect("an item");
            assert_eq!(serde_json::to_string(&item).expect("JSON"), json);
        }
        for incomplete in [
            r#"{"In":{"to":"c"}}"#,
            r#"{"All":{"bytes":1,"not":[],"at":2}}"#,
        ] {
            assert!(reader::from_str::<Item>(incomplete).is_err());
        }
        assert!(reader::from_str::<Command>(r#"{"Gone":{"code":1}}"#).is_err());
    }

    #[test]
    fn the_answer_of_a_gateway_of_another_version_is_read() {
        for json in [
            r#"{"gone":["c:1"]}"#,
            r#"{"gone":[],"behind":[["c:1",3]],"paused":["d:1"]}"#,
        ] {
            let pushed: Pushed = reader::from_str(json).expect("an answer");
            assert_eq!(serde_json::to_string(&pushed).expect("JSON"), json);
        }
    }

    #[test]
    fn parse_reverses_body() {
        let to = ConnectionId::trusted("c");
        let one = |bytes| Item::Unicast {
            to: to.clone(),
            bytes,
            after: None,
            at: Some(3),
        };
        let push = Push {
            room: RoomName::trusted("r"),
            epoch: Epoch::default(),
            life: String::new(),
            number: 1,
            presence_before: 0,
            presence: 0,
            items: vec![one(3), Item::Unsubscribed { to: to.clone() }, one(2)],
        };
        let body = push.body("\né!\n").expect("JSON");
        let (read, texts) = Push::parse(&body).expect("a push");
        assert_eq!(read.items, push.items);
        assert_eq!(texts, ["\né", "", "!\n"]);
        for broken in ["", "{}", "{}\n", &body[..body.len() - 1], "x\n"] {
            assert!(Push::parse(broken).is_none(), "{broken}");
        }
        let cut_in_a_character = Push {
            items: vec![one(2)],
            ..push
        };
        let body = cut_in_a_character.body("\né").expect("JSON");
        assert!(Push::parse(&body).is_none());
    }
}
