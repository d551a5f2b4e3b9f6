//! The room: a log; everything else is a cursor into it or a rumour about it.
//!
//! A state machine without I/O. It is told what happened and when, and answers
//! with [`Output`]s for the shell to carry out: store this, send that. Its whole
//! state is rebuilt from what was stored ([`Snapshot`]) and from what its
//! sockets carry ([`Attachment`]), so hibernation, a crash and a new deploy are
//! the same to it.
//!
//! What it does is in `connections` (coming, going, membership), [`link`] (the
//! same for sockets at gateways), `commands` (what connections ask for),
//! [`service`] (what services ask for) and `advance` (what time does); what it is
//! made of in the other modules.

mod advance;
pub mod catch_up;
mod commands;
mod connections;
pub mod dedupe;
pub mod limits;
pub mod link;
pub mod links;
pub mod log;
pub mod member;
pub mod output;
pub mod presence;
pub mod service;
pub mod tick;

pub use commands::Frame;
pub use connections::Limits;
pub use member::Member;
pub use output::{CallId, Change, ConnId, Custom, Delivery, Output};

use crate::auth::{Rights, TokenId};
use crate::config::{Config, RoomConfig};
use crate::fault::{Fault, Result};
use crate::name::UserId;
use crate::time::Millis;
use crate::wire::command::{Position, Status};
use catch_up::CatchUp;
use dedupe::Dedupe;
use limits::{Allowance, Doors, Floods, Reader};
use log::Bounds;
use member::Cursor;
use presence::Roster;
use serde::{Deserialize, Serialize};
use slotmap::SlotMap;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use tick::{Except, Gets, Tick};

/// What lives in storage, as read when the object wakes.
#[derive(Default)]
pub struct Snapshot {
    pub epoch: String,
    pub bounds: Bounds,
    pub members: Vec<(String, Member)>,
    /// Cursors that moved since the members were written.
    pub journal: Vec<String>,
    /// Where there is a log.
    pub recent: Option<Recent>,
}

/// Reads the rows stored since a time: their first event and their body. Asked
/// once, by the first send that has an id of its own: a room that wakes for
/// anything else need not read ten minutes of log. Fails when storage does.
pub type Recent = Box<dyn Fn(Millis) -> std::result::Result<Vec<(u64, String)>, ()>>;

/// What lives with a socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    pub id: String,
    pub user: String,
    pub rights: Rights,
    pub expires: Millis,
    pub status: Status,
    pub joined: bool,
    /// The connection has been given every event after this one.
    pub from: u64,
    /// Its socket is at a gateway, not the room's own.
    #[serde(default)]
    pub remote: bool,
    #[serde(default)]
    pub token: TokenId,
}

/// Somebody at the door, already authenticated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub connection_id: String,
    pub user: String,
    pub rights: Rights,
    pub expires: Millis,
    /// Where it comes from, for the limit per address.
    #[serde(default)]
    pub address: Option<String>,
    #[serde(default)]
    pub position: Position,
    #[serde(default)]
    pub status: Status,
    #[serde(default)]
    pub token: TokenId,
}

/// One socket.
#[derive(Debug)]
struct Conn {
    id: String,
    user: UserId,
    rights: Rights,
    expires: Millis,
    status: Status,
    /// Gets what the room sends. Ends with membership.
    joined: bool,
    /// The first tick whose delivery it gets; what was before comes by replay.
    live_from: u64,
    from: u64,
    /// Its socket is at a gateway: it is in the room only while it is joined.
    remote: bool,
    /// At a gateway: how far it has been given the log in portions, while it is
    /// behind. `None`: it is live.
    catch_up: Option<CatchUp>,
    /// By what its token is known when that is revoked.
    token: TokenId,
    allowance: Allowance,
    reader: Reader,
}

impl Conn {
    fn new(attachment: Attachment, config: &RoomConfig, now: Millis) -> Self {
        Conn {
            id: attachment.id,
            user: attachment.user.into(),
            rights: attachment.rights,
            expires: attachment.expires,
            status: attachment.status,
            joined: attachment.joined,
            live_from: 0,
            from: attachment.from,
            remote: attachment.remote,
            catch_up: None,
            token: attachment.token,
            allowance: Allowance::full(config, now),
            reader: Reader::new(now),
        }
    }

    fn require(&self, right: Rights) -> Result<()> {
        if !self.joined {
            return Err(Fault::not_joined());
        }
        if !self.rights.has(right) {
            return Err(Fault::forbidden("the token does not allow this here"));
        }
        Ok(())
    }
}

