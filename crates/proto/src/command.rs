//! The commands of clients, parsed from an event's name and data.

use crate::envelope::Body;
use crate::error::{Error, Result};
use crate::id::{MessageId, RoomName, UserId};
use crate::name;
use crate::position::Position;
use crate::raw_object::{
    self, BOOLEAN, EPOCH, EVENT, Field, MESSAGE_ID, ROOM, RawObject, TEXT, USER, WHOLE,
};
use crate::reader;
use crate::status::Status;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Number of events or members on a page when the client sends no `limit`.
pub const DEFAULT_LIMIT: u64 = 100;

/// Maximum number of events or members on a page.
pub const MAX_LIMIT: u64 = 1_000;

/// A command of a client. `room` is `None` if the client sent no `roomId`. On a room's
/// own socket, such a command is for that room.
///
/// The serde form is for messages between rooms and gateways, which may run different
/// versions: names must not change, and new fields need a default. Clients send
/// commands in the form that [`Command::parse`] reads.
#[derive(Debug, PartialEq, Serialize)]
pub enum Command {
    /// `joinRoom`: becomes a member of the room and subscribes to it.
    Join {
        /// The room.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<RoomName>,
        /// The position from which the client reads the log.
        position: Position,
    },
    /// `leaveRoom`: ends the membership.
    Leave {
        /// The room.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<RoomName>,
    },
    /// `sendMessage` or `emit`: sends an event to the room.
    Send(Send),
    /// `messageDelivered`: moves the delivered cursor.
    Delivered {
        /// The room.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<RoomName>,
        /// Sequence number up to which all events are delivered.
        seq: u64,
    },
    /// `messageRead`: moves the read cursor.
    Read {
        /// The room.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<RoomName>,
        /// Sequence number up to which all events are read.
        seq: u64,
    },
    /// `readReceipt` of the dialect `module`: moves the read cursor to a message.
    ReadMessage {
        /// The room.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<RoomName>,
        /// The last message that is read.
        message_id: MessageId,
    },
    /// `typingIndicator`: starts or stops the typing indicator.
    Typing {
        /// The room.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<RoomName>,
        /// `true` to start, `false` to stop.
        is_typing: bool,
    },
    /// `setPresence`: sets the status of the connection in all its rooms.
    Presence {
        /// The new status.
        status: Status,
    },
    /// `sync`: reads a page of the log.
    Sync {
        /// The room.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<RoomName>,
        /// Sequence number after which the page starts.
        after: u64,
        /// Maximum number of events, between 1 and [`MAX_LIMIT`].
        limit: u64,
    },
    /// `syncMessages` of the dialect `module`: reads a page of the log.
    SyncMessages {
        /// The room.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<RoomName>,
        /// The message after which the page starts; `None` for the newest events.
        #[serde(skip_serializing_if = "Option::is_none")]
        after: Option<MessageId>,
        /// Maximum number of events, between 1 and [`MAX_LIMIT`].
        limit: u64,
    },
    /// `members`: reads a page of the list of members, which is in the order of the user ids.
    Members {
        /// The room.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<RoomName>,
        /// User id after which the page starts; `None` for the first page.
        #[serde(skip_serializing_if = "Option::is_none")]
        after: Option<UserId>,
        /// Maximum number of members, between 1 and [`MAX_LIMIT`].
        limit: u64,
    },
    /// `refreshToken`: replaces the token of the connection.
    Refresh {
        /// The new token, not yet verified.
        token: String,
    },
}

/// An event to be sent to a room by `sendMessage`, by `emit` or by a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Send {
    /// The room; `None` if the client sent no `roomId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<RoomName>,
    /// The content of the event.
    pub body: Body,
    /// The sender's id for the event. A repetition with the same id is not broadcast
    /// again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// `true` if the event is ephemeral: sent to the connected members and not stored.
    pub volatile: bool,
}

// Reads the serde form with the fields of `raw_object`. The derived code would make the
// Worker 4 kB larger in gzip.
impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(d)?;
        Command::read_form(json.get()).map_err(|error| D::Error::custom(error.message))
    }
}

/// The position of `joinRoom`, in the serde form.
const POSITION: Field<Position> = Field {
    expected: "a position",
    read: |json| reader::from_str(json).ok(),
};

