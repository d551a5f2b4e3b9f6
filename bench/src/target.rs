//! What is measured: one started server of one kind, on fresh storage.

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
pub enum Peer {
    /// bench/peers/bare: what everything is compared with.
    Bare,
    /// The same, but it stores nothing: what the runtime can do at all.
    Unstored,
    /// bench/peers/partyserver: the same job with a library for it.
    PartyServer,
    /// bench/peers/nest: the kind of backend that roomcast replaces.
    Original,
    /// This project, the socket in the room's own object.
    Roomcast,
    /// This project, the socket at a gateway.
    Gateway,
    /// The same, with Socket.IO.
    GatewaySocketIo,
}

impl Peer {
    pub fn name(self) -> &'static str {
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

    /// What it is called where others are compared with it.
    pub fn short(self) -> &'static str {
        match self {
            Peer::Bare => "bare",
            Peer::Unstored => "unstored",
            Peer::PartyServer => "PartyServer",
            Peer::Original => "NestJS",
            Peer::Roomcast => "room",
            Peer::Gateway | Peer::GatewaySocketIo => "gateway",
        }
    }

    pub fn dialect(self) -> Dialect {
        match self {
            Peer::Bare | Peer::Unstored | Peer::PartyServer | Peer::Roomcast => Dialect::Room,
            Peer::Gateway => Dialect::Gateway,
            Peer::GatewaySocketIo | Peer::Original => Dialect::SocketIo,
        }
    }

    /// Starts it. `build`: a folder with a build of roomcast instead of
    /// build/release, to measure an older one.
    fn start(self, build: Option<&Path>, vars: &[(&str, &str)]) -> Running {
        let by_hand = |file: &Path| Worker::new(&[file], &[("ROOMS", "Room")]);
        let worker = match (self, build) {
            (Peer::Original, _) => return Running::Node(Node::start()),
            (Peer::Bare | Peer::Unstored, _) => by_hand(&peers().join("bare/worker.js")),
            (Peer::PartyServer, _) => by_hand(party_server()),
            (_, None) => Worker::roomcast(),
            (_, Some(dir)) => Worker::in_folder(dir),
        };
        let mut vars = vars.to_vec();
        if self == Peer::Unstored {
            vars.push(("STORE", "nothing"));
        }
        Running::Workerd(Server::start_worker(&worker, &vars))
    }

    /// Whether it stores in rows, which can be counted.
    pub fn has_rows(self) -> bool {
        self != Peer::Original
    }

    pub fn is_roomcast(self) -> bool {
        matches!(self, Peer::Roomcast | Peer::Gateway | Peer::GatewaySocketIo)
    }

    /// Why it cannot be measured on this machine, if it cannot.
    pub fn missing(self) -> Option<&'static str> {
        let lacks_redis = self == Peer::Original && !Node::has_redis();
        lacks_redis.then_some("there is no redis-server on this machine")
    }
}

fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// PartyServer and what uses it as one file, made once a run.
fn party_server() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/partyserver.js");
        let built = Command::new(peers().join("partyserver/build"))
            .arg(&out)
            .status()
            .expect("bench/peers/partyserver/build runs");
        assert!(built.success(), "it said why not");
        out
    })
}

/// How long the tokens of users and services are good, in seconds: a replay at
/// real speed can take days.
const TOKEN_TTL: i64 = 30 * 86_400;

/// Where a server is and how to be let in.
pub struct Site {
    pub address: SocketAddr,
    /// `host:port`, as it goes into the header.
    pub host: String,
    secret: String,
    /// A token of a service for every room.
    service: String,
    http: reqwest::Client,
}

impl Site {
    fn new(address: SocketAddr, host: String, secret: String) -> Self {
        let service = Token::service("bench").claim("rooms", vec!["*"]);
        Site {
            address,
            host,
            service: service.ttl(TOKEN_TTL).sign(&secret),
            secret,
            http: reqwest::Client::new(),
        }
    }

