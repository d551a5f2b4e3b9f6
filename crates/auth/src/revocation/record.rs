//! The records of the revocation list. They are stored and sent between objects, so fields
//! and variants keep their serialised names.

use serde::{Deserialize, Serialize};

/// Longest revocation in seconds, and its default: 400 days, the longest lifetime of a
/// cookie in browsers (RFC 6265bis, 5.6.2). A token in a cookie therefore expires before its
/// revocation ends.
pub const MAX_LIFE: u64 = 400 * 24 * 60 * 60;

/// Longest `jti` in bytes. Limits the size of the attachments of sockets, which contain it.
pub const MAX_JTI: usize = 256;

/// The tokens that a revocation concerns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RevocationTarget {
    /// All tokens of a user that were issued until the revocation, and those without `iat`.
    User(String),
    /// The token with this `jti`.
    Jti(String),
}

/// A record of the list. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The number of the revocation. Every revocation gets the next higher one.
    pub n: u64,
    /// The revoked tokens.
    #[serde(rename = "whose")]
    pub target: RevocationTarget,
    /// The time of the revocation.
    pub at: u64,
    /// The time at which the revocation ends. It must be after the `exp` of every token that
    /// it concerns.
    pub until: u64,
}

/// A page of the revocations after some number; see
/// [`RevocationList::page`](super::RevocationList::page).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct RevocationDelta {
    /// The number of the newest revocation of the list, or the last of the page if there are
    /// more.
    pub head: u64,
    /// `true` if the list has revocations after the page. Earlier versions do not send it.
    #[serde(default)]
    pub more: bool,
    /// The revocations, in the order of their numbers.
    pub revocations: Vec<Revocation>,
}
