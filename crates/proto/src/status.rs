//! The presence status of a user.

/// How available a user is, ordered from least to most available. A user's status is
/// the greatest status of the user's connections.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not connected, or connected and shown as offline.
    Offline,
    /// Connected but not active.
    Away,
    /// Connected and not to be disturbed.
    Busy,
    /// Connected and active. The status of a new connection.
    #[default]
    Online,
}

impl Status {
    /// Returns the status as clients see it, such as `online`.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Offline => "offline",
            Status::Away => "away",
            Status::Busy => "busy",
            Status::Online => "online",
        }
    }
}
