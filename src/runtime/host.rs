//! The host of a Durable Object: its memory between two events.
//!
//! All four objects have the same life cycle. The runtime constructs the object with an empty
//! [`Host`]. The first event restores the object's memory (an [`Active`]) from storage and
//! sockets, and later events use it. The memory is lost by hibernation, eviction and panics.
//! When storing has failed, the memory may differ from storage, so the host drops it. In all
//! cases the next event restores the memory.
//!
//! Each object is a class that `wasm_bindgen` exports. Its methods are the event handlers of
//! the runtime. The macro of `worker` is not used: it creates a promise for each call, and
//! the microtask queue costs about as much as the rest of a message. Handlers that wait
//! return a promise ([`promise`], [`promise_response`]).

use super::Result;
use super::log::log_error;
use super::rpc::RequestError;
use super::time::now;
use crate::slots::Slots;
use js_sys::Promise;
use roomcast_proto::time::Millis;
use std::cell::{RefCell, RefMut};
use std::pin::Pin;
use wasm_bindgen::JsValue;
use worker::wasm_bindgen_futures::future_to_promise;
use worker::worker_sys::DurableObjectState;
use worker::{Env, Error, Response, State};

/// The result of an event handler.
pub(crate) type JsResult<T = ()> = std::result::Result<T, JsValue>;

/// The memory of an object between two events.
pub(crate) trait Active: Sized {
    /// State that survives a failure of storage, because it does not depend on the failed
    /// change.
    type Carried: Default;

    /// Restores the memory from storage and sockets. `name` is the name of the object if the
    /// event contains it. `carried` is the value that [`Active::take_failure`] returned, if
    /// storing has failed.
    fn restore(
        state: &State,
        env: &Env,
        name: Option<String>,
        carried: Self::Carried,
    ) -> Result<Self>;

    /// Prepares for an event at `now`.
    fn begin(&mut self, _now: Millis) {}

    /// Returns `Some` if storing has failed. The host then drops the memory.
    fn take_failure(&mut self) -> Option<Self::Carried> {
        None
    }
}

/// The memory of an object, and its access to the runtime.
pub(crate) struct Host<T: Active> {
    /// Storage, sockets and alarm of the object.
    pub state: State,
    /// The bindings and variables of the Worker.
    pub env: Env,
    /// The slots for requests to other objects.
    pub slots: Slots,
    active: RefCell<Option<T>>,
    carried: RefCell<T::Carried>,
}

impl<T: Active> Host<T> {
    /// Returns a host without memory.
    pub(crate) fn new(state: DurableObjectState, env: Env) -> Self {
        console_error_panic_hook::set_once();
        Host {
            state: state.into(),
            env,
            slots: Slots::default(),
            active: RefCell::new(None),
            carried: RefCell::default(),
        }
    }

    /// Returns `true` if the object is in memory.
    pub(crate) fn is_active(&self) -> bool {
        self.active.borrow().is_some()
    }

    /// Calls `act` with the memory, which is restored first if needed, and dropped afterwards
    /// if storing has failed. `act` must not use the host.
    ///
    /// # Errors
    ///
    /// Fails if the memory cannot be restored.
    pub(crate) fn with_active<R>(
        &self,
        name: Option<String>,
        act: impl FnOnce(&mut T, &State) -> R,
    ) -> Result<R> {
        let mut active = self.begin(name)?;
        let result = act(&mut active, &self.state);
        self.end(active);
        Ok(result)
    }

    /// Returns the memory, restored if needed and prepared for an event. Not a part of
    /// [`Host::with_active`], so that it is compiled once and not for each closure.
    #[inline(never)]
    fn begin(&self, name: Option<String>) -> Result<RefMut<'_, T>> {
        let mut slot = self.active.borrow_mut();
        if slot.is_none() {
            let carried = self.carried.take();
            *slot = Some(T::restore(&self.state, &self.env, name, carried)?);
        }
        let active = RefMut::filter_map(slot, Option::as_mut);
        let mut active = active.map_err(|_| Error::RustError("no memory".into()))?;
        active.begin(now());
        Ok(active)
    }

    /// Drops the memory if storing has failed.
    #[inline(never)]
    fn end(&self, mut active: RefMut<'_, T>) {
        if let Some(carried) = active.take_failure() {
            drop(active);
            self.carried.replace(carried);
            self.active.replace(None);
        }
    }

    /// Does the same as [`Host::with_active`], for objects without sockets. Also drops the
    /// memory if `act` fails for a reason other than a refusal.
    ///
    /// # Errors
    ///
    /// Fails if the memory cannot be restored or `act` fails.
    pub(crate) fn try_with_active<R>(
        &self,
        act: impl FnOnce(&mut T) -> Result<R, RequestError>,
    ) -> Result<R, RequestError> {
        let result = self.with_active(None, |active, _| act(active))?;
        if let Err(RequestError::Failed(_)) = &result {
            self.active.take();
        }
        result
    }

    /// Runs `work` to its end, even if the event that started it has ended. Logs its error.
    pub(crate) fn spawn(&self, work: impl Future<Output = Result<()>> + 'static) {
        wait_until(&self.state, Box::pin(work));
    }
}

/// Boxed work, so that the code for its promise is compiled once and not for each future.
type Work<T> = Pin<Box<dyn Future<Output = Result<T>>>>;

fn wait_until(state: &State, work: Work<()>) {
    state.wait_until(async move {
        if let Err(error) = work.await {
            log_error(error);
        }
    });
}

/// Returns the promise of a response.
pub(crate) fn promise_response(work: impl Future<Output = Result<Response>> + 'static) -> Promise {
    response_of(Box::pin(work))
}

fn response_of(work: Work<Response>) -> Promise {
    future_to_promise(async move { Ok(web_sys::Response::from(work.await?).into()) })
}

/// Returns the promise of an event handler without a result.
pub(crate) fn promise(work: impl Future<Output = Result<()>> + 'static) -> Promise {
    promise_of(Box::pin(work))
}

fn promise_of(work: Work<()>) -> Promise {
    future_to_promise(async move {
        work.await?;
        Ok(JsValue::UNDEFINED)
    })
}
