//! The headers of requests between the Worker and its Durable Objects. The Worker creates a
//! new request for each object, so a client cannot set these headers. The names of the
//! headers do not change, because during a deploy the Worker and an object may run different
//! versions.

/// The name of the room that the request is for, by `room_header::encode`.
pub(crate) const ROOM: &str = "x-roomcast-room";

/// The user who reads over HTTP, percent-encoded. Not set for services, whose reads are not
/// limited.
pub(crate) const READER: &str = "x-roomcast-reader";

/// The request of a connection to join a room ([`roomcast_room::ConnectRequest`]), as JSON.
pub(crate) const CONNECT: &str = "x-roomcast-hello";

/// A request between a room and a gateway ([`roomcast_proto::link`]).
pub(crate) const LINK: &str = "x-roomcast-link";

/// The name of the gateway that the request is for.
pub(crate) const GATEWAY: &str = "x-roomcast-gateway";

/// The request of a client ([`ClientRequest`](super::rpc::gateways::ClientRequest)), as JSON.
pub(crate) const GATEWAY_CONNECT: &str = "x-roomcast-door";

/// The request of a gateway for the record of a client
/// ([`FindRequest`](super::rpc::gateways::FindRequest)).
pub(crate) const FIND: &str = "x-roomcast-find";

/// An event for all connections of the object, as a line of the native framing.
pub(crate) const BROADCAST: &str = "x-roomcast-broadcast";

/// A notice of new revocations ([`roomcast_auth::revocation::RevocationDelta`]).
pub(crate) const REVOKED: &str = "x-roomcast-revoked";
