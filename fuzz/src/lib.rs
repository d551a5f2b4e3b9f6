//! The fuzz targets. What each does with its input stands in `sim/src`, so that
//! `cargo test` replays the corpus through the same functions.

pub use roomcast_sim::*;
