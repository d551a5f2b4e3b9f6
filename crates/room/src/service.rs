//! The requests over HTTP, which the Worker sends to the object of a room.
//!
//! During a deploy the Worker and the object may run different versions. Fields are
//! therefore only added, with a default.

use crate::history::HistoryQuery;
use roomcast_proto::error::Error;
use roomcast_proto::id::{Epoch, EventName, MessageId, UserId};
use roomcast_proto::user_info::UserInfo;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A request of a service to a room, or the read of a user.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Publishes events. The answer is a list with the [`PublishResult`] of each.
    Publish {
        /// The sender of the events.
        sender: UserId,
        /// The profile of the sender.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        info: Option<UserInfo>,
        /// The events.
        messages: Vec<Publication>,
    },
    /// Reads a page of the log.
    Messages(HistoryQuery),
    /// Lists the presence of the members, at most 1,000. Workers of older versions send it;
    /// this version only reads it.
    Presence,
    /// Lists the members, at most 1,000. Workers of older versions send it; this version only
    /// reads it.
    Members,
    /// Reads a page of the list of members, which is in the order of the user ids. The answer is
    /// `{"memberCount":…,"next":…}`, a line break, and the body of the response. `next` is the
    /// user id after which the next page starts, and `null` on the last page.
    List {
        /// `true` for the presence of the members, `false` for their cursors.
        presence: bool,
        /// User id after which the page starts.
        after: Option<UserId>,
        /// Maximum number of members.
        limit: u64,
    },
    /// Makes a user a member.
    AddMember {
        /// The user.
        user: UserId,
    },
    /// Ends the membership of a user.
    RemoveMember {
        /// The user.
        user: UserId,
    },
    /// Closes all connections of a user.
    Kick {
        /// The user.
        user: UserId,
    },
    /// Deletes the room's log and members, and begins a new epoch.
    Delete {
        /// The new epoch.
        epoch: Epoch,
    },
}

impl Request {
    /// Returns `true` if the Worker may send the request again after a failure: reads, a new
    /// membership, and publications that all have a message id. A repetition of the others could
    /// apply to what has happened meanwhile, such as a new connection of the user.
    pub fn is_idempotent(&self) -> bool {
        match self {
            Request::Messages(_)
            | Request::Presence
            | Request::Members
            | Request::List { .. }
            | Request::AddMember { .. } => true,
            // Volatile events are not deduplicated.
            Request::Publish { messages, .. } => messages
                .iter()
                .all(|message| message.message_id.is_some() && !message.volatile),
            Request::RemoveMember { .. } | Request::Kick { .. } | Request::Delete { .. } => false,
        }
    }
}

/// An event that a service publishes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Publication {
    /// The name of the event.
    pub event: EventName,
    /// The data of the event.
    pub data: Box<RawValue>,
    /// The sender's id for the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// `true` if the event is ephemeral.
    #[serde(default)]
    pub volatile: bool,
}

/// The result of a [`Publication`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PublishResult {
    /// The event was accepted. The value is the receipt for the service, a JSON object.
    Accepted(Box<RawValue>),
    /// The event was refused.
    Refused(Error),
}

/// How a [`Request`] is answered.
#[derive(Debug)]
pub enum Served {
    /// With this JSON.
    Now(String),
    /// With this JSON and the status 201: the request has created a resource.
    Created(String),
    /// By an [`Output::Reply`](crate::Output::Reply) when the batch is stored.
    Later,
    /// With this page of the log.
    Page(HistoryQuery),
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_proto::reader;

    #[test]
    fn only_requests_without_further_effects_are_repeated() {
        for (json, expected) in [
            (
                r#"{"Publish":{"sender":"s","messages":[{"event":"x","data":1,"message_id":"m"}]}}"#,
                true,
            ),
            (
                r#"{"Publish":{"sender":"s","messages":[{"event":"x","data":1}]}}"#,
                false,
            ),
            (
                r#"{"Publish":{"sender":"s","messages":[{"event":"x","data":1,"message_id":"m"},{"event":"x","data":1}]}}"#,
                false,
            ),
            (
                r#"{"Publish":{"sender":"s","messages":[{"event":"x","data":1,"message_id":"m","volatile":true}]}}"#,
                false,
            ),
            (
                r#"{"Messages":{"after":1,"before":2,"limit":3,"newest":true}}"#,
                true,
            ),
            (r#""Presence""#, true),
            (r#""Members""#, true),
            (r#"{"List":{"presence":true,"after":null,"limit":3}}"#, true),
            (r#"{"AddMember":{"user":"alice"}}"#, true),
            (r#"{"RemoveMember":{"user":"alice"}}"#, false),
            (r#"{"Kick":{"user":"alice"}}"#, false),
            (r#"{"Delete":{"epoch":"e"}}"#, false),
        ] {
            let request: Request = reader::from_str(json).expect("a request");
            assert_eq!(request.is_idempotent(), expected, "{json}");
        }
    }

    #[test]
    fn the_form_of_requests_is_stable() {
        for json in [
            r#"{"Publish":{"sender":"s","messages":[{"event":"x","data":[1,  2],"volatile":false}]}}"#,
            r#"{"Messages":{"after":1,"before":2,"limit":3,"newest":true}}"#,
            r#""Presence""#,
            r#""Members""#,
            r#"{"List":{"presence":false,"after":"alice","limit":3}}"#,
            r#"{"AddMember":{"user":"alice"}}"#,
            r#"{"RemoveMember":{"user":"alice"}}"#,
            r#"{"Kick":{"user":"alice"}}"#,
            r#"{"Delete":{"epoch":"e"}}"#,
        ] {
            let request: Request = reader::from_str(json).expect("a request");
            assert_eq!(serde_json::to_string(&request).expect("JSON"), json);
        }
        assert!(reader::from_str::<Request>(r#"{"Kick":{}}"#).is_err());
    }
}
