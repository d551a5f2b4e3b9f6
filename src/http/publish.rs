//! What `POST /publish` takes.

use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::RoomName;
use roomcast_proto::json::too_deep;
use roomcast_proto::raw_object::{BOOLEAN, MESSAGE_ID, PUBLISHED_EVENT, ROOM, RawObject, USER};
use roomcast_room::service::Publication;
use serde_json::value::RawValue;

/// Most messages of one request.
pub const MAX_BATCH: usize = 100;

/// A publication and the room it goes to.
#[derive(Debug)]
pub struct Addressed {
    pub room: RoomName,
    pub publication: Publication,
}

/// A body: one message, or several that are answered one by one.
#[derive(Debug)]
pub enum Body {
    One(Addressed),
    Many(Vec<Result<Addressed>>),
}

/// Reads the body of `POST /publish`.
pub fn parse(body: &str) -> Result<Body> {
    if too_deep(body) {
        return Err(Error::bad_request("the body is nested too deeply"));
    }
    let object = RawObject::parse(body, "the body")?;
    let Some(messages) = object.raw("messages") else {
        return message(&object).map(Body::One);
    };
    let expected = "a list of 1 to 100 messages";
    let messages: Vec<&RawValue> =
        serde_json::from_str(messages.get()).map_err(|_| Error::bad_field("messages", expected))?;
    if messages.is_empty() || messages.len() > MAX_BATCH {
        return Err(Error::bad_field("messages", expected));
    }
    Ok(Body::Many(
        messages
            .into_iter()
            .map(|one| message(&RawObject::parse(one.get(), "each message")?))
            .collect(),
    ))
}

fn message(object: &RawObject) -> Result<Addressed> {
    let (room, user) = (object.get("room", ROOM)?, object.get("userId", USER)?);
    let room = match (room, user) {
        (Some(room), None) => room,
        (None, Some(user)) => RoomName::personal(&user),
        _ => return Err(Error::bad_field("room", "given, or `userId`, and not both")),
    };
    Ok(Addressed {
        room,
        publication: Publication {
            event: object.required("event", PUBLISHED_EVENT)?,
            data: object.required_raw("data")?.to_owned(),
            message_id: object.get("messageId", MESSAGE_ID)?,
            volatile: object.get("volatile", BOOLEAN)?.unwrap_or(false),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_of_room_and_user() {
        let Ok(Body::One(one)) = parse(r#"{"event":"n","data":null,"userId":"bob"}"#) else {
            panic!("is one message");
        };
        assert_eq!(one.room, "@bob");
        for bad in [
            r#"{"event":"n","data":1}"#,
            r#"{"event":"n","data":1,"room":"a","userId":"b"}"#,
        ] {
            assert_eq!(parse(bad).expect_err(bad).field.as_deref(), Some("room"));
        }
    }

    #[test]
    fn wrong_fields_are_named() {
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
    fn a_batch_is_judged_one_by_one() {
        let body = r#"{"messages":[{"event":"n","data":1,"room":"a"},{"event":"n"},7]}"#;
        let Ok(Body::Many(many)) = parse(body) else {
            panic!("is a batch");
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
}
