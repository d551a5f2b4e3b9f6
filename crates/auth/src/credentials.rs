//! The parts of a request that may carry a token.

/// The WebSocket subprotocol that the server selects when a client offers it.
pub const SUBPROTOCOL: &str = "roomcast.v1";

/// The parts of a request that may carry its token.
#[derive(Debug, Default)]
pub struct Credentials<'a> {
    /// The header `Authorization`.
    pub authorization: Option<&'a str>,
    /// The header `Sec-WebSocket-Protocol`.
    pub protocols: Option<&'a str>,
    /// The query parameter `token`.
    pub query: Option<&'a str>,
}

impl<'a> Credentials<'a> {
    /// Returns the token from the first part that has one: `Authorization: Bearer`, the
    /// subprotocol `bearer.<jwt>`, the query.
    pub fn token(&self) -> Option<&'a str> {
        let bearer = self.authorization.and_then(|header| {
            let (scheme, token) = header.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        bearer
            .or_else(|| self.offered().find_map(|p| p.strip_prefix("bearer.")))
            .or(self.query)
            .filter(|token| !token.is_empty())
    }

    /// Returns `true` if the client offered [`SUBPROTOCOL`]. The response must then select
    /// it, or a browser closes the socket.
    pub fn offers_subprotocol(&self) -> bool {
        self.offered().any(|protocol| protocol == SUBPROTOCOL)
    }

    fn offered(&self) -> impl Iterator<Item = &'a str> {
        self.protocols.unwrap_or_default().split(',').map(str::trim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_with_a_token_wins() {
        let all = Credentials {
            authorization: Some("bearer a"),
            protocols: Some("roomcast.v1, bearer.b"),
            query: Some("c"),
        };
        assert_eq!(all.token(), Some("a"));
        assert!(all.offers_subprotocol());
        let without_header = Credentials {
            authorization: Some("Basic xyz"),
            ..all
        };
        assert_eq!(without_header.token(), Some("b"));
        let query = Credentials {
            query: Some("c"),
            ..Credentials::default()
        };
        assert_eq!(query.token(), Some("c"));
        assert_eq!(Credentials::default().token(), None);
    }
}
