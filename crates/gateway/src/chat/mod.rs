//! The clients of a gateway, native and Socket.IO, and their rooms.
//!
//! The gateway decides which rooms a client may join, and keeps the positions up to which
//! it has delivered events. Everything else belongs to the rooms: commands are forwarded
//! to them as they are, and their deliveries are sent to the clients.
//!
//! | module | contents |
//! | --- | --- |
//! | `client`, `clients` | a client and its subscriptions; the table of clients |
//! | `state` | the state of the chat |
//! | `events`, `timers` | events of connections; deadlines |
//! | `lifecycle` | connect, accept, disconnect |
//! | `commands`, `tokens` | commands of clients; verified tokens and the rights that they grant |
//! | `subscriptions`, `delivery` | changes of subscriptions; deliveries of rooms |
//! | `delivery_acks` | acknowledgement of delivery by the server |
//! | `memory` | the memory that clients hold |
//! | `pauses` | clients that do not read |
//! | `presence` | clients that may lack changes of the presence |
//! | `recovery` | Socket.IO's connection state recovery |
//! | `record`, `restore` | the stored records of clients, and hibernation |
//! | `room_link`, `departures`, `retries`, `positions` | state of rooms, disconnected clients, failed requests, delivered events |
//! | `position_reports` | reports of positions to the host |

mod activity;
mod cleaning;
mod client;
mod clients;
mod commands;
mod delivery;
mod delivery_acks;
mod departures;
mod events;
mod lifecycle;
mod memory;
mod pauses;
mod position_reports;
mod positions;
mod presence;
mod record;
mod recovery;
mod restore;
mod retries;
mod room_link;
mod state;
mod subscriptions;
mod timers;
mod tokens;

pub use cleaning::MAX_CLEANED;
pub use recovery::RECOVERY_WINDOW;
pub(crate) use state::Chat;
