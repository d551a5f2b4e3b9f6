//! Functions of the fuzz targets. Each module feeds untrusted input to the core and
//! asserts the invariants. `fuzz/` runs them on inputs of libFuzzer, `tests/corpus.rs` on
//! the committed corpus. [`world`] has the simulated rooms, gateways and storage, which
//! the model tests use as well.
//!
//! | module | input |
//! | --- | --- |
//! | [`native`] | frames on native sockets of rooms and gateways |
//! | [`engine`] | requests and frames of Engine.IO |
//! | [`socketio`] | packets of Socket.IO |
//! | [`flapping`] | Socket.IO clients that lose their connections at any step |
//! | [`tokens`] | tokens, their headers and claims, key sets |
//! | [`names`] | names, room patterns, origins |
//! | [`http`] | requests: paths, queries, bodies |

pub mod engine;
pub mod flapping;
pub mod http;
pub mod names;
pub mod native;
mod pieces;
mod signing;
pub mod socketio;
pub mod stored_log;
pub mod tokens;
pub mod world;

/// A target: its name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 7] = [
    ("native", native::run),
    ("engine", engine::run),
    ("socketio", socketio::run),
    ("flapping", flapping::run),
    ("tokens", tokens::run),
    ("names", names::run),
    ("http", http::run),
];
