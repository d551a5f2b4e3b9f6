//! The native framing: UTF-8 text frames of one or more JSON objects separated
//! by line breaks, both ways.

use super::object::{Object, too_deep};
use super::{Command, event};
use crate::fault::{Code, Fault, Result};
use serde_json::value::RawValue;

/// The runtime answers this by itself without waking the object.
pub const PING: &str = "ping";
pub const PONG: &str = "pong";

/// Why and how a socket is closed. The codes are HTTP's with 4000 added, as those
/// of the contract are: the range for applications (RFC 6455, 7.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Close {
    Malformed,
    Expired,
    Revoked,
    Forbidden,
    Kicked,
    TooLarge,
    TooFast,
    RoomDeleted,
    Ghost,
    TooSlow,
    Failed,
    NoHandshake,
    /// As the other side wished.
    Normal,
}

impl Close {
    pub fn code(self) -> u16 {
        match self {
            Close::Malformed => 4400,
            Close::Expired | Close::Revoked => 4401,
            Close::Forbidden | Close::Kicked => 4403,
            Close::NoHandshake | Close::Ghost => 4408,
            Close::TooLarge => 4413,
            Close::TooFast => 4429,
            Close::RoomDeleted => 4410,
            Close::Normal => 1000,
            Close::Failed => 4500,
            Close::TooSlow => 4503,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            Close::Malformed => "malformed frame",
            Close::Expired => "token expired",
            Close::Revoked => "token revoked",
            Close::Forbidden => "forbidden",
            Close::Kicked => "kicked",
            Close::TooLarge => "frame too large",
            Close::TooFast => "too fast",
            Close::RoomDeleted => "room deleted",
            Close::Ghost => "no sign of life",
            Close::TooSlow => "too slow, resume from your last seq",
            Close::Failed => "internal error",
            Close::NoHandshake => "no handshake",
            Close::Normal => "",
        }
    }
}

/// One object of a frame: the id it wants an answer under, and what it asks.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// It, as it came.
    pub line: &'a str,
    pub id: Option<u32>,
    pub command: Result<Command>,
}

/// Most lines of a frame: as many commands as an object handles in one turn of
/// its event loop (CONTRACT, Delivery 5).
pub const MAX_LINES: usize = 1_000;

/// Takes a frame apart. `Err` where it has too many lines, or is not this framing
/// at all: no line of it is JSON. Otherwise a line with a fault is that line's
/// own matter.
pub fn decode(frame: &str) -> std::result::Result<Vec<Incoming<'_>>, Close> {
    if frame.bytes().filter(|byte| *byte == b'\n').count() > MAX_LINES {
        return Err(Close::TooLarge);
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
        Err(Close::Malformed)
    }
}

/// One line of a frame.
pub fn decode_line(line: &str) -> Incoming<'_> {
    let fail = |fault| Incoming {
        line,
        id: None,
        command: Err(fault),
    };
    // Looks no deeper than the object's own fields, whatever is in them.
    let object = match Object::parse(line, "each line of a frame") {
        Ok(object) => object,
        Err(fault) => return fail(fault),
    };
    let id = match object.raw("id").map(|id| id.get().parse::<u32>()) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => return fail(Fault::bad_field("id", "a whole number below 2^32")),
    };
    if too_deep(line) {
        return Incoming {
            line,
            id,
            command: Err(Fault::bad_request("nested too deeply")),
        };
    }
    let command = object
        .need("event", super::object::TEXT)
        .and_then(|event| Command::parse(&event, object.raw("data")));
    Incoming { line, id, command }
}

/// `{"ack":7,"data":…}`.
pub fn ack(id: u32, data: &str) -> String {
    format!(r#"{{"ack":{id},"data":{data}}}"#)
}

/// Whether a line of the server answers a command, or says that one failed.
pub fn is_answer(line: &str) -> bool {
    line.starts_with(r#"{"ack":"#) || line.starts_with(r#"{"event":"error""#)
}

/// The answer to what failed: an `ack` where an id was given, an `error` event
/// where not.
pub fn fault(id: Option<u32>, fault: &Fault) -> String {
    let fields = event::fault_fields(fault);
    match id {
        Some(id) => format!(r#"{{"ack":{id},"error":{fields}}}"#),
        None => format!(r#"{{"event":"error","data":{fields}}}"#),
    }
}

/// A frame that is too large for the room's limit, as a fault for its sender.
pub fn too_large(limit: usize) -> Fault {
    Fault::new(
        Code::TooLarge,
        format!("frames may have up to {limit} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_in_one_object_is_that_objects_own_matter() {
        let frame = concat!(
            r#"{"event":"sendMessage","data":{"content":"a"},"id":1}"#,
            "\nnot json\n",
            r#"{"event":"sendMessage","data":{"content":"b"},"id":-1}"#,
            "\n[]\n",
            r#"{"data":{},"id":4294967295}"#,
            "\n",
        );
        let incoming = decode(frame).expect("is this framing");
        assert_eq!(incoming.len(), 5);
        assert!(incoming[0].command.is_ok() && incoming[0].id == Some(1));
        assert!(incoming[1..].iter().all(|one| one.command.is_err()));
        assert_eq!(incoming[4].id, Some(u32::MAX));
    }

    #[test]
    fn a_frame_without_any_json_is_malformed() {
        for frame in ["", "\n", "hello", "{", "{\"event\":", "ping\nping"] {
            assert_eq!(decode(frame).err(), Some(Close::Malformed), "{frame}");
        }
        assert!(decode("5").is_ok());
    }

    #[test]
    fn a_frame_of_too_many_lines_is_too_large() {
        let line = r#"{"event":"setPresence"}"#;
        let frame = |lines| vec![line; lines].join("\n");
        assert_eq!(decode(&frame(MAX_LINES)).expect("fits").len(), MAX_LINES);
        assert_eq!(decode(&frame(MAX_LINES + 2)).err(), Some(Close::TooLarge));
    }

    #[test]
    fn bombs_of_nesting_get_an_answer() {
        let frame = format!(
            r#"{{"event":"emit","id":3,"data":{}{}}}"#,
            "[".repeat(5000),
            "]".repeat(5000)
        );
        let incoming = decode(&frame).expect("is this framing");
        assert!(incoming[0].command.is_err() && incoming[0].id == Some(3));
    }
}
