//! Socket.IO 5 (<https://socket.io/docs/v4/socket-io-protocol/>): namespaces, events
//! and acknowledgements on the sessions of Engine.IO.
//!
//! [`SocketIoServer`] takes the events of the Engine.IO layer and queues
//! [`ConnectionEvent`]s for the application. Native sockets pass through it.
//!
//! - A message of a session is decoded to a packet. An event or acknowledgement with
//!   attachments is complete when all its attachments have arrived.
//! - A CONNECT becomes a [`ConnectionEvent::Connect`]. The application answers with
//!   [`SocketIoServer::accept`] or [`SocketIoServer::refuse`].
//! - An event becomes a [`ConnectionEvent::Event`] with the id of the acknowledgement
//!   that the client has requested. The application answers with
//!   [`SocketIoServer::acknowledge`] and the same id. The gateway itself never requests
//!   acknowledgements from clients.
//!
//! | module | contents |
//! | --- | --- |
//! | `server` | the state; input of clients; the deadlines |
//! | `session` | the state of one session; when a CONNECT or an attachment times out |
//! | `packet` | parses and writes packets |
//! | `receive`, `send` | packets, in and out |
//! | `connect` | CONNECT: limits, accept, refuse; disconnect by the server |
//! | `identity` | the tokens of receivers, and their check before an event is sent |
//! | `hibernation` | the records of sockets that survive hibernation |

mod connect;
mod event;
mod hibernation;
mod identity;
mod packet;
mod receive;
mod send;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub use event::{ConnectionEvent, DisconnectCause};
pub use identity::Receiver;
pub(crate) use packet::event_message;
pub use server::{Attachments, SocketIoServer};
