//! The server's own events. [`ServerEvent::to_line`] returns one line of JSON, which is
//! written once and then broadcast and forwarded unchanged. Events of clients and services
//! are written by [`envelope`](crate::envelope).

use crate::answer::{ErrorData, ExpiredRange, Receipt, to_json};
use crate::error::{Error, ErrorCode};
use crate::limits::Limits;
use crate::status::Status;
use crate::time::{Millis, rfc3339};
use crate::user_info::UserInfo;
use serde::Serialize;

#[cfg(feature = "schema")]
use crate::{
    id::{ConnectionId, Epoch, MessageId, RoomName, UserId},
    schema::values::{Seq, Time, True},
};

/// An event that the server writes itself.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", content = "data", rename_all = "camelCase")]
pub enum ServerEvent<'a> {
    /// The first event on every connection.
    Connected(Connected<'a>),
    /// A user became a member of the room.
    UserJoined(RoomUser<'a>),
    /// A user is no longer a member of the room.
    UserLeft(RoomUser<'a>),
    /// A user started or stopped typing.
    UserTyping(UserTyping<'a>),
    /// The status of a user changed.
    PresenceUpdate(PresenceUpdate<'a>),
    /// The delivered cursor of a member moved.
    MessageDelivered(CursorMoved<'a>),
    /// The read cursor of a member moved.
    MessageRead(CursorMoved<'a>),
    /// Requested events have expired.
    Gap(Gap<'a>),
    /// The connection was unsubscribed from the room without a command of its own.
    RoomClosed(RoomClosed<'a>),
    /// A command without `id` failed.
    Error(ErrorData<'a>),
}

/// The data of `connected`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Connected<'a> {
    /// On the socket of a room, which has joined it.
    Room(RoomConnected<'a>),
    /// On a socket for many rooms, which has joined none yet.
    Gateway(GatewayConnected<'a>),
}

/// The data of `connected` on the socket of a room.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RoomConnected<'a> {
    /// The id of the connection.
    #[cfg_attr(feature = "schema", schemars(with = "ConnectionId"))]
    pub connection_id: &'a str,
    /// The user.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// The epoch of the log.
    #[cfg_attr(feature = "schema", schemars(with = "Epoch"))]
    pub epoch: &'a str,
    /// The sequence number of the last event of the room.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub seq: u64,
    /// The delivered cursor of the user.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub delivered: u64,
    /// The time at which the token expires. The connection is closed then.
    #[cfg_attr(feature = "schema", schemars(with = "Time"))]
    pub expires_at: String,
    /// The limits of the connection.
    pub limits: Limits,
    /// Set if the position that the client sent belongs to another log. The client must
    /// drop the events that it has.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[cfg_attr(feature = "schema", schemars(with = "True"))]
    pub reset: bool,
}

/// The data of `connected` on a socket for many rooms.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GatewayConnected<'a> {
    /// The id of the connection.
    #[cfg_attr(feature = "schema", schemars(with = "ConnectionId"))]
    pub connection_id: &'a str,
    /// The time at which the token expires. The connection is closed then.
    #[cfg_attr(feature = "schema", schemars(with = "Time"))]
    pub expires_at: String,
    /// The limits of the connection.
    pub limits: Limits,
    /// The user.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
}

/// A user of a room.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RoomUser<'a> {
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// The user.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
}

/// The data of `userTyping`.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct UserTyping<'a> {
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// The user.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
    /// `true` if the user types.
    pub is_typing: bool,
    /// The profile of the user. Sent with the start alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "UserInfo"))]
    pub info: Option<&'a UserInfo>,
}

/// The data of `presenceUpdate`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PresenceUpdate<'a> {
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// The user.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
    /// The most available status of the user's connections.
    pub status: Status,
    /// The time at which an offline user was last connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Time"))]
    pub last_seen: Option<String>,
    /// The profile of the user. Not sent with the status `offline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "UserInfo"))]
    pub info: Option<&'a UserInfo>,
}

/// The data of `messageDelivered` and `messageRead`.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CursorMoved<'a> {
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// The member.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
    /// The sequence number up to which all events are delivered, or read.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub seq: u64,
    /// The id of the last event that is read. Present if the room has a connection of the
    /// dialect `module`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "MessageId"))]
    pub message_id: Option<&'a str>,
}

/// The data of `gap`.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Gap<'a> {
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// The expired events.
    #[serde(flatten)]
    pub range: ExpiredRange,
}

/// The data of `roomClosed`.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RoomClosed<'a> {
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// Why. `forbidden`: the newest token does not grant `read` on the room.
    pub code: ErrorCode,
}

impl ServerEvent<'_> {
    /// Returns the event as one line of JSON.
    pub fn to_line(&self) -> String {
        to_json(self)
    }
}

/// Returns the answer to a send: `{ messageId, seq, timestamp, duplicate? }`.
pub fn receipt(message_id: &str, seq: u64, timestamp: &str, duplicate: bool) -> String {
    to_json(&Receipt {
        message_id,
        seq,
        timestamp,
        duplicate,
    })
}

/// Returns `userJoined`.
pub fn user_joined(room_id: &str, user_id: &str) -> String {
    ServerEvent::UserJoined(RoomUser { room_id, user_id }).to_line()
}

/// Returns `roomClosed`. `code` is the reason.
pub fn room_closed(room_id: &str, code: ErrorCode) -> String {
    ServerEvent::RoomClosed(RoomClosed { room_id, code }).to_line()
}

/// Returns `userLeft`.
pub fn user_left(room_id: &str, user_id: &str) -> String {
    ServerEvent::UserLeft(RoomUser { room_id, user_id }).to_line()
}

/// Returns `userTyping`. `info` is the profile of the user.
pub fn user_typing(
    room_id: &str,
    user_id: &str,
    is_typing: bool,
    info: Option<&UserInfo>,
) -> String {
    ServerEvent::UserTyping(UserTyping {
        room_id,
        user_id,
        is_typing,
        info: info.filter(|_| is_typing),
    })
    .to_line()
}

/// Returns `presenceUpdate`. `last_seen` is the time at which an offline user was last
/// connected, `info` the profile of a user who is not offline.
pub fn presence_update(
    room_id: &str,
    user_id: &str,
    status: Status,
    last_seen: Option<Millis>,
    info: Option<&UserInfo>,
) -> String {
    ServerEvent::PresenceUpdate(PresenceUpdate {
        room_id,
        user_id,
        status,
        last_seen: last_seen.map(rfc3339),
        info: info.filter(|_| status != Status::Offline),
    })
    .to_line()
}

/// Returns `connected`, the first event on a native socket.
///
/// # Panics
///
/// Panics if `data` cannot be serialised. Structs of strings, numbers and lists of them
/// always can.
pub fn connected(data: &impl Serialize) -> String {
    let data = to_json(data);
    format!(r#"{{"event":"connected","data":{data}}}"#)
}

/// Returns the event with the name `event`, which is `messageDelivered` or `messageRead`.
/// `message_id` is the id of the event `seq`, if the receivers need it.
pub fn cursor_moved(
    event: &str,
    room_id: &str,
    user_id: &str,
    seq: u64,
    message_id: Option<&str>,
) -> String {
    let data = CursorMoved {
        room_id,
        user_id,
        seq,
        message_id,
    };
    match event {
        "messageRead" => ServerEvent::MessageRead(data),
        _ => ServerEvent::MessageDelivered(data),
    }
    .to_line()
}

/// Returns `gap`: the events `from` to `to`, both included, have expired.
pub fn gap(room_id: &str, from: u64, to: u64) -> String {
    let range = ExpiredRange { from, to };
    ServerEvent::Gap(Gap { room_id, range }).to_line()
}

/// Returns `true` if a line of a room is the event `gap`.
pub fn is_gap(line: &str) -> bool {
    line.starts_with(r#"{"event":"gap""#)
}

/// Returns an error as JSON: `{ code, message, retryAfterMs? }`.
pub fn error_fields(error: &Error) -> String {
    to_json(&ErrorData::from(error))
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

    #[test]
    fn events_keep_their_bytes() {
        for (line, expected) in [
            (
                user_joined("r", "u"),
                r#"{"event":"userJoined","data":{"roomId":"r","userId":"u"}}"#,
            ),
            (
                user_left("r", "u"),
                r#"{"event":"userLeft","data":{"roomId":"r","userId":"u"}}"#,
            ),
            (
                room_closed("r", ErrorCode::Forbidden),
                r#"{"event":"roomClosed","data":{"roomId":"r","code":"forbidden"}}"#,
            ),
            (
                user_typing("r", "u", true, None),
                r#"{"event":"userTyping","data":{"roomId":"r","userId":"u","isTyping":true}}"#,
            ),
            (
                user_typing("r", "u", true, UserInfo::parse(r#"{"name":"U"}"#).as_ref()),
                r#"{"event":"userTyping","data":{"roomId":"r","userId":"u","isTyping":true,"info":{"name":"U"}}}"#,
            ),
            (
                presence_update("r", "u", Status::Away, None, UserInfo::parse("{}").as_ref()),
                r#"{"event":"presenceUpdate","data":{"roomId":"r","userId":"u","status":"away","info":{}}}"#,
            ),
            (
                presence_update("r", "u", Status::Away, None, None),
                r#"{"event":"presenceUpdate","data":{"roomId":"r","userId":"u","status":"away"}}"#,
            ),
            (
                presence_update(
                    "r",
                    "u",
                    Status::Offline,
                    Some(0),
                    UserInfo::parse("{}").as_ref(),
                ),
                r#"{"event":"presenceUpdate","data":{"roomId":"r","userId":"u","status":"offline","lastSeen":"1970-01-01T00:00:00.000Z"}}"#,
            ),
            (
                cursor_moved("messageDelivered", "r", "u", 7, None),
                r#"{"event":"messageDelivered","data":{"roomId":"r","userId":"u","seq":7}}"#,
            ),
            (
                cursor_moved("messageRead", "r", "u", 7, None),
                r#"{"event":"messageRead","data":{"roomId":"r","userId":"u","seq":7}}"#,
            ),
            (
                cursor_moved("messageRead", "r", "u", 7, Some("m")),
                r#"{"event":"messageRead","data":{"roomId":"r","userId":"u","seq":7,"messageId":"m"}}"#,
            ),
            (
                gap("r", 1, 4),
                r#"{"event":"gap","data":{"roomId":"r","from":1,"to":4}}"#,
            ),
            (
                ServerEvent::Error(ErrorData::from(&Error::not_joined())).to_line(),
                r#"{"event":"error","data":{"code":"notJoined","message":"join the room first"}}"#,
            ),
        ] {
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn user_ids_are_escaped() {
        let line = user_joined("r", "a\"\\\n");
        let value: serde_json::Value = serde_json::from_str(&line).expect("valid JSON");
        assert_eq!(value["data"]["userId"], "a\"\\\n");
        assert!(!line.contains('\n'));
    }
}
