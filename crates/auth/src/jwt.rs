//! The compact form of JSON Web Tokens (RFC 7515, 3.1).

use base64ct::{Base64UrlUnpadded, Encoding};
use jwt_compact::alg::{Hs256, Hs256Key, Hs256Signature};
use jwt_compact::{Algorithm, AlgorithmSignature};
use roomcast_proto::reader;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The fields of a token's header that we read.
#[derive(Deserialize)]
pub(crate) struct Header {
    /// The algorithm of the signature. The key determines it, so a token that names another
    /// one is not valid.
    pub(crate) alg: String,
    /// The id of the key.
    pub(crate) kid: Option<String>,
    /// The content type of the claims.
    cty: Option<String>,
    /// Extensions that a recipient must understand (RFC 7515, 4.1.11). We support none.
    pub(crate) crit: Option<IgnoredAny>,
}

/// A token whose signature is not verified.
pub(crate) struct UnverifiedToken<'a> {
    pub(crate) header: Header,
    /// The text that the signature covers.
    signed: &'a str,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> UnverifiedToken<'a> {
    /// Parses a token, except its claims. Returns `None` if it is malformed or if its claims are
    /// not JSON.
    pub(crate) fn parse(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        // A second `.` in the claims is not a character of base64url.
        let (header, claims) = signed.split_once('.')?;
        let decode = |text: &str| Base64UrlUnpadded::decode_vec(text).ok();
        let (claims, signature) = (decode(claims)?, decode(signature)?);
        let header: Header = reader::from_str(str::from_utf8(&decode(header)?).ok()?).ok()?;
        let is_json = |content: &String| content.eq_ignore_ascii_case("json");
        header
            .cty
            .as_ref()
            .is_none_or(is_json)
            .then_some(UnverifiedToken {
                header,
                signed,
                claims,
                signature,
            })
    }

    /// Returns `true` if `key` verifies the signature and the token names the algorithm HS256.
    pub(crate) fn is_signed_with(&self, key: &Hs256Key) -> bool {
        // A signature of another length would panic.
        let length = Hs256Signature::LENGTH.map_or(0, usize::from);
        self.header.alg == Hs256.name()
            && self.signature.len() == length
            && Hs256Signature::try_from_slice(&self.signature)
                // The crate compares HMACs in constant time.
                .is_ok_and(|mac| Hs256.verify_signature(&mac, key, self.signed.as_bytes()))
    }

    /// Returns the claims as text. Returns `None` if they are not UTF-8.
    pub(crate) fn claims(&self) -> Option<&str> {
        str::from_utf8(&self.claims).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomcast_harness::{SECRET, Token};

    fn encode(text: &str) -> String {
        Base64UrlUnpadded::encode_string(text.as_bytes())
    }

    #[test]
    fn a_signed_token_is_verified_by_its_secret_alone() {
        let text = Token::user("alice").sign(SECRET);
        let token = UnverifiedToken::parse(&text).expect("a JWT");
        assert!(token.is_signed_with(&Hs256Key::new(SECRET)));
        assert!(!token.is_signed_with(&Hs256Key::new("another secret")));
        let (signed, signature) = text.rsplit_once('.').expect("a signature");
        for signature in ["", "AAAA", &encode(&"x".repeat(64)), &signature[..40]] {
            let text = format!("{signed}.{signature}");
            let token = UnverifiedToken::parse(&text).expect("a JWT");
            assert!(!token.is_signed_with(&Hs256Key::new(SECRET)), "{signature}");
        }
    }

    #[test]
    fn a_malformed_token_is_refused() {
        let header = encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        assert!(UnverifiedToken::parse(&format!("{header}.e30.")).is_some());
        let json = encode(r#"{"alg":"HS256","cty":"JSON"}"#);
        assert!(UnverifiedToken::parse(&format!("{json}.e30.")).is_some());
        for token in [
            "",
            ".",
            "..",
            "e30.e30.e30",
            &format!("{header}.e30"),
            &format!("{header}.e30.."),
            &format!("{header}.e30.AAAA.AAAA"),
            &format!("{header}.e30.+"),
            &format!("{header}.e30=.AAAA"),
            &format!("{}.e30.", encode(r#"{"alg":"HS256","cty":"JWT"}"#)),
            &format!("{}.e30.", encode(r#"{"alg":7}"#)),
            &format!("{}.e30.", encode(r#"{"alg":"HS256"}x"#)),
        ] {
            assert!(UnverifiedToken::parse(token).is_none(), "{token}");
        }
    }
}
