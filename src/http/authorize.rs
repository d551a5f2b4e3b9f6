//! Checks of access rights. The errors name the defect of the token.

use roomcast_proto::access::{Identity, Rights, RoomPatterns};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::name::personal_room_owner;

/// The message for a token that grants no rights at all. The usual cause is a configuration
/// error of a new deployment.
const NO_ROOMS: &str =
    "the token has no `rooms` claim, or an empty one, and DEFAULT_ROOMS is empty";

/// Checks that `rights` include [`Rights::READ`]. They are the rights of the identity on
/// `room`. `default_rooms` are the patterns of `DEFAULT_ROOMS`.
///
/// # Errors
///
/// Returns `forbidden` if they do not.
pub fn require_read(
    identity: &Identity,
    rights: Rights,
    default_rooms: &RoomPatterns,
    room: &str,
) -> Result<()> {
    if rights.has(Rights::READ) {
        return Ok(());
    }
    // Patterns do not grant users rights on the personal rooms of other users.
    let is_personal = personal_room_owner(room).is_some();
    Err(Error::forbidden(
        match has_no_rooms(identity, default_rooms) && !is_personal {
            true => NO_ROOMS,
            false => "the token does not allow access to this room",
        },
    ))
}

/// Checks that the identity is a service that has `right` on `room`. `default_rooms` are the
/// patterns of `DEFAULT_ROOMS`.
///
/// # Errors
///
/// Returns `forbidden` if the identity is not a service or does not have the right.
pub fn require_service(
    identity: &Identity,
    right: Rights,
    default_rooms: &RoomPatterns,
    room: &str,
) -> Result<()> {
    identity.require_service(room, right).map_err(|error| {
        match identity.service && has_no_rooms(identity, default_rooms) {
            true => Error::forbidden(NO_ROOMS),
            false => error,
        }
    })
}

fn has_no_rooms(identity: &Identity, default_rooms: &RoomPatterns) -> bool {
    let none = RoomPatterns::default();
    identity.patterns == none && *default_rooms == none
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_proto::access::TokenId;
    use roomcast_proto::id::UserId;

    fn identity(service: bool, rooms: &str) -> Identity {
        Identity {
            user: UserId::trusted("alice"),
            expires: 1,
            service,
            patterns: RoomPatterns::from_list(rooms),
            token: TokenId::default(),
            info: None,
        }
    }

    #[test]
    fn read_is_refused_with_the_reason() {
        let (none, some) = (RoomPatterns::default(), RoomPatterns::from_list("b"));
        let refused = "the token does not allow access to this room";
        for (rooms, default_rooms, room, expected) in [
            ("a", &none, "a", None),
            ("a", &none, "b", Some(refused)),
            ("", &none, "b", Some(NO_ROOMS)),
            ("", &some, "b", Some(refused)),
            ("", &none, "@alice", None),
            ("", &none, "@bob", Some(refused)),
        ] {
            let alice = identity(false, rooms);
            let checked = require_read(&alice, alice.rights(room), default_rooms, room);
            let message = checked.err().map(|error| error.message);
            assert_eq!(message.as_deref(), expected, "{rooms:?} {room}");
        }
    }

    #[test]
    fn a_service_is_refused_with_the_reason() {
        let none = RoomPatterns::default();
        let check = |service, rooms| {
            let checked = require_service(&identity(service, rooms), Rights::WRITE, &none, "a");
            checked.err().map(|error| error.message)
        };
        assert_eq!(check(true, "a"), None);
        assert_eq!(check(true, "").as_deref(), Some(NO_ROOMS));
        for (service, rooms) in [(true, "b"), (false, "a"), (false, "")] {
            let message = check(service, rooms).expect("refused");
            assert_ne!(message, NO_ROOMS, "{service} {rooms:?}");
        }
    }
}
