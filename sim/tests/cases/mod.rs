//! The number of cases of a model test.

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;

/// Returns a configuration with the same `cases` cases in every run. If the environment
/// variable is set, it is the number of random cases.
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
