//! `POST /publish`: publishes events to rooms and users.

mod request;
mod results;

#[cfg(target_arch = "wasm32")]
mod handler;

pub use request::{AddressedPublication, MAX_BATCH, PublishRequest, parse};
pub use results::{read_results, results_json};
