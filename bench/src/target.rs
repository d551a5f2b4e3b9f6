//! A started server of one implementation, on fresh storage.

use crate::dialect::Dialect;
use crate::machine;
use crate::node::Node;
use roomcast_harness::{Server, Token, Worker};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// The implementations that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// bench/peers/bare: the baseline.
    Bare,
    /// The baseline without storage: the limit of the runtime.
    Unstored,
    /// bench/peers/partyserver: the same with the library PartyServer.
    PartyServer,
    /// bench/peers/nest: the kind of backend that roomcast replaces.
    Original,
    /// roomcast with sockets in the object of the room.
    Roomcast,
    /// roomcast with sockets at gateways.
    Gateway,
    /// roomcast with Socket.IO at gateways.
    GatewaySocketIo,
}

impl Peer {
    /// The name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Bare => "bare object",
            Peer::Unstored => "bare object, nothing stored",
            Peer::PartyServer => "PartyServer",
            Peer::Original => "NestJS, Socket.IO, Redis, Bull",
            Peer::Roomcast => "roomcast",
            Peer::Gateway => "roomcast, gateway",
            Peer::GatewaySocketIo => "roomcast, gateway, Socket.IO",
        }
    }

    /// The short name, used in the titles of ratio columns.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Peer::Bare => "bare",
            Peer::Unstored => "unstored",
            Peer::PartyServer => "PartyServer",
            Peer::Original => "NestJS",
            Peer::Roomcast => "room",
            Peer::Gateway | Peer::GatewaySocketIo => "gateway",
        }
    }

    /// The protocol of its clients.
    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Peer::Bare | Peer::Unstored | Peer::PartyServer | Peer::Roomcast => Dialect::Room,
            Peer::Gateway => Dialect::Gateway,
            Peer::GatewaySocketIo | Peer::Original => Dialect::SocketIo,
        }
    }

    /// Starts a server. `build` is the folder of a roomcast build to use instead of
    /// build/release.
    fn start(self, build: Option<&Path>, vars: &[(&str, &str)]) -> Running {
        let worker = |file: &Path| Worker::new(&[file], &[("ROOMS", "Room")]);
        let selected = match (self, build) {
            (Peer::Original, _) => return Running::Node(Node::start()),
            (Peer::Bare | Peer::Unstored, _) => worker(&peers().join("bare/worker.js")),
            (Peer::PartyServer, _) => worker(party_server()),
            (_, None) => Worker::roomcast(),
            (_, Some(dir)) => Worker::in_folder(dir),
        };
        let mut vars = vars.to_vec();
        if self == Peer::Unstored {
            vars.push(("STORE", "nothing"));
        }
        Running::Workerd(Server::start_worker(&selected, &vars))
    }

    /// Returns `true` if it stores rows that can be counted.
    pub(crate) fn has_rows(self) -> bool {
        self != Peer::Original
    }

    /// Returns `true` for roomcast.
    pub(crate) fn is_roomcast(self) -> bool {
        matches!(self, Peer::Roomcast | Peer::Gateway | Peer::GatewaySocketIo)
    }

    /// Returns the reason if it cannot be measured on this machine.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let lacks_redis = self == Peer::Original && !Node::has_redis();
        lacks_redis.then_some("redis-server is not installed")
    }
}

fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// Bundles the PartyServer Worker once per run. Returns the path of the bundle.
fn party_server() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/partyserver.js");
        let built = Command::new(peers().join("partyserver/build"))
            .arg(&out)
            .status()
            .expect("bench/peers/partyserver/build runs");
        assert!(built.success(), "bench/peers/partyserver/build failed");
        out
    })
}

/// Lifetime of tokens in seconds. A replay at real speed can take days.
const TOKEN_TTL: i64 = 30 * 86_400;

/// The address of a server, and its credentials.
pub(crate) struct Endpoint {
    pub address: SocketAddr,
    /// The value of the `Host` header.
    pub host: String,
    secret: String,
    /// A service token for every room.
    pub service: String,
    http: reqwest::Client,
}

impl Endpoint {
    fn new(address: SocketAddr, host: String, secret: String) -> Self {
        let service = Token::service("bench").claim("rooms", vec!["*"]);
        Endpoint {
            address,
            host,
            service: service.ttl(TOKEN_TTL).sign(&secret),
            secret,
            http: reqwest::Client::new(),
        }
    }

    /// Returns the endpoint of a running server at `http://host:port`.
    pub(crate) async fn running(url: &str, secret: &str) -> Result<Self, String> {
        let host = url
            .strip_prefix("http://")
            .ok_or("--url must begin with http:// (TLS is not supported)")?
            .trim_end_matches('/');
        let with_port = if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let mut addresses = tokio::net::lookup_host(&with_port)
            .await
            .map_err(|error| format!("{url}: {error}"))?;
        let address = addresses
            .next()
            .ok_or_else(|| format!("{url}: no address"))?;
        Ok(Endpoint::new(address, host.to_owned(), secret.to_owned()))
    }

    /// Returns a user token for every room.
    pub(crate) fn token(&self, user: &str) -> String {
        let token = Token::user(user).claim("rooms", vec!["*"]);
        token.ttl(TOKEN_TTL).sign(&self.secret)
    }

