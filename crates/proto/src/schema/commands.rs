//! The data of each command, and the data of its answer. [`Command::parse`] reads the
//! data field by field, so that an error names the field; these types describe it. A
//! field that is `null` counts as not given.
//!
//! [`Command::parse`]: crate::command::Command::parse

#![allow(dead_code, reason = "these types exist for their schemas")]

use super::values::{Any, CustomEventName, NotNull, Seq};
use crate::answer::{
    Cursor, Empty, Joined, Left, MemberPage, Page, PresenceSet, Receipt, Refreshed,
};
use crate::id::{Epoch, MessageId, RoomName, UserId};
use crate::status::Status;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

/// A room, or an object with fields.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum JoinRoom {
    /// Short for an object with only `roomId`.
    Name(RoomName),
    /// The room and the position from which the client wants to receive events.
    Fields(JoinRoomFields),
}

/// Joins a room: the user becomes a member, and the connection receives its events.
#[derive(Debug, Default, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct JoinRoomFields {
    /// The room. Required on a socket for many rooms.
    room_id: Option<RoomName>,
    /// The sequence number of the last event that the client has.
    #[schemars(with = "Option<Seq>")]
    since: Option<u64>,
    /// The epoch that `since` belongs to.
    epoch: Option<Epoch>,
    /// On a first join: the number of events before the head to send.
    #[schemars(with = "Option<Seq>")]
    history: Option<u64>,
}

/// A room, or an object with fields.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum LeaveRoom {
    /// Short for an object with only `roomId`.
    Name(RoomName),
    /// The room.
    Fields(LeaveRoomFields),
}

/// Ends the membership of the user.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct LeaveRoomFields {
    /// The room. Required on a socket for many rooms.
    room_id: Option<RoomName>,
}

/// Sends a chat message. Further fields are sent with it.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct SendMessage {
    /// The room. Required on a socket for many rooms.
    room_id: Option<RoomName>,
    /// The content of the message: any JSON but `null`.
    #[schemars(with = "NotNull")]
    content: (),
    /// The id of the message. The server makes one if it is not given.
    message_id: Option<MessageId>,
}

/// Sends a custom event.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct Emit {
    /// The room. Required on a socket for many rooms.
    room_id: Option<RoomName>,
    /// The name of the event.
    #[schemars(with = "CustomEventName")]
    event: String,
    /// The data of the event, any JSON. `null` if it is not given.
    #[schemars(default, with = "Any")]
    data: Option<()>,
    /// The id of the event. The server makes one if it is not given.
    message_id: Option<MessageId>,
    /// `true` to send the event to the connected users only and not to store it.
    #[schemars(extend("default" = false))]
    volatile: Option<bool>,
}

/// Moves a cursor of the user.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct MoveCursor {
    /// The room. Required on a socket for many rooms.
    room_id: Option<RoomName>,
    /// The sequence number up to which all events are delivered, or read.
    #[schemars(with = "Seq")]
    seq: u64,
}

/// Starts or stops the typing indicator.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct TypingIndicator {
    /// The room. Required on a socket for many rooms.
    room_id: Option<RoomName>,
    /// `true` to start, `false` to stop.
    is_typing: bool,
}

/// Sets the status of the connection in all its rooms.
#[derive(Debug, JsonSchema)]
pub struct SetPresence {
    /// The new status.
    status: Status,
}

/// Reads a page of the log.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct Sync {
    /// The room. Required on a socket for many rooms.
    room_id: Option<RoomName>,
    /// The sequence number after which the page starts.
    #[schemars(with = "Seq")]
    after: u64,
    /// The maximum number of events; 100 if it is not given.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<u64>,
}

/// Reads a page of the list of members, which is ordered by the user ids.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub struct Members {
    /// The room. Required on a socket for many rooms.
    room_id: Option<RoomName>,
    /// The user id after which the page starts. Without it, the first page is read.
    after: Option<UserId>,
    /// The maximum number of members; 100 if it is not given.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<u64>,
}

/// Replaces the token of the connection.
#[derive(Debug, JsonSchema)]
pub struct RefreshToken {
    /// The new token, of the same user.
    token: String,
}

/// A command, with the schemas of its data and of the data of its answer.
#[derive(Debug)]
pub struct CommandSchema {
    /// The name.
    pub name: &'static str,
    /// One sentence that describes the command.
    pub summary: &'static str,
    /// The data of the command.
    pub data: Schema,
    /// The data of the answer.
    pub answer: Schema,
    /// Data that the server accepts on the socket of a room.
    pub examples: Vec<Value>,
}

