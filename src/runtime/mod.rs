//! Access to the Workers runtime. It contains no logic of rooms or gateways, and does not
//! import `objects` or `http`.
//!
//! | file | contents |
//! | --- | --- |
//! | [`host`] | the memory of a Durable Object, work after an event |
//! | [`object_state`] | the state of an object (`ctx`): times of pings, progress that survives panics |
//! | [`alarm_clock`] | timers and the alarm of an object |
//! | [`socket`] | WebSockets, and the map of the sockets of an object |
//! | [`sql`] | SQLite of an object |
//! | [`rpc`], [`headers`] | requests between the Worker and its objects |
//! | [`abort`] | requests that their client aborts |
//! | [`body`] | bodies of requests |
//! | [`deadline`] | deadlines of requests to objects and of other fetches |
//! | [`keys`] | the preparation of a token check: keys, signatures, revocations |
//! | [`settings`] | the variables of the Worker |
//! | [`time`], [`ids`], [`log`] | the current time, random ids, log records of failures |
//! | [`memory`] | the allocated memory, and its budget |
//! | [`failpoint`] | failures that tests request |

pub(crate) mod abort;
pub(crate) mod alarm_clock;
pub(crate) mod body;
pub(crate) mod deadline;
pub(crate) mod failpoint;
pub(crate) mod headers;
pub(crate) mod host;
pub(crate) mod ids;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod object_state;
pub(crate) mod room_header;
pub(crate) mod rpc;
pub(crate) mod settings;
pub(crate) mod socket;
pub(crate) mod sql;
pub(crate) mod time;

/// A result. Its error is an error of the runtime unless `E` is given.
pub(crate) type Result<T, E = worker::Error> = std::result::Result<T, E>;
