//! How many cases a model test runs.

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;

/// Returns the same `cases` cases in every run, or as many random ones as the variable
/// of the environment says.
pub(crate) fn cases(variable: &str, cases: u32) -> ProptestConfig {
    let more = std::env::var(variable).ok();
    let (cases, rng_seed) = match more.and_then(|cases| cases.parse().ok()) {
        Some(cases) => (cases, RngSeed::Random),
        None => (cases, RngSeed::Fixed(1)),
    };
    ProptestConfig {
        cases,
        rng_seed,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
