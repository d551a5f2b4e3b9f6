//! A Socket.IO client that encodes and decodes the packets itself (Engine.IO 4,
//! Socket.IO 5). A test can send any packet at any time, and can end the connection
//! between any two packets.
//!
//! [`SocketIo`] is a session over WebSocket. [`Polling`] is a session over HTTP
//! long-polling. A client opens a session first and then connects it to a namespace:
//!
//! ```ignore
//! let mut client = SocketIo::open(&server, "").await;
//! let answer = client.connect("/", json!({ "token": token })).await?;
//! let joined = client.request("joinRoom", json!("lobby")).await?;
//! let message = client.expect("newMessage").await;
//! ```

use crate::contract::{self, Conversation};
use crate::{Answer, Refused, Server, TIMEOUT};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Separates the packets of a long-polling body.
pub const SEPARATOR: char = '\u{1e}';

/// Returns the namespace as it precedes the data of a packet. Empty for `/`.
fn prefix(nsp: &str) -> String {
    match nsp {
        "/" => String::new(),
        nsp => format!("{nsp},"),
    }
}

/// Returns the packet that connects a session to a namespace.
pub fn connect_packet(nsp: &str, auth: &Value) -> String {
    format!("40{}{auth}", prefix(nsp))
}

/// An event that the server sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The namespace.
    pub nsp: String,
    /// The name.
    pub name: String,
    /// The arguments. The last one is the recovery offset, if the server appended
    /// one.
    pub args: Vec<Value>,
}

impl Event {
    /// Returns the argument list of the packet: the name and the arguments.
    fn payload(&self) -> Value {
        let name = Value::from(self.name.as_str());
        std::iter::once(name)
            .chain(self.args.iter().cloned())
            .collect()
    }

    /// Returns the room of a logged event.
    pub fn room(&self) -> Option<&str> {
        self.args.iter().find_map(|arg| arg["roomId"].as_str())
    }
}

/// A Socket.IO packet from the server that is not an event.
#[derive(Clone, Debug, PartialEq)]
enum Packet {
    Connected { nsp: String, data: Value },
    Refused { nsp: String, data: Value },
    Disconnected { nsp: String },
    Ack { nsp: String, id: u32, data: Value },
}

/// A Socket.IO session over WebSocket. It reads only while a test waits for
/// something, and answers pings while it reads. Dropping it ends the TCP
/// connection without a close frame.
#[derive(Debug)]
pub struct SocketIo {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The data of the open packet: `sid`, `pingInterval` and so on. There is no open
    /// packet after an upgrade: [`Polling::upgrade`] sets only `sid`, and
    /// [`SocketIo::upgrade`] sets `null`.
    pub handshake: Value,
    /// The namespace of the last CONNECT: [`SocketIo::emit`] and
    /// [`SocketIo::request`] send to it.
    pub nsp: String,
    /// Every event that arrived, in order.
    pub events: Vec<Event>,
    /// Whether [`SocketIo::find`] has returned the event at this index.
    returned: Vec<bool>,
    /// Packets that arrived and that no method has returned yet.
    waiting: VecDeque<Packet>,
    /// The code of the close frame: 1005 if the frame has no code, 1006 if the
    /// connection ended without a close frame.
    close_code: Option<u16>,
    /// The id of the last command that requested an acknowledgement.
    last_ack: u32,
    /// Checks the traffic of this connection against the AsyncAPI document.
    conversation: Conversation,
}

impl SocketIo {
    /// Opens a session on a new WebSocket. `query` is appended to the URL, for example
    /// `token=…`.
    pub async fn open(server: &Server, query: &str) -> SocketIo {
        SocketIo::try_open(server, query)
            .await
            .unwrap_or_else(|refused| panic!("the session was refused: {refused:?}"))
    }

    /// Opens a session as [`SocketIo::open`] does. Returns [`Refused`] if the server
    /// refuses the upgrade.
    pub async fn try_open(server: &Server, query: &str) -> Result<SocketIo, Refused> {
        SocketIo::try_open_as(server, query, None).await
    }

