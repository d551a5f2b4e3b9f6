//! What is done with input that anybody may have made up: each module drives the
//! core with it and says what must be true afterwards. `fuzz/` runs these on
//! what libFuzzer comes up with, `tests/corpus.rs` on what it has come up with.
//!
//! | module | input |
//! | --- | --- |
//! | [`native`] | frames on native sockets, of a room and of a gateway |
//! | [`engine`] | what comes over the transports of Engine.IO |
//! | [`socketio`] | packets of Socket.IO |
//! | [`flapping`] | Socket.IO clients that lose their connection at every step |
//! | [`tokens`] | tokens, their headers and claims, key sets |
//! | [`names`] | names, room patterns, origins |
//! | [`http`] | requests: paths, queries, bodies |

pub mod engine;
pub mod flapping;
pub mod http;
pub mod names;
pub mod native;
pub mod socketio;
pub mod tokens;
pub mod world;

/// A target: its name, and what it does with an input.
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
