//! Every setting: its name, its default, its bounds, and one clear error when
//! a value is not usable. Read once, into a typed struct.

use roomcast_auth::jwk::KeySet;
use roomcast_auth::keys::{Keys, MIN_SECRET};
use roomcast_auth::origin::Origins;
use roomcast_auth::{Authenticator, RevocationCache};
use roomcast_gateway::config::{GatewayConfig, MAX_SHARDS};
use roomcast_proto::access::RoomPatterns;
use roomcast_proto::limits::{ConnectionLimits, Rate};
use roomcast_proto::log_record::Level;
use roomcast_proto::time::{DAY, MINUTE, Millis, SECOND};
use roomcast_room::config::RoomConfig;
use std::rc::Rc;

/// A setting that cannot be used. Shown to the operator, so it names the
/// setting; never holds the value of a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} is not set: {hint}")]
    Missing {
        name: &'static str,
        hint: &'static str,
    },
    #[error("{name} must be {expected}")]
    Invalid {
        name: &'static str,
        expected: String,
    },
}

/// All settings. The comment at each field is the documentation of the
/// setting; README.md has the same as a table.
#[derive(Clone, Debug)]
pub struct Config {
    /// Judges tokens, by at least one of
    /// - `JWT_SECRET`: the HS256 key, 32 bytes or more
    /// - `JWT_SECRET_PREVIOUS`: a second one, accepted while the first is new
    /// - `JWT_JWKS`: a JWK Set (RFC 7517) of public keys
    /// - `JWT_JWKS_URL`: where such a set is fetched from, by HTTPS
    ///
    /// `REVOCATION` (default true): whether tokens can be revoked, for which each
    /// isolate asks every few seconds what was.
    pub auth: Rc<Authenticator>,
    /// `ALLOWED_ORIGINS`: where browsers may connect from. Empty: same origin.
    pub allowed_origins: Origins,
    /// `DEV_TOKENS`: whether `POST /dev/token` answers, in development builds.
    pub dev_tokens: bool,
    /// `LOG_LEVEL`: debug, info, warn, error or off. Default info.
    pub log_level: Level,
    /// `MAX_BODY_BYTES`: the largest HTTP body. Default 1 MiB.
    pub max_body_bytes: usize,
    pub room: Rc<RoomConfig>,
    pub gateway: Rc<GatewayConfig>,
}

impl Config {
    /// Reads all settings through `get`, which answers what a name is set to.
    /// A setting that is set to nothing counts as not set.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let vars = Vars(&|name| {
            get(name)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        });
        let room = RoomConfig::default();
        let gateway = GatewayConfig::default();
        let limits = vars.limits()?;
        Ok(Config {
            auth: Rc::new(Authenticator {
                keys: vars.keys()?,
                revoked: RevocationCache::new(vars.flag("REVOCATION", true)?),
                issuer: vars.text("JWT_ISSUER"),
                audience: vars.text("JWT_AUDIENCE"),
                default_rooms: RoomPatterns::from_list(
                    &vars.text("DEFAULT_ROOMS").unwrap_or_default(),
                ),
            }),
            allowed_origins: Origins::parse(&vars.text("ALLOWED_ORIGINS").unwrap_or_default()),
            dev_tokens: vars.flag("DEV_TOKENS", false)?,
            log_level: vars.level("LOG_LEVEL")?,
            max_body_bytes: vars.whole("MAX_BODY_BYTES", 1024 * 1024, 1024, 64 << 20)?,
            room: Rc::new(RoomConfig {
                limits: limits.clone(),
                dedupe_window: vars.duration("DEDUPE_WINDOW", room.dedupe_window)?,
                retention_events: vars.whole("RETENTION_EVENTS", 10_000, 1, 10_000_000)? as u64,
                retention_age: (vars.number("RETENTION_DAYS", 7.0, 0.0, 36_500.0)? * DAY as f64)
                    as Millis,
                presence_grace: vars.millis("PRESENCE_GRACE_MS", room.presence_grace)?,
                typing_ttl: vars.millis("TYPING_TTL_MS", room.typing_ttl)?,
                max_connections_per_user: vars.whole(
                    "MAX_CONNECTIONS_PER_USER",
                    room.max_connections_per_user,
                    1,
                    32_768,
                )?,
                max_members: vars.whole("MAX_MEMBERS", room.max_members, 1, 1_000_000)?,
            }),
            gateway: Rc::new(GatewayConfig {
                limits,
                shards: vars.whole("GATEWAY_SHARDS", gateway.shards, 1, MAX_SHARDS)?,
                max_rooms: vars.whole("MAX_ROOMS_PER_CONNECTION", gateway.max_rooms, 1, 1_000)?,
                ping_interval: vars.millis("PING_INTERVAL_MS", gateway.ping_interval)?,
                ping_timeout: vars.millis("PING_TIMEOUT_MS", gateway.ping_timeout)?,
                connect_timeout: vars.millis("CONNECT_TIMEOUT_MS", gateway.connect_timeout)?,
                refused_connects: vars
                    .per_minute("REFUSED_CONNECTS_PER_MINUTE", gateway.refused_connects)?,
                namespaces: vars.text("NAMESPACES").map_or(gateway.namespaces, |list| {
                    list.split([',', ' '])
                        .filter(|name| !name.is_empty())
                        .map(|name| format!("/{}", name.trim_start_matches('/')))
                        .collect()
                }),
                max_payload: vars.whole("MAX_PAYLOAD", gateway.max_payload, 1_024, 64 << 20)?,
            }),
        })
    }
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One reader per kind of value.
struct Vars<'a>(Lookup<'a>);

