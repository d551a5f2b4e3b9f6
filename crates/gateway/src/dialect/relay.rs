//! The dialect `relay`: the protocol's own vocabulary, and events with names of the
//! application's own.
//!
//! An event of a client that is no command is sent to a room as a custom event: to `roomId` of
//! its data, or to the only room of the client. Receivers get it with the data as the only
//! argument, as in any Socket.IO application. Such applications do not acknowledge delivery.

use super::native::NATIVE;
use super::{Commands, Vocabulary};
use roomcast_proto::command::{Command, Send};
use roomcast_proto::envelope::Body;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::event_name::is_reserved;
use roomcast_proto::framing;
use roomcast_proto::raw_object::{EVENT, ROOM, RawObject};
use serde_json::value::RawValue;

/// The dialect.
pub(super) const RELAY: Vocabulary = Vocabulary {
    name: "relay",
    commands: Commands::Protocol(parse),
    has_meta: false,
    acknowledges: true,
    ..NATIVE
};

fn parse(name: &RawValue, args: &[&RawValue]) -> Result<Command> {
    let data = args.first().copied();
    let event = framing::event_name(name, data)?;
    if is_reserved(&event) {
        return Command::parse(&event, data.filter(|data| data.get() != "null"));
    }
    let shown = roomcast_proto::command::shown_event(&event);
    let event = (EVENT.read)(name.get())
        .ok_or_else(|| Error::bad_request(format!("`{shown}` must be {}", EVENT.expected)))?;
    if args.len() > 1 {
        return Err(Error::bad_request(format!(
            "the event `{shown}` must have at most one argument: an object, a list or a value"
        )));
    }
    let data = data.unwrap_or(RawValue::NULL);
    let room = match RawObject::parse(data.get(), "`data`") {
        Ok(fields) => fields.get("roomId", ROOM)?,
        Err(_) => None,
    };
    Ok(Command::Send(Send {
        room,
        body: Body::custom(event, data),
        message_id: None,
        volatile: false,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::{ClientEvent, Dialect, Request};
    use super::*;
    use roomcast_proto::id::{EventName, RoomName};

    fn parse(args: &str) -> Result<Command> {
        let dialect = Dialect::parse("relay").expect("a dialect");
        let event = dialect.parse_event(args, Some(7)).expect("an event");
        assert_eq!(event.id, Some(7));
        event.request.map(|request| match request {
            Request::Command(command) => command,
            Request::Nothing => panic!("no command"),
        })
    }

    #[test]
    fn an_unknown_event_becomes_a_custom_event_of_its_room() {
        for (args, room, data) in [
            (
                r#"["draw",{"roomId":"r","x":1}]"#,
                Some("r"),
                r#"{"roomId":"r","x":1}"#,
            ),
            (r#"["draw",{"x":1}]"#, None, r#"{"x":1}"#),
            (r#"["draw",[1, 2]]"#, None, "[1, 2]"),
            (r#"["draw","text"]"#, None, r#""text""#),
            (r#"["draw"]"#, None, "null"),
        ] {
            let expected = Send {
                room: room.map(RoomName::trusted),
                body: Body::Custom {
                    event: EventName::trusted("draw"),
                    data: data.to_owned(),
                },
                message_id: None,
                volatile: false,
            };
            assert_eq!(parse(args), Ok(Command::Send(expected)), "{args}");
        }
    }

    #[test]
    fn commands_are_those_of_the_protocol() {
        for args in [
            r#"["joinRoom","r"]"#,
            r#"["sendMessage",{"roomId":"r","content":1}]"#,
            r#"["emit",{"roomId":"r","event":"x"}]"#,
            r#"["sync",{"roomId":"r"}]"#,
            r#"["newMessage",{}]"#,
        ] {
            let native = Dialect::default().parse_event(args, Some(7));
            let relay = Dialect::parse("relay").and_then(|it| it.parse_event(args, Some(7)));
            assert_eq!(relay, native, "{args}");
        }
    }

    #[test]
    fn an_event_that_cannot_be_relayed_is_named_in_the_error() {
        for (args, name) in [
            (r#"["two words",{}]"#, "two words"),
            (r#"["draw",{},{}]"#, "draw"),
            (r#"["userTyping",{}]"#, "userTyping"),
        ] {
            let error = parse(args).expect_err(args);
            assert!(error.message.contains(name), "{}", error.message);
        }
        assert!(parse(r#"["draw",{"roomId":"a b"}]"#).is_err());
        let event: Option<ClientEvent> =
            Dialect::parse("relay").and_then(|it| it.parse_event("[]", None));
        assert_eq!(event, None);
    }
}