    /// Sends a GET request as a service and returns the JSON body. Fails on an error
    /// status.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, String> {
        let request = self.http.get(format!("http://{}{path}", self.host));
        self.send(path, request).await
    }

    /// Returns the last event of a room.
    pub(crate) async fn head(&self, room: &str) -> Result<u64, String> {
        let page = self.get(&format!("/rooms/{room}/messages?limit=1")).await?;
        let head = page["head"].as_u64();
        head.ok_or_else(|| format!("no head: {page}"))
    }

    /// [`Endpoint::get`] without parsing.
    pub(crate) async fn get_text(&self, path: &str) -> Result<String, String> {
        let request = self.http.get(format!("http://{}{path}", self.host));
        self.send_text(path, request).await
    }

    /// Sends a POST request with a JSON body as a service and returns the JSON body. Fails
    /// on an error status.
    pub(crate) async fn post(&self, path: &str, body: &str) -> Result<Value, String> {
        let request = self.http.post(format!("http://{}{path}", self.host));
        let request = request.header("content-type", "application/json");
        self.send(path, request.body(body.to_owned())).await
    }

    async fn send(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Value, String> {
        let body = self.send_text(path, request).await?;
        serde_json::from_str(&body).map_err(|error| format!("{path}: {error}"))
    }

    async fn send_text(
        &self,
        path: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<String, String> {
        let request = request.bearer_auth(&self.service);
        let answer = request.send().await.map_err(|e| e.to_string())?;
        let status = answer.status();
        let body = answer.text().await.map_err(|e| e.to_string())?;
        if !status.is_success() {
            return Err(format!("{path}: {status} {body}"));
        }
        Ok(body)
    }
}

/// The processes of a started server.
enum Running {
    Workerd(Server),
    Node(Node),
}

/// A started server.
pub(crate) struct Target {
    pub peer: Peer,
    pub endpoint: Arc<Endpoint>,
    /// The endpoints of further processes.
    others: Vec<Endpoint>,
    connects: AtomicUsize,
    pids: Vec<u32>,
    running: Running,
}

/// Options for starting a server.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// `LOG_LEVEL`.
    pub log_level: String,
    /// A build of roomcast other than build/release.
    pub build: Option<PathBuf>,
    /// Settings as names and values.
    pub settings: Vec<(String, String)>,
}

/// Rows written for messages.
pub(crate) struct Rows {
    pub rows: u64,
    /// The number of messages.
    pub messages: u64,
}

impl Target {
    /// Starts a server on fresh storage with rate limits that no load reaches: all load
    /// comes from one address and few senders.
    pub(crate) fn start(peer: Peer, start: &Start) -> Self {
        let mut vars = vec![
            ("LOG_LEVEL", start.log_level.as_str()),
            ("CONNECTS_PER_MINUTE", "1000000"),
            ("MAX_CONNECTIONS_PER_USER", "32768"),
            ("MESSAGES_PER_SECOND", "1000000"),
            ("MESSAGES_BURST", "1000000"),
            ("COMMANDS_PER_SECOND", "1000000"),
            ("COMMANDS_BURST", "1000000"),
        ];
        let settings = start.settings.iter();
        vars.extend(settings.map(|(name, value)| (name.as_str(), value.as_str())));
        let running = peer.start(start.build.as_deref(), &vars);
        let (addresses, secret, pids) = match &running {
            Running::Workerd(server) => (
                vec![server.address()],
                server.secret().to_owned(),
                vec![server.pid()],
            ),
            Running::Node(node) => (
                node.addresses.clone(),
                roomcast_harness::SECRET.to_owned(),
                node.pids.clone(),
            ),
        };
        let mut endpoints = addresses
            .into_iter()
            .map(|address| Endpoint::new(address, address.to_string(), secret.clone()));
        Target {
            peer,
            endpoint: Arc::new(endpoints.next().expect("a server has an address")),
            others: endpoints.collect(),
            connects: AtomicUsize::new(0),
            pids,
            running,
        }
    }

    /// Returns the endpoint for the next connection, all processes in turn.
    pub(crate) fn next_endpoint(&self) -> &Endpoint {
        let turn = self.connects.fetch_add(1, Relaxed) % (1 + self.others.len());
        match turn {
            0 => &self.endpoint,
            other => &self.others[other - 1],
        }
    }

    /// Returns the processor time of the server in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.pids.iter().copied().map(machine::cpu_seconds).sum()
    }

    /// Returns the resident memory of the server in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.pids.iter().copied().map(machine::memory).sum()
    }

    /// Returns how often objects have started or woken. roomcast must run with
    /// LOG_LEVEL=info.
    pub(crate) fn wakes(&self) -> usize {
        match &self.running {
            Running::Node(_) => 0,
            Running::Workerd(server) => {
                let log = server.log();
                log.iter().filter(|line| line["event"] == "wake").count()
            }
        }
    }

    /// Returns the rows written for messages of `room` since the start. roomcast must run
    /// with LOG_LEVEL=info.
    pub(crate) async fn rows_written(&self, room: &str) -> Result<Rows, String> {
        match &self.running {
            Running::Node(_) => Err("Redis has no rows".to_owned()),
            Running::Workerd(_) if !self.peer.is_roomcast() => {
                let stats = self.endpoint.get(&format!("/rooms/{room}/stats")).await?;
                let number = |key: &str| stats[key].as_u64().ok_or(format!("stats: {stats}"));
                Ok(Rows {
                    rows: number("rowsWritten")?,
                    messages: number("messages")?,
                })
            }
            Running::Workerd(server) => {
                let mut rows = Rows {
                    rows: 0,
                    messages: 0,
                };
                for line in server.log() {
                    if line["event"] == "publish" && line["roomId"] == room {
                        let number = |key: &str| line[key].as_u64().ok_or(format!("log: {line}"));
                        rows.rows += number("rowsWritten")?;
                        rows.messages += number("count")?;
                    }
                }
                Ok(rows)
            }
        }
    }
}
