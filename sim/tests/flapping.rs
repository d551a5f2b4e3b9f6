//! A model of Socket.IO clients that flap, with two gateways and the rooms behind
//! them; see `fuzz/flapping.rs` for what happens and what must be true.

use roomcast_sim as fuzz;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// The same 1,000 cases each time; other ones with `FLAPPING_CASES=30000`.
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
    fn nobody_receives_events_of_a_room_that_the_token_does_not_open(
        input in proptest::collection::vec(any::<[u8; 3]>(), 1..120),
    ) {
        fuzz::flapping::run(input.as_flattened());
    }
}
