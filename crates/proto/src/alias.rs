//! The name `user:{userId}` of a personal room, which the original module and its services use.

use crate::id::RoomName;
use crate::name;
use crate::raw_object::{Field, ROOM, TEXT};
use std::borrow::Cow;

/// The start of the alias of a personal room, before the user id.
const USER: &str = "user:";

/// A room name, or the alias of a personal room.
pub const ROOM_OR_USER: Field<RoomName> = Field {
    expected: ROOM.expected,
    read: |json| RoomName::parse(&resolve(&(TEXT.read)(json)?)),
};

/// Returns the name of the room that `name` stands for: `@{userId}` for `user:{userId}`, and
/// `name` otherwise.
pub fn resolve(name: &str) -> Cow<'_, str> {
    match name.strip_prefix(USER).filter(|user| !user.is_empty()) {
        Some(user) => name::personal_room(user).into(),
        None => name.into(),
    }
}

/// Returns the alias of a personal room, and `name` for other rooms.
pub fn alias_of(name: &str) -> Cow<'_, str> {
    match name::personal_room_owner(name) {
        Some(user) => format!("{USER}{user}").into(),
        None => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alias_stands_for_the_personal_room() {
        for (name, room) in [
            ("user:alice", "@alice"),
            ("user:a:b", "@a:b"),
            ("users:alice", "users:alice"),
            ("general", "general"),
        ] {
            assert_eq!(resolve(name), room);
            assert_eq!(alias_of(room), name);
            let json = format!(r#""{name}""#);
            assert_eq!((ROOM_OR_USER.read)(&json).as_deref(), Some(room));
        }
        assert_eq!(resolve("@alice"), "@alice");
        assert_eq!(resolve("user:"), "user:");
        assert_eq!((ROOM_OR_USER.read)("7"), None);
    }
}
