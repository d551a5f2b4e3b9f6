//! The dialect `module`: the interface of the NestJS module that roomcast replaces.
//!
//! The answers to its commands are events for the caller. If the client has requested an
//! acknowledgement, its callback gets the same data. Its clients do not acknowledge delivery,
//! and name messages by their ids.
//!
//! Rooms send typing indicators and presence updates to the other users only. In the dialect the
//! caller gets its own as well, when the room has accepted the command.

use super::{
    AnswerContext, CommandRule, Commands, Parsed, Request, Translated, Vocabulary, open_args, text,
};
use crate::translate::EventLine;
use roomcast_proto::alias::{self, ROOM_OR_USER};
use roomcast_proto::command::{Command, DEFAULT_LIMIT, LIMIT, object_or_empty};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::event_name::NEW_MESSAGE;
use roomcast_proto::json::push_string;
use roomcast_proto::position::Position;
use roomcast_proto::raw_object::{MESSAGE_ID, RawObject};
use roomcast_proto::time::{Millis, rfc3339};
use serde_json::value::RawValue;

/// The dialect.
pub(super) const MODULE: Vocabulary = Vocabulary {
    name: "module",
    commands: Commands::Table(&[
        CommandRule {
            name: "joinRoom",
            parse: |data| {
                let room = Some(room_of(data)?);
                let position = Position::default();
                Ok(Command::Join { room, position }.into())
            },
            answer: |data, _| Translated::event("joinedRoom", &room_in(data)),
            error: exception,
        },
        CommandRule {
            name: "leaveRoom",
            parse: |data| {
                let room = Some(room_of(data)?);
                Ok(Command::Leave { room }.into())
            },
            answer: |data, _| Translated::event("leftRoom", &room_in(data)),
            error: exception,
        },
        CommandRule {
            name: "sendMessage",
            parse: |data| parse_as("sendMessage", data),
            answer: |data, _| Translated::event("messageSent", &message_sent(data)),
            error: exception,
        },
        CommandRule {
            name: "typingIndicator",
            parse: |data| {
                let mut parsed = parse_as("typingIndicator", data)?;
                if let Request::Command(Command::Typing { is_typing, .. }) = &parsed.request {
                    parsed.flag = *is_typing;
                }
                Ok(parsed)
            },
            answer: typing_accepted,
            error: exception,
        },
        CommandRule {
            name: "presenceUpdate",
            parse: |data| parse_as("setPresence", data),
            answer: presence_accepted,
            error: exception,
        },
        CommandRule {
            name: "readReceipt",
            parse: |data| {
                let data = object_or_empty(data)?;
                Ok(Command::ReadMessage {
                    room: Some(data.required("roomId", ROOM_OR_USER)?),
                    message_id: data.required("messageId", MESSAGE_ID)?,
                }
                .into())
            },
            answer: |data, _| Translated::acknowledgement(data),
            error: exception,
        },
        CommandRule {
            name: "heartbeat",
            parse: |_| {
                Ok(Parsed {
                    request: Request::Nothing,
                    flag: false,
                })
            },
            answer: |data, _| Translated::acknowledgement(data),
            error: exception,
        },
        CommandRule {
            name: "syncMessages",
            parse: |data| {
                let data = object_or_empty(data)?;
                Ok(Command::SyncMessages {
                    room: Some(data.required("roomId", ROOM_OR_USER)?),
                    after: data.get("lastMessageId", MESSAGE_ID)?,
                    limit: data.get("limit", LIMIT)?.unwrap_or(DEFAULT_LIMIT),
                }
                .into())
            },
            answer: synced,
            error: exception,
        },
    ]),
    events: &[
        (NEW_MESSAGE, new_message),
        ("userJoined", |line, now| {
            with_time("userJoinedRoom", line.data, "timestamp", now)
        }),
        ("userLeft", |line, now| {
            with_time("userLeftRoom", line.data, "timestamp", now)
        }),
        ("userTyping", |line, now| {
            with_time("userTyping", line.data, "timestamp", now)
        }),
        ("presenceUpdate", presence_update),
        ("messageRead", message_read),
        // The module has no such events, but they tell the client that it lacks events.
        ("gap", |line, _| Some(open_args(line.name, line.data, None))),
        ("roomClosed", |line, _| {
            Some(open_args(line.name, line.data, None))
        }),
    ],
    has_protocol_events: false,
    has_meta: false,
    acknowledges: true,
    needs_message_ids: true,
};

