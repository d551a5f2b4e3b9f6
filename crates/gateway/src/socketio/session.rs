//! The Socket.IO state of a session, and its deadlines: for the first namespace after a
//! session was opened, and for the attachments of a packet.

use crate::config::GatewayConfig;
use crate::connect_info::ConnectInfo;
use crate::engine::{Authentication, TIMEOUT_EXTENSION};
use bytes::Bytes;
use roomcast_proto::access::Identity;
use roomcast_proto::time::{Millis, SECOND};
use socketioxide_core::packet::Packet;
use std::rc::Rc;

/// Time within which the attachments of a packet must arrive. Limits the time for which
/// a slow client holds memory.
const ATTACHMENT_TIMEOUT: Millis = 10 * SECOND;

/// Time within which a client must send a valid token (CONTRACT, Authentication).
const UNAUTHENTICATED_TIMEOUT: Millis = 10 * SECOND;

/// The Socket.IO state of a session.
#[derive(Debug)]
pub(super) struct SocketIoSession {
    pub(super) namespaces: Vec<Namespace>,
    /// The CONNECTs that were not answered yet, in the order of their arrival.
    pub(super) connecting: Vec<PendingConnect>,
    /// Number of CONNECTs without a valid token.
    pub(super) connects: u32,
    /// The time by which the client must connect to a namespace. `None` after it has
    /// connected to one; see [`SocketIoSession::is_overdue`].
    pub(super) connect_by: Option<Millis>,
    /// The deadline was extended; see [`SocketIoSession::is_overdue`].
    pub(super) extended: bool,
    /// A packet whose attachments have not all arrived.
    pub(super) partial: Option<PartialPacket>,
}

/// A namespace that the client is connected to.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) name: String,
    /// The newest valid token of the client in the namespace. See
    /// [`super::SocketIoServer::opens`].
    pub(super) identity: Option<Rc<Identity>>,
}

/// A CONNECT that was not answered yet.
#[derive(Debug)]
pub(super) struct PendingConnect {
    pub(super) nsp: String,
    /// A unique number, because a client may cancel a CONNECT and send another one for
    /// the same namespace.
    pub(super) number: u64,
    /// `None` after the application has received the CONNECT.
    pub(super) auth: Option<String>,
    /// Size of the CONNECT.
    pub(super) bytes: usize,
}

/// A packet whose attachments have not all arrived.
#[derive(Debug)]
pub(super) struct PartialPacket {
    pub(super) packet: Packet,
    /// Number of attachments that have not arrived.
    pub(super) missing: usize,
    /// The contents are empty if the application does not read them.
    pub(super) attachments: Vec<Bytes>,
    /// Size of the attachments so far.
    pub(super) bytes: usize,
    deadline: Millis,
}

impl PartialPacket {
    /// Returns a packet with `missing` attachments that have not arrived.
    pub(super) fn new(packet: Packet, missing: usize, now: Millis) -> Self {
        PartialPacket {
            packet,
            missing,
            attachments: Vec::new(),
            bytes: 0,
            deadline: now + ATTACHMENT_TIMEOUT,
        }
    }
}

impl SocketIoSession {
    pub(super) fn new(info: &ConnectInfo, config: &GatewayConfig, now: Millis) -> Self {
        let timeout = match info.identity {
            Some(_) => config.connect_timeout,
            None => config.connect_timeout.min(UNAUTHENTICATED_TIMEOUT),
        };
        SocketIoSession {
            namespaces: Vec::new(),
            connecting: Vec::new(),
            connects: 0,
            connect_by: Some(now + timeout),
            extended: false,
            partial: None,
        }
    }

    /// Returns the state after hibernation. The identities of the namespaces are set
    /// later, by [`super::SocketIoServer::set_identity`].
    pub(super) fn restore(
        namespaces: Vec<String>,
        connect_by: Option<Millis>,
        info: &ConnectInfo,
        config: &GatewayConfig,
        now: Millis,
    ) -> Self {
        let namespaces = namespaces.into_iter().map(|name| Namespace {
            name,
            identity: None,
        });
        let namespaces: Vec<Namespace> = namespaces.collect();
        SocketIoSession {
            connect_by: connect_by.filter(|_| namespaces.is_empty()),
            namespaces,
            ..SocketIoSession::new(info, config, now)
        }
    }

    pub(super) fn deadline(&self) -> Option<Millis> {
        let partial = self.partial.as_ref().map(|partial| partial.deadline);
        [self.connect_by, partial].into_iter().flatten().min()
    }

    /// Returns `true` if the client has missed a deadline. A deadline that passes is
    /// extended once, by [`TIMEOUT_EXTENSION`].
    pub(super) fn is_overdue(&mut self, now: Millis) -> bool {
        if self.deadline().is_none_or(|at| at > now) {
            return false;
        }
        if self.extended {
            return true;
        }
        self.extended = true;
        let partial = self.partial.as_mut().map(|partial| &mut partial.deadline);
        for at in [self.connect_by.as_mut(), partial].into_iter().flatten() {
            *at = (*at).max(now + TIMEOUT_EXTENSION);
        }
        false
    }

    /// Returns the state of the authentication. The client needs a valid token for a
    /// namespace.
    pub(super) fn authentication(&self) -> Authentication {
        // The CONNECTs that wait until the one before them is verified.
        let waiting = self.connecting.iter().skip(1);
        match self.namespaces.is_empty() {
            true => Authentication::Pending {
                held_bytes: waiting.map(|connect| connect.bytes).sum(),
            },
            false => Authentication::Done,
        }
    }

    /// Returns the names of the namespaces that the client is connected to.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces
            .iter()
            .map(|namespace| namespace.name.as_str())
    }

    /// Returns `true` if the client is connected to the namespace.
    pub(super) fn is_connected(&self, nsp: &str) -> bool {
        self.namespaces().any(|name| name == nsp)
    }

    /// Returns the newest valid token of a namespace. Returns `None` if the client is
    /// not connected to the namespace.
    pub(super) fn identity(&self, nsp: &str) -> Option<Option<&Identity>> {
        let mut namespaces = self.namespaces.iter();
        let namespace = namespaces.find(|namespace| namespace.name == nsp)?;
        Some(namespace.identity.as_deref())
    }

    pub(super) fn set_identity(&mut self, nsp: &str, identity: Rc<Identity>) {
        let mut namespaces = self.namespaces.iter_mut();
        if let Some(namespace) = namespaces.find(|namespace| namespace.name == nsp) {
            namespace.identity = Some(identity);
        }
    }

    /// Returns all namespaces for which the application may have a client: the
    /// connected ones, and those with a CONNECT that it has received.
    pub(super) fn into_namespaces(self) -> Vec<String> {
        let connected = self.namespaces.into_iter().map(|namespace| namespace.name);
        let connecting = self.connecting.into_iter();
        let given = connecting.filter(|connect| connect.auth.is_none());
        connected.chain(given.map(|connect| connect.nsp)).collect()
    }
}
