//! A WebSocket client as a test wants it: it keeps what it saw, and says so
//! when something does not come.

use crate::{PATIENCE, Server};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::VecDeque;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// A socket to a room.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Lines that came and were not asked for yet.
    waiting: VecDeque<Value>,
    /// Every frame that came, as it came.
    pub frames: Vec<String>,
    /// The code of the close frame, once it came; 1006 without one.
    closed: Option<u16>,
    next_id: u32,
    /// The answer's `Sec-WebSocket-Protocol`.
    pub subprotocol: Option<String>,
    /// The data of `connected`.
    pub connected: Value,
}

/// An upgrade that was refused, with this status. The body may not have come
/// with it: [`Server::knock`] has all of the answer.
#[derive(Debug)]
pub struct Refused(pub u16);

impl Client {
    /// Joins a room, which must succeed.
    pub async fn join(server: &Server, room: &str, token: &str) -> Client {
        Client::join_with(server, room, token, "").await
    }

    /// Joins with a query besides the token: `since=3`.
    pub async fn join_with(server: &Server, room: &str, token: &str, query: &str) -> Client {
        let path = format!("/rooms/{room}/ws?token={token}&{query}");
        Client::open(server, &path, &[])
            .await
            .unwrap_or_else(|refused| panic!("{path} was refused: {refused:?}"))
    }

    /// Opens a socket at any path with any headers.
    pub async fn open(
        server: &Server,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Client, Refused> {
        let url = format!("ws://{}{path}", server.address());
        let mut request = url.into_client_request().expect("a URL");
        for (name, value) in headers {
            request.headers_mut().append(
                HeaderName::from_bytes(name.as_bytes()).expect("a header"),
                HeaderValue::from_str(value).expect("a header's value"),
            );
        }
        let opened = timeout(PATIENCE, tokio_tungstenite::connect_async(request))
            .await
            .expect("the server answers an upgrade");
        let (socket, response) = match opened {
            Ok(opened) => opened,
            Err(Error::Http(response)) => return Err(Refused(response.status().as_u16())),
            Err(error) => panic!("the upgrade failed: {error}"),
        };
        let mut client = Client {
            socket,
            waiting: VecDeque::new(),
            frames: Vec::new(),
            closed: None,
            next_id: 0,
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
            "`connected` comes first: {}",
            client.frames[0]
        );
        Ok(client)
    }

    /// Sends an event that wants no answer.
    pub async fn send(&mut self, event: &str, data: Value) {
        self.send_text(&json!({ "event": event, "data": data }).to_string())
            .await;
    }

    /// Sends an event and waits for its answer: `data`, or `error`.
    pub async fn request(&mut self, event: &str, data: Value) -> Result<Value, Value> {
        let id = self.start(event, data).await;
        self.answer(id).await
    }

    /// Sends an event that wants an answer, for [`Client::answer`].
    pub async fn start(&mut self, event: &str, data: Value) -> u32 {
        self.next_id += 1;
        let id = self.next_id;
        self.send_text(&json!({ "event": event, "data": data, "id": id }).to_string())
            .await;
        id
    }

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

    /// `sendMessage`, which must succeed: its answer.
    pub async fn say(&mut self, content: &str) -> Value {
        self.request("sendMessage", json!({ "content": content }))
            .await
            .expect("the message is taken")
    }

    pub async fn send_text(&mut self, text: &str) {
        // One that was closed meanwhile is seen when reading.
        let _ = self.socket.send(Message::text(text)).await;
    }

    pub async fn send_binary(&mut self, bytes: &[u8]) {
        let _ = self.socket.send(Message::binary(bytes.to_vec())).await;
    }

    /// A text frame of any bytes, which no client of good manners sends.
    pub async fn send_as_text(&mut self, bytes: &[u8]) {
        let text = OpCode::Data(Data::Text);
        let frame = Frame::message(bytes.to_vec(), text, true);
        let _ = self.socket.send(Message::Frame(frame)).await;
    }

    /// The next line, whatever it is. `pong` comes as a string.
    pub async fn next(&mut self) -> Value {
        self.find("anything", |_| true).await
    }

    /// The next `event`, its whole envelope; others stay for later.
    pub async fn expect(&mut self, event: &str) -> Value {
        self.find(event, |line| line["event"] == event).await
    }

    /// The next line that is `what`.
    pub async fn find(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.waiting.iter().position(&is_it) {
            return self.waiting.remove(at).expect("just found");
        }
        loop {
            let known = self.waiting.len();
            assert!(
                self.read().await,
                "{what} did not come before the close {:?}; saw {:?}",
                self.closed,
                self.tail()
            );
            let found = (known..self.waiting.len()).find(|at| is_it(&self.waiting[*at]));
            if let Some(at) = found {
                return self.waiting.remove(at).expect("just found");
            }
        }
    }

    /// The next `n` logged events, in the order they came.
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

    /// Everything that came and was not asked for, after a round trip: what the
    /// server had sent before it answered is in it.
    pub async fn drain(&mut self) -> Vec<Value> {
        let _ = self
            .request("sync", json!({ "after": 0, "limit": 1 }))
            .await;
        self.waiting.drain(..).collect()
    }

    /// Waits for the close and answers its code.
    pub async fn closed(&mut self) -> u16 {
        while self.closed.is_none() {
            self.read().await;
        }
        self.closed.expect("just set")
    }

    /// Closes, as a client does that leaves politely.
    pub async fn close(mut self) {
        let _ = self.socket.close(None).await;
        while self.closed.is_none() {
            self.read().await;
        }
    }

    /// Reads one frame; `false` once closed.
    async fn read(&mut self) -> bool {
        if self.closed.is_some() {
            return false;
        }
        let Ok(message) = timeout(PATIENCE, self.socket.next()).await else {
            panic!("nothing came any more; saw {:?}", self.tail());
        };
        match message {
            Some(Ok(Message::Text(text))) => {
                for line in text.split('\n') {
                    self.waiting.push_back(
                        serde_json::from_str(line).unwrap_or_else(|_| Value::from(line)),
                    );
                }
                self.frames.push(text.to_string());
            }
            Some(Ok(Message::Close(frame))) => {
                self.closed = Some(frame.map_or(1005, |frame| frame.code.into()));
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.closed = Some(1006),
        }
        self.closed.is_none()
    }

    fn tail(&self) -> &[String] {
        &self.frames[self.frames.len().saturating_sub(20)..]
    }
}

/// The number of a logged event.
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
    /// The number of a logged event.
    pub fn seq(line: &Value) -> u64 {
        seq(line).unwrap_or_else(|| panic!("{line} is not a logged event"))
    }
}

impl Client {
    /// The next logged event, or `None` once the connection has ended.
    pub async fn try_logged(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.waiting.iter().position(|line| seq(line).is_some()) {
                return self.waiting.remove(at);
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// The highest number among the logged events that came and were not asked
    /// for; 0 for none.
    pub fn drain_logged(&mut self) -> u64 {
        self.waiting
            .drain(..)
            .filter_map(|line| seq(&line))
            .max()
            .unwrap_or(0)
    }
}
