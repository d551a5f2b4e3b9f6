//! The gateway: connections that can be in many rooms.
//!
//! A connection is a native WebSocket (`/ws`) or a namespace of a Socket.IO session
//! (`/socket.io/`). The gateway joins and leaves rooms for its connections, forwards
//! their commands to the rooms and sends them the events of the rooms. A room sends its
//! deliveries to gateways ([`roomcast_proto::link`]).
//!
//! The crate does no I/O and reads no clock. A host owns the sockets, the storage, the
//! timers and the requests to other objects. It passes input with the current time and
//! carries out the [`Output`]s that come back.
//!
//! # Layers
//!
//! | layer | module | responsible for |
//! | --- | --- | --- |
//! | Engine.IO | `engine` | sockets; sessions on a WebSocket or on long-polling; upgrade, heartbeat, slow consumers, rate limit of new connections |
//! | Socket.IO | `socketio` | namespaces, CONNECT, events, acknowledgements, attachments |
//! | clients | `chat` | one client per native socket or namespace: commands, subscriptions to rooms, deliveries, connection state recovery |
//!
//! Each layer depends only on the layers above it in this table. [`EngineServer`] queues
//! events, which [`SocketIoServer`] takes. [`SocketIoServer`] queues
//! [`ConnectionEvent`]s for the application. [`Gateway`] passes these to the chat; the
//! conformance build passes them to an echo, so that the public test suites can check
//! the two lower layers.
//!
//! Where to find it:
//!
//! - A CONNECT times out in `socketio::session` (`is_overdue`).
//! - The `exp` of a token is enforced in `chat::timers` (`check_client`).
//! - The id of an acknowledgement is passed on with the event
//!   ([`ConnectionEvent::Event`]); the room answers the command with this id, and
//!   [`SocketIoServer::acknowledge`] sends the answer.
//!
//! Further modules: [`handshake`] parses requests to `/socket.io/`; `translate`
//! converts lines of rooms to Socket.IO events; `dialect` has the vocabularies of
//! namespaces; `recovery_offset` encodes
//! the offsets of connection state recovery; [`config`] has the settings.
//!
//! # Order of calls
//!
//! For each event of the runtime:
//!
//! 1. [`EngineServer::set_now`] with the current time, before any other call.
//! 2. One input:
//!    - a new connection: [`EngineServer::admit`], then
//!      [`EngineServer::open_native`], [`EngineServer::open_socket`] or
//!      [`EngineServer::open_polling`]. An upgrade of an existing session is not
//!      admitted again.
//!    - a frame, or the end of a socket: [`SocketIoServer::frame`],
//!      [`EngineServer::closed`].
//!    - a polling request: [`EngineServer::poll`], [`EngineServer::cancelled`];
//!      [`EngineServer::begin_post`] before its body is read, and
//!      [`SocketIoServer::post`] with the body.
//!    - a delivery of a room: [`Gateway::handle_push`].
//!    - revoked tokens: [`Gateway::close_revoked`].
//!    - an event for all connections: [`Gateway::broadcast`].
//!    - a timer or an alarm: [`Gateway::alarm_fired`] for an alarm, then
//!      [`Gateway::advance`].
//! 3. [`Gateway::settle`], which passes the queued events to the application and returns
//!    the outputs. Carry them out in order and call [`Gateway::settle`] again until it
//!    returns none.
//! 4. [`Gateway::timer_at`] and [`Gateway::alarm_at`], and set the timer or the alarm. A
//!    host that cannot hibernate sets a timer for [`Gateway::deadline`].
//!
//! After hibernation or a panic: create the [`EngineServer`] with the same name, call
//! [`EngineServer::set_now`], call [`Gateway::restore_socket`] for each socket
//! that is still open, then [`Gateway::restore`] once, then continue with step 3.
//!
//! # Outputs
//!
//! | output | the host |
//! | --- | --- |
//! | [`Output::Send`], [`Output::Broadcast`] | sends the frame to each socket, then calls [`EngineServer::sent`]. If that returns `true`, calls [`EngineServer::check_slow`]. If sending fails, drops the socket and calls [`EngineServer::closed`] with 1006 |
//! | [`Output::Close`] | closes the socket and drops its key; does not call [`EngineServer::closed`] for it |
//! | [`Output::Attach`] | attaches the record to the socket, for [`Gateway::restore_socket`] |
//! | [`Output::Answer`] | answers the polling request that waits |
//! | [`Output::Forward`] | repeats: waits for turns of the event loop while [`Gateway::awaits_turn`], calls [`Gateway::take_commands`], sends the commands to the room, calls [`Gateway::forward_failed`] if that fails; until [`Gateway::take_commands`] returns `None` |
//! | [`Output::Save`], [`Output::Forget`] | stores or deletes the record of a client. Keeps records that are marked `gone` for [`RECOVERY_WINDOW`] |
//! | [`Output::TrackPosition`] | keeps the position in memory that survives a panic of the instance |
//! | [`Output::StorePosition`] | stores or deletes the position |
//! | [`Output::Clean`] | deletes records of clients that can no longer resume, then calls [`Gateway::cleaned`] |
//! | [`Output::Find`] | calls [`Gateway::evict`] at the gateway that has the record, takes the record out of its storage, then calls [`Gateway::found`] here |
//! | [`Output::Authenticate`] | verifies the credentials, immediately or later, then calls [`Gateway::authenticated`] |
//! | [`Output::Log`] | writes the log record |
//!
//! An output that fails is logged, and the following ones are carried out.

mod answer;
mod chat;
pub mod config;
mod connect_info;
mod dialect;
#[cfg(feature = "conformance")]
mod echo;
mod engine;
mod frame;
mod gateway;
pub mod handshake;
mod host;
mod ids;
mod output;
mod recovery_offset;
mod recovery_support;
mod saved_client;
mod socketio;
mod translate;
mod unsupported;

pub use answer::Answer;
pub use chat::{MAX_CLEANED, RECOVERY_WINDOW};
pub use connect_info::{ConnectInfo, Protocol};
pub use dialect::Dialect;
pub use engine::{EngineServer, Polled, PostBody, PostLimits, UNAUTHENTICATED_BYTES};
pub use frame::Frame;
pub use gateway::Gateway;
pub use host::{IsRevoked, LastSeen, Stored};
pub use ids::{ClientId, PollId, SessionId, SocketId};
pub use output::{AuthRequest, Authentication, Credentials, Output, PositionKey};
pub use recovery_support::{OpenRequest, Recovery};
pub use saved_client::{MOVED_LIFETIME, SavedClient};
pub use socketio::{Attachments, ConnectionEvent, DisconnectCause, Receiver, SocketIoServer};
pub use unsupported::{engineio3_packets, engineio3_payload};
