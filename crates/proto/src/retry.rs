//! Failures of requests between objects, and when such a request is sent again.
//!
//! The platform reports a failed request by an error with properties; see
//! <https://developers.cloudflare.com/durable-objects/best-practices/error-handling/>. Only
//! idempotent requests are sent again, because the object may have carried out a request that
//! failed. The property `remote` is not used: it says where the error was thrown, not whether
//! the request can succeed later.

use crate::time::{Millis, SECOND};

/// Maximum number of requests that an object, or a request at the Worker, has in progress. The
/// platform queues requests above six connections that wait for an answer
/// (<https://developers.cloudflare.com/workers/platform/limits/#simultaneous-open-connections>).
/// One connection remains for other requests, such as a refresh of the keys.
pub const MAX_REQUESTS: usize = 5;

/// The time in milliseconds after which a request between objects fails, retries included.
/// Restoring a large object after a restart takes up to a few seconds. The platform ends a
/// request that uses 30 s of processor time
/// (<https://developers.cloudflare.com/durable-objects/platform/limits/>).
pub const REQUEST_DEADLINE: Millis = 10 * SECOND;

/// The time in milliseconds after which a client may repeat a request to an overloaded object.
pub const OVERLOAD_PAUSE: Millis = 2 * SECOND;

/// The longest delays of the retries in milliseconds. A restart because of a deploy takes less
/// than a second.
const DELAYS: [Millis; 2] = [100, 400];

/// The properties of an error of the platform. A property that the error lacks is `false`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlatformError {
    /// `retryable`: the cause is temporary, such as a restart of the object.
    pub retryable: bool,
    /// `overloaded`: the object has too many requests. A retry would make it worse.
    pub overloaded: bool,
}

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request can succeed if it is sent again.
    Transient,
    /// The object is overloaded.
    Overloaded,
    /// Everything else: the object has failed, or it has not answered in time.
    Other,
}

impl Failure {
    /// Returns the delay in milliseconds after which an idempotent request is sent again, or
    /// `None` if the request has failed. `attempts` is the number of attempts so far. `random`
    /// is a random number; it selects a delay between half and all of the longest delay, so
    /// that the requests to a restarted object do not arrive at the same time.
    pub fn retry_delay(self, attempts: usize, random: u32) -> Option<Millis> {
        if self != Failure::Transient {
            return None;
        }
        let longest = DELAYS.get(attempts.checked_sub(1)?).copied()?;
        Some(jittered(longest, random))
    }
}

/// Returns a delay between half and all of `longest`, which the random number `random`
/// selects. Retries of many senders then do not arrive at the same time.
pub fn jittered(longest: Millis, random: u32) -> Millis {
    let half = longest / 2;
    half + Millis::from(random) % (half + 1)
}

impl From<PlatformError> for Failure {
    fn from(error: PlatformError) -> Self {
        match error {
            PlatformError {
                overloaded: true, ..
            } => Failure::Overloaded,
            PlatformError {
                retryable: true, ..
            } => Failure::Transient,
            _ => Failure::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(retryable: bool, overloaded: bool) -> Failure {
        Failure::from(PlatformError {
            retryable,
            overloaded,
        })
    }

    #[test]
    fn only_transient_failures_are_retried() {
        assert_eq!(failure(true, false), Failure::Transient);
        assert!(Failure::Transient.retry_delay(1, 0).is_some());
        assert_eq!(Failure::Other.retry_delay(1, 0), None);
        assert_eq!(failure(false, false), Failure::Other);
    }

    #[test]
    fn an_overloaded_object_gets_no_retry_even_if_the_error_is_retryable() {
        for retryable in [false, true] {
            let failure = failure(retryable, true);
            assert_eq!(failure, Failure::Overloaded);
            assert_eq!(failure.retry_delay(1, 0), None);
        }
    }

    #[test]
    fn retries_are_bounded_in_number_and_delay() {
        for random in [0, 1, 49, 50, 51, 1_000_000, u32::MAX] {
            for (index, longest) in DELAYS.into_iter().enumerate() {
                let delay = Failure::Transient.retry_delay(index + 1, random);
                let delay = delay.expect("a retry");
                assert!(delay >= longest / 2 && delay <= longest, "{delay}");
            }
            assert_eq!(Failure::Transient.retry_delay(0, random), None);
            assert_eq!(
                Failure::Transient.retry_delay(DELAYS.len() + 1, random),
                None
            );
        }
        assert!(DELAYS.iter().sum::<Millis>() < REQUEST_DEADLINE);
    }

    #[test]
    fn the_delay_depends_on_the_random_number() {
        let delay = |random| Failure::Transient.retry_delay(2, random);
        assert_eq!(delay(0), Some(200));
        assert_eq!(delay(200), Some(400));
    }
}
