//! The bodies of responses of the HTTP API. The bodies of requests are read by
//! [`raw_object`](crate::raw_object), which reports the field that is wrong.
//!
//! The fields of a struct stand in the order in which they are sent.

use crate::answer::ErrorData;
use crate::status::Status;
use crate::user_info::UserInfo;
use serde::Serialize;

#[cfg(feature = "schema")]
use crate::{
    id::{Epoch, MessageId, RoomName, UserId},
    schema::values::{Code, Count, Seq, Time, True, UnixTime},
};

/// What `POST /publish` did with a message.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Published<'a> {
    /// Set if the sender had sent the id before. The event was not sent again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[cfg_attr(feature = "schema", schemars(with = "True"))]
    pub duplicate: bool,
    /// The id of the event.
    #[cfg_attr(feature = "schema", schemars(with = "MessageId"))]
    pub message_id: &'a str,
    /// The number of connected users.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub online: usize,
    /// The number of members who are not connected. The event waits for them.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub queued: usize,
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// The sequence number of the event. Not set for a volatile event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub seq: Option<u64>,
    /// The time at which the room accepted the event.
    #[cfg_attr(feature = "schema", schemars(with = "Time"))]
    pub timestamp: String,
}

/// Response of `POST /broadcast`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Broadcasted<'a> {
    /// The number of rooms and gateways that did not answer. Some of them may have sent the event.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub failed: usize,
    /// The number of gateways that have sent the event to their connections.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub gateways: usize,
    /// The id of the event.
    #[cfg_attr(feature = "schema", schemars(with = "MessageId"))]
    pub message_id: &'a str,
    /// The number of rooms that have sent the event to their own sockets.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub rooms: usize,
    /// The time of the event.
    #[cfg_attr(feature = "schema", schemars(with = "Time"))]
    pub timestamp: &'a str,
}

/// A message of `POST /publish` that was refused.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Refused<'a> {
    /// The reason.
    pub error: ErrorData<'a>,
}

/// A member of a room.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Member<'a> {
    /// The delivered cursor.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub delivered: u64,
    /// The profile of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "UserInfo"))]
    pub info: Option<UserInfo>,
    /// The time at which the membership began.
    #[cfg_attr(feature = "schema", schemars(with = "Time"))]
    pub joined_at: String,
    /// The number of stored events after the delivered cursor.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub queued: u64,
    /// The read cursor.
    #[cfg_attr(feature = "schema", schemars(with = "Seq"))]
    pub read: u64,
    /// The user.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
}

/// The presence of members of a room.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RoomPresence<'a> {
    /// The number of members of the room.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub member_count: usize,
    /// `true` if there are further members after the last one of the page.
    pub more: bool,
    /// The members, ordered by their ids.
    pub users: Vec<UserPresence<'a>>,
}

/// The presence of a member.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct UserPresence<'a> {
    /// The number of connections of the user in the room.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub connections: usize,
    /// The profile of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "UserInfo"))]
    pub info: Option<UserInfo>,
    /// The time of the last sign of life of the user. `null` for a user who is connected
    /// and for one who never was.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Time>"))]
    pub last_seen: Option<String>,
    /// The most available status of the connections.
    pub status: Status,
    /// The user.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
}

/// Response of `DELETE /rooms/{room}/members/{user}`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MemberRemoved<'a> {
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
    /// The user.
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: &'a str,
}

/// Response of `DELETE /rooms/{room}/connections`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Kicked {
    /// The number of sockets that were closed.
    #[cfg_attr(feature = "schema", schemars(with = "Count"))]
    pub closed: usize,
}

/// Response of `DELETE /rooms/{room}`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RoomDeleted<'a> {
    /// The epoch of the new log.
    #[cfg_attr(feature = "schema", schemars(with = "Epoch"))]
    pub epoch: &'a str,
    /// The room.
    #[cfg_attr(feature = "schema", schemars(with = "RoomName"))]
    pub room_id: &'a str,
}

/// Response of `POST /tickets`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Ticket<'a> {
    /// The time after which the ticket is not accepted.
    #[cfg_attr(feature = "schema", schemars(with = "Time"))]
    pub expires_at: &'a str,
    /// The ticket, for `?ticket=` of one upgrade.
    pub ticket: &'a str,
}

/// Response of `POST /revoke`. It has `userId` or `jti`, as the request has.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::values::one_of_user_id_and_jti))]
pub struct Revoked<'a> {
    /// The id of the revoked token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::values::Jti"))]
    pub jti: Option<&'a str>,
    /// The time of the revocation.
    #[cfg_attr(feature = "schema", schemars(with = "UnixTime"))]
    pub revoked_at: u64,
    /// The time at which the revocation ends.
    #[cfg_attr(feature = "schema", schemars(with = "UnixTime"))]
    pub until: u64,
    /// The user whose tokens are revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "UserId"))]
    pub user_id: Option<&'a str>,
}

