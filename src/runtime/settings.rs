//! The settings: the Worker's variables, read once an isolate.

use crate::config::Config;
use roomcast_proto::settings::SettingError;
use std::cell::OnceCell;
use std::rc::Rc;
use worker::{Env, Error};

pub fn settings(env: &Env) -> Result<Rc<Config>, SettingError> {
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
        Ok(cell.get_or_init(|| config).clone())
    })
}

/// In an object, which is asked nothing while they cannot be used.
pub fn of_object(env: &Env) -> worker::Result<Rc<Config>> {
    settings(env).map_err(|error| Error::RustError(error.to_string()))
}
