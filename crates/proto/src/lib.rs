//! The protocol of roomcast: the types that clients, rooms, gateways and services
//! exchange, and the rules that all of them share.
//!
//! This crate does no I/O, reads no environment variables and does not depend on a
//! runtime. `roomcast-auth`, `roomcast-room` and `roomcast-gateway` depend on this
//! crate alone; the Worker depends on all four.
//!
//! | modules | contents |
//! | --- | --- |
//! | [`id`] | names and ids as types |
//! | [`name`], [`alias`], [`time`], [`status`], [`position`] | names, aliases of rooms, times, presence status, stream positions |
//! | [`error`], [`disconnect`] | errors and their codes, reasons for closing a socket |
//! | [`access`] | rights, room patterns, identities |
//! | [`user_info`] | profiles of users |
//! | [`command`], [`framing`] | the commands of clients, and the native framing |
//! | [`event`], [`event_name`], [`envelope`], [`answer`] | the events and answers of the server |
//! | [`http`] | requests and responses of the HTTP API |
//! | [`raw_object`], [`reader`], [`json`] | reading and writing JSON |
//! | [`limits`] | rate limits, flood protection, slow consumers |
//! | [`link`] | messages between rooms and gateways |
//! | [`retry`] | failures of requests between objects, and their retries |
//! | [`log_text`] | the stored text of logged events |
//! | [`log_record`] | records of the operator's log |
//! | [`settings`](mod@settings) | settings as tables |
//! | `schema` | JSON Schemas of all of these; only with the feature `schema` |

#![forbid(unsafe_code)]

pub mod access;
pub mod alias;
pub mod answer;
pub mod command;
pub mod disconnect;
pub mod envelope;
pub mod error;
pub mod event;
pub mod event_name;
pub mod framing;
pub mod gateway_kind;
pub mod http;
pub mod id;
pub mod json;
pub mod limits;
pub mod link;
pub mod log_record;
pub mod log_text;
pub mod name;
pub mod position;
pub mod raw_object;
pub mod reader;
pub mod retry;
#[cfg(feature = "schema")]
pub mod schema;
pub mod settings;
pub mod status;
pub mod time;
pub mod user_info;
