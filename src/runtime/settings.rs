//! The settings of the Worker, which are read once for each isolate.

use super::keys::log_skipped_settings;
use crate::config::Config;
use roomcast_proto::settings::SettingError;
use std::cell::OnceCell;
use std::rc::Rc;
use worker::{Env, Error};

/// Returns the settings.
///
/// # Errors
///
/// Fails if a variable is missing or has a wrong value.
pub(crate) fn settings(env: &Env) -> Result<Rc<Config>, SettingError> {
    thread_local! {
        static CONFIG: OnceCell<Rc<Config>> = const { OnceCell::new() };
    }
    CONFIG.with(|cell| {
        if let Some(config) = cell.get() {
            return Ok(config.clone());
        }
        let config = Rc::new(Config::read(|name| {
            env.var(name).ok().map(|value| value.to_string())
        })?);
        log_skipped_settings(&config);
        Ok(cell.get_or_init(|| config).clone())
    })
}

/// Returns the settings in an object. The Worker sends no requests to objects while the
/// settings have errors.
///
/// # Errors
///
/// See [`settings`].
pub(crate) fn of_object(env: &Env) -> worker::Result<Rc<Config>> {
    settings(env).map_err(|error| Error::RustError(error.to_string()))
}