/// Parses the data of a command that the protocol has with the same data.
fn parse_as(event: &str, data: Option<&RawValue>) -> Result<Parsed> {
    let mut command = Command::parse(event, data)?;
    if let Some(room) = command.room_mut() {
        match room {
            None => return Err(Error::missing_field("roomId")),
            Some(name) => {
                if let Some(resolved) = roomcast_proto::id::RoomName::parse(&alias::resolve(name)) {
                    *name = resolved;
                }
            }
        }
    }
    Ok(command.into())
}

/// Returns the room of `joinRoom` and `leaveRoom`: a string, or `roomId` of an object.
fn room_of(data: Option<&RawValue>) -> Result<roomcast_proto::id::RoomName> {
    match data.filter(|data| data.get().starts_with('"')) {
        Some(name) => (ROOM_OR_USER.read)(name.get())
            .ok_or_else(|| Error::bad_field("roomId", ROOM_OR_USER.expected)),
        None => object_or_empty(data)?.required("roomId", ROOM_OR_USER),
    }
}

/// Returns the room of an answer as a JSON string.
fn room_in(data: &str) -> String {
    let mut room = String::new();
    if let Ok(fields) = RawObject::parse(data, "an answer")
        && let Some(name) = fields.raw("roomId").and_then(|name| text(name.get()))
    {
        push_string(&mut room, &alias::alias_of(&name));
    } else {
        room.push_str("\"\"");
    }
    room
}

/// Writes an object field by field.
#[derive(Default)]
struct Object(String);

impl Object {
    /// Adds a field. `value` is JSON.
    fn push(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        push_string(&mut self.0, name);
        self.0.push(':');
        match (name, text_of_personal_room(value)) {
            ("roomId", Some(alias)) => push_string(&mut self.0, &alias),
            _ => self.0.push_str(value),
        }
    }

    fn push_text(&mut self, name: &str, value: &str) {
        let mut json = String::with_capacity(value.len() + 2);
        push_string(&mut json, value);
        self.push(name, &json);
    }

    /// Adds the fields of an object, except for some.
    fn push_fields(&mut self, fields: &RawObject<'_>, except: &[&str]) {
        for (name, value) in fields.fields() {
            if !except.contains(&name) {
                self.push(name, value.get());
            }
        }
    }

    fn finish(mut self) -> String {
        self.0.push_str(if self.0.is_empty() { "{}" } else { "}" });
        self.0
    }
}

/// Returns the alias if the JSON is the name of a personal room.
fn text_of_personal_room(json: &str) -> Option<String> {
    let name = json.strip_prefix("\"@").and_then(|_| text(json))?;
    Some(alias::alias_of(&name).into_owned())
}

/// Returns the event `name` with the fields of `data` and the current time in `field`.
fn with_time(name: &str, data: &str, field: &str, now: Millis) -> Option<String> {
    let fields = RawObject::parse(data, "an event").ok()?;
    let mut object = Object::default();
    object.push_fields(&fields, &[]);
    object.push_text(field, &rfc3339(now));
    Some(open_args(name, &object.finish(), None))
}

fn new_message(line: &EventLine<'_>, _: Millis) -> Option<String> {
    let Ok(fields) = RawObject::parse(line.data, "an event") else {
        // Older versions accepted other data from services.
        return Some(open_args(line.name, line.data, None));
    };
    let mut object = Object::default();
    // A sender could set these fields.
    object.push_fields(&fields, &["id", "sender"]);
    for (name, from) in [("id", "messageId"), ("sender", "senderId")] {
        if let Some(value) = fields.raw(from) {
            object.push(name, value.get());
        }
    }
    Some(open_args(line.name, &object.finish(), None))
}

fn presence_update(line: &EventLine<'_>, now: Millis) -> Option<String> {
    let fields = RawObject::parse(line.data, "an event").ok()?;
    let mut object = Object::default();
    object.push_fields(&fields, &["lastSeen"]);
    match fields.raw("lastSeen") {
        Some(last_seen) => object.push("lastActive", last_seen.get()),
        None => object.push_text("lastActive", &rfc3339(now)),
    }
    Some(open_args(line.name, &object.finish(), None))
}

