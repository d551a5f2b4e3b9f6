//! Every setting: its name, its default, its bounds, and one clear error when
//! a value is not usable. Read once, into a typed struct.

use crate::auth::Revoked;
use crate::auth::access::Patterns;
use crate::auth::jwk::KeySet;
use crate::auth::keys::{Keys, MIN_SECRET};
use crate::auth::origin::Origins;
use crate::gateway::handshake::MAX_SHARDS;
use crate::time::{DAY, MINUTE, Millis, SECOND};
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

/// How much of one kind of command a connection may send: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Refill, per second.
    pub per_second: f64,
    /// How many may come at once.
    pub burst: f64,
}

impl Rate {
    /// So many a minute, all of which may come at once.
    pub fn per_minute(count: f64) -> Self {
        Rate {
            per_second: count / 60.0,
            burst: count,
        }
    }
}

/// Which lines the event log has: those at this level and above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
    Off,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Off => "off",
        }
    }
}

/// All settings. The comment at each field is the documentation of the
/// setting; README.md has the same as a table.
#[derive(Clone, Debug)]
pub struct Config {
    /// What tokens are checked with; at least one of
    /// - `JWT_SECRET`: the HS256 key, 32 bytes or more
    /// - `JWT_SECRET_PREVIOUS`: a second one, taken while the first is new
    /// - `JWT_JWKS`: a JWK Set (RFC 7517) of public keys
    /// - `JWT_JWKS_URL`: where such a set is fetched from, by HTTPS
    pub keys: Rc<Keys>,
    /// `REVOCATION`: whether tokens can be revoked, for which each isolate asks
    /// every few seconds what was. Default true.
    pub revoked: Rc<Revoked>,
    /// `JWT_ISSUER`: the `iss` that tokens must have. Unset: any.
    pub jwt_issuer: Option<String>,
    /// `JWT_AUDIENCE`: what `aud` of tokens must contain. Unset: any.
    pub jwt_audience: Option<String>,
    /// `DEFAULT_ROOMS`: the room patterns of a token without `rooms`. Empty.
    pub default_rooms: Patterns,
    /// `ALLOWED_ORIGINS`: where browsers may connect from. Empty: same origin.
    pub allowed_origins: Origins,
    /// `DEV_TOKENS`: whether `POST /dev/token` answers, in development builds.
    pub dev_tokens: bool,
    /// `LOG_LEVEL`: debug, info, warn, error or off. Default info.
    pub log_level: Level,
    /// `MAX_BODY_BYTES`: the largest HTTP body. Default 1 MiB.
    pub max_body_bytes: usize,
    pub room: RoomConfig,
    pub gateway: GatewayConfig,
}

/// The settings of gateways, which hold the sockets of `/ws` and `/socket.io/`.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// `GATEWAY_SHARDS`: how many gateways new sockets are spread over. May be
    /// changed at any time. Default 8.
    pub shards: usize,
    /// `MAX_ROOMS_PER_CONNECTION`: rooms that one connection may be in. Default
    /// 100.
    pub max_rooms: usize,
    /// `PING_INTERVAL_MS`: how often Engine.IO sessions are pinged. 0 stands
    /// for never: the clients are told the longest that their timers can hold,
    /// so that an idle gateway sleeps. Default 25,000.
    pub ping_interval: Millis,
    /// `PING_TIMEOUT_MS`: how long a pong may take. Default 20,000.
    pub ping_timeout: Millis,
    /// `CONNECT_TIMEOUT_MS`: how long a session may be without a namespace.
    /// Default 45,000, as Socket.IO's own server.
    pub connect_timeout: Millis,
    /// `REFUSED_CONNECTS_PER_MINUTE` (300): Socket.IO connects that one gateway
    /// refuses connections without a valid token of one address (a /64 of IPv6)
    /// before it refuses new ones.
    pub refused_connects: Rate,
    /// `NAMESPACES`: those that Socket.IO clients may connect to. Default `/`
    /// and `/chat`.
    pub namespaces: Vec<String>,
    /// `MAX_PAYLOAD`: the most bytes of one message or one polling request of
    /// Engine.IO, as clients are told. Default 1,000,000, as its own server.
    pub max_payload: usize,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            shards: 8,
            max_rooms: 100,
            ping_interval: 25 * SECOND,
            ping_timeout: 20 * SECOND,
            connect_timeout: 45 * SECOND,
            refused_connects: Rate::per_minute(300.0),
            namespaces: vec!["/".into(), "/chat".into()],
            max_payload: 1_000_000,
        }
    }
}

