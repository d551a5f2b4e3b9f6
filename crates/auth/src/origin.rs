//! Origins from which browsers may connect. The check protects the users of browsers from
//! pages of other sites; it does not authenticate clients.

/// The origins of `ALLOWED_ORIGINS`. The origin of the server itself is always allowed.
///
/// An entry is `scheme://host[:port]` or `host[:port]`, which allows every scheme. A label
/// of the host may be `*`, which matches exactly one label. The entry `*` allows every
/// origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Parses a list of entries separated by commas or spaces. Never fails: an entry that is
    /// not an origin matches nothing.
    pub fn parse(list: &str) -> Self {
        Origins(
            list.split([',', ' '])
                .map(|entry| entry.trim_end_matches('/').to_ascii_lowercase())
                .filter(|entry| !entry.is_empty())
                .collect(),
        )
    }

    /// Returns `true` if a request with the header `Origin` to the given `Host` is allowed. A
    /// request without `Origin` does not come from a browser and is allowed. The same-origin
    /// check ignores the scheme, because TLS may end before the Worker.
    pub fn allows(&self, origin: Option<&str>, host: &str) -> bool {
        let Some(origin) = origin else {
            return true;
        };
        let origin = origin.to_ascii_lowercase();
        let Some((scheme, authority)) = origin.split_once("://") else {
            return self.0.iter().any(|entry| entry == "*");
        };
        let is_own = !authority.is_empty() && authority == host.to_ascii_lowercase();
        is_own
            || self.0.iter().any(|entry| {
                let (wanted_scheme, wanted) = match entry.split_once("://") {
                    Some((scheme, authority)) => (Some(scheme), authority),
                    None => (None, entry.as_str()),
                };
                entry == "*"
                    || (wanted_scheme.is_none_or(|wanted| wanted == scheme)
                        && labels_match(wanted, authority))
            })
    }
}

/// Returns `true` if the port and every label of the host match the pattern.
fn labels_match(pattern: &str, authority: &str) -> bool {
    let (pattern_host, pattern_port) = split_port(pattern);
    let (host, port) = split_port(authority);
    pattern_port == port
        && pattern_host.split('.').count() == host.split('.').count()
        && pattern_host
            .split('.')
            .zip(host.split('.'))
            .all(|(wanted, label)| wanted == label || (wanted == "*" && !label.is_empty()))
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_origin_is_allowed_with_any_list() {
        let other = Origins::parse("https://app.example");
        assert!(other.allows(Some("https://chat.example"), "Chat.example"));
        assert!(other.allows(Some("http://localhost:8787"), "localhost:8787"));
        assert!(!other.allows(Some("http://localhost:1"), "localhost:8787"));
        assert!(!other.allows(Some("file://"), ""));
    }

    #[test]
    fn an_empty_list_means_same_origin_only() {
        let none = Origins::parse("");
        assert!(none.allows(None, "chat.example"));
        assert!(none.allows(Some("https://chat.example"), "chat.example"));
        assert!(none.allows(Some("http://localhost:8787"), "localhost:8787"));
        assert!(!none.allows(Some("https://evil.example"), "chat.example"));
        assert!(!none.allows(Some("null"), "chat.example"));
        assert!(!none.allows(Some("http://localhost:1"), "localhost:8787"));
    }

    #[test]
    fn an_entry_without_host_allows_nothing() {
        let some = Origins::parse("/, //, https://a.example");
        for bad in ["file://", "https://", "://"] {
            assert!(!some.allows(Some(bad), "x"), "{bad}");
        }
        assert_eq!(Origins::parse("/"), Origins::parse(""));
    }

    #[test]
    fn a_wildcard_matches_one_label() {
        let some = Origins::parse("https://*.example.com, http://localhost:3000 plain.example");
        for good in [
            "https://a.example.com",
            "https://A.Example.com",
            "http://localhost:3000",
            "http://plain.example",
            "https://plain.example",
        ] {
            assert!(some.allows(Some(good), "x"), "{good}");
        }
        for bad in [
            "http://a.example.com",
            "https://example.com",
            "https://a.b.example.com",
            "https://a.example.com.evil.com",
            "https://a.example.com:444",
            "https://.example.com",
            "http://localhost",
            "null",
            "",
        ] {
            assert!(!some.allows(Some(bad), "x"), "{bad}");
        }
        assert!(Origins::parse("*").allows(Some("null"), "x"));
    }
}
