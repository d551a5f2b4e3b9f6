//! Signatures of the ids that the server gives to clients: session ids and tickets. The
//! Worker refuses an id that it did not sign, without a request to an object.
//!
//! A signature is a part of an HMAC-SHA256 of the kind and the id. It protects objects from
//! requests with invented ids. It does not replace the secrecy of an id: the object that
//! created an id decides whether it is valid.

use jwt_compact::alg::{Hs256, Hs256Key};
use jwt_compact::{Algorithm, AlgorithmSignature};
use std::fmt;

/// Number of hexadecimal digits of a signature: 64 bits, which a client cannot guess by
/// requests.
const DIGITS: usize = 16;

/// The kind of a signed id. An id of one kind is not valid as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedId {
    /// The `sid` of an Engine.IO session.
    Session,
    /// A ticket.
    Ticket,
}

/// Signs and verifies ids.
pub struct Signer {
    /// The first key signs. All keys verify, so that a key can be replaced.
    keys: Vec<Hs256Key>,
}

impl Signer {
    /// Creates a signer. `keys` are `SIGNING_KEY` and the secrets that verify tokens.
    /// Without any key, ids have no signature.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a String>) -> Self {
        let keys = keys.into_iter().map(Hs256Key::new).collect();
        Signer { keys }
    }

    /// Returns `true` if ids have a signature.
    pub fn has_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Returns an id with its signature. The id must be ASCII.
    pub fn sign(&self, kind: SignedId, id: &str) -> String {
        match self.keys.first() {
            Some(key) => format!("{id}{}", signature(key, kind, id)),
            None => id.to_owned(),
        }
    }

    /// Returns `true` if `signed` is the result of [`Signer::sign`], or if there is no key.
    pub fn verify(&self, kind: SignedId, signed: &str) -> bool {
        let at = signed.len().saturating_sub(DIGITS);
        let Some((id, given)) = signed.split_at_checked(at) else {
            return false;
        };
        // The time of the comparison does not depend on the position of a difference.
        let matches = |key| {
            let expected = signature(key, kind, id);
            let pairs = expected.bytes().zip(given.bytes());
            given.len() == DIGITS && pairs.fold(0, |all, (a, b)| all | (a ^ b)) == 0
        };
        self.keys.is_empty() || self.keys.iter().any(matches)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

/// Returns the signature of an id. The secrets also sign tokens, but the text that a token's
/// signature covers never contains a `:` (RFC 7515, 5.1), so neither is valid as the other.
fn signature(key: &Hs256Key, kind: SignedId, id: &str) -> String {
    let kind = match kind {
        SignedId::Session => "sid",
        SignedId::Ticket => "ticket",
    };
    let mac = Hs256.sign(key, format!("{kind}:{id}").as_bytes());
    let mut digits = String::with_capacity(DIGITS);
    for byte in mac.as_bytes().iter().take(DIGITS / 2) {
        for half in [byte >> 4, byte & 15] {
            digits.extend(char::from_digit(half.into(), 16));
        }
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(keys: &[&str]) -> Signer {
        let keys: Vec<String> = keys.iter().map(|key| key.to_string()).collect();
        Signer::new(&keys)
    }

    #[test]
    fn an_id_is_valid_only_with_its_own_signature_and_kind() {
        let signer = signer(&["a key of this deployment"]);
        let signed = signer.sign(SignedId::Session, "3-abc");
        assert_eq!(signed.len(), "3-abc".len() + DIGITS);
        assert!(signer.verify(SignedId::Session, &signed));
        assert!(!signer.verify(SignedId::Ticket, &signed));
        for forged in [
            "".to_owned(),
            "3-abc".to_owned(),
            signed.replace("3-", "4-"),
            signed[..signed.len() - 1].to_owned(),
            format!("{signed}0"),
            "é".repeat(20),
            format!("x{}", "é".repeat(9)),
        ] {
            assert!(!signer.verify(SignedId::Session, &forged), "{forged}");
        }
    }

    #[test]
    fn ids_stay_valid_while_a_key_is_replaced() {
        let old = signer(&["old"]).sign(SignedId::Ticket, "00ff");
        assert!(signer(&["new", "old"]).verify(SignedId::Ticket, &old));
        assert!(!signer(&["new"]).verify(SignedId::Ticket, &old));
    }

    #[test]
    fn without_a_key_ids_have_no_signature() {
        let signer = signer(&[]);
        assert_eq!(signer.sign(SignedId::Session, "3-abc"), "3-abc");
        assert!(signer.verify(SignedId::Session, "3-abc"));
        assert!(!signer.has_key());
    }
}