/// The settings that a room itself needs.
#[derive(Clone, Debug)]
pub struct RoomConfig {
    /// `MAX_FRAME_BYTES`: the largest frame a client may send. Default 64 KiB.
    pub max_frame_bytes: usize,
    /// `DEDUPE_WINDOW`: how long a `messageId` is remembered. Default 10 min.
    pub dedupe_window: Millis,
    /// `RETENTION_EVENTS`: how many logged events a room keeps. Default 10,000.
    pub retention_events: u64,
    /// `RETENTION_DAYS`: for how long, in days, fractions allowed. Default 7.
    pub retention_age: Millis,
    /// `PRESENCE_GRACE_MS`: how long after its last socket a user is still
    /// shown as before. Default 5,000.
    pub presence_grace: Millis,
    /// `TYPING_TTL_MS`: when a typing indicator expires by itself. Default 5,000.
    pub typing_ttl: Millis,
    /// `GHOST_TIMEOUT`: how long after its last ping a socket that used to
    /// ping is taken for gone. Default 90 s.
    pub ghost_timeout: Millis,
    /// `MESSAGES_PER_SECOND` (20), `MESSAGES_BURST` (40): `sendMessage` and
    /// `emit`, per connection.
    pub messages: Rate,
    /// `SIGNALS_PER_SECOND` (5), `SIGNALS_BURST` (20): `typingIndicator` and
    /// `setPresence`, per connection.
    pub signals: Rate,
    /// `JOINS_PER_SECOND` (5), `JOINS_BURST` (100): `joinRoom`, `leaveRoom`,
    /// `sync` and `refreshToken`, per connection.
    pub joins: Rate,
    /// `COMMANDS_PER_SECOND` (1,000), `COMMANDS_BURST` (2,000): anything at
    /// all, per connection. Keeps acknowledgements and faults in bounds.
    pub commands: Rate,
    /// `REFUSALS_PER_SECOND` (2,000), `REFUSALS_BURST` (1,000): what a room or a
    /// gateway refuses, all its connections together, before it is flooded: then
    /// those that are refused again and again are closed at once.
    pub refusals: Rate,
    /// `FLOOD_BAN`: how long who was closed for that is kept out, twice as long
    /// each time. Default 10 s.
    pub flood_ban: Millis,
    /// `CONNECTS_PER_MINUTE` (600): connects to one room from one address.
    pub connects: Rate,
    /// `MAX_CONNECTIONS_PER_USER`: sockets of one user in one room. Default 10.
    pub max_connections_per_user: usize,
    /// `MAX_MEMBERS`: members of a room. Default 10,000.
    pub max_members: usize,
    /// `MAX_UNACKED_BYTES`: how much is sent to a socket that gives no sign of
    /// life (a frame or a ping) before it is cut. Default 32 MiB.
    pub max_unacked_bytes: usize,
}