    /// Opens a session as a page of this origin does, if there is one.
    pub async fn try_open_as(
        server: &Server,
        query: &str,
        origin: Option<&str>,
    ) -> Result<SocketIo, Refused> {
        let mut client = SocketIo::upgrade_as(server, query, origin).await?;
        let opened = client
            .next_frame(Instant::now() + TIMEOUT)
            .await
            .unwrap_or_else(|| panic!("no open packet before {:?}", client.close_code));
        let data = opened.strip_prefix('0');
        client.handshake = data
            .and_then(|data| serde_json::from_str(data).ok())
            .unwrap_or_else(|| panic!("{opened} is not an open packet"));
        Ok(client)
    }

    /// Opens a session, connects it to `/` with a token and waits for the
    /// event `connected`.
    pub async fn join(server: &Server, token: &str) -> SocketIo {
        let mut client = SocketIo::open(server, "").await;
        client
            .connect("/", json!({ "token": token }))
            .await
            .unwrap_or_else(|error| panic!("the CONNECT was refused: {error}"));
        client.expect("connected").await;
        client
    }

    /// Opens a WebSocket without reading an open packet. With `sid=…` in the query, the
    /// WebSocket belongs to an existing session.
    pub async fn upgrade(server: &Server, query: &str) -> Result<SocketIo, Refused> {
        SocketIo::upgrade_as(server, query, None).await
    }

    async fn upgrade_as(
        server: &Server,
        query: &str,
        origin: Option<&str>,
    ) -> Result<SocketIo, Refused> {
        // `recovery=1` requests offsets for every kind of client.
        let path = format!("/socket.io/?EIO=4&transport=websocket&recovery=1&{query}");
        let url = format!("ws://{}{path}", server.address());
        let mut request = url.into_client_request().expect("a URL");
        if let Some(origin) = origin {
            let origin = HeaderValue::from_str(origin).expect("a header's value");
            request.headers_mut().append("origin", origin);
        }
        let opened = timeout(TIMEOUT, tokio_tungstenite::connect_async(request))
            .await
            .expect("the server answers an upgrade");
        let socket = match opened {
            Ok((socket, _)) => socket,
            Err(Error::Http(response)) => {
                let status = response.status().as_u16();
                contract::check_status("GET", &path, status);
                return Err(Refused(status));
            }
            Err(error) => panic!("the upgrade failed: {error}"),
        };
        Ok(SocketIo {
            socket,
            handshake: Value::Null,
            nsp: "/".to_owned(),
            events: Vec::new(),
            returned: Vec::new(),
            waiting: VecDeque::new(),
            close_code: None,
            last_ack: 0,
            conversation: Conversation::socket_io(),
        })
    }

    /// Returns the id of the Engine.IO session, or the empty string.
    pub fn sid(&self) -> &str {
        self.handshake["sid"].as_str().unwrap_or("")
    }

    /// Sends an Engine.IO packet unchanged, for example `40{}`. If the connection
    /// has ended, the next read reports it.
    pub async fn send(&mut self, packet: &str) {
        let _ = self.socket.send(Message::text(packet)).await;
    }

    /// Sends an attachment.
    pub async fn send_binary(&mut self, bytes: Vec<u8>) {
        let _ = self.socket.send(Message::binary(bytes)).await;
    }

    /// Sends CONNECT and does not wait for its answer.
    pub async fn start_connect(&mut self, nsp: &str, auth: Value) {
        self.nsp = nsp.to_owned();
        self.send(&connect_packet(nsp, &auth)).await;
    }

    /// Sends CONNECT and returns its answer: `sid` and `pid`, or the error.
    pub async fn connect(&mut self, nsp: &str, auth: Value) -> Result<Value, Value> {
        self.start_connect(nsp, auth).await;
        self.connect_answer().await
    }

    /// Returns the answer to the last CONNECT.
    pub async fn connect_answer(&mut self) -> Result<Value, Value> {
        let what = format!("the answer to CONNECT {}", self.nsp);
        let answer = self.connect_answer_within(TIMEOUT).await;
        answer.unwrap_or_else(|| self.missing(&what))
    }

    /// Returns the answer to the last CONNECT, or `None` if it does not arrive in time
    /// or the connection ends first.
    pub async fn connect_answer_within(&mut self, wait: Duration) -> Option<Result<Value, Value>> {
        let expected = self.nsp.clone();
        let packet = self.packet(wait, move |packet| match packet {
            Packet::Connected { nsp, .. } | Packet::Refused { nsp, .. } => *nsp == expected,
            _ => false,
        });
        match packet.await? {
            Packet::Connected { data, .. } => Some(Ok(data)),
            Packet::Refused { data, .. } => Some(Err(data)),
            _ => None,
        }
    }

