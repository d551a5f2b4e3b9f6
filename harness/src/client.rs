//! A WebSocket client with the native framing. It keeps every frame. If an expected
//! line does not arrive, the panic message lists the last frames.

use crate::contract::{self, Conversation};
use crate::{Server, TIMEOUT};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// A native socket to a room or to a gateway.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    /// Lines that arrived and that no method has returned yet.
    pending: VecDeque<Value>,
    /// Every frame that arrived, unparsed.
    pub frames: Vec<String>,
    /// The code of the close frame: 1005 if the frame has no code, 1006 if the
    /// connection ended without a close frame.
    closed: Option<u16>,
    next_id: u32,
    /// Bytes read since the last ping that was sent because of [`PING_AFTER`].
    unacked: usize,
    /// Checks the traffic of this connection against the AsyncAPI document.
    conversation: Conversation,
    /// `Sec-WebSocket-Protocol` of the upgrade response.
    pub subprotocol: Option<String>,
    /// The data of `connected`.
    pub connected: Value,
}

/// Number of bytes after which the client pings, as `docs/protocol.md` asks, so that the server
/// knows that it reads.
const PING_AFTER: usize = 512 * 1024;

/// The HTTP status of a refused upgrade. The response body may be missing: use
/// [`Server::request_upgrade`] to read the whole response.
#[derive(Debug)]
pub struct Refused(pub u16);

impl Client {
    /// Joins a room. Panics if the upgrade is refused.
    pub async fn join(server: &Server, room: &str, token: &str) -> Client {
        Client::join_with(server, room, token, "").await
    }

    /// Joins a room with query parameters besides the token, such as `since=3`.
    pub async fn join_with(server: &Server, room: &str, token: &str, query: &str) -> Client {
        let path = format!("/rooms/{room}/ws?token={token}&{query}");
        Client::open(server, &path, &[])
            .await
            .unwrap_or_else(|refused| panic!("{path} was refused: {refused:?}"))
    }

