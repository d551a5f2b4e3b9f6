//! The fuzz targets. Their functions are in `sim/src`, so that `cargo test` can run them
//! on the corpus.

pub use roomcast_sim::*;
