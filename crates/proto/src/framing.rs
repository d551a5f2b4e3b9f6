//! The native framing. A frame is UTF-8 text with one or more JSON objects, separated
//! by line breaks, in both directions. A client's object is
//! `{ "event", "data"?, "id"? }`; an `id` asks for an answer.

use crate::command::Command;
use crate::disconnect::Disconnect;
use crate::error::{Error, ErrorCode, Result};
use crate::event;
use crate::json::{MAX_DEPTH, nests_deeper_than, too_deep};
use crate::raw_object::{RawObject, TEXT};
use serde_json::value::RawValue;

/// A keepalive from the client, sent as a frame of its own. The runtime answers it with
/// [`PONG`] without waking the object.
pub const PING: &str = "ping";

/// The answer to [`PING`].
pub const PONG: &str = "pong";

/// One line of a frame.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// The text of the line.
    pub line: &'a str,
    /// The id under which the client expects an answer.
    pub id: Option<u32>,
    /// The command, or the error to answer.
    pub command: Result<Command>,
}

/// A frame without a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// A [`PING`] with line breaks, which the runtime does not recognise. The answer is
    /// [`PONG`].
    Ping,
    /// Only white space. It is ignored.
    Blank,
}

/// Returns the kind of a frame without a command. Returns `None` for other frames.
pub fn idle(frame: &str) -> Option<Idle> {
    // Most frames are commands, which begin with a brace.
    if frame.starts_with('{') {
        return None;
    }
    match frame.trim() {
        "" => Some(Idle::Blank),
        PING => Some(Idle::Ping),
        _ => None,
    }
}

/// Maximum number of line breaks in a frame: the number of commands that an object
/// handles in one turn of its event loop.
pub const MAX_LINES: usize = 1_000;

/// Parses a frame into its lines. An error in one line does not affect the others.
///
/// # Errors
///
/// - [`Disconnect::TooLarge`] if the frame has more than [`MAX_LINES`] line breaks
/// - [`Disconnect::Malformed`] if no line is JSON
pub fn decode(frame: &str) -> std::result::Result<Vec<Incoming<'_>>, Disconnect> {
    if frame.bytes().filter(|byte| *byte == b'\n').count() > MAX_LINES {
        return Err(Disconnect::TooLarge);
    }
    let mut incoming = Vec::new();
    let mut any_json = false;
    for line in frame.split('\n').filter(|line| !line.trim().is_empty()) {
        let object = decode_line(line);
        any_json |= object.command.is_ok() || serde_json::from_str::<&RawValue>(line).is_ok();
        incoming.push(object);
    }
    if any_json {
        Ok(incoming)
    } else {
        Err(Disconnect::Malformed)
    }
}

/// Parses one line of a frame.
pub fn decode_line(line: &str) -> Incoming<'_> {
    let fail = |error| Incoming {
        line,
        id: None,
        command: Err(error),
    };
    // `RawObject::parse` does not parse the values of the fields, so deep nesting does
    // no harm before the check of the depth.
    let object = match RawObject::parse(line, "each line of a frame") {
        Ok(object) => object,
        Err(error) => return fail(error),
    };
    let id = match object.raw("id").map(|id| id.get().parse::<u32>()) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => return fail(Error::bad_field("id", "an integer between 0 and 2^32-1")),
    };
    if too_deep(line) {
        return Incoming {
            line,
            id,
            command: Err(nested_too_deep()),
        };
    }
    let command = object
        .required("event", TEXT)
        .and_then(|event| Command::parse(&event, object.raw("data")));
    Incoming { line, id, command }
}

/// Parses a command whose name and data arrive as parts of another framing. Returns the
/// same errors as [`decode_line`] for the line `{"event":name,"data":data}`. `name` and
/// `data` must be on one line.
pub fn decode_parts(name: &RawValue, data: Option<&RawValue>) -> Result<Command> {
    let event = event_name(name, data)?;
    Command::parse(&event, data.filter(|data| data.get() != "null"))
}

/// Returns the name of an event whose name and data arrive as parts of another framing.
///
/// # Errors
///
/// Returns `badRequest` if the name is not a string, or if a part is nested too deep.
pub fn event_name(name: &RawValue, data: Option<&RawValue>) -> Result<String> {
    let parts = [Some(name), data];
    // In a line, the object around the parts is the first level.
    let is_too_deep = |part: &RawValue| nests_deeper_than(MAX_DEPTH - 1, part.get());
    if parts.into_iter().flatten().any(is_too_deep) {
        return Err(nested_too_deep());
    }
    match name.get() {
        "null" => Err(Error::missing_field("event")),
        name => (TEXT.read)(name).ok_or_else(|| Error::bad_field("event", TEXT.expected)),
    }
}

fn nested_too_deep() -> Error {
    Error::bad_request(format!(
        "JSON must not be nested deeper than {MAX_DEPTH} levels"
    ))
}