    /// A server that runs already, at `http://host:port`.
    pub async fn running(url: &str, secret: &str) -> Result<Self, String> {
        let host = url
            .strip_prefix("http://")
            .ok_or("--url must begin with http:// (there is no TLS here)")?
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
        Ok(Site::new(address, host.to_owned(), secret.to_owned()))
    }

    /// A token of a user for every room.
    pub fn token(&self, user: &str) -> String {
        let token = Token::user(user).claim("rooms", vec!["*"]);
        token.ttl(TOKEN_TTL).sign(&self.secret)
    }

    /// `GET`, as a service; fails on anything but a 200 with JSON.
    pub async fn get(&self, path: &str) -> Result<Value, String> {
        let request = self.http.get(format!("http://{}{path}", self.host));
        self.ask(path, request).await
    }

    /// The same, as it is written.
    pub async fn get_text(&self, path: &str) -> Result<String, String> {
        let request = self.http.get(format!("http://{}{path}", self.host));
        self.ask_text(path, request).await
    }

    /// `POST` of JSON, as a service; the same.
    pub async fn post(&self, path: &str, body: &str) -> Result<Value, String> {
        let request = self.http.post(format!("http://{}{path}", self.host));
        let request = request.header("content-type", "application/json");
        self.ask(path, request.body(body.to_owned())).await
    }

    async fn ask(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Value, String> {
        let body = self.ask_text(path, request).await?;
        serde_json::from_str(&body).map_err(|error| format!("{path}: {error}"))
    }

    async fn ask_text(
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

/// The processes of a started server; they end with it.
enum Running {
    Workerd(Server),
    Node(Node),
}

/// A started server.
pub struct Target {
    pub peer: Peer,
    pub site: Arc<Site>,
    /// Of a service of several processes, where the others are.
    others: Vec<Site>,
    connects: AtomicUsize,
    pids: Vec<u32>,
    running: Running,
}

/// How to start it.
#[derive(Clone, Debug)]
pub struct Start {
    /// `LOG_LEVEL`.
    pub log_level: String,
    /// A build of roomcast other than build/release.
    pub build: Option<PathBuf>,
    /// Names and values.
    pub settings: Vec<(String, String)>,
}

/// What storage was asked to do.
pub struct Rows {
    pub rows: u64,
    /// For so many messages.
    pub messages: u64,
}

impl Target {
    /// Starts a peer on fresh storage, with limits out of the way: the load
    /// comes from one address, and one sender is as fast as it can.
    pub fn start(peer: Peer, start: &Start) -> Self {
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
        let mut sites = addresses
            .into_iter()
            .map(|address| Site::new(address, address.to_string(), secret.clone()));
        Target {
            peer,
            site: Arc::new(sites.next().expect("a server listens somewhere")),
            others: sites.collect(),
            connects: AtomicUsize::new(0),
            pids,
            running,
        }
    }

    /// Where the next socket is to go: to all processes in turns.
    pub fn door(&self) -> &Site {
        let turn = self.connects.fetch_add(1, Relaxed) % (1 + self.others.len());
        match turn {
            0 => &self.site,
            other => &self.others[other - 1],
        }
    }

    /// Seconds of processor time that the server has used so far.
    pub fn cpu_seconds(&self) -> f64 {
        self.pids.iter().copied().map(machine::cpu_seconds).sum()
    }

    /// Bytes of memory that it has at the moment.
    pub fn memory(&self) -> u64 {
        self.pids.iter().copied().map(machine::memory).sum()
    }

    /// How often objects have woken. roomcast must run with LOG_LEVEL=info.
    pub fn wakes(&self) -> usize {
        match &self.running {
            Running::Node(_) => 0,
            Running::Workerd(server) => {
                let log = server.log();
                log.iter().filter(|line| line["event"] == "wake").count()
            }
        }
    }

    /// The rows written for messages of `room` since the start. roomcast must
    /// run with LOG_LEVEL=info.
    pub async fn rows_written(&self, room: &str) -> Result<Rows, String> {
        match &self.running {
            Running::Node(_) => Err("Redis has no rows".to_owned()),
            Running::Workerd(_) if !self.peer.is_roomcast() => {
                let stats = self.site.get(&format!("/rooms/{room}/stats")).await?;
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