/// Everything at its default, for tests and as the base of [`Config::read`].
impl Default for RoomConfig {
    fn default() -> Self {
        RoomConfig {
            max_frame_bytes: 64 * 1024,
            dedupe_window: 10 * MINUTE,
            retention_events: 10_000,
            retention_age: 7 * DAY,
            presence_grace: 5 * SECOND,
            typing_ttl: 5 * SECOND,
            ghost_timeout: 90 * SECOND,
            messages: Rate {
                per_second: 20.0,
                burst: 40.0,
            },
            signals: Rate {
                per_second: 5.0,
                burst: 20.0,
            },
            joins: Rate {
                per_second: 5.0,
                burst: 100.0,
            },
            commands: Rate {
                per_second: 1000.0,
                burst: 2000.0,
            },
            refusals: Rate {
                per_second: 2_000.0,
                burst: 1_000.0,
            },
            flood_ban: 10 * SECOND,
            connects: Rate::per_minute(600.0),
            max_connections_per_user: 10,
            max_members: 10_000,
            max_unacked_bytes: 32 * 1024 * 1024,
        }
    }
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
        let defaults = RoomConfig::default();
        let gateway = GatewayConfig::default();
        Ok(Config {
            keys: Rc::new(vars.keys()?),
            revoked: Rc::new(Revoked::new(vars.flag("REVOCATION", true)?)),
            jwt_issuer: vars.text("JWT_ISSUER"),
            jwt_audience: vars.text("JWT_AUDIENCE"),
            default_rooms: Patterns::from_list(&vars.text("DEFAULT_ROOMS").unwrap_or_default()),
            allowed_origins: Origins::parse(&vars.text("ALLOWED_ORIGINS").unwrap_or_default()),
            dev_tokens: vars.flag("DEV_TOKENS", false)?,
            log_level: vars.level("LOG_LEVEL")?,
            max_body_bytes: vars.whole("MAX_BODY_BYTES", 1024 * 1024, 1024, 64 << 20)?,
            room: RoomConfig {
                max_frame_bytes: vars.whole(
                    "MAX_FRAME_BYTES",
                    defaults.max_frame_bytes,
                    256,
                    // A row holds 2 MB, and an event with its envelope goes into one.
                    1 << 20,
                )?,
                dedupe_window: vars.duration("DEDUPE_WINDOW", defaults.dedupe_window)?,
                retention_events: vars.whole("RETENTION_EVENTS", 10_000, 1, 10_000_000)? as u64,
                retention_age: (vars.number("RETENTION_DAYS", 7.0, 0.0, 36_500.0)? * DAY as f64)
                    as Millis,
                presence_grace: vars.millis("PRESENCE_GRACE_MS", defaults.presence_grace)?,
                typing_ttl: vars.millis("TYPING_TTL_MS", defaults.typing_ttl)?,
                ghost_timeout: vars.duration("GHOST_TIMEOUT", defaults.ghost_timeout)?,
                messages: vars.rate("MESSAGES_PER_SECOND", "MESSAGES_BURST", defaults.messages)?,
                signals: vars.rate("SIGNALS_PER_SECOND", "SIGNALS_BURST", defaults.signals)?,
                joins: vars.rate("JOINS_PER_SECOND", "JOINS_BURST", defaults.joins)?,
                commands: vars.rate("COMMANDS_PER_SECOND", "COMMANDS_BURST", defaults.commands)?,
                refusals: vars.rate("REFUSALS_PER_SECOND", "REFUSALS_BURST", defaults.refusals)?,
                flood_ban: vars.duration("FLOOD_BAN", defaults.flood_ban)?,
                connects: vars.per_minute("CONNECTS_PER_MINUTE", defaults.connects)?,
                max_connections_per_user: vars.whole(
                    "MAX_CONNECTIONS_PER_USER",
                    defaults.max_connections_per_user,
                    1,
                    32_768,
                )?,
                max_members: vars.whole("MAX_MEMBERS", defaults.max_members, 1, 1_000_000)?,
                max_unacked_bytes: vars.whole(
                    "MAX_UNACKED_BYTES",
                    defaults.max_unacked_bytes,
                    1024,
                    64 << 20,
                )?,
            },
            gateway: GatewayConfig {
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
            },
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
