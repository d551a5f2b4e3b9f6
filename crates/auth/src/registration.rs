//! Registration of an object with the revocation registry.
//!
//! The registry delivers revocations to registered objects only. A room or a gateway
//! registers when it accepts a socket. A registration lasts at least [`LIFETIME`], so that
//! the number of registrations does not grow with the number of connects. The order of
//! calls:
//!
//! 1. [`Registration::restore`] when the object wakes.
//! 2. [`Registration::cover`] for each new socket or changed token.
//! 3. [`Registration::take_request`] after each event. If it returns a time, the host sends
//!    the request, up to [`RETRY_DELAYS`] more times while it fails. If it still fails, the
//!    host calls [`Registration::end`].
//! 4. [`Registration::end`] when the registry has removed the object because the object has
//!    no sockets.

use roomcast_proto::time::{DAY, Millis, SECOND};

/// The minimum time for which an object registers.
pub const LIFETIME: Millis = DAY;

/// Delays of the retries of a failed registration. After the last retry the host gives up.
/// The next new socket begins a new registration.
pub const RETRY_DELAYS: [Millis; 5] = [250, 1_000, 4_000, 16_000, 60_000];

/// Returns the delay in milliseconds after which the registry sends failed notices again.
/// It is 2 s after the first of `failures` consecutive failures and doubles with each
/// further one, up to 64 s. The growth limits the cost of an object that is unreachable for
/// long.
pub fn notice_retry_delay(failures: u32) -> Millis {
    (2 * SECOND) << failures.saturating_sub(1).min(5)
}

/// The registration of one object.
#[derive(Debug, Default)]
pub struct Registration {
    until: Millis,
    requested: Option<Millis>,
}

impl Registration {
    /// Restores the registration from storage. `until` is the last value of
    /// [`Registration::until`].
    pub fn restore(until: Millis) -> Self {
        Registration {
            until,
            requested: None,
        }
    }

    /// Returns the time until which the object is registered, or 0.
    pub fn until(&self) -> Millis {
        self.until
    }

    /// Extends the registration, if needed, so that it covers a socket which can stay open
    /// until `expires`. [`Millis::MAX`] registers the object without an end.
    pub fn cover(&mut self, expires: Millis, now: Millis) {
        if self.until < expires {
            self.until = expires.max(now.saturating_add(LIFETIME));
            self.requested = Some(self.until);
        }
    }

    /// Returns the end of a registration that the host must request now. Returns it once.
    pub fn take_request(&mut self) -> Option<Millis> {
        self.requested.take()
    }

    /// Ends the registration. The next socket registers the object again.
    pub fn end(&mut self) {
        self.until = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_registers_once_a_day_whatever_the_number_of_sockets() {
        let mut registration = Registration::default();
        let now = 5 * DAY;
        registration.cover(now + 1, now);
        assert_eq!(registration.take_request(), Some(now + LIFETIME));
        assert_eq!(registration.take_request(), None);
        registration.cover(now + LIFETIME, now + 7);
        assert_eq!(registration.take_request(), None);
        registration.cover(now + LIFETIME + 1, now + LIFETIME);
        assert_eq!(registration.take_request(), Some(now + 2 * LIFETIME));
    }

    #[test]
    fn failed_notices_are_repeated_at_growing_intervals() {
        let delays = [1, 2, 3, 6, 7, u32::MAX].map(notice_retry_delay);
        assert_eq!(
            delays,
            [2, 4, 8, 64, 64, 64].map(|seconds| seconds * SECOND)
        );
    }

    #[test]
    fn a_token_that_outlives_the_registration_extends_it() {
        let mut registration = Registration::restore(2 * DAY);
        registration.cover(9 * DAY, DAY);
        assert_eq!(registration.take_request(), Some(9 * DAY));
        assert_eq!(registration.until(), 9 * DAY);
        registration.cover(Millis::MAX, DAY);
        assert_eq!(registration.take_request(), Some(Millis::MAX));
        registration.cover(Millis::MAX, 2 * DAY);
        assert_eq!(registration.take_request(), None, "registered for good");
    }

    #[test]
    fn after_the_end_of_a_registration_the_next_socket_registers_again() {
        let mut registration = Registration::restore(Millis::MAX);
        registration.end();
        assert_eq!(registration.until(), 0);
        registration.cover(10, 5);
        assert_eq!(registration.take_request(), Some(5 + LIFETIME));
    }
}
