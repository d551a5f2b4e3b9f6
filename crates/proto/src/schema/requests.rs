//! The bodies of HTTP requests. The server reads them field by field; these types
//! describe them.

#![allow(dead_code, reason = "these types exist for their schemas")]

use super::values::{Any, CustomEventName, Jti, PublishedEventName, UnixTime};
use crate::id::{MessageId, RoomName, UserId};
use schemars::JsonSchema;

/// A message of `POST /publish`, to a room or to the personal room of a user.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase", transform = super::values::publication)]
pub struct Publication {
    /// The name of the event: `newMessage`, or a custom event.
    #[schemars(with = "PublishedEventName")]
    event: String,
    /// The data of the event, of at most `MAX_FRAME_BYTES`: any JSON, or an object if the event
    /// is `newMessage`.
    #[schemars(with = "Any")]
    data: (),
    /// The room.
    room: Option<RoomName>,
    /// The user whose personal room is meant.
    user_id: Option<UserId>,
    /// The id of the event. The server makes one if it is not given.
    message_id: Option<MessageId>,
    /// `true` to send the event to the connected users only and not to store it.
    #[schemars(extend("default" = false))]
    volatile: Option<bool>,
}

/// The body of `POST /publish`.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum PublishRequest {
    /// One message.
    One(Publication),
    /// Several messages.
    Many(PublicationBatch),
}

/// Several messages for `POST /publish`.
#[derive(Debug, JsonSchema)]
pub struct PublicationBatch {
    /// The messages.
    #[schemars(length(min = 1, max = 100))]
    messages: Vec<Publication>,
}

/// The body of `POST /broadcast`.
#[derive(Debug, JsonSchema)]
pub struct Broadcast {
    /// The name of the custom event.
    #[schemars(with = "CustomEventName")]
    event: String,
    /// The data of the event, of at most `MAX_FRAME_BYTES`: any JSON. A string has at most 1,024
    /// bytes.
    #[schemars(with = "Any")]
    data: (),
    /// The id of the event. The server makes one if it is not given.
    #[schemars(rename = "messageId")]
    message_id: Option<MessageId>,
}

/// The body of `POST /revoke`. It has either `userId` or `jti`.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase", transform = super::values::one_of_user_id_and_jti)]
pub struct Revocation {
    /// Revokes the tokens of this user that were issued up to now.
    user_id: Option<UserId>,
    /// Revokes the token with this id.
    #[schemars(with = "Option<Jti>")]
    jti: Option<String>,
    /// The time at which the revocation ends, within 400 days. Default: MAX_TOKEN_LIFETIME from
    /// now, or 400 days if it is not set.
    #[schemars(with = "Option<UnixTime>")]
    until: Option<u64>,
}
