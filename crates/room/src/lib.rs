//! The room: an append-only log, its members and its connections.
//!
//! Cursors are positions in the log: delivery, read receipts, the offline queue, resuming
//! and history all read the log after an event. Presence and typing are ephemeral: they are
//! kept in memory and never stored.
//!
//! The crate does no I/O and reads no clock. A host owns the sockets, the storage, the
//! timers and the requests to gateways. It passes input with the current time and carries
//! out the [`Output`]s that come back. The whole state of a room is restored from storage
//! ([`Snapshot`]) and from the records of its sockets ([`Attachment`]). It therefore needs
//! no separate handling of hibernation, crashes and deploys.
//!
//! # Parts
//!
//! [`Room`] connects the parts of the state and executes the inputs. Each part has its own
//! module, which does not depend on the room.
//!
//! | part | state |
//! | --- | --- |
//! | `event_log` | epoch and bounds of the log, recent sends (`dedupe`) |
//! | `members` | members, moved cursors, journal, acknowledgements that wait |
//! | `connections` | connections and how each of them catches up ([`catch_up`]) |
//! | `presence` | status and typing of users (`roster`), queued ephemeral events, version of the announced presence (`presence_log`) |
//! | `batch` | everything that was accepted since the last flush |
//! | `gateway_links` | subscriptions of gateways, and the items that wait for each gateway (`outbox`) |
//! | `admission` | limits of new connections and of reads over HTTP, bans |
//! | `timers` | deadlines, short and long |
//!
//! Further modules: [`batcher`] decides when a batch ends; [`log`] has the rows and bounds
//! of the log; [`history`] builds pages of the log; [`service`] has the requests of
//! services; [`config`] has the settings.
//!
//! # Order of calls
//!
//! For each event of the runtime:
//!
//! 1. [`Room::retention_cutoff`] and [`Room::byte_cutoff`] before a connection, a request or an
//!    alarm, and [`Room::byte_cutoff`] after a batch was stored. If one of them returns a value:
//!    look up the row and call [`Room::expire_log`].
//! 2. One input:
//!    - a new connection: [`Room::admit`], then [`Room::connect`].
//!    - a frame, or the end of a socket: [`Room::receive`], [`Room::disconnect`].
//!    - a request over HTTP: [`Room::serve`]. If a user reads: [`Room::admit_reader`] before it,
//!      [`Room::reader_answered`] after it.
//!    - a request of a gateway: [`Room::accepts_request`], then [`Room::gateway_command`] for
//!      each of its commands.
//!    - revoked tokens: [`Room::close_revoked`].
//!    - the timer: [`Room::check_stalled`], then [`Room::flush`]. The alarm: [`Room::handle_alarm`].
//! 3. For each output, in order: [`Room::route`], then carry out the output that it returns.
//! 4. [`batcher::Batcher::input`] with [`Room::load`]. Call [`Room::flush`] when it returns
//!    `true`. While [`Room::portions_waiting`] is not 0, call [`Room::next_replay`] in each turn
//!    of the event loop, after the end of the batch.
//! 5. [`Room::start_deliveries`]. For each gateway that it returns, send deliveries until
//!    there are no more:
//!    1. [`Room::next_read`]. While it returns a part of the log: read it, call
//!       [`Room::log_read`]. No other input may come in between.
//!    2. [`Room::take_delivery`]. Stop if it returns `None`.
//!    3. Wait until the changes are durable, then send the delivery to the gateway.
//!    4. [`Room::delivery_acknowledged`] with its answer, or [`Room::delivery_failed`],
//!       which returns the next step. With [`Retry::Later`] the host stops.
//! 6. [`Room::timer_at`] and [`Room::alarm_at`], and set a timer and an alarm for them. If the
//!    room has storage, also an alarm for [`Room::release_at`], in which [`Room::release`] is
//!    called.
//!
//! After hibernation: create the room with [`Room::new`], call [`Room::restore_connection`]
//! for each open socket and [`Room::restore_subscriber`] for each stored record. After a
//! failure of storage, also call [`Room::take_outboxes`] on the old room, and
//! [`Room::set_outboxes`] directly after [`Room::new`]. Call [`Room::recover`] if the memory
//! of the last sent event survived.
//!
//! # Outputs
//!
//! | output | the host |
//! | --- | --- |
//! | [`Output::Store`] | stores the change before it carries out the next output. If that fails: passes the remaining outputs and the requested pages to [`Room::fail`], carries out the outputs that it returns, answers `internal` to the waiting calls, and creates the room again from storage |
//! | [`Output::Send`] | sends the frame, then calls [`Room::sent`]. If that returns `true`, calls [`Room::check_slow`]. If sending fails, drops the socket and calls [`Room::disconnect`] with 1006 |
//! | [`Output::Deliver`] | sends each custom frame, and the shared frame to all other connections for which [`Room::receives`] returns `true` |
//! | [`Output::Page`] | reads the page, sends it as the answer, and calls [`Room::page_sent`] |
//! | [`Output::Attach`] | attaches [`Room::attachment`] to the socket |
//! | [`Output::Close`] | closes the socket and drops its key; does not call [`Room::disconnect`] for it |
//! | [`Output::Reply`] | answers the call |
//! | [`Output::Authenticate`] | verifies the token, immediately or later, then calls [`Room::authenticated`] |
//! | [`Output::Log`] | writes the log record |
//! | [`Output::Subscribed`], [`Output::CatchUp`], [`Output::Unsubscribed`] | does nothing, because [`Room::route`] queues them |

mod admission;
mod attachment;
mod batch;
pub mod batcher;
pub mod catch_up;
pub mod config;
mod connection;
mod connections;
mod dedupe;
mod delivery;
mod departed;
mod ephemeral;
mod event_log;
mod frame;
mod gateway_links;
pub mod history;
mod ids;
pub mod log;
mod member;
mod member_list;
mod members;
mod message_ids;
mod outbox;
mod output;
mod output_limit;
mod presence;
mod presence_link;
mod presence_log;
mod replacements;
mod room;
mod roster;
mod seq_range;
pub mod service;
mod snapshot;
mod subscriber;
mod timers;
mod user_order;

pub use attachment::Attachment;
pub use dedupe::{KeptSends, Secret};
pub use delivery::{CustomFrame, Delivery};
pub use frame::Frame;
pub use ids::{CallId, ConnId};
pub use member::Member;
pub use outbox::{NextDelivery, Outboxes, RESTART_DELAY, Retry};
pub use output::{Change, Output};
pub use room::Room;
pub use roomcast_proto::link::ConnectRequest;
pub use seq_range::SeqRange;
pub use snapshot::{ReadFailed, ReadProfiles, ReadRecent, ReadRows, Snapshot};
pub use subscriber::StoredSubscriber;