/// A presence status.
pub const STATUS: Field<Status> = Field {
    expected: "online, away, busy or offline",
    read: |json| reader::from_str(json).ok(),
};

/// The maximum number of events or members of a page.
pub const LIMIT: Field<u64> = Field {
    expected: "an integer between 1 and 1000",
    read: |json| raw_object::whole(json).filter(|limit| (1..=MAX_LIMIT).contains(limit)),
};

impl Command {
    /// Returns the room that the command names. Returns `None` if it names none, and for
    /// commands that do not concern a single room.
    pub fn room(&self) -> Option<&RoomName> {
        match self {
            Command::Join { room, .. }
            | Command::Leave { room }
            | Command::Delivered { room, .. }
            | Command::Read { room, .. }
            | Command::ReadMessage { room, .. }
            | Command::Typing { room, .. }
            | Command::Sync { room, .. }
            | Command::SyncMessages { room, .. }
            | Command::Members { room, .. } => room.as_ref(),
            Command::Send(send) => send.room.as_ref(),
            Command::Presence { .. } | Command::Refresh { .. } => None,
        }
    }

    /// Returns the room that the command names, to change it: see [`Command::room`]. Returns
    /// `None` for commands that do not concern a single room.
    pub fn room_mut(&mut self) -> Option<&mut Option<RoomName>> {
        match self {
            Command::Join { room, .. }
            | Command::Leave { room }
            | Command::Delivered { room, .. }
            | Command::Read { room, .. }
            | Command::ReadMessage { room, .. }
            | Command::Typing { room, .. }
            | Command::Sync { room, .. }
            | Command::SyncMessages { room, .. }
            | Command::Members { room, .. } => Some(room),
            Command::Send(send) => Some(&mut send.room),
            Command::Presence { .. } | Command::Refresh { .. } => None,
        }
    }

    /// Returns the size in bytes of the event that the command sends, or 0. The other
    /// fields of commands are short.
    pub fn event_bytes(&self) -> usize {
        match self {
            Command::Send(send) => match &send.body {
                Body::Message { fields } => fields.len(),
                Body::Custom { data, .. } => data.len(),
            },
            _ => 0,
        }
    }

    /// Parses the serde form. Does not validate names, because the gateway has validated
    /// them; see [`id`](crate::id).
    fn read_form(json: &str) -> Result<Self> {
        let (name, fields) = RawObject::parse_variant(json)?;
        let room = fields.get("room", TEXT)?.map(RoomName::trusted);
        Ok(match &*name {
            "Join" => Command::Join {
                room,
                position: fields.required("position", POSITION)?,
            },
            "Leave" => Command::Leave { room },
            "Send" => Command::Send(Send {
                room,
                body: Body::read_form(fields.required_raw("body")?.get())?,
                message_id: fields.get("message_id", TEXT)?.map(MessageId::trusted),
                volatile: fields.get("volatile", BOOLEAN)?.unwrap_or(false),
            }),
            "Delivered" => Command::Delivered {
                room,
                seq: fields.required("seq", WHOLE)?,
            },
            "Read" => Command::Read {
                room,
                seq: fields.required("seq", WHOLE)?,
            },
            "ReadMessage" => Command::ReadMessage {
                room,
                message_id: MessageId::trusted(fields.required("message_id", TEXT)?),
            },
            "Typing" => Command::Typing {
                room,
                is_typing: fields.required("is_typing", BOOLEAN)?,
            },
            "Presence" => Command::Presence {
                status: fields.required("status", STATUS)?,
            },
            "Sync" => Command::Sync {
                room,
                after: fields.required("after", WHOLE)?,
                limit: fields.required("limit", WHOLE)?,
            },
            "SyncMessages" => Command::SyncMessages {
                room,
                after: fields.get("after", TEXT)?.map(MessageId::trusted),
                limit: fields.required("limit", WHOLE)?,
            },
            "Members" => Command::Members {
                room,
                after: fields.get("after", TEXT)?.map(UserId::trusted),
                limit: fields.required("limit", WHOLE)?,
            },
            "Refresh" => Command::Refresh {
                token: fields.required("token", TEXT)?,
            },
            _ => return Err(unknown_event(&name)),
        })
    }

