//! The fuzz targets. What each does with its input stands in `tests/fuzz`, so
//! that `cargo test` replays the corpus through the same functions.

#[path = "../../tests/fuzz/mod.rs"]
mod inputs;

pub use inputs::*;