impl Vars<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn parsed<T>(
        &self,
        name: &'static str,
        default: T,
        expected: impl Fn() -> String,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        match self.text(name) {
            None => Ok(default),
            Some(text) => parse(&text).ok_or_else(|| ConfigError::Invalid {
                name,
                expected: expected(),
            }),
        }
    }

    /// The limits of a connection, which rooms and gateways share.
    fn limits(&self) -> Result<ConnectionLimits, ConfigError> {
        let defaults = ConnectionLimits::default();
        Ok(ConnectionLimits {
            // A row holds 2 MB, and an event with its envelope goes into one.
            max_frame_bytes: self.whole(
                "MAX_FRAME_BYTES",
                defaults.max_frame_bytes,
                256,
                1 << 20,
            )?,
            messages: self.rate("MESSAGES_PER_SECOND", "MESSAGES_BURST", defaults.messages)?,
            signals: self.rate("SIGNALS_PER_SECOND", "SIGNALS_BURST", defaults.signals)?,
            joins: self.rate("JOINS_PER_SECOND", "JOINS_BURST", defaults.joins)?,
            commands: self.rate("COMMANDS_PER_SECOND", "COMMANDS_BURST", defaults.commands)?,
            refusals: self.rate("REFUSALS_PER_SECOND", "REFUSALS_BURST", defaults.refusals)?,
            flood_ban: self.duration("FLOOD_BAN", defaults.flood_ban)?,
            connects: self.per_minute("CONNECTS_PER_MINUTE", defaults.connects)?,
            ghost_timeout: self.duration("GHOST_TIMEOUT", defaults.ghost_timeout)?,
            max_unacked_bytes: self.whole(
                "MAX_UNACKED_BYTES",
                defaults.max_unacked_bytes,
                1024,
                64 << 20,
            )?,
        })
    }

    fn keys(&self) -> Result<Keys, ConfigError> {
        let invalid = |name, expected: String| Err(ConfigError::Invalid { name, expected });
        let mut secrets = Vec::new();
        for name in ["JWT_SECRET", "JWT_SECRET_PREVIOUS"] {
            match self.text(name) {
                Some(secret) if secret.len() < MIN_SECRET => {
                    return invalid(name, format!("at least {MIN_SECRET} bytes"));
                }
                secret => secrets.extend(secret),
            }
        }
        let jwks = self.text("JWT_JWKS");
        let set = match &jwks {
            None => KeySet::default(),
            Some(json) => match KeySet::strict(json) {
                Ok(set) => set,
                Err(error) => {
                    return invalid("JWT_JWKS", format!("a set of public keys, but {error}"));
                }
            },
        };
        let url = self.text("JWT_JWKS_URL");
        if url.as_deref().is_some_and(|url| !is_safe_url(url)) {
            let expected = "an https:// URL (http:// for this machine itself)";
            return invalid("JWT_JWKS_URL", expected.to_owned());
        }
        if secrets.is_empty() && jwks.is_none() && url.is_none() {
            return Err(ConfigError::Missing {
                name: "JWT_SECRET",
                hint: "`npx wrangler secret put JWT_SECRET`, or .dev.vars for `wrangler dev`; \
                       or give public keys by JWT_JWKS or JWT_JWKS_URL",
            });
        }
        Ok(Keys::new(&secrets, set, url))
    }

    fn number(
        &self,
        name: &'static str,
        default: f64,
        min: f64,
        max: f64,
    ) -> Result<f64, ConfigError> {
        self.parsed(
            name,
            default,
            || format!("a number from {min} to {max}"),
            |text| {
                text.parse()
                    .ok()
                    .filter(|value| (min..=max).contains(value))
            },
        )
    }

    fn whole(
        &self,
        name: &'static str,
        default: usize,
        min: usize,
        max: usize,
    ) -> Result<usize, ConfigError> {
        self.parsed(
            name,
            default,
            || format!("a whole number from {min} to {max}"),
            |text| {
                text.parse()
                    .ok()
                    .filter(|value| (min..=max).contains(value))
            },
        )
    }

    fn millis(&self, name: &'static str, default: Millis) -> Result<Millis, ConfigError> {
        self.parsed(
            name,
            default,
            || "a whole number of milliseconds up to a day".to_owned(),
            |text| text.parse().ok().filter(|value| *value <= DAY),
        )
    }

    fn duration(&self, name: &'static str, default: Millis) -> Result<Millis, ConfigError> {
        self.parsed(
            name,
            default,
            || "a duration such as 90s, 10m or 2h (a bare number is seconds)".to_owned(),
            parse_duration,
        )
    }

    fn rate(
        &self,
        per_second: &'static str,
        burst: &'static str,
        default: Rate,
    ) -> Result<Rate, ConfigError> {
        Ok(Rate {
            per_second: self.number(per_second, default.per_second, 0.01, 1e9)?,
            burst: self.number(burst, default.burst, 1.0, 1e9)?,
        })
    }

    fn per_minute(&self, name: &'static str, default: Rate) -> Result<Rate, ConfigError> {
        let count = self.number(name, default.burst, 1.0, 1e9)?;
        Ok(Rate::per_minute(count))
    }

    fn flag(&self, name: &'static str, default: bool) -> Result<bool, ConfigError> {
        self.parsed(
            name,
            default,
            || "true or false".to_owned(),
            |text| text.parse().ok(),
        )
    }

    fn level(&self, name: &'static str) -> Result<Level, ConfigError> {
        self.parsed(
            name,
            Level::Info,
            || "debug, info, warn, error or off".to_owned(),
            |text| {
                [
                    Level::Debug,
                    Level::Info,
                    Level::Warn,
                    Level::Error,
                    Level::Off,
                ]
                .into_iter()
                .find(|level| level.as_str() == text.to_ascii_lowercase())
            },
        )
    }
}

