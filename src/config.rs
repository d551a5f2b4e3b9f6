//! The settings of a deployment: the configs of all layers, read once from the environment
//! variables of the Worker.

use roomcast_auth::origin::Origins;
use roomcast_auth::{AuthConfig, Authenticator};
use roomcast_gateway::config::GatewayConfig;
use roomcast_proto::limits::ConnectionLimits;
use roomcast_proto::log_record::Level;
use roomcast_proto::settings::{Flag, List, LogLevel, SettingError, Variables, Whole};
use roomcast_room::config::RoomConfig;
use std::rc::Rc;

roomcast_proto::settings! {
    /// The settings of the Worker itself.
    #[derive(Clone, Debug)]
    pub struct WorkerConfig {
        given {}
        /// Origins of pages that may connect, besides the Worker's own. A `*` stands for one label
        /// (`https://*.example.com`), `*` alone for any origin. An entry without a scheme
        /// allows `http` and `https`.
        pub allowed_origins: Origins = Origins::default(), ["ALLOWED_ORIGINS"], ORIGINS;
        /// Maximum size in bytes of an HTTP body.
        pub max_body_bytes: usize = 1024 * 1024,
            ["MAX_BODY_BYTES"], Whole { min: 1_024, max: 64 << 20 };
        /// Number of bytes of memory that the Worker may allocate. Above it, rooms and gateways
        /// refuse new connections and new events. Above three quarters of it, gateways close the
        /// sessions that hold the most. The objects of one isolate share their memory, of which the platform allows
        /// 128 MB.
        pub max_object_bytes: usize = 48 << 20,
            ["MAX_OBJECT_BYTES"], Whole { min: 4 << 20, max: 120 << 20 };
        /// The lowest level that is logged; `wrangler.toml` sets `warn`.
        /// [What logs cost](performance.md#logs).
        pub log_level: Level = Level::Info, ["LOG_LEVEL"], LogLevel;
        /// Whether `POST /dev/token` works, in development builds only.
        pub dev_tokens: bool = false, ["DEV_TOKENS"], Flag;
    }
}

const ORIGINS: List<Origins> = List {
    parse: Origins::parse,
    #[cfg(not(target_arch = "wasm32"))]
    bounds: "a list",
    #[cfg(not(target_arch = "wasm32"))]
    show: |_| "the Worker's own host".to_owned(),
};

/// All settings, one part for each layer.
#[derive(Clone, Debug)]
pub struct Config {
    /// Verifies tokens.
    pub auth: Rc<Authenticator>,
    /// The settings of the Worker itself.
    pub worker: WorkerConfig,
    /// The settings of rooms.
    pub room: Rc<RoomConfig>,
    /// The settings of gateways.
    pub gateway: Rc<GatewayConfig>,
}

impl Config {
    /// Reads all settings. `get` returns the value of an environment variable.
    ///
    /// # Errors
    ///
    /// Fails if a setting is not valid, or if there is no key that verifies tokens.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingError> {
        let variables = Variables::new(&get);
        let limits = ConnectionLimits::read(&variables)?;
        Ok(Config {
            auth: Rc::new(AuthConfig::read(&variables)?.authenticator()?),
            worker: WorkerConfig::read(&variables)?,
            room: Rc::new(RoomConfig::read(&variables, limits.clone())?),
            gateway: Rc::new(GatewayConfig::read(&variables, limits)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Config, SettingError> {
        Config::read(|name| {
            let var = vars.iter().find(|(key, _)| *key == name);
            var.map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn an_invalid_setting_is_an_error_that_names_it() {
        const SECRET: &str = "a secret of thirty-two bytes, yes";
        for (name, value) in [
            ("MAX_FRAME_BYTES", "many"),
            ("RETENTION_EVENTS", "0"),
            ("LOG_LEVEL", "loud"),
            ("GHOST_TIMEOUT", "-1"),
            ("GHOST_TIMEOUT", "0"),
            ("PRESENCE_GRACE_MS", "1.5"),
            ("PING_INTERVAL_MS", "86400001"),
            ("DEV_TOKENS", "perhaps"),
            ("MESSAGES_PER_SECOND", "NaN"),
            ("JWT_JWKS", "{}"),
        ] {
            let error = read(&[("JWT_SECRET", SECRET), (name, value)]).expect_err(name);
            assert!(error.to_string().starts_with(name), "{error}");
        }
        assert!(read(&[("JWT_SECRET", SECRET)]).is_ok());
    }
}
