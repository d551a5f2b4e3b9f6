//! The events of a room's log. The server writes them as text
//! ([`envelope`](crate::envelope)); these types describe the text.

#![allow(dead_code, reason = "these types exist for their schemas")]

use super::values::{Any, CustomEventName, Seq, Time};
use crate::id::{MessageId, RoomName, UserId};
use crate::user_info::UserInfo;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

/// The fields that the server adds to an event of a client or a service.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct Stamp {
    /// The room.
    room_id: RoomName,
    /// The id of the event.
    message_id: MessageId,
    /// The sender.
    sender_id: UserId,
    /// The sequence number. Not set for a volatile event.
    #[schemars(skip_serializing_if = "Option::is_none", with = "Seq")]
    seq: Option<u64>,
    /// The time at which the room accepted the event.
    #[schemars(with = "Time")]
    timestamp: String,
    /// The profile of the sender, if the setting `SENDER_INFO` is `true`. Otherwise clients may
    /// send a field with this name.
    #[schemars(skip_serializing_if = "Option::is_none", with = "Any")]
    sender: Option<()>,
}

/// The fields that the server adds to a custom event.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct Meta {
    /// The room. Not set for an event for all connections of the server.
    #[schemars(skip_serializing_if = "Option::is_none", with = "RoomName")]
    room_id: Option<RoomName>,
    /// The id of the event.
    message_id: MessageId,
    /// The sender.
    sender_id: UserId,
    /// The sequence number. Not set for a volatile event.
    #[schemars(skip_serializing_if = "Option::is_none", with = "Seq")]
    seq: Option<u64>,
    /// The time at which the server accepted the event.
    #[schemars(with = "Time")]
    timestamp: String,
    /// The profile of the sender, if the setting `SENDER_INFO` is `true`.
    #[schemars(skip_serializing_if = "Option::is_none", with = "UserInfo")]
    sender: Option<()>,
}

/// A chat message: the fields of the sender and the stamp of the server.
#[derive(Debug, JsonSchema)]
#[schemars(extend("additionalProperties" = true))]
pub struct NewMessage {
    /// The stamp of the server.
    #[schemars(flatten)]
    stamp: Stamp,
    /// The content of the message, any JSON.
    #[schemars(skip_serializing_if = "Option::is_none", with = "Any")]
    content: Option<()>,
}

/// A chat message, as one object of the native framing.
#[derive(Debug)]
pub struct NewMessageEvent;

impl JsonSchema for NewMessageEvent {
    fn schema_name() -> Cow<'static, str> {
        "NewMessageEvent".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let data = generator.subschema_for::<NewMessage>();
        let meta = generator.subschema_for::<Stamp>();
        json_schema!({
            "description": "A chat message. It has `meta` if a service published it. A log of an earlier version may contain data that is not an object; then only `meta` has the stamp.",
            "type": "object",
            "required": ["event", "data"],
            "properties": { "event": { "const": "newMessage" }, "data": true, "meta": meta },
            "anyOf": [
                { "properties": { "data": data } },
                {
                    "required": ["meta"],
                    "properties": { "data": { "not": { "type": "object" } } },
                },
            ],
        })
    }
}

/// A custom event, as one object of the native framing.
#[derive(Debug, JsonSchema)]
pub struct CustomEvent {
    /// The name.
    #[schemars(with = "CustomEventName")]
    event: String,
    /// The data of the sender, any JSON.
    #[schemars(with = "Any")]
    data: (),
    /// The stamp of the server.
    meta: Meta,
}

/// An event of a room's log.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum LoggedEvent {
    /// A chat message.
    Message(#[schemars(with = "NewMessageEvent")] ()),
    /// A custom event.
    Custom(CustomEvent),
}
