//! What a client may say: one enum, read from an event's name and data.

use super::object::{self, BOOLEAN, EPOCH, EVENT, Kind, MESSAGE_ID, ROOM, TEXT, WHOLE};
use super::{Object, event};
use crate::fault::{Fault, Result};
use serde_json::value::RawValue;

/// Events of one page when `limit` is not given, and the most it may be.
pub const DEFAULT_LIMIT: u64 = 100;
pub const MAX_LIMIT: u64 = 1_000;

/// What a connection asks for. `room` is `None` where the client left `roomId`
/// out, which a room's own socket allows.
#[derive(Debug, PartialEq)]
pub enum Command {
    Join {
        room: Option<String>,
        position: Position,
    },
    Leave {
        room: Option<String>,
    },
    Send(Send),
    Delivered {
        room: Option<String>,
        seq: u64,
    },
    Read {
        room: Option<String>,
        seq: u64,
    },
    Typing {
        room: Option<String>,
        is_typing: bool,
    },
    Presence {
        status: Status,
    },
    Sync {
        room: Option<String>,
        after: u64,
        limit: u64,
    },
    Refresh {
        token: String,
    },
}

/// Where a client wants to start reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Everything after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The epoch `since` belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// On a first join: this many events before the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<u64>,
}

/// An event to be sent to a room: `sendMessage`, `emit`, and what services
/// publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Send {
    pub room: Option<String>,
    pub body: Body,
    /// The sender's own id for it, by which a repetition is known.
    pub message_id: Option<String>,
    /// Never stored, never queued.
    pub volatile: bool,
}

/// What is sent, as JSON text on one line that goes out as it came in.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// The fields of a `newMessage` without the braces: `"content":"hi","x":1`.
    Message { fields: String },
    /// A custom event and its data.
    Custom { event: String, data: String },
}

impl Body {
    /// Of a service's publication: `newMessage` gets the fields of a message
    /// as far as its data is an object.
    pub fn published(event: String, data: &RawValue) -> Self {
        if event == event::NEW_MESSAGE
            && let Ok(object) = Object::parse(data.get(), "`data`")
        {
            return Body::Message {
                fields: message_fields(&object),
            };
        }
        Body::Custom {
            event,
            data: object::on_one_line(data.get()).into_owned(),
        }
    }
}

/// How available a user is, the least first: a user's status is the greatest
/// of its connections'.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Offline,
    Away,
    Busy,
    #[default]
    Online,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Offline => "offline",
            Status::Away => "away",
            Status::Busy => "busy",
            Status::Online => "online",
        }
    }
}

const STATUS: Kind<Status> = Kind {
    expected: "online, away, busy or offline",
    read: |json| serde_json::from_str(json).ok(),
};

const LIMIT: Kind<u64> = Kind {
    expected: "a whole number from 1 to 1000",
    read: |json| object::whole(json).filter(|limit| (1..=MAX_LIMIT).contains(limit)),
};

/// The fields that the server sets, whatever the sender says.
const SERVER_FIELDS: [&str; 5] = ["roomId", "messageId", "senderId", "seq", "timestamp"];

impl Command {
    /// The room it is for, if it says so and is for one at all.
    pub fn room(&self) -> Option<&str> {
        match self {
            Command::Join { room, .. }
            | Command::Leave { room }
            | Command::Delivered { room, .. }
            | Command::Read { room, .. }
            | Command::Typing { room, .. }
            | Command::Sync { room, .. } => room.as_deref(),
            Command::Send(send) => send.room.as_deref(),
            Command::Presence { .. } | Command::Refresh { .. } => None,
        }
    }

