//! The server's own events, and its answers to sends. Each function returns one line
//! of JSON, which is written once and then broadcast and forwarded unchanged.
//!
//! Room names and user ids are valid JSON strings without escaping
//! ([`name`](crate::name)), so these lines are formatted as plain text. Callers must
//! pass validated names.

use crate::error::Error;
use crate::json::{push_number, push_string};
use crate::status::Status;
use crate::time::{Millis, rfc3339};
use serde::Serialize;

/// Returns the answer to a send: `{ messageId, seq, timestamp, duplicate? }`.
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

/// Returns `userJoined`: the user became a member of the room.
pub fn user_joined(room: &str, user: &str) -> String {
    format!(r#"{{"event":"userJoined","data":{{"roomId":"{room}","userId":"{user}"}}}}"#)
}

/// Returns `roomClosed`: the connection was unsubscribed from the room without a command
/// of its own. `code` is an error code that says why.
pub fn room_closed(room: &str, code: &str) -> String {
    format!(r#"{{"event":"roomClosed","data":{{"roomId":"{room}","code":"{code}"}}}}"#)
}

/// Returns `userLeft`: the user is no longer a member of the room.
pub fn user_left(room: &str, user: &str) -> String {
    format!(r#"{{"event":"userLeft","data":{{"roomId":"{room}","userId":"{user}"}}}}"#)
}

/// Returns `userTyping`: the user started or stopped typing.
pub fn user_typing(room: &str, user: &str, is_typing: bool) -> String {
    format!(
        r#"{{"event":"userTyping","data":{{"roomId":"{room}","userId":"{user}","isTyping":{is_typing}}}}}"#
    )
}

/// Returns `presenceUpdate`: the status of the user changed. `last_seen` is the time at
/// which an offline user was last connected.
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

/// Returns `connected`, the first event on a native socket.
///
/// # Panics
///
/// Panics if `data` cannot be serialised. Structs of strings, numbers and lists of them
/// always can.
pub fn connected(data: &impl Serialize) -> String {
    let data = serde_json::to_string(data).expect("plain data");
    format!(r#"{{"event":"connected","data":{data}}}"#)
}

/// Returns `messageDelivered` or `messageRead`, whichever `event` is: a member's cursor
/// moved to `seq`.
pub fn cursor_moved(event: &str, room: &str, user: &str, seq: u64) -> String {
    format!(r#"{{"event":"{event}","data":{{"roomId":"{room}","userId":"{user}","seq":{seq}}}}}"#)
}

/// Returns `gap`: the events `from` to `to`, both included, have expired.
pub fn gap(room: &str, from: u64, to: u64) -> String {
    format!(r#"{{"event":"gap","data":{{"roomId":"{room}","from":{from},"to":{to}}}}}"#)
}

/// Returns an error as JSON: `{ code, message, retryAfterMs? }`.
pub fn error_fields(error: &Error) -> String {
    let mut out = String::from(r#"{"code":"#);
    push_string(&mut out, error.code.as_str());
    out.push_str(r#","message":"#);
    push_string(&mut out, &error.message);
    if let Some(retry_after) = error.retry_after {
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
    fn rate_limit_errors_carry_the_retry_time() {
        let fields = error_fields(&Error::rate_limited("messages", 50));
        assert_eq!(
            fields,
            r#"{"code":"rateLimited","message":"too many messages","retryAfterMs":50}"#
        );
    }
}