/// Translates a receipt. A room of an older version does not send the id of the message.
fn message_read(line: &EventLine<'_>, now: Millis) -> Option<String> {
    let fields = RawObject::parse(line.data, "an event").ok()?;
    fields.raw("messageId")?;
    with_time(line.name, line.data, "timestamp", now)
}

fn exception(error: &str) -> Translated {
    let mut object = Object::default();
    object.push_text("status", "error");
    if let Ok(fields) = RawObject::parse(error, "an error") {
        object.push_fields(&fields, &[]);
    }
    Translated::event("exception", &object.finish())
}

fn message_sent(receipt: &str) -> String {
    let mut object = Object::default();
    if let Ok(fields) = RawObject::parse(receipt, "an answer") {
        if let Some(id) = fields.raw("messageId") {
            object.push("id", id.get());
        }
        object.push_fields(&fields, &[]);
    }
    object.push_text("status", "sent");
    object.finish()
}

fn typing_accepted(data: &str, context: &AnswerContext<'_>) -> Translated {
    let mut object = Object::default();
    object.push_text("userId", context.user);
    if let Some(room) = context.room {
        object.push_text("roomId", room);
    }
    object.push("isTyping", if context.flag { "true" } else { "false" });
    object.push_text("timestamp", &rfc3339(context.now));
    Translated {
        events: vec![open_args("userTyping", &object.finish(), None)],
        ..Translated::acknowledgement(data)
    }
}

fn presence_accepted(data: &str, context: &AnswerContext<'_>) -> Translated {
    let mut object = Object::default();
    object.push_text("userId", context.user);
    if let Ok(fields) = RawObject::parse(data, "an answer") {
        object.push_fields(&fields, &[]);
    }
    object.push_text("lastActive", &rfc3339(context.now));
    Translated {
        events: vec![open_args("presenceUpdate", &object.finish(), None)],
        ..Translated::acknowledgement(data)
    }
}

