//! Parses the body of `POST /broadcast`.

use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::id::{EventName, MessageId};
use roomcast_proto::json::too_deep;
use roomcast_proto::raw_object::{EVENT, MESSAGE_ID, RawObject};

/// Maximum size in bytes of data that is a string. Each Socket.IO client of a dialect with one
/// argument gets its own copy of a string, because its recovery offset must follow.
const MAX_STRING: usize = 1_024;

/// An event for all connections.
#[derive(Debug, PartialEq)]
pub struct Broadcast {
    /// The name of the event.
    pub event: EventName,
    /// The data, as JSON.
    pub data: String,
    /// The id that the service has chosen.
    pub message_id: Option<MessageId>,
}

/// Parses the body of a request. The data may have at most `max_bytes` bytes.
///
/// # Errors
///
/// Returns `badRequest` if the body is not an object, is nested too deeply, or has a wrong field,
/// and `tooLarge` if the data is too large.
pub fn parse(body: &str, max_bytes: usize) -> Result<Broadcast> {
    if too_deep(body) {
        return Err(Error::bad_request("the body is nested too deeply"));
    }
    let object = RawObject::parse(body, "the body")?;
    for field in ["room", "userId"] {
        if object.raw(field).is_some() {
            let error = format!("`{field}` must not be set: use POST /publish");
            return Err(Error {
                field: Some(field.to_owned()),
                ..Error::bad_request(error)
            });
        }
    }
    let event = object.required("event", EVENT)?;
    let data = object.required_raw("data")?.get();
    if data.starts_with('"') && data.len() > MAX_STRING {
        let expected = format!("a string of at most {MAX_STRING} bytes, or other JSON");
        return Err(Error::bad_field("data", &expected));
    }
    if data.len() > max_bytes {
        return Err(Error {
            field: Some("data".to_owned()),
            ..Error::new(
                ErrorCode::TooLarge,
                format!("`data` must have at most {max_bytes} bytes"),
            )
        });
    }
    Ok(Broadcast {
        event,
        data: data.to_owned(),
        message_id: object.get("messageId", MESSAGE_ID)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_and_its_data_are_required() {
        let parsed = parse(r#"{"event":"n","data":{"a":1},"messageId":"m"}"#, 100);
        let expected = Broadcast {
            event: EventName::trusted("n"),
            data: r#"{"a":1}"#.to_owned(),
            message_id: MessageId::parse("m"),
        };
        assert_eq!(parsed, Ok(expected));
        assert!(parse(r#"{"event":"n","data":null}"#, 100).is_ok());
        for (body, field) in [
            (r#"{"data":1}"#, "event"),
            (r#"{"event":"n"}"#, "data"),
            // A chat message belongs to a room.
            (r#"{"event":"newMessage","data":{}}"#, "event"),
            (r#"{"event":"n","data":1,"room":"r"}"#, "room"),
            (r#"{"event":"n","data":1,"userId":"a"}"#, "userId"),
            (r#"{"event":"n","data":1,"messageId":7}"#, "messageId"),
        ] {
            let error = parse(body, 100).expect_err(body);
            assert_eq!(error.field.as_deref(), Some(field), "{body}");
        }
        assert!(parse("[]", 100).is_err());
    }

    #[test]
    fn the_size_of_the_data_is_limited() {
        let body = |data: &str| format!(r#"{{"event":"n","data":{data}}}"#);
        let string = |bytes| format!("\"{}\"", "x".repeat(bytes));
        assert!(parse(&body(&string(MAX_STRING - 2)), 10_000).is_ok());
        let error = parse(&body(&string(MAX_STRING - 1)), 10_000).expect_err("too long");
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(parse(&body(&format!("[{}]", string(98))), 102).is_ok());
        let error = parse(&body(&format!("[{}]", string(99))), 102).expect_err("too large");
        assert_eq!(error.code, ErrorCode::TooLarge);
    }
}
