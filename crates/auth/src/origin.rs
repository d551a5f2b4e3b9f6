//! Where browsers may connect from.

/// `ALLOWED_ORIGINS`: origins separated by commas or spaces. A host label may
/// be `*`, which stands for one label; `*` alone for any origin. Without
/// `https://` an entry allows both schemes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl Origins {
    pub fn parse(list: &str) -> Self {
        Origins(
            list.split([',', ' '])
                .map(|entry| entry.trim_end_matches('/').to_ascii_lowercase())
                .filter(|entry| !entry.is_empty())
                .collect(),
        )
    }

    /// Whether an upgrade with this `Origin` may pass. `host` is the `Host` it
    /// was sent to: with an empty list only the same origin passes, compared
    /// without the scheme, since TLS may end before the Worker. No `Origin`
    /// means no browser, which passes: the rule protects browsers' users.
    pub fn allows(&self, origin: Option<&str>, host: &str) -> bool {
        let Some(origin) = origin else {
            return true;
        };
        let origin = origin.to_ascii_lowercase();
        let Some((scheme, authority)) = origin.split_once("://") else {
            return self.0.iter().any(|entry| entry == "*");
        };
        if self.0.is_empty() {
            return authority == host.to_ascii_lowercase();
        }
        self.0.iter().any(|entry| {
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
    fn an_entry_of_nothing_allows_nothing() {
        let some = Origins::parse("/, //, https://a.example");
        for bad in ["file://", "https://", "://"] {
            assert!(!some.allows(Some(bad), "x"), "{bad}");
        }
        assert_eq!(Origins::parse("/"), Origins::parse(""));
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
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