/// Translates a page of the log: the missed messages, then `syncComplete`.
fn synced(page: &str, context: &AnswerContext<'_>) -> Translated {
    let fields = RawObject::parse(page, "a page").unwrap_or_default();
    let events = fields.raw("events").map_or("[]", RawValue::get);
    let events: Vec<&RawValue> = serde_json::from_str(events).unwrap_or_default();
    let lines = events
        .iter()
        .filter_map(|event| EventLine::parse(event.get()));
    let mut events: Vec<String> = lines
        .filter_map(|line| context.dialect.event(&line, context.now))
        .collect();
    let mut object = Object::default();
    if let Some(room) = context.room {
        object.push_text("roomId", room);
    }
    object.push("syncedMessageCount", &events.len().to_string());
    if fields.raw("more").is_some_and(|more| more.get() == "true") {
        object.push("more", "true");
    }
    if let Some(gap) = fields.raw("gap") {
        object.push("gap", gap.get());
    }
    let done = object.finish();
    events.push(open_args("syncComplete", &done, None));
    Translated {
        events,
        ..Translated::acknowledgement(&done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ClientEvent, Dialect, Outcome};
    use super::*;
    use roomcast_proto::error::ErrorCode;
    use roomcast_proto::framing;
    use roomcast_proto::id::{MessageId, RoomName, UserId};
    use roomcast_proto::status::Status;

    const NOW: Millis = 1_800_000_000_000;
    const TIME: &str = "2027-01-15T08:00:00.000Z";

    fn module() -> Dialect {
        Dialect::parse("module").expect("the dialect")
    }

    fn event(args: &str, ack: Option<i64>) -> ClientEvent {
        module().parse_event(args, ack).expect("an event")
    }

    fn command(args: &str) -> Command {
        match event(args, None).request {
            Ok(Request::Command(command)) => command,
            other => panic!("{args}: {other:?}"),
        }
    }

    #[test]
    fn every_command_of_the_module_is_parsed() {
        let room = || Some(RoomName::trusted("r"));
        let position = Position::default();
        let message_id = MessageId::trusted("m");
        for (args, expected) in [
            (
                r#"["joinRoom","r"]"#,
                Command::Join {
                    room: room(),
                    position,
                },
            ),
            (r#"["leaveRoom","r"]"#, Command::Leave { room: room() }),
            (
                r#"["typingIndicator",{"roomId":"r","isTyping":true}]"#,
                Command::Typing {
                    room: room(),
                    is_typing: true,
                },
            ),
            (
                r#"["presenceUpdate",{"status":"away"}]"#,
                Command::Presence {
                    status: Status::Away,
                },
            ),
            (
                r#"["readReceipt",{"messageId":"m","roomId":"r"}]"#,
                Command::ReadMessage {
                    room: room(),
                    message_id: message_id.clone(),
                },
            ),
            (
                r#"["syncMessages",{"roomId":"r","lastMessageId":"m","limit":7}]"#,
                Command::SyncMessages {
                    room: room(),
                    after: Some(message_id),
                    limit: 7,
                },
            ),
            (
                r#"["syncMessages",{"roomId":"r"}]"#,
                Command::SyncMessages {
                    room: room(),
                    after: None,
                    limit: DEFAULT_LIMIT,
                },
            ),
        ] {
            assert_eq!(command(args), expected, "{args}");
        }
        let send = r#"["sendMessage",{"roomId":"r","content":"hi","x":1}]"#;
        let Command::Send(send) = command(send) else {
            panic!("no send");
        };
        assert_eq!(
            (send.room, send.body.size()),
            (room(), r#""content":"hi","x":1"#.len())
        );
        assert_eq!(
            event(r#"["heartbeat"]"#, None).request,
            Ok(Request::Nothing)
        );
    }

    #[test]
    fn the_own_room_of_a_user_has_the_name_of_the_module() {
        let own = Some(RoomName::trusted("@alice"));
        for args in [
            r#"["joinRoom","user:alice"]"#,
            r#"["readReceipt",{"messageId":"m","roomId":"user:alice"}]"#,
            r#"["sendMessage",{"roomId":"user:alice","content":1}]"#,
        ] {
            assert_eq!(command(args).room().cloned(), own, "{args}");
        }
        let line = EventLine::parse(
            r#"{"event":"newMessage","data":{"content":1,"roomId":"@alice","messageId":"m","senderId":"s","seq":1}}"#,
        );
        let args = module().event(&line.expect("an event"), NOW);
        assert!(args.expect("an event").contains(r#""roomId":"user:alice""#));
    }

    #[test]
    fn an_event_that_is_no_command_is_named_in_the_error() {
        for (args, part) in [
            (r#"["teleport",{}]"#, "unknown event `teleport`"),
            // A command of the protocol, not of the module.
            (
                r#"["setPresence",{"status":"away"}]"#,
                "unknown event `setPresence`",
            ),
            (r#"["joinRoom"]"#, "`roomId` is required"),
            (r#"["joinRoom","a b"]"#, "`roomId` must be a room name"),
            (r#"["sendMessage",{"content":1}]"#, "`roomId` is required"),
            (r#"["sendMessage",{"roomId":"r"}]"#, "`content` is required"),
            (
                r#"["readReceipt",{"roomId":"r"}]"#,
                "`messageId` is required",
            ),
            (
                r#"["syncMessages",{"roomId":"r","limit":0}]"#,
                "`limit` must be",
            ),
        ] {
            let event = event(args, Some(3));
            let error = event.request.expect_err(args);
            assert_eq!(error.code, ErrorCode::BadRequest);
            assert!(error.message.contains(part), "{}", error.message);
            let answer = answer(event.id, Err(&error));
            let exception = &answer.events[0];
            assert!(
                exception.starts_with(r#"["exception",{"status":"error","#),
                "{exception}"
            );
            assert_eq!(answer.ack, Some(3));
        }
        assert_eq!(module().parse_event("{}", None), None);
    }

    /// Returns the translated answer to the command with this id.
    fn answer(id: Option<u32>, outcome: std::result::Result<&str, &Error>) -> Translated {
        let (user, room) = (UserId::trusted("alice"), RoomName::trusted("r"));
        let context = AnswerContext::new(module(), &user, Some(&room), NOW);
        let fields;
        let outcome = match outcome {
            Ok(data) => Outcome::Data(data),
            Err(error) => {
                fields = roomcast_proto::event::error_fields(error);
                Outcome::Error(&fields)
            }
        };
        module().answer(i64::from(id.expect("an id")), outcome, &context)
    }

    #[test]
    fn answers_are_events_and_acknowledgements_with_the_same_data() {
        for (args, data, name, expected) in [
            (
                r#"["joinRoom","r"]"#,
                r#"{"roomId":"r","epoch":"e","seq":1}"#,
                "joinedRoom",
                r#""r""#.to_owned(),
            ),
            (
                r#"["leaveRoom","r"]"#,
                r#"{"roomId":"r"}"#,
                "leftRoom",
                r#""r""#.to_owned(),
            ),
            (
                r#"["sendMessage",{"roomId":"r","content":1}]"#,
                r#"{"messageId":"m","seq":3,"timestamp":"t"}"#,
                "messageSent",
                r#"{"id":"m","messageId":"m","seq":3,"timestamp":"t","status":"sent"}"#.to_owned(),
            ),
        ] {
            for ack in [None, Some(0), Some(7)] {
                let event = event(args, ack);
                let answer = answer(event.id, Ok(data));
                assert_eq!(answer.events, [format!(r#"["{name}",{expected}"#)]);
                assert_eq!(
                    (answer.ack, &*answer.args),
                    (ack, &*format!("[{expected}]"))
                );
            }
        }
        for (args, data) in [
            (
                r#"["readReceipt",{"roomId":"r","messageId":"m"}]"#,
                r#"{"seq":3}"#,
            ),
            (r#"["heartbeat"]"#, "{}"),
        ] {
            let answer = answer(event(args, Some(1)).id, Ok(data));
            assert!(answer.events.is_empty());
            assert_eq!((answer.ack, answer.args), (Some(1), format!("[{data}]")));
        }
    }

    #[test]
    fn the_caller_gets_its_own_typing_indicator_and_presence() {
        for (args, data, expected) in [
            (
                r#"["typingIndicator",{"roomId":"r","isTyping":true}]"#,
                "{}",
                format!(
                    r#"["userTyping",{{"userId":"alice","roomId":"r","isTyping":true,"timestamp":"{TIME}"}}"#
                ),
            ),
            (
                r#"["typingIndicator",{"roomId":"r","isTyping":false}]"#,
                "{}",
                format!(
                    r#"["userTyping",{{"userId":"alice","roomId":"r","isTyping":false,"timestamp":"{TIME}"}}"#
                ),
            ),
            (
                r#"["presenceUpdate",{"status":"busy"}]"#,
                r#"{"status":"busy"}"#,
                format!(
                    r#"["presenceUpdate",{{"userId":"alice","status":"busy","lastActive":"{TIME}"}}"#
                ),
            ),
        ] {
            let answer = answer(event(args, None).id, Ok(data));
            assert_eq!(answer.events, [expected]);
            assert_eq!(answer.ack, None);
        }
    }

    #[test]
    fn a_sync_sends_the_messages_and_then_its_end() {
        let page = r#"{"events":[{"event":"newMessage","data":{"content":1,"roomId":"r","messageId":"m","senderId":"bob","seq":4,"timestamp":"t"}},{"event":"note","data":"x","meta":{"seq":5}}],"head":9,"epoch":"e","more":true,"gap":{"from":1,"to":3}}"#;
        let answer = answer(
            event(r#"["syncMessages",{"roomId":"r"}]"#, Some(2)).id,
            Ok(page),
        );
        let done = r#"{"roomId":"r","syncedMessageCount":2,"more":true,"gap":{"from":1,"to":3}}"#;
        assert_eq!(
            answer.events,
            [
                r#"["newMessage",{"content":1,"roomId":"r","messageId":"m","senderId":"bob","seq":4,"timestamp":"t","id":"m","sender":"bob"}"#.to_owned(),
                r#"["note","x""#.to_owned(),
                format!(r#"["syncComplete",{done}"#),
            ]
        );
        assert_eq!(answer.args, format!("[{done}]"));
        let empty = r#"{"events":[],"head":9,"epoch":"e","more":false}"#;
        let answer = super::synced(
            empty,
            &AnswerContext::new(
                module(),
                &UserId::trusted("a"),
                Some(&RoomName::trusted("r")),
                NOW,
            ),
        );
        assert_eq!(
            answer.events,
            [r#"["syncComplete",{"roomId":"r","syncedMessageCount":0}"#]
        );
    }

    #[test]
    fn events_have_the_names_and_fields_of_the_module() {
        for (line, expected) in [
            (
                r#"{"event":"newMessage","data":{"content":"hi","id":"forged","sender":"forged","roomId":"r","messageId":"m","senderId":"bob","seq":4,"timestamp":"t"},"meta":{"seq":4}}"#,
                Some(r#"["newMessage",{"content":"hi","roomId":"r","messageId":"m","senderId":"bob","seq":4,"timestamp":"t","id":"m","sender":"bob"}"#.to_owned()),
            ),
            (
                r#"{"event":"newMessage","data":7,"meta":{"seq":4}}"#,
                Some(r#"["newMessage",7"#.to_owned()),
            ),
            (
                r#"{"event":"userJoined","data":{"roomId":"r","userId":"bob"}}"#,
                Some(format!(r#"["userJoinedRoom",{{"roomId":"r","userId":"bob","timestamp":"{TIME}"}}"#)),
            ),
            (
                r#"{"event":"userLeft","data":{"roomId":"r","userId":"bob"}}"#,
                Some(format!(r#"["userLeftRoom",{{"roomId":"r","userId":"bob","timestamp":"{TIME}"}}"#)),
            ),
            (
                r#"{"event":"userTyping","data":{"roomId":"r","userId":"bob","isTyping":true}}"#,
                Some(format!(r#"["userTyping",{{"roomId":"r","userId":"bob","isTyping":true,"timestamp":"{TIME}"}}"#)),
            ),
            (
                r#"{"event":"presenceUpdate","data":{"roomId":"r","userId":"bob","status":"away"}}"#,
                Some(format!(r#"["presenceUpdate",{{"roomId":"r","userId":"bob","status":"away","lastActive":"{TIME}"}}"#)),
            ),
            (
                r#"{"event":"presenceUpdate","data":{"roomId":"r","userId":"bob","status":"offline","lastSeen":"t"}}"#,
                Some(r#"["presenceUpdate",{"roomId":"r","userId":"bob","status":"offline","lastActive":"t"}"#.to_owned()),
            ),
            (
                r#"{"event":"messageRead","data":{"roomId":"r","userId":"bob","seq":4,"messageId":"m"}}"#,
                Some(format!(r#"["messageRead",{{"roomId":"r","userId":"bob","seq":4,"messageId":"m","timestamp":"{TIME}"}}"#)),
            ),
            (r#"{"event":"messageRead","data":{"roomId":"r","userId":"bob","seq":4}}"#, None),
            (r#"{"event":"messageDelivered","data":{"roomId":"r","userId":"bob","seq":4}}"#, None),
            (r#"{"event":"connected","data":{}}"#, None),
            (r#"{"event":"error","data":{"code":"x"}}"#, None),
            (
                r#"{"event":"gap","data":{"roomId":"r","from":1,"to":2}}"#,
                Some(r#"["gap",{"roomId":"r","from":1,"to":2}"#.to_owned()),
            ),
            (
                r#"{"event":"notification","data":{"message":"m"},"meta":{"seq":4}}"#,
                Some(r#"["notification",{"message":"m"}"#.to_owned()),
            ),
        ] {
            let parsed = EventLine::parse(line).expect("an event");
            assert_eq!(module().event(&parsed, NOW), expected, "{line}");
        }
    }

    #[test]
    fn the_acknowledgement_id_of_a_command_survives_without_memory() {
        for ack in [None, Some(0), Some(1), Some(super::super::MAX_TABLE_ACK)] {
            let event = event(r#"["leaveRoom","r"]"#, ack);
            assert_eq!(answer(event.id, Ok(r#"{"roomId":"r"}"#)).ack, ack);
            let unparsed = module().id_of_unparsed(ack);
            let answer = answer(unparsed, Err(&framing::too_large(5)));
            assert_eq!(answer.ack, ack);
            assert!(answer.events[0].starts_with(r#"["exception""#));
        }
    }
}