/// Whether what is fetched from there can be trusted: over TLS, or from this
/// machine.
fn is_safe_url(url: &str) -> bool {
    let authority = |rest: &str| {
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        rest[..end].to_owned()
    };
    if let Some(rest) = url.strip_prefix("https://") {
        let authority = authority(rest);
        return !authority.is_empty() && !authority.contains('@');
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return false;
    };
    let authority = authority(rest);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority.as_str(),
    };
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

/// `500ms`, `90s`, `10m`, `2h`, `7d`, or seconds without a unit; up to a
/// hundred years.
pub fn parse_duration(text: &str) -> Option<Millis> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim() {
        "ms" => 1,
        "" | "s" => SECOND,
        "m" | "min" => MINUTE,
        "h" => 60 * MINUTE,
        "d" => DAY,
        _ => return None,
    };
    let millis = number.parse::<f64>().ok()? * unit as f64;
    (millis <= (36_500 * DAY) as f64).then_some(millis as Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(|name| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = read(&[("JWT_SECRET", " ")]).expect_err("no key");
        assert!(error.to_string().starts_with("JWT_SECRET is not set"));
    }

    const SECRET: &str = "a secret of thirty-two bytes, yes";

    #[test]
    fn a_secret_under_32_bytes_is_refused() {
        let short = &SECRET[..31];
        for name in ["JWT_SECRET", "JWT_SECRET_PREVIOUS"] {
            let error = read(&[("JWT_JWKS_URL", "https://keys.example"), (name, short)]);
            let error = error.expect_err(name).to_string();
            assert_eq!(error, format!("{name} must be at least 32 bytes"));
            assert!(read(&[(name, &SECRET[..32])]).is_ok());
        }
    }

    #[test]
    fn keys_are_fetched_by_https_or_from_this_machine() {
        for good in [
            "https://id.example/.well-known/jwks.json",
            "http://localhost:8080/jwks",
            "http://127.0.0.1",
            "http://[::1]:9/x",
        ] {
            assert!(is_safe_url(good), "{good}");
        }
        for bad in [
            "http://id.example/jwks",
            "http://localhost@id.example/",
            "http://localhost:x@id.example/",
            "http://localhost.id.example/",
            "https://",
            "file:///etc/keys",
            "keys",
        ] {
            let error = read(&[("JWT_JWKS_URL", bad)]).expect_err(bad);
            assert!(error.to_string().starts_with("JWT_JWKS_URL must be"));
        }
    }

    #[test]
    fn a_bad_setting_is_named_with_what_it_must_be() {
        for (name, value) in [
            ("MAX_FRAME_BYTES", "many"),
            ("RETENTION_EVENTS", "0"),
            ("LOG_LEVEL", "loud"),
            ("GHOST_TIMEOUT", "-1"),
            ("PRESENCE_GRACE_MS", "1.5"),
            ("DEV_TOKENS", "perhaps"),
            ("MESSAGES_PER_SECOND", "NaN"),
            ("JWT_JWKS", "{}"),
        ] {
            let error = read(&[("JWT_SECRET", SECRET), (name, value)]).expect_err(name);
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("500ms"), Some(500));
        assert_eq!(parse_duration("90"), Some(90 * SECOND));
        assert_eq!(parse_duration("10m"), Some(10 * MINUTE));
        assert_eq!(parse_duration("1.5h"), Some(90 * MINUTE));
        assert_eq!(parse_duration("7d"), Some(7 * DAY));
        assert_eq!(parse_duration("x"), None);
        assert_eq!(parse_duration("1y"), None);
    }
}
