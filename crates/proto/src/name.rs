//! The rules for names that clients and services choose: rooms, users and custom events.
//! The types are in [`id`](crate::id).

/// Longest room name or user id, in bytes. All allowed characters are ASCII.
pub const MAX_NAME: usize = 128;

/// Longest name of a custom event, in bytes. All allowed characters are ASCII.
pub const MAX_EVENT_NAME: usize = 64;

/// Longest message id, in characters.
pub const MAX_MESSAGE_ID: usize = 128;

/// Returns `true` for `A-Z a-z 0-9 . _ : -`, the alphabet of user ids and custom
/// events. Room names may also contain `@`.
fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-')
}

/// Returns `true` if `name` is a valid room name: 1 to 128 of `A-Z a-z 0-9 . _ : - @`. A
/// personal room may have 129 characters, so that the user with the longest id also has
/// one.
pub fn is_room(name: &str) -> bool {
    if let Some(user) = name.strip_prefix('@')
        && is_user(user)
    {
        return true;
    }
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| is_name_byte(b) || b == b'@')
}

/// Returns `true` if `id` is a valid user id: 1 to 128 of `A-Z a-z 0-9 . _ : -`.
pub fn is_user(id: &str) -> bool {
    (1..=MAX_NAME).contains(&id.len()) && id.bytes().all(is_name_byte)
}

/// Returns `true` if `name` has the form of a custom event's name: 1 to 64 of
/// `A-Z a-z 0-9 . _ : -`. It may still be
/// [reserved](crate::event_name::is_reserved).
pub fn is_event(name: &str) -> bool {
    (1..=MAX_EVENT_NAME).contains(&name.len()) && name.bytes().all(is_name_byte)
}

/// Returns `true` if `id` is a valid message id: 1 to 128 characters without control
/// characters.
pub fn is_message_id(id: &str) -> bool {
    (1..=MAX_MESSAGE_ID).contains(&id.chars().count()) && !id.chars().any(char::is_control)
}

/// Returns the name of a user's personal room. Only the user may join it, and only
/// services may publish to it.
pub fn personal_room(user: &str) -> String {
    format!("@{user}")
}

/// Returns the user whose personal room `room` is, or `None` for any other room.
pub fn personal_room_owner(room: &str) -> Option<&str> {
    room.strip_prefix('@')
}

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
