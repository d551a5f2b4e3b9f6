//! Reserved names of events.

/// The event of a chat message. Clients send it with the command `sendMessage`,
/// services publish it by this name.
pub const NEW_MESSAGE: &str = "newMessage";

/// Names of the protocol's commands and events. Custom events may not use them.
const PROTOCOL_NAMES: [&str; 20] = [
    "joinRoom",
    "leaveRoom",
    "sendMessage",
    "emit",
    "messageDelivered",
    "messageRead",
    "typingIndicator",
    "setPresence",
    "sync",
    "members",
    "refreshToken",
    "connected",
    NEW_MESSAGE,
    "userTyping",
    "presenceUpdate",
    "userJoined",
    "userLeft",
    "roomClosed",
    "gap",
    "error",
];

/// Names that Socket.IO reserves (socket.io, `RESERVED_EVENTS`). A client cannot tell
/// such an event from one that its own library emits.
const SOCKET_IO_NAMES: [&str; 6] = [
    "connect",
    "connect_error",
    "disconnect",
    "disconnecting",
    "newListener",
    "removeListener",
];

/// All reserved names.
#[cfg(feature = "schema")]
pub(crate) const RESERVED: [&[&str]; 2] = [&PROTOCOL_NAMES, &SOCKET_IO_NAMES];

/// Returns `true` if custom events may not have this name, because the protocol or
/// Socket.IO uses it.
pub fn is_reserved(event: &str) -> bool {
    PROTOCOL_NAMES.contains(&event) || is_socket_io_reserved(event)
}

/// Returns `true` if Socket.IO reserves the name for its own events.
pub fn is_socket_io_reserved(event: &str) -> bool {
    SOCKET_IO_NAMES.contains(&event)
}
