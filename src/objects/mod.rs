//! The Durable Objects. Each one translates events of the runtime into inputs of a core
//! ([`roomcast_room`], [`roomcast_gateway`], [`roomcast_auth`]) and carries out the outputs.
//!
//! | folder or file | object |
//! | --- | --- |
//! | [`room`] | a room: its sockets, its log, deliveries to gateways |
//! | [`gateway`] | a gateway: sockets and sessions that can be in many rooms |
//! | [`revocations`] | the revocation registry |
//! | [`tickets`] | a shard of the tickets |
//!
//! The objects do not import each other. They share [`runtime`](crate::runtime):
//! [`Host`](crate::runtime::host::Host) has the life cycle of an object, and
//! [`rpc`](crate::runtime::rpc) the requests between objects.

pub mod gateway;
pub mod revocations;
pub mod room;
pub mod tickets;
