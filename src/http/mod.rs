//! The HTTP interface of the Worker.
//!
//! A request goes through these steps:
//!
//! 1. `entry.rs` receives it and reads the settings.
//! 2. [`route`] finds its route, from the method and the path.
//! 3. The file of the route reads the [`query`] and the body.
//! 4. `authenticate.rs` checks the `Origin`, and the token or the ticket. [`authorize`] checks
//!    the rights.
//! 5. `objects.rs` sends a new request to the object of the room or of the gateway. The client's
//!    request is never forwarded, so its headers and its path do not reach an object.
//! 6. `response.rs` turns the result into a response. An error becomes a [`problem`].
//!    `cors.rs` adds headers for the routes that pages of other origins may call.
//!    `refused_socket.rs` accepts the socket of a page to tell it the problem.
//!
//! | file | routes |
//! | --- | --- |
//! | `room_socket.rs` | `/rooms/{room}/ws` |
//! | `gateway_socket.rs` | `/ws` |
//! | `engineio.rs` | `/socket.io/` |
//! | `rooms.rs` | all other routes under `/rooms/{room}` |
//! | [`publish`] | `/publish` |
//! | [`broadcast`] | `/broadcast` |
//! | [`revocation`] | `/revoke` |
//! | `tickets.rs` | `/tickets` |
//! | `dev_token.rs` | `/dev/token`, in development builds |
//! | `health.rs`, `openapi.rs` | `/healthz`, `/openapi.json` |
//!
//! Modules that use the Workers runtime are compiled for wasm32 only. The others are tested
//! natively.

pub mod address;
pub mod authorize;
pub mod broadcast;
pub mod problem;
pub mod publish;
pub mod query;
pub mod revocation;
pub mod route;

#[cfg(target_arch = "wasm32")]
mod authenticate;
#[cfg(target_arch = "wasm32")]
mod body;
#[cfg(target_arch = "wasm32")]
mod cors;
#[cfg(all(target_arch = "wasm32", feature = "dev-tokens"))]
mod dev_token;
#[cfg(target_arch = "wasm32")]
mod engineio;
#[cfg(target_arch = "wasm32")]
mod entry;
#[cfg(target_arch = "wasm32")]
mod gateway_socket;
#[cfg(target_arch = "wasm32")]
mod health;
#[cfg(target_arch = "wasm32")]
mod objects;
#[cfg(target_arch = "wasm32")]
mod openapi;
#[cfg(target_arch = "wasm32")]
mod refused_socket;
#[cfg(target_arch = "wasm32")]
mod response;
#[cfg(target_arch = "wasm32")]
mod room_socket;
#[cfg(target_arch = "wasm32")]
mod rooms;
#[cfg(target_arch = "wasm32")]
mod tickets;