    /// Disconnects from a namespace. The session stays open.
    pub async fn disconnect(&mut self, nsp: &str) {
        self.send(&format!("41{}", prefix(nsp))).await;
    }

    /// Sends a valid command without an acknowledgement.
    pub async fn emit(&mut self, event: &str, data: Value) {
        let args = json!([event, data]);
        self.conversation.sends_valid(event, &args);
        let packet = format!("42{}{args}", prefix(&self.nsp));
        self.send(&packet).await;
    }

    /// Sends a command that requests an acknowledgement. Returns the id of the
    /// acknowledgement, which [`SocketIo::answer`] takes.
    pub async fn start(&mut self, event: &str, data: Value) -> u32 {
        self.last_ack += 1;
        let id = self.last_ack;
        let args = json!([event, data]);
        let packet = format!("42{}{id}{args}", prefix(&self.nsp));
        self.conversation.sends(id, event, args);
        self.send(&packet).await;
        id
    }

    /// Waits for an acknowledgement and returns its data or its `error`.
    pub async fn answer(&mut self, id: u32) -> Result<Value, Value> {
        let answer = self.answer_within(id, TIMEOUT).await;
        answer.unwrap_or_else(|| self.missing(&format!("acknowledgement {id}")))
    }

    /// Waits for an acknowledgement as [`SocketIo::answer`] does. Returns `None` if it
    /// does not arrive in time or the connection ends first.
    pub async fn answer_within(&mut self, id: u32, wait: Duration) -> Option<Result<Value, Value>> {
        let expected = self.nsp.clone();
        let packet = self.packet(wait, move |packet| match packet {
            Packet::Ack { nsp, id: of, .. } => *nsp == expected && *of == id,
            _ => false,
        });
        let Packet::Ack { mut data, .. } = packet.await? else {
            return None;
        };
        Some(match data["error"].is_null() {
            true => Ok(data),
            false => Err(data["error"].take()),
        })
    }

    /// Sends a command and returns the data or the `error` of its acknowledgement.
    pub async fn request(&mut self, event: &str, data: Value) -> Result<Value, Value> {
        let id = self.start(event, data).await;
        self.answer(id).await
    }

    /// Returns the next event with this name. Other events stay for later calls.
    pub async fn expect(&mut self, name: &str) -> Event {
        self.find(name, |event| event.name == name).await
    }

    /// Returns the next event that `matches` accepts. Other events stay for later
    /// calls. `what` names the event in the panic message.
    pub async fn find(&mut self, what: &str, matches: impl Fn(&Event) -> bool) -> Event {
        let found = self.find_within(TIMEOUT, matches).await;
        found.unwrap_or_else(|| self.missing(what))
    }

    /// Waits for an event as [`SocketIo::find`] does. Returns `None` if it does not
    /// arrive in time or the connection ends first.
    pub async fn find_within(
        &mut self,
        wait: Duration,
        matches: impl Fn(&Event) -> bool,
    ) -> Option<Event> {
        let deadline = Instant::now() + wait;
        let mut seen = 0;
        loop {
            for at in seen..self.events.len() {
                if !self.returned[at] && matches(&self.events[at]) {
                    self.returned[at] = true;
                    return Some(self.events[at].clone());
                }
            }
            seen = self.events.len();
            if !self.read(deadline).await {
                return None;
            }
        }
    }

    /// Returns the recovery offset of the last event that has one: a string as the last
    /// argument. A client sends it with its `pid` when it reconnects.
    pub fn offset(&self) -> Option<String> {
        let last = |event: &Event| Some(event.args.last()?.as_str()?.to_owned());
        self.events.iter().rev().find_map(last)
    }