/// Returns all commands. `received` generates the data of commands, `sent` that of
/// answers.
pub fn commands(received: &mut SchemaGenerator, sent: &mut SchemaGenerator) -> Vec<CommandSchema> {
    let mut command = |name,
                       summary,
                       data: fn(&mut SchemaGenerator) -> Schema,
                       answer: fn(&mut SchemaGenerator) -> Schema,
                       examples| CommandSchema {
        name,
        summary,
        data: data(received),
        answer: answer(sent),
        examples,
    };
    fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
    vec![
        command(
            "joinRoom",
            "Joins a room.",
            of::<JoinRoom>,
            of::<Joined<'_>>,
            vec![json!("lobby"), json!({ "roomId": "lobby", "since": 7 })],
        ),
        command(
            "leaveRoom",
            "Ends the membership of the user in a room.",
            of::<LeaveRoom>,
            of::<Left<'_>>,
            vec![json!("lobby"), json!({ "roomId": "lobby" })],
        ),
        command(
            "sendMessage",
            "Sends a chat message.",
            of::<SendMessage>,
            of::<Receipt<'_>>,
            vec![json!({ "content": "hello", "messageId": "a1" })],
        ),
        command(
            "emit",
            "Sends a custom event.",
            of::<Emit>,
            |generator| {
                let receipt = of::<Receipt<'_>>(generator);
                let empty = of::<Empty>(generator);
                schemars::json_schema!({
                    "description": "A receipt; `{}` for a volatile event.",
                    "anyOf": [receipt, empty],
                })
            },
            vec![json!({ "event": "cursor:moved", "data": { "x": 1 }, "volatile": true })],
        ),
        command(
            "messageDelivered",
            "Moves the delivered cursor.",
            of::<MoveCursor>,
            of::<Cursor>,
            vec![json!({ "seq": 7 })],
        ),
        command(
            "messageRead",
            "Moves the read cursor, and the delivered cursor with it.",
            of::<MoveCursor>,
            of::<Cursor>,
            vec![json!({ "seq": 7 })],
        ),
        command(
            "typingIndicator",
            "Starts or stops the typing indicator.",
            of::<TypingIndicator>,
            of::<Empty>,
            vec![json!({ "isTyping": true })],
        ),
        command(
            "setPresence",
            "Sets the status of the connection in all its rooms.",
            of::<SetPresence>,
            of::<PresenceSet>,
            vec![json!({ "status": "away" })],
        ),
        command(
            "sync",
            "Reads a page of the log.",
            of::<Sync>,
            of::<Page<'_>>,
            vec![json!({ "after": 0, "limit": 100 })],
        ),
        command(
            "members",
            "Reads a page of the list of members.",
            of::<Members>,
            of::<MemberPage<'_>>,
            vec![json!({ "after": "alice", "limit": 100 })],
        ),
        command(
            "refreshToken",
            "Replaces the token of the connection.",
            of::<RefreshToken>,
            of::<Refreshed<'_>>,
            vec![json!({ "token": "eyJhbGciOiJIUzI1NiJ9…" })],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::event_name::is_reserved;
    use schemars::generate::SchemaSettings;
    use serde_json::value::RawValue;

    fn all() -> (Vec<CommandSchema>, serde_json::Map<String, Value>) {
        let mut received = super::super::deserialize(SchemaSettings::draft2020_12());
        let mut sent = super::super::serialize(SchemaSettings::draft2020_12());
        let commands = commands(&mut received, &mut sent);
        (commands, super::super::definitions(sent, received))
    }

    fn parse(name: &str, data: &Value) -> crate::error::Result<Command> {
        let data = RawValue::from_string(data.to_string()).expect("JSON");
        Command::parse(name, Some(&data))
    }

    #[test]
    fn every_example_is_a_command_and_its_name_is_reserved() {
        for command in all().0 {
            assert!(is_reserved(command.name), "{}", command.name);
            for example in &command.examples {
                let parsed = parse(command.name, example);
                assert!(parsed.is_ok(), "{} {example}: {parsed:?}", command.name);
            }
        }
    }

    #[test]
    fn every_required_field_is_required_and_every_other_is_not() {
        let (commands, definitions) = all();
        for command in commands {
            let schema = command.data.as_value();
            let name = schema["$ref"].as_str().expect("a reference");
            let mut schema = &definitions[name.rsplit('/').next().expect("a name")];
            if let Some(forms) = schema["anyOf"].as_array() {
                let name = forms[1]["$ref"].as_str().expect("a reference");
                schema = &definitions[name.rsplit('/').next().expect("a name")];
            }
            let required: Vec<&str> = schema["required"]
                .as_array()
                .map(|names| names.iter().filter_map(Value::as_str).collect())
                .unwrap_or_default();
            let example = command.examples.last().expect("an example");
            for field in schema["properties"].as_object().expect("fields").keys() {
                let mut data = example.clone();
                data.as_object_mut().expect("an object").remove(field);
                let parsed = parse(command.name, &data);
                let is_required = required.contains(&field.as_str());
                assert_eq!(parsed.is_err(), is_required, "{} {field}", command.name);
                data[field] = Value::Null;
                let parsed = parse(command.name, &data);
                assert_eq!(parsed.is_err(), is_required, "{} {field}", command.name);
            }
        }
    }
}
