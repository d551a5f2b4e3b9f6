//! Tickets: what stands in a URL in place of a token. A ticket is good once, and
//! for seconds, so that who reads it in a proxy's log or a browser's history has
//! nothing.
//!
//! It names the object that keeps it: two hexadecimal digits, of its number, and
//! 32 that nobody can guess.

use roomcast_proto::time::{Millis, SECOND};

/// How long a ticket is good.
pub const LIFE: Millis = 30 * SECOND;

/// Objects that tickets are spread over, by user. May be changed at any time up
/// to 256: a ticket names its own.
pub const SHARDS: usize = 16;

/// Digits of the secret part: 128 bits.
const SECRET: usize = 32;

/// The object that keeps the tickets of a user.
pub fn shard_of_user(user: &str) -> usize {
    // FNV-1a, 32 bits: spreads well enough, and is the same everywhere.
    let hash = user.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash as usize % SHARDS
}

/// A ticket at `shard`; `secret` has 128 random bits in hexadecimal.
pub fn compose(shard: usize, secret: &str) -> String {
    format!("{shard:02x}{secret}")
}

/// The object that a ticket names. `None` for what cannot be a ticket.
pub fn shard_of(ticket: &str) -> Option<usize> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if ticket.len() != 2 + SECRET || !ticket.bytes().all(hex) {
        return None;
    }
    let shard = usize::from_str_radix(&ticket[..2], 16).ok()?;
    (shard < SHARDS).then_some(shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_names_its_object_and_a_forged_one_none() {
        let secret = "0123456789abcdef0123456789abcdef";
        for user in ["alice", "bob", "", "u-1"] {
            let shard = shard_of_user(user);
            let ticket = compose(shard, secret);
            assert_eq!(shard_of(&ticket), Some(shard));
            assert_eq!(shard_of(&ticket[1..]), None);
        }
        for forged in [
            "",
            "00",
            "zz",
            &format!("ff{secret}"),
            &"é".repeat(17),
            &"F".repeat(34),
        ] {
            assert_eq!(shard_of(forged), None, "{forged}");
        }
        let used: std::collections::HashSet<usize> =
            (0..1_000).map(|n| shard_of_user(&n.to_string())).collect();
        assert_eq!(used.len(), SHARDS);
    }
}
