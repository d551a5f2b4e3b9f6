//! What the server says: each event as one line of JSON, written once and then
//! stored, broadcast, replayed and forwarded as it is.

use super::command::{Body, Status};
use crate::fault::Fault;
use crate::time::{Millis, rfc3339};
use serde::Serialize;
use std::fmt::Write;

pub const NEW_MESSAGE: &str = "newMessage";

/// The names of the contract, which custom events may not have.
const RESERVED: &[&str] = &[
    "joinRoom",
    "leaveRoom",
    "sendMessage",
    "emit",
    "messageDelivered",
    "messageRead",
    "typingIndicator",
    "setPresence",
    "sync",
    "refreshToken",
    "connected",
    NEW_MESSAGE,
    "userTyping",
    "presenceUpdate",
    "userJoined",
    "userLeft",
    "roomClosed",
    "gap",
    "error",
];

/// Events of Socket.IO's own: a client cannot tell them from its connection's.
const OF_CONNECTIONS: [&str; 6] = [
    "connect",
    "connect_error",
    "disconnect",
    "disconnecting",
    "newListener",
    "removeListener",
];

/// Whether `event` is a name of the contract.
pub fn is_reserved(event: &str) -> bool {
    RESERVED.contains(&event) || is_of_connections(event)
}

/// Whether `event` is one that Socket.IO's clients make themselves.
pub fn is_of_connections(event: &str) -> bool {
    OF_CONNECTIONS.contains(&event)
}

/// Appends `text` as a JSON string.
pub fn push_string(out: &mut String, text: &str) {
    if text
        .bytes()
        .all(|b| b >= 0x20 && b != b'"' && b != b'\\' && b != 0x7f)
    {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&serde_json::Value::from(text).to_string());
    }
}

/// What the server knows of an event in a room.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    pub room: &'a str,
    pub message_id: &'a str,
    pub sender: &'a str,
    /// `None` for an ephemeral event.
    pub seq: Option<u64>,
    /// RFC 3339.
    pub timestamp: &'a str,
}