pub struct Room {
    name: String,
    config: Rc<Config>,
    epoch: String,
    bounds: Bounds,
    members: HashMap<UserId, Member>,
    conns: SlotMap<ConnId, Conn>,
    roster: Roster,
    dedupe: Dedupe,
    /// What `dedupe` has yet to take in.
    recent: Option<Recent>,
    tick: Tick,
    /// Ticks that were delivered since the room woke.
    ticks: u64,
    /// Lines about users, waiting for [`RUMOUR_DELAY`].
    rumours: Vec<(Except, String)>,
    /// When, and when at the latest.
    rumours_due: Option<(Millis, Millis)>,
    /// Members whose cursors moved, waiting for [`CURSOR_DELAY`]: whether the
    /// others are to be told of `(delivered, read)`.
    cursors: HashMap<UserId, (bool, bool)>,
    cursors_due: Option<Millis>,
    /// Answers that wait for the cursors: id and data.
    cursor_answers: Vec<(ConnId, u32, String)>,
    /// Rows in the journal, and whose cursors they hold.
    journal: usize,
    journalled: HashSet<UserId>,
    /// Events that were not stored, since the room woke.
    ephemerals: u64,
    /// Connects per address.
    doors: Doors,
    floods: Floods,
    /// No token expires before this.
    expiry: Option<Millis>,
    /// When to look for sockets that are gone without a close.
    ghost_check: Option<Millis>,
    /// Connections at gateways whose membership ended: gone with the tick.
    parting: Vec<ConnId>,
}

impl Room {
    pub fn new(name: String, config: Rc<Config>, snapshot: Snapshot) -> Self {
        let mut members: HashMap<UserId, Member> = snapshot
            .members
            .into_iter()
            .map(|(user, member)| (user.into(), member))
            .collect();
        let mut journalled = HashSet::new();
        for entry in &snapshot.journal {
            // Written by this very code; what cannot be read is from a version
            // to come, and cursors that stay behind only repeat events.
            let cursors: Vec<Cursor> = serde_json::from_str(entry).unwrap_or_default();
            for cursor in &cursors {
                if let Some((user, member)) = members.get_key_value(cursor.0.as_str()) {
                    let (user, mut member) = (user.clone(), member.clone());
                    member.recall(cursor);
                    members.insert(user.clone(), member);
                    journalled.insert(user);
                }
            }
        }
        Room {
            name,
            epoch: snapshot.epoch,
            bounds: snapshot.bounds,
            members,
            conns: SlotMap::with_key(),
            roster: Roster::default(),
            dedupe: Dedupe::default(),
            recent: snapshot.recent,
            tick: Tick::default(),
            ticks: 0,
            rumours: Vec::new(),
            rumours_due: None,
            cursors: HashMap::new(),
            cursors_due: None,
            cursor_answers: Vec::new(),
            journal: snapshot.journal.len(),
            journalled,
            ephemerals: 0,
            doors: Doors::default(),
            floods: Floods::none(&config.room, 0),
            config,
            expiry: None,
            ghost_check: None,
            parting: Vec::new(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Events up to this one are past retention.
    pub fn floor(&self) -> u64 {
        self.bounds.floor(&self.config.room)
    }

    pub fn attachment(&self, conn: ConnId) -> Option<Attachment> {
        self.conn(conn).map(|conn| Attachment {
            id: conn.id.clone(),
            user: conn.user.to_string(),
            rights: conn.rights,
            expires: conn.expires,
            status: conn.status,
            joined: conn.joined,
            from: conn.from,
            remote: conn.remote,
            token: conn.token.clone(),
        })
    }

    pub fn is_joined(&self, conn: ConnId) -> bool {
        self.conn(conn).is_some_and(|conn| conn.joined)
    }

    /// Whether a connection gets what a tick delivers to everybody.
    pub fn receives(&self, conn: ConnId, tick: u64) -> bool {
        self.gets(conn, tick) == Gets::All
    }

    fn gets(&self, conn: ConnId, tick: u64) -> Gets {
        let conn = self
            .conn(conn)
            .filter(|conn| conn.joined && conn.live_from <= tick && conn.rights.has(Rights::READ));
        match conn {
            None => Gets::Nothing,
            Some(conn) if conn.catch_up.is_some() => Gets::Ephemeral,
            Some(_) => Gets::All,
        }
    }

    /// How many things wait for the end of the tick.
    pub fn waiting(&self) -> usize {
        self.tick.waiting()
    }

    /// Whether the tick should end without waiting for more.
    pub fn is_full(&self) -> bool {
        self.tick.is_full()
    }

    /// When [`Room::advance`] is to be called next: soon, so by a timer.
    pub fn timer(&self) -> Option<Millis> {
        [
            self.rumours_due.map(|(due, _)| due),
            self.cursors_due,
            self.roster.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// When [`Room::alarm`] is to be called next: later, so by an alarm that
    /// lets the object sleep.
    pub fn alarm_at(&self) -> Option<Millis> {
        [
            self.expiry,
            self.ghost_check,
            self.bounds.ages_at(&self.config.room),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn conn(&self, conn: ConnId) -> Option<&Conn> {
        self.conns.get(conn)
    }

    fn conn_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(conn)
    }
}
