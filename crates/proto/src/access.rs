//! Access rights: the rights that a token grants in each room.

use crate::error::{Error, Result};
use crate::id::UserId;
use crate::name;
use crate::time::Millis;
use crate::user_info::{Profile, UserInfo};
use serde::{Deserialize, Serialize};

/// A set of rights in one room. Stored as the bits of one byte, so that it fits into the
/// attachment of a socket; the bits must not change their meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rights(u8);

impl Rights {
    /// No rights.
    pub const NONE: Rights = Rights(0);
    /// Join the room, receive its events and read its history.
    pub const READ: Rights = Rights(1);
    /// Send messages and custom events.
    pub const WRITE: Rights = Rights(2);
    /// Show presence and typing.
    pub const PRESENCE: Rights = Rights(4);
    /// Administrate the room as a service. Includes all other rights.
    pub const ADMIN: Rights = Rights(8 | 1 | 2 | 4);
    /// All rights of a member: all but [`Rights::ADMIN`]. A list of room patterns without
    /// rights grants these.
    pub const MEMBER: Rights = Rights(1 | 2 | 4);

    /// Returns `true` if the set contains all of `rights`.
    pub fn has(self, rights: Rights) -> bool {
        self.0 & rights.0 == rights.0
    }

    /// Returns the union of both sets.
    pub fn with(self, rights: Rights) -> Rights {
        Rights(self.0 | rights.0)
    }

    /// Returns the right with this name in a token. Returns `None` for unknown names, so
    /// that tokens may carry rights of later versions.
    pub fn parse(name: &str) -> Option<Rights> {
        match name {
            "read" => Some(Rights::READ),
            "write" => Some(Rights::WRITE),
            "presence" => Some(Rights::PRESENCE),
            "admin" => Some(Rights::ADMIN),
            _ => None,
        }
    }
}

/// Room patterns and the rights that each grants. A pattern is a room name, or a prefix
/// followed by `*`. The longest matching pattern decides; at equal length, a full name
/// wins over a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RoomPatterns(Vec<(String, Rights)>);

impl RoomPatterns {
    /// Creates patterns with their rights.
    pub fn new(patterns: Vec<(String, Rights)>) -> Self {
        RoomPatterns(patterns)
    }

    /// Parses the value of a setting: patterns separated by commas or spaces. Each grants
    /// [`Rights::MEMBER`].
    pub fn from_list(list: &str) -> Self {
        RoomPatterns(
            list.split([',', ' '])
                .filter(|pattern| !pattern.is_empty())
                .map(|pattern| (pattern.to_owned(), Rights::MEMBER))
                .collect(),
        )
    }

    /// Returns `true` if the patterns grant all rights on every possible room.
    pub fn grant_all(&self) -> bool {
        self.0.iter().any(|(pattern, _)| pattern == "*")
            && self.0.iter().all(|(_, rights)| rights.has(Rights::ADMIN))
    }

    /// Returns the rights that the longest matching pattern grants on `room`, or
    /// [`Rights::NONE`] if no pattern matches.
    pub fn rights(&self, room: &str) -> Rights {
        self.0
            .iter()
            .filter_map(|(pattern, rights)| {
                let (length, exact) = match pattern.strip_suffix('*') {
                    Some(prefix) => (room.starts_with(prefix).then_some(prefix.len())?, false),
                    None => ((room == pattern).then_some(pattern.len())?, true),
                };
                Some(((length, exact), *rights))
            })
            .max_by_key(|(match_, _)| *match_)
            .map_or(Rights::NONE, |(_, rights)| rights)
    }
}

/// Returns the rights of a user in `room`. Patterns do not apply to personal rooms: the
/// owner has [`Rights::READ`] and [`Rights::PRESENCE`], and all other users have none.
pub fn user_rights(patterns: &RoomPatterns, user: &str, room: &str) -> Rights {
    match name::personal_room_owner(room) {
        Some(owner) if owner == user => Rights::READ.with(Rights::PRESENCE),
        Some(_) => Rights::NONE,
        None => patterns.rights(room),
    }
}

/// Longest token that is parsed, in bytes. A longer token cannot arrive in a header,
/// because Cloudflare limits the headers of a request to 16 KB.
pub const MAX_TOKEN: usize = 16 * 1024;

