//! A model of flapping Socket.IO clients with two gateways and their rooms. See
//! `sim/src/flapping.rs` for the steps and the invariants.

use roomcast_sim as fuzz;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// The same 1,000 cases in every run, or random ones with `FLAPPING_CASES=30000`.
fn cases() -> ProptestConfig {
    let more = std::env::var("FLAPPING_CASES").ok();
    let (cases, rng_seed) = match more.and_then(|cases| cases.parse().ok()) {
        Some(cases) => (cases, RngSeed::Random),
        None => (1_000, RngSeed::Fixed(1)),
    };
    ProptestConfig {
        cases,
        rng_seed,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_connection_receives_no_event_of_a_room_that_its_token_does_not_allow(
        input in proptest::collection::vec(any::<[u8; 3]>(), 1..120),
    ) {
        fuzz::flapping::run(input.as_flattened());
    }
}
