//! The query of a URL, and the route parameters in it.

use roomcast_proto::command::{DEFAULT_LIMIT, MAX_LIMIT};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::id::{Epoch, UserId};
use roomcast_proto::position::Position;
use roomcast_proto::raw_object::{USER, WHOLE, whole};
use roomcast_room::history::HistoryQuery;

/// The parameters of a query. If a name is repeated, the first value counts.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Creates a query of decoded names and values.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Query(pairs)
    }

    /// Parses `name=value&…`, as in a URL.
    pub fn read(query: &str) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes());
        Query::new(pairs.into_owned().collect())
    }

    /// Returns the value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns `since`, `epoch` and `history`.
    ///
    /// # Errors
    ///
    /// Returns `badRequest` if `since` or `history` is not an integer in bounds.
    pub fn position(&self) -> Result<Position> {
        Ok(Position {
            since: self.seq("since")?,
            epoch: self.get("epoch").map(Epoch::trusted),
            history: self.seq("history")?,
        })
    }

    /// Returns the page that `after`, `before` and `limit` request. With `before` alone, it is
    /// the last page before that event.
    ///
    /// # Errors
    ///
    /// Returns `badRequest` if a parameter is not an integer in bounds.
    pub fn range(&self) -> Result<HistoryQuery> {
        let (after, before) = (self.seq("after")?, self.seq("before")?);
        Ok(HistoryQuery {
            after: after.unwrap_or(0),
            before: before.unwrap_or(u64::MAX),
            limit: self.limit()?,
            newest: before.is_some() && after.is_none(),
        })
    }

    /// Returns the `after` and the `limit` of a page of members.
    ///
    /// # Errors
    ///
    /// Returns `badRequest` if `after` is not a user id or `limit` is not in bounds.
    pub fn members(&self) -> Result<(Option<UserId>, u64)> {
        let after = self.get("after").map(|after| {
            UserId::parse(after).ok_or_else(|| Error::bad_field("after", USER.expected))
        });
        Ok((after.transpose()?, self.limit()?))
    }

    /// Returns `userId`.
    ///
    /// # Errors
    ///
    /// Returns `badRequest` if it is missing or not a user id.
    pub fn user(&self) -> Result<UserId> {
        self.get("userId")
            .and_then(UserId::parse)
            .ok_or_else(|| Error::bad_field("userId", USER.expected))
    }

    fn limit(&self) -> Result<u64> {
        // The bounds of the protocol: 1 to `MAX_LIMIT`.
        let limit = self.integer("limit", 1, MAX_LIMIT, "an integer between 1 and 1000")?;
        Ok(limit.unwrap_or(DEFAULT_LIMIT))
    }

    fn seq(&self, name: &str) -> Result<Option<u64>> {
        self.integer(name, 0, u64::MAX, WHOLE.expected)
    }

    /// Returns an integer from `min` to `max`. `expected` completes the error message
    /// "`name` must be …".
    fn integer(&self, name: &str, min: u64, max: u64, expected: &str) -> Result<Option<u64>> {
        self.get(name)
            .map(|value| {
                whole(value)
                    .filter(|number| (min..=max).contains(number))
                    .ok_or_else(|| Error::bad_field(name, expected))
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_the_first_of_a_name_counts() {
        let query = Query::read("a=%20+b&c&a=2");
        assert_eq!((query.get("a"), query.get("c")), (Some("  b"), Some("")));
    }

    #[test]
    fn a_since_that_is_not_an_integer_is_refused() {
        for bad in ["-1", "1.5", "", "x", "9007199254740992"] {
            let query = Query::new(vec![("since".into(), bad.into())]);
            assert_eq!(
                query.position().expect_err(bad).field.as_deref(),
                Some("since")
            );
        }
    }

    #[test]
    fn a_limit_out_of_bounds_is_refused_with_the_bounds() {
        assert_eq!(MAX_LIMIT, 1_000);
        for bad in ["0", "1001"] {
            let query = Query::new(vec![("limit".into(), bad.into())]);
            for error in [query.range().err(), query.members().err()] {
                assert_eq!(
                    error.expect(bad).message,
                    "`limit` must be an integer between 1 and 1000"
                );
            }
        }
    }

    #[test]
    fn a_page_of_members_starts_after_a_user() {
        let page = |query| Query::read(query).members();
        assert_eq!(page(""), Ok((None, 100)));
        let bob = UserId::parse("bob");
        assert_eq!(page("after=bob&limit=7"), Ok((bob, 7)));
        let encoded = page("after=auth0%7CJos%C3%A9%20%26+B");
        let id = encoded.map(|(after, _)| after.map(|id| id.to_string()));
        assert_eq!(id, Ok(Some("auth0|José & B".to_owned())));
        for bad in ["after=", "after=%0abob", "after=+bob", "after=%ff"] {
            let error = page(bad).expect_err(bad);
            assert_eq!(error.field.as_deref(), Some("after"), "{bad}");
        }
    }
}
