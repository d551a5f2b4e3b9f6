//! Refusals by another object that are still valid.

use crate::error::{Error, Result};
use crate::time::Millis;
use std::collections::HashMap;

/// Maximum number of refusals: about 5 MB with keys of 50 bytes. Above it, all are dropped, so
/// the other object refuses again.
const MAX_REFUSALS: usize = 20_000;

/// The refusals of rate limits that another object applies. Until a refusal has expired, further
/// requests with the same key can be refused without asking that object again.
#[derive(Debug, Default)]
pub struct Refusals(HashMap<String, (Millis, Error)>);

impl Refusals {
    /// Records that a request with this key was refused. Does nothing if the error has no time
    /// after which the client may retry.
    pub fn add(&mut self, key: String, error: Error, now: Millis) {
        if let Some(wait) = error.retry_after {
            if self.0.len() >= MAX_REFUSALS {
                self.0.clear();
            }
            self.0.insert(key, (now.saturating_add(wait), error));
        }
    }

    /// Checks that no refusal of a request with this key is still valid.
    ///
    /// # Errors
    ///
    /// Returns the error of the refusal, with the time that is left.
    pub fn check(&mut self, key: &str, now: Millis) -> Result<()> {
        match self.0.get(key) {
            Some((until, error)) if now < *until => Err(Error {
                retry_after: Some(until - now),
                ..error.clone()
            }),
            Some(_) => {
                self.0.remove(key);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_valid_until_its_client_may_retry() {
        let mut refusals = Refusals::default();
        refusals.add("a".into(), Error::rate_limited("connects", 200), 1_000);
        let refused = refusals
            .check("a", 1_050)
            .map_err(|error| error.retry_after);
        assert_eq!(refused, Err(Some(150)));
        assert_eq!(refusals.check("b", 1_050), Ok(()), "another key");
        assert_eq!(refusals.check("a", 1_200), Ok(()));
        assert!(refusals.0.is_empty(), "nothing is kept");
    }

    #[test]
    fn the_number_of_refusals_is_limited() {
        let mut refusals = Refusals::default();
        for key in 0..3 * MAX_REFUSALS {
            refusals.add(key.to_string(), Error::rate_limited("connects", 200), 0);
            assert!(refusals.0.len() <= MAX_REFUSALS);
        }
    }
}
