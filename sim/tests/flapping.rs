//! A model of flapping Socket.IO clients with two gateways and their rooms. See
//! `sim/src/flapping.rs` for the steps and the invariants.

mod cases;

use roomcast_sim as fuzz;

use proptest::prelude::*;

proptest! {
    #![proptest_config(cases::cases("FLAPPING_CASES", 1_000))]

    #[test]
    fn a_connection_receives_no_event_of_a_room_that_its_token_does_not_allow(
        input in proptest::collection::vec(any::<[u8; 3]>(), 1..120),
    ) {
        fuzz::flapping::run(input.as_flattened());
    }
}
