//! Names that come from outside and are checked once: rooms and users.

use std::rc::Rc;

/// Longest room name or user id, in characters (all of them ASCII).
pub const MAX_NAME: usize = 128;

/// Longest name of a custom event, in characters.
pub const MAX_EVENT_NAME: usize = 64;

/// `A-Z a-z 0-9 . _ : -`: what user ids and custom events are made of. Rooms
/// may have `@` besides.
fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-')
}

/// Whether `name` may name a room: 1 to 128 of `A-Z a-z 0-9 . _ : - @`. A
/// personal room may be one longer, so that the longest user id has one too.
pub fn is_room(name: &str) -> bool {
    if let Some(user) = name.strip_prefix('@')
        && is_user(user)
    {
        return true;
    }
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| is_name_byte(b) || b == b'@')
}

/// Whether `id` may be a user: 1 to 128 characters of the room alphabet
/// without `@`.
pub fn is_user(id: &str) -> bool {
    (1..=MAX_NAME).contains(&id.len()) && id.bytes().all(is_name_byte)
}

/// Whether `name` may name a custom event: 1 to 64 of `A-Z a-z 0-9 . _ : -`.
pub fn is_event(name: &str) -> bool {
    (1..=MAX_EVENT_NAME).contains(&name.len()) && name.bytes().all(is_name_byte)
}

/// The room that only `user` may join and only services may publish to.
pub fn personal_room(user: &str) -> String {
    format!("@{user}")
}

/// The user whose personal room `room` is, if it is one.
pub fn personal_room_owner(room: &str) -> Option<&str> {
    room.strip_prefix('@')
}

/// A user id, shared: it stands in members, presence and every connection.
pub type UserId = Rc<str>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_names_are_1_to_128_of_the_alphabet() {
        for good in ["a", "A.b_c:d-e@f", "@alice", &"x".repeat(128)] {
            assert!(is_room(good), "{good}");
        }
        for bad in [
            "",
            "a b",
            "a/b",
            "ä",
            "a\n",
            "..%2f",
            &"x".repeat(129),
            "аdmin", // Cyrillic a
        ] {
            assert!(!is_room(bad), "{bad}");
        }
    }

    #[test]
    fn the_longest_user_id_has_a_personal_room() {
        let user = "u".repeat(MAX_NAME);
        assert!(is_user(&user) && is_room(&personal_room(&user)));
        assert!(!is_user("a@b") && !is_user("") && !is_user(&"u".repeat(129)));
    }
}
