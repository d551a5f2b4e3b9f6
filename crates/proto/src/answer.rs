//! The data of answers to commands. [`framing::ack`](crate::framing::ack) wraps it.
//!
//! The fields of a struct stand in the order in which they are sent.

use crate::error::{Error, ErrorCode};
use crate::json::push_number;
use crate::status::Status;
use crate::time::Millis;
use crate::user_info::UserInfo;
use serde::Serialize;
use serde_json::value::RawValue;
use std::fmt::Write;

#[cfg(feature = "schema")]
use crate::{
    id::{Epoch, MessageId, RoomName, UserId},
    schema::values::{Count, Seq, Time, True},
};

/// Returns the JSON of an answer.
///
/// # Panics
///
/// Panics if `answer` cannot be serialised. Structs of strings, numbers and lists of them
/// always can.
pub fn to_json(answer: &impl Serialize) -> String {
    serde_json::to_string(answer).expect("plain data")
}

/// Returns `true` if a flag is not set. Such flags are not sent.
fn is_unset(flag: &bool) -> bool {
    !flag
}

/// Answer to `sendMessage` and `emit`. The event is stored.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Receipt<'a> {
    /// The id of the event.
    #[cfg_attr(feature = "schema", schemars(with = "MessageId"))]
    pub message_id: &'a str,
    /// The sequence number of the event.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub seq: u64,
    /// The time at which the room accepted the event.
    #[cfg_attr(feature = "schema", schemars(with = "Time"))]
    pub timestamp: &'a str,
    /// Set if the sender had sent the id before. The event was not sent again.
    #[serde(skip_serializing_if = "is_unset")]
    #[cfg_attr(feature = "schema", schemars(with = "True"))]
    pub duplicate: bool,
}

/// Answer to a command that returns nothing.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Empty {}

/// Answer to `joinRoom`. The missed events follow it.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Joined<'a> {
    /// The delivered cursor of the user.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub delivered: u64,
    /// The epoch of the log.
    #[cfg_attr(feature = "schema", schemars(with = "Epoch"))]
    pub epoch: &'a str,
    /// The number of members of the room.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub member_count: usize,
    /// At most 100 members: first those who are not offline, then the others, both ordered by
    /// their ids. A list of [`ListedMember`].
    #[cfg_attr(feature = "schema", schemars(with = "Vec<ListedMember<'_>>"))]
    pub members: &'a RawValue,
    /// The read cursor of the user.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub read: u64,
    /// Set if the position that the client sent belongs to another log. The client must
    /// drop the events that it has.
    #[serde(skip_serializing_if = "is_unset")]
    #[cfg_attr(feature = "schema", schemars(with = "True"))]
    pub reset: bool,
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// The sequence number of the last event of the room.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub seq: u64,
}

/// A member in the answers to `joinRoom` and `members`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListedMember<'a> {
    /// The profile of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "UserInfo"))]
    pub info: Option<UserInfo>,
    /// The status of the user.
    pub status: Status,
    /// The user.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
}

/// Answer to `members`: a page of the list of members.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MemberPage<'a> {
    /// The number of members of the room.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub member_count: usize,
    /// The members, ordered by their ids. A list of [`ListedMember`].
    #[cfg_attr(feature = "schema", schemars(with = "Vec<ListedMember<'_>>"))]
    pub members: &'a RawValue,
    /// `true` if there are further members after the last one of the page.
    pub more: bool,
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
}

/// Answer to `leaveRoom`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Left<'a> {
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
}

/// Answer to `messageDelivered` and `messageRead`: where the cursor is now.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cursor {
    /// The sequence number up to which all events are delivered, or read.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub seq: u64,
}

/// Answer to `setPresence`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PresenceSet {
    /// The status of the connection.
    pub status: Status,
}

/// Answer to `refreshToken`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Refreshed<'a> {
    /// The time at which the new token expires.
    #[cfg_attr(feature = "schema", schemars(with = "Time"))]
    pub expires_at: &'a str,
}

/// A range of events that have expired, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExpiredRange {
    /// The first event.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub from: u64,
    /// The last event.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub to: u64,
}

/// A page of a room's log: the answer to `sync` and to `GET /rooms/{room}/messages`.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Page<'a> {
    /// The envelopes of the events, ordered by their sequence numbers.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Vec<crate::schema::logged::LoggedEvent>")
    )]
    pub events: &'a [String],
    /// The sequence number of the last event of the room.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub head: u64,
    /// The epoch of the log.
    #[cfg_attr(feature = "schema", schemars(with = "Epoch"))]
    pub epoch: &'a str,
    /// `true` if there are further events in the requested range.
    pub more: bool,
    /// Requested events that have expired.
    #[cfg_attr(
        feature = "schema",
        schemars(skip_serializing_if = "Option::is_none", with = "ExpiredRange")
    )]
    pub gap: Option<ExpiredRange>,
}