    /// Reads the command `event` with its `data`, if it has any.
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
                    return Err(Fault::bad_field("content", "there"));
                }
                Ok(Command::Send(Send {
                    room: data.get("roomId", ROOM)?,
                    message_id: data.get("messageId", MESSAGE_ID)?,
                    volatile: false,
                    body: Body::Message {
                        fields: message_fields(&data),
                    },
                }))
            }
            "emit" => {
                let object = object_or_empty(data)?;
                Ok(Command::Send(Send {
                    room: object.get("roomId", ROOM)?,
                    message_id: object.get("messageId", MESSAGE_ID)?,
                    volatile: object.get("volatile", BOOLEAN)?.unwrap_or(false),
                    body: Body::Custom {
                        event: object.need("event", EVENT)?,
                        data: object.raw("data").map_or("null".into(), |data| {
                            object::on_one_line(data.get()).into_owned()
                        }),
                    },
                }))
            }
            "messageDelivered" => {
                let data = object_or_empty(data)?;
                Ok(Command::Delivered {
                    room: data.get("roomId", ROOM)?,
                    seq: data.need("seq", WHOLE)?,
                })
            }
            "messageRead" => {
                let data = object_or_empty(data)?;
                Ok(Command::Read {
                    room: data.get("roomId", ROOM)?,
                    seq: data.need("seq", WHOLE)?,
                })
            }
            "typingIndicator" => {
                let data = object_or_empty(data)?;
                Ok(Command::Typing {
                    room: data.get("roomId", ROOM)?,
                    is_typing: data.need("isTyping", BOOLEAN)?,
                })
            }
            "setPresence" => Ok(Command::Presence {
                status: object_or_empty(data)?.need("status", STATUS)?,
            }),
            "sync" => {
                let data = object_or_empty(data)?;
                Ok(Command::Sync {
                    room: data.get("roomId", ROOM)?,
                    after: data.need("after", WHOLE)?,
                    limit: data.get("limit", LIMIT)?.unwrap_or(DEFAULT_LIMIT),
                })
            }
            "refreshToken" => Ok(Command::Refresh {
                token: object_or_empty(data)?.need("token", TEXT)?,
            }),
            _ => Err(Fault::bad_request("unknown event")),
        }
    }
}

fn object_or_empty(data: Option<&RawValue>) -> Result<Object<'_>> {
    data.map_or(Ok(Object::default()), |data| {
        Object::parse(data.get(), "`data`")
    })
}

/// `data` where it is just the name of a room.
fn bare_room(data: Option<&RawValue>) -> Result<Option<String>> {
    data.filter(|data| data.get().starts_with('"'))
        .map(|data| {
            (ROOM.read)(data.get()).ok_or_else(|| Fault::bad_field("roomId", ROOM.expected))
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

/// All fields but those that the server sets, as they came.
fn message_fields(object: &Object) -> String {
    let mut out = String::with_capacity(64);
    for (key, value) in object.fields() {
        if SERVER_FIELDS.contains(&key) {
            continue;
        }
        if !out.is_empty() {
            out.push(',');
        }
        event::push_string(&mut out, key);
        out.push(':');
        out.push_str(&object::on_one_line(value.get()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(event: &str, data: &str) -> Result<Command> {
        let raw: Box<RawValue> = serde_json::from_str(data).expect("valid JSON");
        Command::parse(event, Some(&raw))
    }

    #[test]
    fn what_the_sender_gave_is_kept_and_what_the_server_sets_is_dropped() {
        let command = parse(
            "sendMessage",
            r#"{"content":"hi","senderId":"eve","seq":9,"timestamp":1,"roomId":"r","messageId":"m","x":{"y":[1, 2]}}"#,
        );
        assert_eq!(
            command,
            Ok(Command::Send(Send {
                room: Some("r".into()),
                message_id: Some("m".into()),
                volatile: false,
                body: Body::Message {
                    fields: r#""content":"hi","x":{"y":[1, 2]}"#.into()
                },
            }))
        );
    }

    #[test]
    fn content_is_any_json_and_null_is_none() {
        let send = |content| parse("sendMessage", &format!(r#"{{"content":{content}}}"#));
        for content in ["false", "0", "\"\"", "[]", "{}"] {
            assert!(send(content).is_ok(), "{content}");
        }
        assert!(send("null").is_err());
    }

    #[test]
    fn names_of_the_contract_are_refused_as_custom_events() {
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
    fn every_field_of_a_wrong_type_is_named() {
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
            ("joinRoom", r#"{"since":1.5}"#, "since"),
            ("joinRoom", r#""a/b""#, "roomId"),
            ("refreshToken", r#"{"token":1}"#, "token"),
            ("emit", r#"{"event":"x","volatile":"yes"}"#, "volatile"),
        ] {
            let fault = parse(event, data).expect_err(data);
            assert_eq!(fault.field.as_deref(), Some(field), "{event} {data}");
        }
        assert!(parse("sendMessage", "[]").is_err());
        assert!(parse("nothing", "{}").is_err());
    }
}
