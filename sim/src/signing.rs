//! Signs tokens with the secret of the simulated servers.

use base64ct::{Base64UrlUnpadded, Encoding};
use jwt_compact::alg::{Hs256, Hs256Key};
use jwt_compact::{Algorithm, AlgorithmSignature};

/// `JWT_SECRET` of the simulated servers.
pub(crate) const SECRET: &str = "a secret of thirty-two bytes, yes";

/// Signs a header and claims with HS256. They need not be valid.
pub(crate) fn sign(header: &str, claims: &[u8]) -> String {
    let header = Base64UrlUnpadded::encode_string(header.as_bytes());
    let claims = Base64UrlUnpadded::encode_string(claims);
    let signed = format!("{header}.{claims}");
    format!("{signed}.{}", signature(&signed))
}

/// Returns the HS256 signature of a text, as base64url.
pub(crate) fn signature(signed: &str) -> String {
    let signature = Hs256.sign(&Hs256Key::new(SECRET), signed.as_bytes());
    Base64UrlUnpadded::encode_string(&signature.as_bytes())
}
