//! Access rights: room patterns, and the identity that a valid token gives.

use crate::fault::{Fault, Result};
use crate::name;
use crate::time::Millis;
use serde::{Deserialize, Serialize};

/// What an identity may do in one room: a set of rights, as bits so that it
/// fits a socket's attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Rights(u8);

impl Rights {
    pub const NONE: Rights = Rights(0);
    /// Receive, join, read history.
    pub const READ: Rights = Rights(1);
    /// Send messages and custom events.
    pub const WRITE: Rights = Rights(2);
    /// Show presence and typing.
    pub const PRESENCE: Rights = Rights(4);
    /// All of the others besides its own.
    pub const ADMIN: Rights = Rights(8 | 1 | 2 | 4);
    /// What a plain list of patterns gives: all but admin.
    pub const MEMBER: Rights = Rights(1 | 2 | 4);

    pub fn has(self, right: Rights) -> bool {
        self.0 & right.0 == right.0
    }

    pub fn with(self, right: Rights) -> Rights {
        Rights(self.0 | right.0)
    }

    /// A right by its name in a token; `None` for a name of another version.
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

/// Room patterns with the rights they give. A pattern is a name, or a prefix
/// and a final `*`; the longest match wins, a full name before a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Patterns(Vec<(String, Rights)>);

impl Patterns {
    pub fn new(patterns: Vec<(String, Rights)>) -> Self {
        Patterns(patterns)
    }

    /// From a setting: patterns separated by commas or spaces, all but admin.
    pub fn from_list(list: &str) -> Self {
        Patterns(
            list.split([',', ' '])
                .filter(|pattern| !pattern.is_empty())
                .map(|pattern| (pattern.to_owned(), Rights::MEMBER))
                .collect(),
        )
    }

    /// Whether every room there can be is given with all rights.
    pub fn give_all(&self) -> bool {
        self.0.iter().any(|(pattern, _)| pattern == "*")
            && self.0.iter().all(|(_, rights)| rights.has(Rights::ADMIN))
    }

    /// What the longest pattern that matches `room` gives.
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

/// What a user may do in `room`: patterns, and the rule of personal rooms,
/// that only their owner joins them and only services publish to them.
pub fn user_rights(patterns: &Patterns, user: &str, room: &str) -> Rights {
    match name::personal_room_owner(room) {
        Some(owner) if owner == user => Rights::READ.with(Rights::PRESENCE),
        Some(_) => Rights::NONE,
        None => patterns.rights(room),
    }
}

/// Longest token that is looked at, in bytes. Headers are limited to 16 KiB by
/// the platform; what is longer cannot have come in one.
pub const MAX_TOKEN: usize = 16 * 1024;

/// By what a token is known when it is revoked, besides its user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenId {
    /// Its `iat`, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
}

/// Who somebody is and what the token allows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub user: String,
    pub expires: Millis,
    /// Has `role: service`: may use the HTTP API.
    pub service: bool,
    pub patterns: Patterns,
    /// By what its token is known when that is revoked.
    #[serde(default)]
    pub token: TokenId,
}

impl Identity {
    /// Whether it is a service with all rights on every room there is or will
    /// be: what concerns more than one room takes that.
    pub fn is_service_of_all(&self) -> bool {
        self.service && self.patterns.give_all()
    }

    /// What it may do in `room` over a socket and when it reads.
    pub fn rights(&self, room: &str) -> Rights {
        user_rights(&self.patterns, &self.user, room)
    }

    /// What it may do with `room` as a service; nothing without the role. A
    /// pattern that matches covers personal rooms too.
    pub fn service_rights(&self, room: &str) -> Rights {
        if self.service {
            self.patterns.rights(room)
        } else {
            Rights::NONE
        }
    }

    /// Fails with `forbidden` unless it has `right` on `room` as a service.
    pub fn require_service(&self, room: &str, right: Rights) -> Result<()> {
        if !self.service {
            return Err(Fault::forbidden("this needs a token with role `service`"));
        }
        if !self.service_rights(room).has(right) {
            return Err(Fault::forbidden("the token does not cover this room"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns() -> Patterns {
        Patterns::new(vec![
            ("*".into(), Rights::READ),
            ("team-*".into(), Rights::READ.with(Rights::WRITE)),
            ("team-a".into(), Rights::ADMIN),
            ("team-a*".into(), Rights::NONE),
        ])
    }

    #[test]
    fn the_longest_match_wins() {
        assert_eq!(patterns().rights("other"), Rights::READ);
        assert!(patterns().rights("team-b").has(Rights::WRITE));
        assert_eq!(patterns().rights("team-a"), Rights::ADMIN);
        assert_eq!(patterns().rights("team-abc"), Rights::NONE);
        assert_eq!(Patterns::default().rights("x"), Rights::NONE);
    }

    #[test]
    fn a_personal_room_is_for_its_user_alone() {
        let all = Patterns::from_list("*");
        let own = user_rights(&all, "alice", "@alice");
        assert!(own.has(Rights::READ) && !own.has(Rights::WRITE));
        assert_eq!(user_rights(&all, "alice", "@bob"), Rights::NONE);
        assert_eq!(user_rights(&all, "alice", "x"), Rights::MEMBER);
    }

    #[test]
    fn all_is_a_star_with_admin_and_nothing_less_beside_it() {
        let of = |patterns: &[(&str, Rights)]| {
            let patterns = patterns
                .iter()
                .map(|(name, rights)| ((*name).into(), *rights));
            Patterns::new(patterns.collect()).give_all()
        };
        assert!(of(&[("*", Rights::ADMIN)]));
        assert!(of(&[("*", Rights::ADMIN), ("a", Rights::ADMIN)]));
        assert!(!of(&[("*", Rights::MEMBER)]));
        assert!(!of(&[("a*", Rights::ADMIN)]));
        assert!(!of(&[("*", Rights::ADMIN), ("a", Rights::READ)]));
        assert!(!of(&[]));
    }

    #[test]
    fn admin_implies_the_others() {
        assert!(Rights::ADMIN.has(Rights::MEMBER));
        assert!(!Rights::MEMBER.has(Rights::ADMIN));
    }
}