/// Returns the answer to a command: `{"ack":7,"data":…}`. `data` is JSON text.
pub fn ack(id: u32, data: &str) -> String {
    format!(r#"{{"ack":{id},"data":{data}}}"#)
}

/// Returns `true` if a line of the server is the answer to a command: an `ack`, or an
/// `error` event.
pub fn is_answer(line: &str) -> bool {
    line.starts_with(r#"{"ack":"#) || line.starts_with(r#"{"event":"error""#)
}

/// Returns the id of the command that a line answers. Returns `None` if the command has no id,
/// or if the line is no answer.
pub fn answered(line: &str) -> Option<u32> {
    let rest = line.strip_prefix(r#"{"ack":"#)?;
    rest.split(',').next()?.parse().ok()
}

/// Returns `true` if an `ack` of the server has an error.
pub fn is_error(line: &str) -> bool {
    let ack = line.strip_prefix(r#"{"ack":"#);
    let fields = ack.and_then(|rest| Some(rest.split_once(',')?.1));
    fields.is_some_and(|fields| fields.starts_with(r#""error":"#))
}

/// Returns the answer to a command that failed: an `ack` with an error if the command
/// had an id, an `error` event otherwise.
pub fn error(id: Option<u32>, error: &Error) -> String {
    let fields = event::error_fields(error);
    match id {
        Some(id) => format!(r#"{{"ack":{id},"error":{fields}}}"#),
        None => format!(r#"{{"event":"error","data":{fields}}}"#),
    }
}

/// Returns the frame that a client receives instead of `frame`, if the changes before it
/// cannot be stored: the errors in it, and `reason` for each other answer. Empty if the frame
/// has no answers.
pub fn failed(frame: &str, reason: &Error) -> String {
    let mut failed = String::new();
    for line in frame.split('\n').filter(|line| is_answer(line)) {
        let ack = line.strip_prefix(r#"{"ack":"#);
        let id = ack.and_then(|ack| ack.split_once(r#","data":"#)?.0.parse().ok());
        let line = id.map_or_else(|| line.to_owned(), |id| error(Some(id), reason));
        if !failed.is_empty() {
            failed.push('\n');
        }
        failed.push_str(&line);
    }
    failed
}

/// Returns the error for a frame of more than `limit` bytes.
pub fn too_large(limit: usize) -> Error {
    Error::new(
        ErrorCode::TooLarge,
        format!("a frame must not exceed {limit} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_frame_has_an_error_for_each_answer() {
        let kept = error(Some(2), &Error::not_joined());
        let event = error(None, &Error::not_joined());
        let lines = [
            &ack(1, "{}"),
            r#"{"event":"userLeft","data":{}}"#,
            &kept,
            &event,
        ];
        let internal = error(Some(1), &Error::internal());
        assert_eq!(
            failed(&lines.join("\n"), &Error::internal()),
            [internal, kept, event].join("\n")
        );
        assert_eq!(failed(PONG, &Error::internal()), "");
    }

    #[test]
    fn an_error_in_one_line_does_not_affect_the_others() {
        let frame = concat!(
            r#"{"event":"sendMessage","data":{"content":"a"},"id":1}"#,
            "\nnot json\n",
            r#"{"event":"sendMessage","data":{"content":"b"},"id":-1}"#,
            "\n[]\n",
            r#"{"data":{},"id":4294967295}"#,
            "\n",
        );
        let incoming = decode(frame).expect("valid framing");
        assert_eq!(incoming.len(), 5);
        assert!(incoming[0].command.is_ok() && incoming[0].id == Some(1));
        assert!(incoming[1..].iter().all(|one| one.command.is_err()));
        assert_eq!(incoming[4].id, Some(u32::MAX));
    }

    #[test]
    fn a_frame_without_any_json_is_malformed() {
        for frame in ["", "\n", "hello", "{", "{\"event\":", "ping\nping"] {
            assert_eq!(decode(frame).err(), Some(Disconnect::Malformed), "{frame}");
        }
        assert!(decode("5").is_ok());
    }

    #[test]
    fn blank_frames_and_pings_with_line_breaks_are_idle() {
        for ping in ["ping", "ping\n", "ping\r\n", "\nping\n"] {
            assert_eq!(idle(ping), Some(Idle::Ping), "{ping:?}");
        }
        for blank in ["", "\n", "\r\n", " \t\n\n"] {
            assert_eq!(idle(blank), Some(Idle::Blank), "{blank:?}");
        }
        for other in ["{}", "pings", "ping\nping", "PING", "hello", " {}"] {
            assert_eq!(idle(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_frame_of_too_many_lines_is_too_large() {
        let line = r#"{"event":"setPresence"}"#;
        let frame = |lines| vec![line; lines].join("\n");
        assert_eq!(decode(&frame(MAX_LINES)).expect("fits").len(), MAX_LINES);
        assert_eq!(
            decode(&frame(MAX_LINES + 2)).err(),
            Some(Disconnect::TooLarge)
        );
    }

    #[test]
    fn parts_are_parsed_as_the_line_that_consists_of_them() {
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for (name, data) in [
            (r#""sendMessage""#, r#"{"content":{"a":[1, 2]}}"#),
            (r#""joinRoom""#, r#""r""#),
            (r#""joinRoom""#, "null"),
            (r#""joinRoom""#, "[]"),
            (r#""nothing""#, "{}"),
            (r#""sync""#, r#"{"after":-1}"#),
            ("null", "{}"),
            ("7", "{}"),
            (&nested(63), "{}"),
            (&nested(64), "{}"),
            (r#""sync""#, &nested(63)),
            (r#""sync""#, &nested(64)),
        ] {
            let line = format!(r#"{{"event":{name},"data":{data}}}"#);
            let raw = |json| serde_json::from_str::<&RawValue>(json).expect("JSON");
            let command = decode_parts(raw(name), Some(raw(data)));
            assert_eq!(command, decode_line(&line).command, "{line}");
        }
    }

    #[test]
    fn a_deeply_nested_command_is_answered_with_an_error() {
        let frame = format!(
            r#"{{"event":"emit","id":3,"data":{}{}}}"#,
            "[".repeat(5000),
            "]".repeat(5000)
        );
        let incoming = decode(&frame).expect("valid framing");
        assert!(incoming[0].command.is_err() && incoming[0].id == Some(3));
    }
}
