//! The rules for names that clients and services choose: rooms, users and custom events.
//! The types are in [`id`](crate::id).

/// Longest room name, in bytes. All allowed characters are ASCII. The name of a personal room
/// may be longer, because it contains a user id.
pub const MAX_ROOM_NAME: usize = 128;

/// Longest user id, in bytes. OpenID Connect allows 255 characters (Core 1.0, 2).
pub const MAX_USER_ID: usize = 255;

/// Longest name of a custom event, in bytes. All allowed characters are ASCII.
pub const MAX_EVENT_NAME: usize = 64;

/// Longest message id, in characters.
pub const MAX_MESSAGE_ID: usize = 128;

/// Returns `true` for `A-Z a-z 0-9 . _ : -`, the alphabet of custom events. Room names may also
/// contain `@`.
fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-')
}

/// Returns `true` if `name` is a valid room name: 1 to 128 of `A-Z a-z 0-9 . _ : - @`, or the
/// name of a personal room, which is `@` and any user id.
pub fn is_room(name: &str) -> bool {
    if personal_room_owner(name).is_some_and(is_user) {
        return true;
    }
    (1..=MAX_ROOM_NAME).contains(&name.len()) && name.bytes().all(|b| is_name_byte(b) || b == b'@')
}

/// Returns `true` if `id` is a valid user id: 1 to 255 bytes of printable characters without
/// white space at the beginning or the end.
///
/// Ids are compared byte by byte. They are not normalized, because the identity provider has
/// chosen them.
pub fn is_user(id: &str) -> bool {
    (1..=MAX_USER_ID).contains(&id.len())
        && !id.starts_with(' ')
        && !id.ends_with(' ')
        && id.chars().all(is_printable)
}

/// Returns `true` for the space, and for all characters that are not of the Unicode categories
/// "other" (control and format characters, private use, unassigned) or "separator". Python's
/// `str.isprintable` has the same definition.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // The standard library escapes the characters that are not printable, and at the beginning
    // of a text also combining characters.
    let mut bytes = *b"a\0\0\0\0";
    let length = c.encode_utf8(&mut bytes[1..]).len();
    str::from_utf8(&bytes[..=length]).is_ok_and(|text| text.escape_debug().nth(1) != Some('\\'))
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
    use crate::id::USER_ID_PATTERN;
    use proptest::prelude::*;
    use regex::Regex;

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
    fn ids_of_identity_providers_are_user_ids() {
        for good in [
            "alice",
            "auth0|5f7c8ec7c33c6c004bbafe82",
            "google-oauth2|103547991597142817347",
            "alice@example.com",
            "@alice",
            "José",
            "Jose\u{301}",
            "山田 太郎",
            "محمد",
            "👩",
            "https://login.example/users/7?tenant=a&b=%20#c",
            "CN=Alice \"Al\" O'Brien,OU=R\\&D",
            "*",
            "..",
            &"u".repeat(255),
            &"é".repeat(127),
        ] {
            assert!(is_user(good), "{good}");
            assert!(is_room(&personal_room(good)), "{good}");
        }
    }

    #[test]
    fn ids_that_cannot_be_seen_or_are_too_long_are_refused() {
        for bad in [
            "",
            " ",
            " alice",
            "alice ",
            "a\nb",
            "a\tb",
            "a\0b",
            "a\u{7f}b",
            "a\u{85}b",
            "a\u{a0}b",
            "a\u{200b}b",
            "a\u{202e}b",
            "a\u{2028}b",
            "\u{feff}a",
            "a\u{e000}b",
            "a\u{e0041}b",
            "\u{fdd0}",
            &"u".repeat(256),
            &"é".repeat(128),
        ] {
            assert!(!is_user(bad), "{bad:?}");
            let is_room = is_room(&personal_room(bad));
            assert_eq!(is_room, bad.is_empty(), "{bad:?}");
        }
    }

    #[test]
    fn room_names_of_earlier_versions_stay_valid() {
        for old in ["@", "@@", "@a@b", &format!("@{}", "u".repeat(128))] {
            assert!(is_room(old), "{old}");
        }
    }

    proptest! {
        #[test]
        fn user_ids_follow_the_pattern_of_their_schema(id in user_id_or_not()) {
            let pattern = Regex::new(USER_ID_PATTERN).expect("a pattern");
            prop_assert_eq!(is_user(&id), pattern.is_match(&id) && id.len() <= MAX_USER_ID);
        }

        #[test]
        fn the_owner_of_a_personal_room_is_its_user(id in user_id_or_not()) {
            let room = personal_room(&id);
            prop_assert_eq!(personal_room_owner(&room), Some(&*id));
            if is_user(&id) {
                prop_assert!(is_room(&room));
            }
        }
    }

    /// Returns texts of which about half are user ids.
    fn user_id_or_not() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ -~]{0,12}",
            "\\PC{0,8}",
            "[ -~éß山👩\u{301}\u{a0}\u{200b}\u{202e}\u{2028}\u{3000}\u{feff}\n]{0,6}",
            "[a-zé|@]{120,260}",
            any::<String>(),
        ]
    }
}
