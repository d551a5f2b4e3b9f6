//! Parses the body of `POST /publish`.

use roomcast_proto::alias::ROOM_OR_USER;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::event_name::NEW_MESSAGE;
use roomcast_proto::id::RoomName;
use roomcast_proto::json::too_deep;
use roomcast_proto::raw_object::{BOOLEAN, MESSAGE_ID, PUBLISHED_EVENT, RawObject, USER};
use roomcast_room::service::Publication;
use serde_json::value::RawValue;

/// Maximum number of messages of a request, a promise of docs/protocol.md.
pub const MAX_BATCH: usize = 100;

/// A publication and its room.
#[derive(Debug)]
pub struct AddressedPublication {
    /// The name of the room.
    pub room: RoomName,
    /// The publication.
    pub publication: Publication,
}

/// The body of a request.
#[derive(Debug)]
pub enum PublishRequest {
    /// One message.
    One(AddressedPublication),
    /// The list `messages`. Each message has its own result, so an invalid message does not
    /// affect the others.
    Many(Vec<Result<AddressedPublication>>),
}

/// Parses the body of a request.
///
/// # Errors
///
/// Returns `badRequest` if the body is not an object, is nested too deeply, or has a wrong field.
pub fn parse(body: &str) -> Result<PublishRequest> {
    if too_deep(body) {
        return Err(Error::bad_request("the body is nested too deeply"));
    }
    let object = RawObject::parse(body, "the body")?;
    let Some(messages) = object.raw("messages") else {
        return message(&object).map(PublishRequest::One);
    };
    let expected = "a list of 1 to 100 messages";
    let messages: Vec<&RawValue> =
        serde_json::from_str(messages.get()).map_err(|_| Error::bad_field("messages", expected))?;
    if messages.is_empty() || messages.len() > MAX_BATCH {
        return Err(Error::bad_field("messages", expected));
    }
    Ok(PublishRequest::Many(
        messages
            .into_iter()
            .map(|one| message(&RawObject::parse(one.get(), "each message")?))
            .collect(),
    ))
}

fn message(object: &RawObject<'_>) -> Result<AddressedPublication> {
    let (room, user) = (
        object.get("room", ROOM_OR_USER)?,
        object.get("userId", USER)?,
    );
    let room = match (room, user) {
        (Some(room), None) => room,
        (None, Some(user)) => RoomName::personal(&user),
        _ => {
            let error = "exactly one of `room` and `userId` is required";
            return Err(Error {
                field: Some("room".to_owned()),
                ..Error::bad_request(error)
            });
        }
    };
    let event = object.required("event", PUBLISHED_EVENT)?;
    let data = object.required_raw("data")?.to_owned();
    // Clients read fields of a message's data, so it must be an object. The text of a `RawValue`
    // has no leading white space.
    if event == NEW_MESSAGE && !data.get().starts_with('{') {
        let expected = "an object if `event` is `newMessage`";
        return Err(Error::bad_field("data", expected));
    }
    Ok(AddressedPublication {
        room,
        publication: Publication {
            event,
            data,
            message_id: object.get("messageId", MESSAGE_ID)?,
            volatile: object.get("volatile", BOOLEAN)?.unwrap_or(false),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_of_room_and_user_is_required() {
        let Ok(PublishRequest::One(one)) = parse(r#"{"event":"n","data":null,"userId":"bob"}"#)
        else {
            panic!("one message expected");
        };
        assert_eq!(one.room, "@bob");
        let Ok(PublishRequest::One(one)) = parse(r#"{"event":"n","data":1,"room":"user:bob"}"#)
        else {
            panic!("one message expected");
        };
        assert_eq!(one.room, "@bob", "the name of the original module");
        for bad in [
            r#"{"event":"n","data":1}"#,
            r#"{"event":"n","data":1,"room":"a","userId":"b"}"#,
        ] {
            assert_eq!(parse(bad).expect_err(bad).field.as_deref(), Some("room"));
        }
    }

    #[test]
    fn a_wrong_field_is_named_in_the_error() {
        for (body, field) in [
            (r#"{"data":1,"room":"a"}"#, "event"),
            (r#"{"event":"connected","data":1,"room":"a"}"#, "event"),
            (r#"{"event":"n","room":"a"}"#, "data"),
            (r#"{"event":"n","data":1,"room":"a b"}"#, "room"),
            (r#"{"event":"n","data":1,"room":7}"#, "room"),
            (r#"{"event":"n","data":1,"userId":"@a"}"#, "userId"),
            (
                r#"{"event":"n","data":1,"room":"a","volatile":1}"#,
                "volatile",
            ),
            (
                r#"{"event":"n","data":1,"room":"a","messageId":1}"#,
                "messageId",
            ),
            (r#"{"messages":[]}"#, "messages"),
            (r#"{"messages":{}}"#, "messages"),
        ] {
            assert_eq!(parse(body).expect_err(body).field.as_deref(), Some(field));
        }
        for bad in ["", "[]", "7", "{", r#"{"event":"n","data":1,"room":"a"}x"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_invalid_message_of_a_list_does_not_concern_the_others() {
        let body = r#"{"messages":[{"event":"n","data":1,"room":"a"},{"event":"n"},7]}"#;
        let Ok(PublishRequest::Many(many)) = parse(body) else {
            panic!("a list expected");
        };
        assert_eq!(
            many.iter().map(Result::is_ok).collect::<Vec<_>>(),
            [true, false, false]
        );
        let too_many = format!(r#"{{"messages":[{}]}}"#, vec!["{}"; 101].join(","));
        assert!(parse(&too_many).is_err());
    }

    #[test]
    fn unknown_fields_are_ignored() {
        assert!(parse(r#"{"event":"n","data":1,"room":"a","extra":[1]}"#).is_ok());
    }

    #[test]
    fn the_data_of_new_message_must_be_an_object() {
        for data in ["null", "7", r#""{}""#, "[{}]", "true"] {
            let body = format!(r#"{{"event":"newMessage","data": {data} ,"room":"a"}}"#);
            let error = parse(&body).expect_err(data);
            assert_eq!(error.field.as_deref(), Some("data"));
            assert!(
                parse(&body.replace("newMessage", "custom")).is_ok(),
                "{data}"
            );
        }
        for data in ["{}", " {\n} "] {
            let body = format!(r#"{{"event":"newMessage","data":{data},"room":"a"}}"#);
            assert!(parse(&body).is_ok(), "{data}");
        }
    }
}