/// The claims by which a token can be revoked, besides its user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenId {
    /// The claim `iat`, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<u64>,
    /// The claim `jti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
}

/// The holder of a valid token, and what the token allows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The user id, from the claim `sub` or the one that `USER_CLAIM` names.
    pub user: UserId,
    /// The time at which the token expires.
    pub expires: Millis,
    /// `true` if the token has `role: service` and so may use the HTTP API.
    pub service: bool,
    /// The rights that the token grants, from the claim `rooms`.
    pub patterns: RoomPatterns,
    /// The claims by which the token can be revoked.
    #[serde(default)]
    pub token: TokenId,
    /// The profile of the user, from the claim `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<UserInfo>,
}

impl Identity {
    /// Returns the profile of the user, with the age of the token that it comes from.
    pub fn profile(&self) -> Profile {
        Profile {
            issued: self.token.issued,
            info: self.info.clone(),
        }
    }

    /// Returns `true` for a service with all rights on every room. Requests that concern
    /// more than one room require it.
    pub fn is_service_of_all(&self) -> bool {
        self.service && self.patterns.grant_all()
    }

    /// Returns the rights in `room` as a user: on sockets and when reading over HTTP.
    pub fn rights(&self, room: &str) -> Rights {
        user_rights(&self.patterns, &self.user, room)
    }

    /// Returns the rights on `room` as a service, or [`Rights::NONE`] without the role.
    /// The patterns of services apply to personal rooms as well.
    pub fn service_rights(&self, room: &str) -> Rights {
        if self.service {
            self.patterns.rights(room)
        } else {
            Rights::NONE
        }
    }

    /// Checks that the identity has `right` on `room` as a service.
    ///
    /// # Errors
    ///
    /// Returns `forbidden` if it does not.
    pub fn require_service(&self, room: &str, right: Rights) -> Result<()> {
        if !self.service {
            return Err(Error::forbidden("a token with role `service` is required"));
        }
        if !self.service_rights(room).has(right) {
            return Err(Error::forbidden(
                "the token does not grant the required right on this room",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns() -> RoomPatterns {
        RoomPatterns::new(vec![
            ("*".into(), Rights::READ),
            ("team-*".into(), Rights::READ.with(Rights::WRITE)),
            ("team-a".into(), Rights::ADMIN),
            ("team-a*".into(), Rights::NONE),
        ])
    }

    #[test]
    fn the_longest_matching_pattern_decides() {
        assert_eq!(patterns().rights("other"), Rights::READ);
        assert!(patterns().rights("team-b").has(Rights::WRITE));
        assert_eq!(patterns().rights("team-a"), Rights::ADMIN);
        assert_eq!(patterns().rights("team-abc"), Rights::NONE);
        assert_eq!(RoomPatterns::default().rights("x"), Rights::NONE);
    }

    #[test]
    fn only_its_user_has_rights_in_a_personal_room() {
        let all = RoomPatterns::from_list("*");
        let own = user_rights(&all, "alice", "@alice");
        assert!(own.has(Rights::READ) && !own.has(Rights::WRITE));
        assert_eq!(user_rights(&all, "alice", "@bob"), Rights::NONE);
        assert_eq!(user_rights(&all, "alice", "x"), Rights::MEMBER);
    }

    #[test]
    fn grant_all_needs_admin_on_star_and_on_every_other_pattern() {
        let of = |patterns: &[(&str, Rights)]| {
            let patterns = patterns
                .iter()
                .map(|(name, rights)| ((*name).into(), *rights));
            RoomPatterns::new(patterns.collect()).grant_all()
        };
        assert!(of(&[("*", Rights::ADMIN)]));
        assert!(of(&[("*", Rights::ADMIN), ("a", Rights::ADMIN)]));
        assert!(!of(&[("*", Rights::MEMBER)]));
        assert!(!of(&[("a*", Rights::ADMIN)]));
        assert!(!of(&[("*", Rights::ADMIN), ("a", Rights::READ)]));
        assert!(!of(&[]));
    }

    #[test]
    fn admin_includes_all_other_rights() {
        assert!(Rights::ADMIN.has(Rights::MEMBER));
        assert!(!Rights::MEMBER.has(Rights::ADMIN));
    }
}
