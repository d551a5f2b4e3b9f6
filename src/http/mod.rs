//! HTTP: routes, what they take, and problem+json. Reading requests is pure and
//! tested natively; `serve` (wasm only) carries them out.

pub mod problem;
pub mod publish;
pub mod revoke;
pub mod route;

#[cfg(target_arch = "wasm32")]
pub mod serve;