    /// Parses the command with the name `event`. `data` is `None` if the client sent
    /// none.
    pub fn parse(event: &str, data: Option<&RawValue>) -> Result<Self> {
        match event {
            "joinRoom" => join(data),
            "leaveRoom" => {
                if let Some(room) = bare_room(data)? {
                    return Ok(Command::Leave { room: Some(room) });
                }
                let data = object_or_empty(data)?;
                Ok(Command::Leave {
                    room: data.get("roomId", ROOM)?,
                })
            }
            "sendMessage" => {
                let data = object_or_empty(data)?;
                if data.raw("content").is_none() {
                    return Err(Error::missing_field("content"));
                }
                Ok(Command::Send(Send {
                    room: data.get("roomId", ROOM)?,
                    message_id: data.get("messageId", MESSAGE_ID)?,
                    volatile: false,
                    body: Body::message(&data),
                }))
            }
            "emit" => {
                let object = object_or_empty(data)?;
                Ok(Command::Send(Send {
                    room: object.get("roomId", ROOM)?,
                    message_id: object.get("messageId", MESSAGE_ID)?,
                    volatile: object.get("volatile", BOOLEAN)?.unwrap_or(false),
                    body: Body::custom(
                        object.required("event", EVENT)?,
                        object.raw("data").unwrap_or(RawValue::NULL),
                    ),
                }))
            }
            "messageDelivered" => {
                let data = object_or_empty(data)?;
                Ok(Command::Delivered {
                    room: data.get("roomId", ROOM)?,
                    seq: data.required("seq", WHOLE)?,
                })
            }
            "messageRead" => {
                let data = object_or_empty(data)?;
                Ok(Command::Read {
                    room: data.get("roomId", ROOM)?,
                    seq: data.required("seq", WHOLE)?,
                })
            }
            "typingIndicator" => {
                let data = object_or_empty(data)?;
                Ok(Command::Typing {
                    room: data.get("roomId", ROOM)?,
                    is_typing: data.required("isTyping", BOOLEAN)?,
                })
            }
            "setPresence" => Ok(Command::Presence {
                status: object_or_empty(data)?.required("status", STATUS)?,
            }),
            "sync" => {
                let data = object_or_empty(data)?;
                Ok(Command::Sync {
                    room: data.get("roomId", ROOM)?,
                    after: data.required("after", WHOLE)?,
                    limit: data.get("limit", LIMIT)?.unwrap_or(DEFAULT_LIMIT),
                })
            }
            "members" => {
                let data = object_or_empty(data)?;
                Ok(Command::Members {
                    room: data.get("roomId", ROOM)?,
                    after: data.get("after", USER)?,
                    limit: data.get("limit", LIMIT)?.unwrap_or(DEFAULT_LIMIT),
                })
            }
            "refreshToken" => Ok(Command::Refresh {
                token: object_or_empty(data)?.required("token", TEXT)?,
            }),
            _ => Err(unknown_event(event)),
        }
    }
}

/// Creates the error for an event that is not a command. The message names the event
/// up to the length of the longest custom event.
fn unknown_event(event: &str) -> Error {
    let shown = shown_event(event);
    Error::bad_request(format!(
        "unknown event `{shown}`: use `emit` to send a custom event"
    ))
}

/// Returns the name of an event for an error message, up to the length of the longest custom
/// event.
pub fn shown_event(event: &str) -> String {
    event.chars().take(name::MAX_EVENT_NAME).collect()
}

/// Returns the fields of the data of a command. Without data, there are none.
///
/// # Errors
///
/// Returns `badRequest` if the data is not an object.
pub fn object_or_empty(data: Option<&RawValue>) -> Result<RawObject<'_>> {
    data.map_or(Ok(RawObject::default()), |data| {
        RawObject::parse(data.get(), "`data`")
    })
}

/// Returns the room if `data` is a string, which is short for an object with `roomId`.
///
/// # Errors
///
/// Returns `badRequest` if the string is not the name of a room.
pub fn bare_room(data: Option<&RawValue>) -> Result<Option<RoomName>> {
    data.filter(|data| data.get().starts_with('"'))
        .map(|data| {
            (ROOM.read)(data.get()).ok_or_else(|| Error::bad_field("roomId", ROOM.expected))
        })
        .transpose()
}