impl Page<'_> {
    /// Returns the page as JSON. The events are copied as they are stored, not parsed.
    pub fn to_json(&self) -> String {
        let bytes: usize = self.events.iter().map(|event| event.len() + 1).sum();
        let mut out = String::with_capacity(bytes + 128);
        out.push_str(r#"{"events":["#);
        for (index, event) in self.events.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            out.push_str(event);
        }
        out.push_str(r#"],"head":"#);
        push_number(&mut out, self.head);
        out.push_str(r#","epoch":"#);
        out.push_str(&to_json(&self.epoch));
        // Writing to a `String` cannot fail.
        let _ = write!(out, r#","more":{}"#, self.more);
        if let Some(gap) = &self.gap {
            out.push_str(r#","gap":"#);
            out.push_str(&to_json(gap));
        }
        out.push('}');
        out
    }
}

/// An error as sockets and the results of `POST /publish` send it.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ErrorData<'a> {
    /// The code for programs.
    pub code: ErrorCode,
    /// The message for developers.
    pub message: &'a str,
    /// With `rateLimited`: the time in milliseconds after which the client may retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub retry_after_ms: Option<Millis>,
}

impl<'a> From<&'a Error> for ErrorData<'a> {
    fn from(error: &'a Error) -> Self {
        ErrorData {
            code: error.code,
            message: &error.message,
            retry_after_ms: error.retry_after,
        }
    }
}

/// The payload of a CONNECT_ERROR of Socket.IO. Clients report it as `connect_error`.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectError<'a> {
    /// The message for developers.
    pub message: &'a str,
    /// The error.
    pub data: ErrorData<'a>,
}

impl<'a> From<&'a Error> for ConnectError<'a> {
    fn from(error: &'a Error) -> Self {
        ConnectError {
            message: &error.message,
            data: ErrorData::from(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_keep_their_bytes() {
        let mut receipt = Receipt {
            message_id: "m\"1",
            seq: 7,
            timestamp: "t",
            duplicate: false,
        };
        assert_eq!(
            to_json(&receipt),
            r#"{"messageId":"m\"1","seq":7,"timestamp":"t"}"#
        );
        receipt.duplicate = true;
        assert_eq!(
            to_json(&receipt),
            r#"{"messageId":"m\"1","seq":7,"timestamp":"t","duplicate":true}"#
        );
        let member = ListedMember {
            info: None,
            status: Status::Online,
            user_id: "alice",
        };
        let members = serde_json::value::to_raw_value(&[member]).expect("JSON");
        let joined = Joined {
            delivered: 1,
            epoch: "e",
            member_count: 3,
            members: &members,
            read: 0,
            reset: true,
            room_id: "r",
            seq: 2,
        };
        assert_eq!(
            to_json(&joined),
            r#"{"delivered":1,"epoch":"e","memberCount":3,"members":[{"status":"online","userId":"alice"}],"read":0,"reset":true,"roomId":"r","seq":2}"#
        );
        let page = MemberPage {
            member_count: 3,
            members: &members,
            more: true,
            room_id: "r",
        };
        assert_eq!(
            to_json(&page),
            r#"{"memberCount":3,"members":[{"status":"online","userId":"alice"}],"more":true,"roomId":"r"}"#
        );
        assert_eq!(to_json(&Empty {}), "{}");
        assert_eq!(to_json(&Left { room_id: "r" }), r#"{"roomId":"r"}"#);
        assert_eq!(to_json(&Cursor { seq: 3 }), r#"{"seq":3}"#);
        let status = Status::Busy;
        assert_eq!(to_json(&PresenceSet { status }), r#"{"status":"busy"}"#);
        let expires_at = "t";
        assert_eq!(to_json(&Refreshed { expires_at }), r#"{"expiresAt":"t"}"#);
    }

    #[test]
    fn pages_keep_their_bytes() {
        let events = [r#"{"event":"a"}"#.to_owned(), r#"{"event":"b"}"#.to_owned()];
        let mut page = Page {
            events: &events,
            head: 9,
            epoch: "e",
            more: true,
            gap: None,
        };
        assert_eq!(
            page.to_json(),
            r#"{"events":[{"event":"a"},{"event":"b"}],"head":9,"epoch":"e","more":true}"#
        );
        page.gap = Some(ExpiredRange { from: 1, to: 4 });
        page.events = &[];
        assert_eq!(
            page.to_json(),
            r#"{"events":[],"head":9,"epoch":"e","more":true,"gap":{"from":1,"to":4}}"#
        );
    }
}