/// Appends the envelope of an event in a room, without a line break. A
/// `newMessage` has the stamp among its data, any other event beside it as
/// `meta`; `with_meta` gives a `newMessage` both.
pub fn push_envelope(out: &mut String, body: &Body, stamp: Stamp, with_meta: bool) {
    match body {
        Body::Message { fields } => {
            out.push_str(r#"{"event":"newMessage","data":{"#);
            out.push_str(fields);
            if !fields.is_empty() {
                out.push(',');
            }
            push_stamp(out, stamp);
            out.push('}');
        }
        Body::Custom { event, data } => {
            out.push_str(r#"{"event":"#);
            push_string(out, event);
            out.push_str(r#","data":"#);
            out.push_str(data);
        }
    }
    if with_meta || matches!(body, Body::Custom { .. }) {
        out.push_str(r#","meta":{"#);
        push_stamp(out, stamp);
        out.push('}');
    }
    out.push('}');
}

fn push_stamp(out: &mut String, stamp: Stamp) {
    out.push_str(r#""roomId":"#);
    push_string(out, stamp.room);
    out.push_str(r#","messageId":"#);
    push_string(out, stamp.message_id);
    out.push_str(r#","senderId":"#);
    push_string(out, stamp.sender);
    if let Some(seq) = stamp.seq {
        out.push_str(r#","seq":"#);
        push_number(out, seq);
    }
    out.push_str(r#","timestamp":"#);
    push_string(out, stamp.timestamp);
}

/// Appends a number; writing to a `String` cannot fail.
pub fn push_number(out: &mut String, number: u64) {
    let _ = write!(out, "{number}");
}

/// The fields of the answer to a send: `{ messageId, seq, timestamp,
/// duplicate? }`.
pub fn receipt(message_id: &str, seq: u64, timestamp: &str, duplicate: bool) -> String {
    let mut out = String::with_capacity(96);
    out.push_str(r#"{"messageId":"#);
    push_string(&mut out, message_id);
    out.push_str(r#","seq":"#);
    push_number(&mut out, seq);
    out.push_str(r#","timestamp":"#);
    push_string(&mut out, timestamp);
    if duplicate {
        out.push_str(r#","duplicate":true"#);
    }
    out.push('}');
    out
}

/// An event of the server's own. Names and ids have been checked to need no
/// escaping, so the lines are plain text.
pub fn user_joined(room: &str, user: &str) -> String {
    format!(r#"{{"event":"userJoined","data":{{"roomId":"{room}","userId":"{user}"}}}}"#)
}

/// The connection has left a room, by no command of its own; `code` says why.
pub fn room_closed(room: &str, code: &str) -> String {
    format!(r#"{{"event":"roomClosed","data":{{"roomId":"{room}","code":"{code}"}}}}"#)
}

pub fn user_left(room: &str, user: &str) -> String {
    format!(r#"{{"event":"userLeft","data":{{"roomId":"{room}","userId":"{user}"}}}}"#)
}

pub fn user_typing(room: &str, user: &str, is_typing: bool) -> String {
    format!(
        r#"{{"event":"userTyping","data":{{"roomId":"{room}","userId":"{user}","isTyping":{is_typing}}}}}"#
    )
}

pub fn presence_update(
    room: &str,
    user: &str,
    status: Status,
    last_seen: Option<Millis>,
) -> String {
    let last_seen = last_seen.map_or(String::new(), |at| {
        format!(r#","lastSeen":"{}""#, rfc3339(at))
    });
    format!(
        r#"{{"event":"presenceUpdate","data":{{"roomId":"{room}","userId":"{user}","status":"{}"{last_seen}}}}}"#,
        status.as_str()
    )
}

pub fn connected(data: &impl Serialize) -> String {
    // Structs of strings and numbers can always be written.
    let data = serde_json::to_string(data).expect("plain data");
    format!(r#"{{"event":"connected","data":{data}}}"#)
}

/// `event` is `messageDelivered` or `messageRead`.
pub fn cursor_moved(event: &str, room: &str, user: &str, seq: u64) -> String {
    format!(r#"{{"event":"{event}","data":{{"roomId":"{room}","userId":"{user}","seq":{seq}}}}}"#)
}

pub fn gap(room: &str, from: u64, to: u64) -> String {
    format!(r#"{{"event":"gap","data":{{"roomId":"{room}","from":{from},"to":{to}}}}}"#)
}

/// `{code, message, retryAfterMs?}`.
pub fn fault_fields(fault: &Fault) -> String {
    let mut out = String::from(r#"{"code":"#);
    push_string(&mut out, fault.code.as_str());
    out.push_str(r#","message":"#);
    push_string(&mut out, &fault.message);
    if let Some(retry_after) = fault.retry_after {
        out.push_str(r#","retryAfterMs":"#);
        push_number(&mut out, retry_after);
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_are_valid_json_on_one_line() {
        let stamp = Stamp {
            room: "r",
            message_id: "a\"b\\c",
            sender: "alice",
            seq: Some(7),
            timestamp: "t",
        };
        let bodies = [
            Body::Message {
                fields: String::new(),
            },
            Body::Message {
                fields: r#""content":"hi""#.into(),
            },
            Body::Custom {
                event: "x".into(),
                data: r#"[1,{"a":null}]"#.into(),
            },
        ];
        for body in &bodies {
            let mut line = String::new();
            push_envelope(&mut line, body, stamp, false);
            assert!(!line.contains('\n'));
            let value: serde_json::Value = serde_json::from_str(&line).expect("valid JSON");
            let stamped = match body {
                Body::Message { .. } => &value["data"],
                Body::Custom { .. } => &value["meta"],
            };
            assert_eq!(stamped["seq"], 7);
            assert_eq!(stamped["messageId"], "a\"b\\c");
        }
    }

    #[test]
    fn faults_carry_when_to_try_again() {
        let fields = fault_fields(&Fault::rate_limited("messages", 50));
        assert_eq!(
            fields,
            r#"{"code":"rateLimited","message":"too many messages","retryAfterMs":50}"#
        );
    }
}