    /// Opens a socket at a path, with headers, and reads `connected`. Returns the
    /// status if the upgrade is refused.
    pub async fn open(
        server: &Server,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Client, Refused> {
        let (socket, response) = upgrade(server, path, headers).await?;
        let mut client = Client {
            socket,
            pending: VecDeque::new(),
            frames: Vec::new(),
            closed: None,
            next_id: 0,
            unacked: 0,
            conversation: Conversation::native(path),
            subprotocol: response
                .headers()
                .get("sec-websocket-protocol")
                .and_then(|value| Some(value.to_str().ok()?.to_owned())),
            connected: Value::Null,
        };
        client.connected = client.next().await["data"].take();
        assert!(
            client.frames[0].starts_with(r#"{"data":{"connectionId""#)
                || client.frames[0].contains(r#""event":"connected""#),
            "the first line must be `connected`: {}",
            client.frames[0]
        );
        Ok(client)
    }

    /// Opens a socket at a path, with headers, that the server accepts and closes without another
    /// frame. Returns the code and the reason of the close frame.
    pub async fn refused(server: &Server, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let socket = upgrade(server, path, headers).await;
        let (mut socket, _) = socket.unwrap_or_else(|refused| panic!("{path}: {refused:?}"));
        let frame = timeout(TIMEOUT, socket.next()).await;
        match frame.expect("a frame within the timeout") {
            Some(Ok(Message::Close(Some(frame)))) => (frame.code.into(), frame.reason.to_string()),
            other => panic!("not a close frame: {other:?}"),
        }
    }

    /// Sends a valid command without an id. Use [`Client::send_text`] for others.
    pub async fn send(&mut self, event: &str, data: Value) {
        let line = json!({ "event": event, "data": data });
        self.conversation.sends_valid(event, &line);
        self.send_text(&line.to_string()).await;
    }

    /// Sends a command with an id and returns the `data` or the `error` of its answer.
    pub async fn request(&mut self, event: &str, data: Value) -> Result<Value, Value> {
        let id = self.start(event, data).await;
        self.answer(id).await
    }

    /// Sends a command with an id and returns the id, which [`Client::answer`] takes.
    pub async fn start(&mut self, event: &str, data: Value) -> u32 {
        self.next_id += 1;
        let id = self.next_id;
        self.send_text(&json!({ "event": event, "data": data, "id": id }).to_string())
            .await;
        id
    }

    /// Waits for the answer to a command and returns its `data` or its `error`.
    pub async fn answer(&mut self, id: u32) -> Result<Value, Value> {
        let mut answer = self
            .find(&format!("the answer to {id}"), |line| line["ack"] == id)
            .await;
        if answer["error"].is_null() {
            Ok(answer["data"].take())
        } else {
            Err(answer["error"].take())
        }
    }

    /// Sends `sendMessage` and returns its answer. Panics if it is refused.
    pub async fn send_message(&mut self, content: &str) -> Value {
        self.request("sendMessage", json!({ "content": content }))
            .await
            .expect("the message is accepted")
    }

    /// Sends a text frame.
    pub async fn send_text(&mut self, text: &str) {
        self.conversation.sends_frame(text);
        // A closed connection is noticed when the client reads.
        let _ = self.socket.send(Message::text(text)).await;
    }

    /// Sends a binary frame.
    pub async fn send_binary(&mut self, bytes: &[u8]) {
        let _ = self.socket.send(Message::binary(bytes.to_vec())).await;
    }

    /// Sends bytes as a text frame. They need not be valid UTF-8.
    pub async fn send_as_text(&mut self, bytes: &[u8]) {
        let text = OpCode::Data(Data::Text);
        let frame = Frame::message(bytes.to_vec(), text, true);
        let _ = self.socket.send(Message::Frame(frame)).await;
    }

    /// Returns the next line. A line that is not JSON, such as `pong`, is returned
    /// as a string.
    pub async fn next(&mut self) -> Value {
        self.find("a line", |_| true).await
    }

    /// Returns the next event with this name, with its envelope. Other lines stay
    /// for later calls.
    pub async fn expect(&mut self, event: &str) -> Value {
        self.find(event, |line| line["event"] == event).await
    }

    /// Returns the next line that `matches` accepts. Other lines stay for later
    /// calls. `what` names the line in the panic message.
    pub async fn find(&mut self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.pending.iter().position(&matches) {
            return self.pending.remove(at).expect("just found");
        }
        loop {
            let known = self.pending.len();
            assert!(
                self.read().await,
                "{what} did not arrive; close code {:?}, last frames {:?}",
                self.closed,
                self.tail()
            );
            let found = (known..self.pending.len()).find(|at| matches(&self.pending[*at]));
            if let Some(at) = found {
                return self.pending.remove(at).expect("just found");
            }
        }
    }

    /// Returns the next `n` logged events in the order of their arrival.
    pub async fn logged(&mut self, n: usize) -> Vec<Value> {
        let mut events = Vec::with_capacity(n);
        while events.len() < n {
            events.push(
                self.find(
                    &format!("logged event {} of {n}", events.len() + 1),
                    |line| seq(line).is_some(),
                )
                .await,
            );
        }
        events
    }

    /// Returns every line that no method has returned yet. Sends a `sync` first, so
    /// that the result contains all lines that the server sent before its answer.
    pub async fn drain(&mut self) -> Vec<Value> {
        let _ = self
            .request("sync", json!({ "after": 0, "limit": 1 }))
            .await;
        self.pending.drain(..).collect()
    }

    /// Waits for the close and returns its code.
    pub async fn closed(&mut self) -> u16 {
        while self.closed.is_none() {
            self.read().await;
        }
        self.closed.expect("just set")
    }

    /// Sends a close frame and waits for the end of the connection.
    pub async fn close(mut self) {
        let _ = self.socket.close(None).await;
        while self.closed.is_none() {
            self.read().await;
        }
    }

    /// Reads one frame. Returns `false` once the connection is closed.
    async fn read(&mut self) -> bool {
        if self.closed.is_some() {
            return false;
        }
        let Ok(message) = timeout(TIMEOUT, self.socket.next()).await else {
            panic!("no frame within the timeout; last frames {:?}", self.tail());
        };
        match message {
            Some(Ok(Message::Text(text))) => {
                for line in text.split('\n') {
                    let value: Option<Value> = serde_json::from_str(line).ok();
                    self.conversation.receives_line(line, value.as_ref());
                    self.pending
                        .push_back(value.unwrap_or_else(|| Value::from(line)));
                }
                self.unacked += text.len();
                self.frames.push(text.to_string());
                if self.unacked >= PING_AFTER {
                    self.unacked = 0;
                    self.send_text("ping").await;
                }
            }
            Some(Ok(Message::Close(frame))) => {
                self.closed = Some(frame.map_or(1005, |frame| frame.code.into()));
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.closed = Some(1006),
        }
        self.closed.is_none()
    }

    /// Returns the last 20 frames.
    fn tail(&self) -> &[String] {
        &self.frames[self.frames.len().saturating_sub(20)..]
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Requests an upgrade. Returns the status if it is refused.
async fn upgrade(
    server: &Server,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<(Socket, Response), Refused> {
    let url = format!("ws://{}{path}", server.address());
    let mut request = url.into_client_request().expect("a URL");
    for (name, value) in headers {
        request.headers_mut().append(
            HeaderName::from_bytes(name.as_bytes()).expect("a header"),
            HeaderValue::from_str(value).expect("a header's value"),
        );
    }
    let opened = timeout(TIMEOUT, tokio_tungstenite::connect_async(request))
        .await
        .expect("the server answers an upgrade");
    match opened {
        Ok(opened) => Ok(opened),
        Err(Error::Http(response)) => {
            let status = response.status().as_u16();
            contract::check_status("GET", path, status);
            Err(Refused(status))
        }
        Err(error) => panic!("the upgrade failed: {error}"),
    }
}

/// Returns the `seq` of a logged event, or `None` for any other line.
fn seq(line: &Value) -> Option<u64> {
    line["event"].as_str()?;
    let stamp = match line["meta"].is_object() {
        true => &line["meta"],
        false if line["event"] == "newMessage" => &line["data"],
        false => return None,
    };
    stamp["seq"].as_u64()
}

impl Client {
    /// Returns the `seq` of a logged event. Panics for any other line.
    pub fn seq(line: &Value) -> u64 {
        seq(line).unwrap_or_else(|| panic!("{line} is not a logged event"))
    }
}

impl Client {
    /// Returns the next logged event, or `None` once the connection has ended.
    pub async fn try_logged(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.pending.iter().position(|line| seq(line).is_some()) {
                return self.pending.remove(at);
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// Reads the next logged event. Returns `false` if none arrives within `wait`.
    ///
    /// # Errors
    ///
    /// Returns a description if the `seq` of the event is not `expected`, or if the connection
    /// ends.
    pub async fn expect_seq(&mut self, expected: u64, wait: Duration) -> Result<bool, String> {
        match timeout(wait, self.try_logged()).await {
            Ok(Some(event)) => match Client::seq(&event) {
                seq if seq == expected => Ok(true),
                seq => Err(format!("event {seq} arrived instead of {expected}")),
            },
            Ok(None) => {
                let code = self.closed().await;
                Err(format!("close {code} before event {expected}"))
            }
            Err(_) => Ok(false),
        }
    }

    /// Discards the lines that no method has returned yet. Returns the highest `seq`
    /// among them, or 0 if there is no logged event.
    pub fn drain_logged(&mut self) -> u64 {
        self.pending
            .drain(..)
            .filter_map(|line| seq(&line))
            .max()
            .unwrap_or(0)
    }
}