/// Response of `GET /healthz`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health<'a> {
    /// Always `ok`.
    #[cfg_attr(feature = "schema", schemars(extend("const" = "ok")))]
    pub status: &'a str,
    /// The version of the server.
    pub version: &'a str,
}

/// An error as an RFC 9457 problem.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem<'a> {
    /// The code for programs.
    #[cfg_attr(feature = "schema", schemars(with = "Code"))]
    pub code: &'a str,
    /// The message for developers.
    pub detail: &'a str,
    /// The name of the field with the wrong value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub field: Option<&'a str>,
    /// The status of the response.
    pub status: u16,
    /// The name of the status.
    pub title: &'a str,
    /// Always `about:blank`: `title` is the name of the status (RFC 9457, 4.2.1).
    #[serde(rename = "type")]
    #[cfg_attr(feature = "schema", schemars(extend("const" = "about:blank")))]
    pub kind: &'a str,
}

/// An error of Engine.IO, at `/socket.io/`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EngineError<'a> {
    /// The number of the error in Engine.IO.
    pub code: u8,
    /// The message for developers.
    pub message: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::to_json;
    use serde_json::json;

    #[test]
    fn responses_keep_their_bytes() {
        let published = Published {
            duplicate: true,
            message_id: "m",
            online: 1,
            queued: 2,
            room_id: "r",
            seq: Some(3),
            timestamp: "t".into(),
        };
        let as_before = json!({
            "roomId": "r", "online": 1, "seq": 3, "messageId": "m", "timestamp": "t",
            "queued": 2, "duplicate": true,
        });
        assert_eq!(to_json(&published), as_before.to_string());
        let volatile = Published {
            duplicate: false,
            seq: None,
            ..published
        };
        assert_eq!(
            to_json(&volatile),
            r#"{"messageId":"m","online":1,"queued":2,"roomId":"r","timestamp":"t"}"#
        );
        let broadcasted = Broadcasted {
            failed: 0,
            gateways: 2,
            message_id: "m",
            rooms: 1,
            timestamp: "t",
        };
        assert_eq!(
            to_json(&broadcasted),
            r#"{"failed":0,"gateways":2,"messageId":"m","rooms":1,"timestamp":"t"}"#
        );
        let member = Member {
            delivered: 1,
            info: None,
            joined_at: "t".into(),
            queued: 2,
            read: 0,
            user_id: "u",
        };
        let as_before =
            json!({ "userId": "u", "joinedAt": "t", "delivered": 1, "read": 0, "queued": 2 });
        assert_eq!(to_json(&member), as_before.to_string());
        let presence = RoomPresence {
            member_count: 3,
            more: true,
            users: vec![UserPresence {
                connections: 0,
                info: None,
                last_seen: None,
                status: Status::Offline,
                user_id: "u",
            }],
        };
        assert_eq!(
            to_json(&presence),
            r#"{"memberCount":3,"more":true,"users":[{"connections":0,"lastSeen":null,"status":"offline","userId":"u"}]}"#
        );
        let problem = Problem {
            code: "badRequest",
            detail: "d",
            field: Some("f"),
            status: 400,
            title: "Bad Request",
            kind: "about:blank",
        };
        let as_before = json!({
            "type": "about:blank", "title": "Bad Request", "status": 400,
            "code": "badRequest", "detail": "d", "field": "f",
        });
        assert_eq!(to_json(&problem), as_before.to_string());
        let revoked = Revoked {
            jti: None,
            revoked_at: 1,
            until: 2,
            user_id: Some("u"),
        };
        let as_before = json!({ "userId": "u", "revokedAt": 1, "until": 2 });
        assert_eq!(to_json(&revoked), as_before.to_string());
        let ticket = Ticket {
            expires_at: "t",
            ticket: "x",
        };
        let as_before = json!({ "ticket": "x", "expiresAt": "t" });
        assert_eq!(to_json(&ticket), as_before.to_string());
        let deleted = RoomDeleted {
            epoch: "e",
            room_id: "r",
        };
        assert_eq!(to_json(&deleted), r#"{"epoch":"e","roomId":"r"}"#);
        let removed = MemberRemoved {
            room_id: "r",
            user_id: "u",
        };
        assert_eq!(to_json(&removed), r#"{"roomId":"r","userId":"u"}"#);
        assert_eq!(to_json(&Kicked { closed: 2 }), r#"{"closed":2}"#);
        let health = Health {
            status: "ok",
            version: "1",
        };
        assert_eq!(to_json(&health), r#"{"status":"ok","version":"1"}"#);
        let code = 3;
        let message = "m";
        assert_eq!(
            to_json(&EngineError { code, message }),
            r#"{"code":3,"message":"m"}"#
        );
    }
}
