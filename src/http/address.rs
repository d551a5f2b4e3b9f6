//! Splits a URL into its parts.

/// The parts of a URL. The runtime has normalised the URL, so the parts are slices of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    /// `host` or `host:port`.
    pub authority: &'a str,
    /// The path, still percent-encoded. Begins with `/`, or is empty.
    pub path: &'a str,
    /// The text between `?` and `#`.
    pub query: &'a str,
}

impl<'a> Address<'a> {
    /// Splits a URL of the scheme `http` or `https`. The fragment is dropped.
    pub fn of(url: &'a str) -> Self {
        let rest = url
            .strip_prefix("https://")
            .or_else(|| url.strip_prefix("http://"))
            .unwrap_or(url);
        let (rest, _fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Address {
            authority,
            path,
            query,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_split_into_authority_path_and_query() {
        let parts = |url| {
            let Address {
                authority,
                path,
                query,
            } = Address::of(url);
            (authority, path, query)
        };
        assert_eq!(parts("https://a.b/"), ("a.b", "/", ""));
        assert_eq!(
            parts("http://a.b:87/rooms/x%2Fy/ws?since=1&e=/?x#y?z"),
            ("a.b:87", "/rooms/x%2Fy/ws", "since=1&e=/?x")
        );
        assert_eq!(parts("http://a?q"), ("a", "", "q"));
    }
}
