//! Authentication: an [`Authenticator`] turns tokens into
//! [`Identity`](roomcast_proto::access::Identity) values.
//!
//! This crate does no I/O. The host fetches keys and revocations: it calls
//! [`Authenticator::is_ready`], does the steps that [`Keys::step`] and
//! [`RevocationCache::step`] ask for until both return `None`, and then calls
//! [`Authenticator::verify`]. Rooms and gateways never verify tokens. Nothing of a token
//! is ever logged.
//!
//! | modules | contents |
//! | --- | --- |
//! | [`token`] | JSON Web Tokens |
//! | [`keys`], [`jwk`] | the keys that tokens are signed with |
//! | [`revocation`] | token revocation |
//! | [`registration`] | registration of rooms and gateways with the revocation registry |
//! | [`ticket`] | single-use tickets for URLs |
//! | [`Signer`] | signatures of session ids and tickets |
//! | [`origin`] | origins from which browsers may connect |

#![forbid(unsafe_code)]

mod authenticator;
mod credentials;
pub mod jwk;
mod jwt;
pub mod keys;
pub mod origin;
pub mod registration;
pub mod revocation;
mod settings;
mod signer;
pub mod ticket;
pub mod token;
mod verified_tokens;

pub use authenticator::Authenticator;
pub use credentials::{Credentials, SUBPROTOCOL};
pub use keys::Keys;
pub use revocation::RevocationCache;
pub use settings::AuthConfig;
pub use signer::{SignedId, Signer};