    /// Reads for this long, or until the connection ends.
    pub async fn read_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while self.read(deadline).await {}
    }

    /// Ends the TCP connection without a close frame, as a lost network does.
    pub fn terminate(self) {
        drop(self);
    }

    /// Returns the close code, or `None` if the client has not read a close yet.
    pub fn close_code(&self) -> Option<u16> {
        self.close_code
    }

    /// Returns `true` if the server has disconnected the client from a namespace.
    pub fn is_disconnected(&self, from: &str) -> bool {
        self.waiting
            .iter()
            .any(|packet| matches!(packet, Packet::Disconnected { nsp } if nsp == from))
    }

    /// Waits for the close and returns its code.
    pub async fn closed(&mut self) -> u16 {
        let code = self.closed_within(TIMEOUT).await;
        code.unwrap_or_else(|| self.missing("the close"))
    }

    /// Waits for the close and returns its code, or `None` if the connection is
    /// still open after `wait`.
    pub async fn closed_within(&mut self, wait: Duration) -> Option<u16> {
        self.read_for(wait).await;
        self.close_code
    }

    /// Returns the next packet that `matches` accepts, or `None` if it does not
    /// arrive in time or the connection ends first.
    async fn packet(
        &mut self,
        wait: Duration,
        matches: impl Fn(&Packet) -> bool,
    ) -> Option<Packet> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(at) = self.waiting.iter().position(&matches) {
                return self.waiting.remove(at);
            }
            if !self.read(deadline).await {
                return None;
            }
        }
    }

    /// Reads one frame. Returns `false` at the deadline and once the connection
    /// has ended.
    async fn read(&mut self, deadline: Instant) -> bool {
        let Some(frame) = self.next_frame(deadline).await else {
            return false;
        };
        match frame.as_str() {
            "2" => self.send("3").await,
            "1" | "6" => {}
            frame => match parse(frame) {
                Some(Ok(event)) => {
                    self.conversation
                        .receives_event(Some(&event.name), &event.payload());
                    self.events.push(event);
                    self.returned.push(false);
                }
                Some(Err(packet)) => {
                    if let Packet::Ack { id, data, .. } = &packet {
                        let is_error = data.get("error").is_some();
                        self.conversation
                            .receives_answer(*id, &json!([data]), is_error);
                    }
                    self.waiting.push_back(packet);
                }
                None => panic!("the server sent a packet that the client does not know: {frame}"),
            },
        }
        true
    }

    /// Returns the next text frame, or `None` at the deadline and once the connection
    /// has ended.
    pub async fn next_frame(&mut self, deadline: Instant) -> Option<String> {
        while self.close_code.is_none() {
            match timeout_at(deadline, self.socket.next()).await.ok()? {
                Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                Some(Ok(Message::Close(frame))) => {
                    self.close_code = Some(frame.map_or(1005, |frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => self.close_code = Some(1006),
            }
        }
        None
    }

    /// Panics because `what` did not arrive.
    fn missing(&self, what: &str) -> ! {
        let last = &self.events[self.events.len().saturating_sub(5)..];
        let last: Vec<String> = last
            .iter()
            .map(|event| {
                let args = json!(event.args).to_string();
                let args: String = args.chars().take(200).collect();
                format!("{} {args}", event.name)
            })
            .collect();
        panic!(
            "{what} did not arrive; close code {:?}, other packets {:?}, last events {last:#?}",
            self.close_code, self.waiting
        );
    }
}

/// Parses a Socket.IO packet in an Engine.IO message. Returns `None` for any other
/// text.
fn parse(frame: &str) -> Option<Result<Event, Packet>> {
    let mut rest = frame.strip_prefix('4')?;
    let kind = rest.chars().next()?;
    rest = &rest[1..];
    let nsp = match rest.starts_with('/') {
        true => {
            let (nsp, after) = rest.split_once(',').unwrap_or((rest, ""));
            rest = after;
            nsp.to_owned()
        }
        false => "/".to_owned(),
    };
    let digits = rest.find(|c: char| !c.is_ascii_digit());
    let (id, data) = rest.split_at(digits.unwrap_or(rest.len()));
    let data: Value = match data {
        "" => Value::Null,
        data => serde_json::from_str(data).ok()?,
    };
    Some(match kind {
        '0' => Err(Packet::Connected { nsp, data }),
        '1' => Err(Packet::Disconnected { nsp }),
        '2' => {
            let Value::Array(mut args) = data else {
                return None;
            };
            let name = args.first()?.as_str()?.to_owned();
            args.remove(0);
            Ok(Event { nsp, name, args })
        }
        '3' => Err(Packet::Ack {
            nsp,
            id: id.parse().ok()?,
            data: data.get(0).cloned().unwrap_or(Value::Null),
        }),
        '4' => Err(Packet::Refused { nsp, data }),
        _ => return None,
    })
}

/// An Engine.IO session over HTTP long-polling.
#[derive(Clone, Debug)]
pub struct Polling {
    /// The id of the session.
    pub sid: String,
}

impl Polling {
    /// Opens a session. `query` is appended to the URL, for example `token=…`.
    pub async fn open(server: &Server, query: &str) -> Polling {
        let path = format!("/socket.io/?EIO=4&transport=polling&recovery=1&{query}");
        let answer = server.request("GET", &path, None, None).await;
        let opened = answer.text.strip_prefix('0');
        let handshake: Value = opened
            .and_then(|data| serde_json::from_str(data).ok())
            .unwrap_or_else(|| panic!("{} {}", answer.status, answer.text));
        let sid = handshake["sid"].as_str().expect("a sid").to_owned();
        Polling { sid }
    }

    /// Posts packets, separated by [`SEPARATOR`].
    pub async fn post(&self, server: &Server, body: impl Into<String>) -> Answer {
        let headers = [("content-type", "text/plain;charset=UTF-8")];
        let body = body.into().into_bytes();
        server.call("POST", &self.path(), &headers, body).await
    }

    /// Posts packets on a new TCP connection. Returns the status, or `None` if
    /// the server does not answer in time or ends the connection.
    pub async fn try_post(&self, server: &Server, body: &str, wait: Duration) -> Option<u16> {
        let (path, length) = (self.path(), body.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
             content-type: text/plain;charset=UTF-8\r\ncontent-length: {length}\r\n\r\n",
            server.address()
        );
        let exchange = async {
            let mut stream = TcpStream::connect(server.address()).await.ok()?;
            // A server that refuses the body may stop reading it.
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(body.as_bytes()).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            answer.split(' ').nth(1)?.parse().ok()
        };
        timeout(wait, exchange).await.ok()?
    }

    /// Waits for packets. The body of the returned response contains them.
    pub async fn poll(&self, server: &Server) -> Answer {
        let answer = server.request("GET", &self.path(), None, None).await;
        for packet in answer.text.split(SEPARATOR) {
            if let Some(Ok(event)) = parse(packet) {
                Conversation::socket_io().receives_event(Some(&event.name), &event.payload());
            }
        }
        answer
    }

    /// Sends a poll and aborts it after `wait`. The TCP connection is reset, because workerd
    /// does not notice that a client has only ended its side.
    pub async fn abort_poll(&self, server: &Server, wait: Duration) {
        let (path, address) = (self.path(), server.address());
        let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(head.as_bytes()).await.expect("sent");
        tokio::time::sleep(wait).await;
        stream.set_zero_linger().expect("an open socket");
    }

    /// Connects the session to a namespace and returns the answer: `sid` and
    /// `pid`, or the error.
    pub async fn connect(&self, server: &Server, nsp: &str, auth: Value) -> Result<Value, Value> {
        let posted = self.post(server, connect_packet(nsp, &auth)).await;
        assert_eq!(posted.status, 200, "{}", posted.text);
        loop {
            let polled = self.poll(server).await;
            assert_eq!(polled.status, 200, "{}", polled.text);
            for packet in polled.text.split(SEPARATOR) {
                match parse(packet) {
                    Some(Err(Packet::Connected { data, .. })) => return Ok(data),
                    Some(Err(Packet::Refused { data, .. })) => return Err(data),
                    _ => {}
                }
            }
        }
    }

    /// Upgrades the session to a WebSocket: sends `2probe`, expects `3probe`, sends `5`.
    pub async fn upgrade(&self, server: &Server) -> SocketIo {
        let mut socket = SocketIo::upgrade(server, &format!("sid={}", self.sid))
            .await
            .expect("the server upgrades a polling session");
        socket.handshake = json!({ "sid": self.sid });
        socket.send("2probe").await;
        let answer = socket.next_frame(Instant::now() + TIMEOUT).await;
        assert_eq!(answer.as_deref(), Some("3probe"), "the probe is answered");
        socket.send("5").await;
        socket
    }

    fn path(&self) -> String {
        format!("/socket.io/?EIO=4&transport=polling&sid={}", self.sid)
    }
}
