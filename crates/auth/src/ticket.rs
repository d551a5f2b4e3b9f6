//! Tickets, which replace tokens in URLs. A ticket can be used once and expires after
//! [`LIFE`], so a ticket in a proxy's log or a browser's history is no longer valid.
//!
//! A ticket is 34 hexadecimal digits: two for the shard (the object that stores it) and 32
//! random digits. The digits of its signature follow; see [`Signer`].

use crate::signer::{SignedId, Signer};
use roomcast_proto::time::{Millis, SECOND};

/// Time for which a ticket is valid.
pub const LIFE: Millis = 30 * SECOND;

/// Number of objects that store tickets, at most 256. Can be changed at any time, because
/// each ticket contains its shard.
pub const SHARDS: usize = 16;

/// Number of random digits: 128 bits.
const SECRET: usize = 32;

/// Returns the shard that stores the tickets of a user.
pub fn shard_of_user(user: &str) -> usize {
    // FNV-1a, 32 bits: distributes well enough and never changes.
    let hash = user.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash as usize % SHARDS
}

/// Returns a ticket of `shard`. `secret` is 128 random bits as 32 hexadecimal digits.
pub fn compose(signer: &Signer, shard: usize, secret: &str) -> String {
    signer.sign(SignedId::Ticket, &format!("{shard:02x}{secret}"))
}

/// Returns the shard that stores a ticket, or `None` if the text is not a ticket of this
/// deployment.
pub fn shard_of(signer: &Signer, ticket: &str) -> Option<usize> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if ticket.len() < 2 + SECRET || !ticket.bytes().all(hex) {
        return None;
    }
    let shard = usize::from_str_radix(&ticket[..2], 16).ok()?;
    (shard < SHARDS && signer.verify(SignedId::Ticket, ticket)).then_some(shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_of_reads_the_shard_and_rejects_malformed_tickets() {
        let secret = "0123456789abcdef0123456789abcdef";
        let signer = Signer::new([&"a key".to_owned()]);
        for user in ["alice", "bob", "", "u-1"] {
            let shard = shard_of_user(user);
            let ticket = compose(&signer, shard, secret);
            assert_eq!(shard_of(&signer, &ticket), Some(shard));
            assert_eq!(shard_of(&signer, &ticket[1..]), None);
        }
        for forged in [
            "",
            "00",
            "zz",
            &format!("00{secret}"),
            &compose(&signer, 255, secret),
            &"é".repeat(17),
            &"F".repeat(34),
        ] {
            assert_eq!(shard_of(&signer, forged), None, "{forged}");
        }
        let used: std::collections::HashSet<usize> =
            (0..1_000).map(|n| shard_of_user(&n.to_string())).collect();
        assert_eq!(used.len(), SHARDS);
    }
}