fn join(data: Option<&RawValue>) -> Result<Command> {
    if let Some(room) = bare_room(data)? {
        return Ok(Command::Join {
            room: Some(room),
            position: Position::default(),
        });
    }
    let data = object_or_empty(data)?;
    Ok(Command::Join {
        room: data.get("roomId", ROOM)?,
        position: Position {
            since: data.get("since", WHOLE)?,
            epoch: data.get("epoch", EPOCH)?,
            history: data.get("history", WHOLE)?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EventName;

    fn parse(event: &str, data: &str) -> Result<Command> {
        let raw: Box<RawValue> = serde_json::from_str(data).expect("valid JSON");
        Command::parse(event, Some(&raw))
    }

    #[test]
    fn send_keeps_the_senders_fields_and_drops_the_servers() {
        let command = parse(
            "sendMessage",
            r#"{"content":"hi","senderId":"eve","seq":9,"timestamp":1,"roomId":"r","messageId":"m","x":{"y":[1, 2]}}"#,
        );
        assert_eq!(
            command,
            Ok(Command::Send(Send {
                room: RoomName::parse("r"),
                message_id: MessageId::parse("m"),
                volatile: false,
                body: Body::Message {
                    fields: r#""content":"hi","x":{"y":[1, 2]}"#.into()
                },
            }))
        );
    }

    #[test]
    fn the_serde_form_keeps_every_command_and_the_bytes_of_bodies() {
        for (event, data) in [
            (
                "joinRoom",
                r#"{"roomId":"r","since":1,"epoch":"e","history":2}"#,
            ),
            ("joinRoom", "{}"),
            ("leaveRoom", r#""r""#),
            (
                "sendMessage",
                r#"{"content":1.50,"b": [1,  2],"a":"\u00e9é\"","b":1e400,"messageId":"m"}"#,
            ),
            (
                "emit",
                r#"{"event":"x","data":{"z":1, "a":12345678901234567890.10},"volatile":true}"#,
            ),
            ("emit", r#"{"event":"x"}"#),
            ("messageDelivered", r#"{"seq":7}"#),
            ("messageRead", r#"{"roomId":"r","seq":7}"#),
            ("typingIndicator", r#"{"isTyping":true}"#),
            ("setPresence", r#"{"status":"away"}"#),
            ("sync", r#"{"after":1}"#),
            ("members", r#"{"roomId":"r","after":"bob","limit":7}"#),
            ("members", "{}"),
            ("refreshToken", r#"{"token":"t"}"#),
        ] {
            let command = parse(event, data).expect("a command");
            let json = serde_json::to_string(&command).expect("JSON");
            let read: Command = serde_json::from_str(&json).expect("the same command");
            assert_eq!(read, command, "{json}");
        }
    }

    #[test]
    fn the_serde_form_is_stable() {
        let send = parse("sendMessage", r#"{"content":"hi","roomId":"r"}"#).expect("a command");
        let json = r#"{"Send":{"room":"r","body":{"Message":{"fields":{"content":"hi"}}},"volatile":false}}"#;
        assert_eq!(serde_json::to_string(&send).expect("JSON"), json);
        let emit = parse("emit", r#"{"event":"x","data":[1]}"#).expect("a command");
        let json = r#"{"Send":{"body":{"Custom":{"event":"x","data":[1]}},"volatile":false}}"#;
        assert_eq!(serde_json::to_string(&emit).expect("JSON"), json);
        for broken in [
            r#"{"Message":{"fields":[1]}}"#,
            r#"{"Message":{"fields":"x"}}"#,
        ] {
            assert!(Body::read_form(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_serde_form_of_commands_by_message_id_is_stable() {
        for json in [
            r#"{"ReadMessage":{"room":"r","message_id":"m"}}"#,
            r#"{"SyncMessages":{"room":"r","after":"m","limit":7}}"#,
            r#"{"SyncMessages":{"room":"r","limit":7}}"#,
        ] {
            let command: Command = serde_json::from_str(json).expect("a command");
            assert_eq!(serde_json::to_string(&command).expect("JSON"), json);
            assert_eq!(command.room().map(|room| &**room), Some("r"));
        }
    }

    #[test]
    fn an_incomplete_serde_form_is_rejected() {
        for incomplete in [
            r#"{"Join":{}}"#,
            r#"{"Send":{"volatile":true}}"#,
            r#"{"Read":{"room":"r"}}"#,
            r#"{"ReadMessage":{"room":"r"}}"#,
            r#"{"Sync":{"after":1}}"#,
            r#"{"SyncMessages":{"after":"m"}}"#,
            r#"{"Members":{"after":"bob"}}"#,
            r#"{"Unknown":{}}"#,
            "{}",
            "7",
        ] {
            let read = serde_json::from_str::<Command>(incomplete);
            assert!(read.is_err(), "{incomplete}");
        }
        let leave: Command = serde_json::from_str(r#"{"Leave":{}}"#).expect("a command");
        assert_eq!(leave, Command::Leave { room: None });
    }

    #[test]
    fn content_may_be_any_json_but_null() {
        let send = |content| parse("sendMessage", &format!(r#"{{"content":{content}}}"#));
        for content in ["false", "0", "\"\"", "[]", "{}"] {
            assert!(send(content).is_ok(), "{content}");
        }
        let error = send("null").expect_err("null counts as missing");
        assert_eq!(error.message, "`content` is required");
    }

    #[test]
    fn emit_without_data_sends_null() {
        let command = parse("emit", r#"{"event":"x"}"#).expect("a command");
        let Command::Send(send) = command else {
            panic!("{command:?}");
        };
        let (event, data) = (EventName::trusted("x"), "null".into());
        assert_eq!(send.body, Body::Custom { event, data });
    }

    #[test]
    fn emit_rejects_reserved_event_names() {
        for event in [
            "newMessage",
            "connected",
            "sendMessage",
            "gap",
            "error",
            "",
            "a b",
        ] {
            let data = format!(r#"{{"event":"{event}","data":1}}"#);
            assert!(parse("emit", &data).is_err(), "{event}");
        }
        assert!(parse("emit", r#"{"event":"cursor:moved","data":1}"#).is_ok());
    }

    #[test]
    fn an_unknown_event_is_named_in_the_error() {
        let message = |event: &str| parse(event, "{}").expect_err("no command").message;
        assert_eq!(
            message("chat message"),
            "unknown event `chat message`: use `emit` to send a custom event"
        );
        assert!(message(&"é\n".repeat(10_000)).len() < 300);
    }

    #[test]
    fn the_error_for_a_wrong_field_names_the_field() {
        for (event, data, field) in [
            ("sendMessage", r#"{}"#, "content"),
            ("sendMessage", r#"{"content":1,"messageId":7}"#, "messageId"),
            ("sendMessage", r#"{"content":1,"roomId":"a b"}"#, "roomId"),
            ("messageDelivered", r#"{"seq":-1}"#, "seq"),
            ("messageRead", r#"{"seq":"1"}"#, "seq"),
            ("typingIndicator", r#"{"isTyping":1}"#, "isTyping"),
            ("setPresence", r#"{"status":"gone"}"#, "status"),
            ("sync", r#"{"after":0,"limit":1001}"#, "limit"),
            ("sync", r#"{}"#, "after"),
            ("members", r#"{"limit":0}"#, "limit"),
            ("members", r#"{"limit":1001}"#, "limit"),
            ("members", r#"{"after":7}"#, "after"),
            ("members", r#"{"after":" bob"}"#, "after"),
            ("joinRoom", r#"{"since":1.5}"#, "since"),
            ("joinRoom", r#""a/b""#, "roomId"),
            ("refreshToken", r#"{"token":1}"#, "token"),
            ("emit", r#"{"event":"x","volatile":"yes"}"#, "volatile"),
        ] {
            let error = parse(event, data).expect_err(data);
            assert_eq!(error.field.as_deref(), Some(field), "{event} {data}");
        }
        assert!(parse("sendMessage", "[]").is_err());
        assert!(parse("nothing", "{}").is_err());
    }
}
