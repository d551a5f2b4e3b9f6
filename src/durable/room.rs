//! The Durable Object of a room.

use super::now;
use super::runtime::{self, Socket};
use super::store::Store;
use crate::config::Config;
use crate::eventlog::Entry;
use crate::fault::Fault;
use crate::room::log::slice;
use crate::room::output::{CallId, ConnId};
use crate::room::service::{Request as ServiceRequest, Served};
use crate::room::{self, Attachment, Change, Delivery, Frame, Hello, Output};
use crate::time::Millis;
use crate::wire::native::{self, Close};
use futures_channel::oneshot;
use js_sys::JsString;
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::prelude::*;
use worker::{
    Delay, DurableObject, Env, Error, Request, Response, ResponseBuilder, Result, ScheduledTime,
    State, WebSocketPair, WebSocketRequestResponsePair, durable_object,
};

/// Headers of the Worker's requests to the object. A request from outside never
/// reaches the object as it is, so nobody else can set them.
pub const ROOM_HEADER: &str = "x-roomcast-room";
pub const HELLO_HEADER: &str = "x-roomcast-hello";

/// Turns of the event loop that a tick waits at the most while fewer things
/// wait than went out with the last one. Measured: see DESIGN in the README.
const MAX_TURNS: u32 = 4;

/// Of so many ticks that wait for nobody, one looks at the turn after it, which
/// costs a timer: more often costs a quiet room, more seldom a busy one at its
/// beginning.
const QUIET_TICKS: u32 = 4;

/// Length of a frame of replay, in UTF-16 units: large, for each frame costs,
/// but far below what WebSocket libraries take.
const REPLAY_FRAME: u32 = 256 * 1024;

#[durable_object(alarm)]
pub struct Room {
    object: Rc<Object>,
}

struct Object {
    state: State,
    env: Env,
    live: RefCell<Option<Live>>,
    /// Ends ticks. Made once, for a closure costs more than its call.
    turn: OnceCell<Closure<dyn FnMut()>>,
}

/// The object awake: the room and what it is connected to.
struct Live {
    config: Rc<Config>,
    room: room::Room,
    store: Store,
    sockets: Vec<Option<Socket>>,
    calls: HashMap<CallId, oneshot::Sender<Result<String, Fault>>>,
    last_call: CallId,
    /// When what is being done began.
    began: Millis,
    /// Turns of the event loop that the tick may still take; 0 when none is on
    /// its way.
    turns: u32,
    /// How many things went out with the last one.
    last_tick: usize,
    /// Ticks that waited for nobody.
    quiet_ticks: u32,
    /// The timer that is set.
    timer: Option<Millis>,
    alarm: Alarm,
    /// The replay that was sent last: after an outage all ask for the same.
    replay: Option<(u64, u64, Rc<Vec<JsString>>)>,
    line_break: JsString,
    /// Storing failed: what is in memory is not what is stored.
    broken: bool,
}

/// What is known of the object's one alarm, which outlives its memory.
#[derive(Clone, Copy)]
enum Alarm {
    /// Just woken.
    Unknown,
    /// The runtime is being asked.
    Asking,
    Set(Option<Millis>),
}

/// What the shell has to see to next.
enum Due {
    Timer(Millis),
    Alarm(Millis),
    /// Ask what alarm there is: an earlier one must not be put off.
    AskAlarm,
}

impl DurableObject for Room {
    fn new(state: State, env: Env) -> Self {
        console_error_panic_hook::set_once();
        Room {
            object: Rc::new(Object {
                state,
                env,
                live: RefCell::new(None),
                turn: OnceCell::new(),
            }),
        }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let room = request.headers().get(ROOM_HEADER)?;
        if let Some(hello) = request.headers().get(HELLO_HEADER)? {
            let hello: Hello = serde_json::from_str(&hello)?;
            return self.object.connect(room, hello);
        }
        self.object.call(room, request).await
    }

    async fn alarm(&self) -> Result<Response> {
        self.object.with(None, |live, state| {
            live.alarm = Alarm::Set(None);
            live.age();
            let sockets = live.sockets.clone();
            let pinged = |conn: ConnId| {
                sockets
                    .get(conn)?
                    .as_ref()
                    .and_then(|socket| runtime::pinged(state, socket))
            };
            let mut out = Vec::new();
            live.room.alarm(pinged, now(), &mut out);
            live.run(state, out);
        })?;
        Rc::clone(&self.object).arm();
        Response::empty()
    }
}

/// What sockets call. `worker` would make a promise of each call, whose way
/// through the microtask queue costs about as much as all else that a message
/// does; nothing here waits for anything.
#[wasm_bindgen]
impl Room {
    #[wasm_bindgen(js_name = webSocketMessage)]
    pub fn web_socket_message(&self, socket: &Socket, message: &JsValue) -> JsResult {
        let full = self.object.with(None, |live, state| {
            let Some(conn) = place_of(socket) else {
                return false;
            };
            let text = message.as_string();
            let frame = text.as_deref().map_or(Frame::Binary, Frame::Text);
            let mut out = Vec::new();
            live.room.receive(conn, frame, now(), &mut out);
            live.run(state, out);
            live.room.is_full()
        })?;
        Ok(self.object.settle(full)?)
    }

    #[wasm_bindgen(js_name = webSocketClose)]
    pub fn web_socket_close(&self, socket: &Socket, code: u16) -> JsResult {
        answer_close(socket, code);
        Ok(self.object.gone(socket, code)?)
    }

    #[wasm_bindgen(js_name = webSocketError)]
    pub fn web_socket_error(&self, socket: &Socket) -> JsResult {
        // 1006: abnormal closure (RFC 6455, 7.4.1).
        Ok(self.object.gone(socket, 1006)?)
    }
}

type JsResult = std::result::Result<(), JsValue>;

impl Object {
    /// Does something with the room, which is read from storage if it is not in
    /// memory, and again should storing have failed.
    fn with<T>(
        &self,
        name: Option<String>,
        what: impl FnOnce(&mut Live, &State) -> T,
    ) -> Result<T> {
        let mut slot = self.live.borrow_mut();
        let live = match &mut *slot {
            Some(live) => live,
            empty => empty.insert(Live::wake(&self.state, &self.env, name)?),
        };
        live.began = now();
        let done = what(live, &self.state);
        if live.broken {
            *slot = None;
        }
        Ok(done)
    }

    fn connect(self: &Rc<Self>, name: Option<String>, hello: Hello) -> Result<Response> {
        let admitted = self.with(name, |live, state| {
            live.age();
            let now = now();
            if let Err(fault) = live.room.admit(&hello, now) {
                live.log(
                    Entry::reject("rate")
                        .user(&hello.user)
                        .with("code", fault.code.as_str()),
                );
                return refuse(&fault);
            }
            let pair = WebSocketPair::new()?;
            state
                .as_raw()
                .accept_websocket(pair.server.as_ref())
                .map_err(Error::from)?;
            let mut out = Vec::new();
            let conn = live.room.connect(hello, now, &mut out);
            live.place(conn, pair.server.as_ref().clone().unchecked_into());
            live.run(state, out);
            Response::from_websocket(pair.client)
        })??;
        self.settle(false)?;
        Ok(admitted)
    }

    /// A request of the Worker for a service.
    async fn call(self: &Rc<Self>, name: Option<String>, mut request: Request) -> Result<Response> {
        let request: ServiceRequest = serde_json::from_slice(&request.bytes().await?)?;
        let (sender, receiver) = oneshot::channel();
        let served = self.with(name, |live, state| {
            live.age();
            live.last_call += 1;
            let call = live.last_call;
            let mut out = Vec::new();
            let served = live.room.serve(request, call, now(), &mut out);
            live.run(state, out);
            match served {
                Ok(_) if live.broken => Ok(Err(Fault::internal())),
                Ok(Served::Page(range)) => {
                    let page = live.store.page(range, live.room.floor())?;
                    let page = page.finish(live.room.bounds().head, live.room.epoch());
                    Ok::<_, Error>(Ok(Served::Now(page, false)))
                }
                Ok(Served::Later) => {
                    live.calls.insert(call, sender);
                    Ok(Ok(Served::Later))
                }
                served => Ok(served),
            }
        })??;
        let full = self.with(None, |live, _| live.room.is_full())?;
        self.settle(full)?;
        let answer = match served {
            Ok(Served::Now(json, new)) => Ok((json, if new { 201 } else { 200 })),
            // Dropped unanswered only when storing failed.
            Ok(_) => receiver
                .await
                .unwrap_or_else(|_| Err(Fault::internal()))
                .map(|json| (json, 200)),
            Err(fault) => Err(fault),
        };
        match answer {
            Ok((json, status)) => Ok(ResponseBuilder::new()
                .with_status(status)
                .fixed(json.into_bytes())),
            Err(fault) => refuse(&fault),
        }
    }

    fn gone(self: &Rc<Self>, socket: &Socket, code: u16) -> Result<()> {
        self.with(None, |live, state| {
            // One that went while the object slept is not among the open ones
            // that were found when it woke.
            let conn = place_of(socket).or_else(|| {
                let conn = live.room.recall(attachment(socket)?, now());
                live.place(conn, socket.clone());
                Some(conn)
            });
            if let Some(conn) = conn {
                live.displace(conn);
                let mut out = Vec::new();
                live.room.disconnect(conn, code, now(), &mut out);
                live.run(state, out);
            }
        })?;
        Rc::clone(self).arm();
        Ok(())
    }

    /// Sees to it that what waits goes out, at the end of a tick; begins one if
    /// none is on its way.
    ///
    /// A tick ends by turns of the event loop: with the next turn, so that
    /// frames that have already arrived are taken in, and a few more while
    /// fewer things wait than went out last time. Where the last tick had but
    /// one thing, nobody is waited for: what waits goes out at once. Every few
    /// such ticks the next turn is looked at all the same: what came with it
    /// shows that the room has become busy. So a quiet room answers without
    /// delay, and a busy one gathers.
    fn settle(self: &Rc<Self>, at_once: bool) -> Result<()> {
        let begins = self.with(None, |live, state| {
            let idle = live.room.waiting() > 0 && live.turns == 0;
            let quiet = idle && live.last_tick <= 1;
            if at_once || quiet {
                live.flush(state);
            }
            if quiet {
                live.quiet_ticks = live.quiet_ticks.wrapping_add(1);
                live.turns = u32::from(live.quiet_ticks % QUIET_TICKS == 0);
            } else if idle {
                live.turns = MAX_TURNS;
            }
            idle && live.turns > 0
        })?;
        if begins {
            self.await_turn();
        }
        Rc::clone(self).arm();
        Ok(())
    }

    /// Calls [`Object::turn`] with the next turn of the event loop.
    fn await_turn(self: &Rc<Self>) {
        let turn = self.turn.get_or_init(|| {
            let object = Rc::downgrade(self);
            Closure::new(move || {
                if let Some(object) = object.upgrade()
                    && let Err(error) = object.turn()
                {
                    worker::console_error!("{}", Entry::error(error.to_string()).line(now()));
                }
            })
        });
        runtime::set_timeout(turn, 0);
    }

    fn turn(self: Rc<Self>) -> Result<()> {
        let more = self.with(None, |live, state| {
            live.turns = live.turns.saturating_sub(1);
            if live.room.waiting() >= live.last_tick.max(1) {
                live.turns = 0;
            }
            if live.turns == 0 {
                live.flush(state);
            }
            live.turns > 0
        })?;
        if more {
            self.await_turn();
        } else {
            self.arm();
        }
        Ok(())
    }

    /// Sets the timer and the alarm for what is due next.
    fn arm(self: Rc<Self>) {
        let due = self
            .live
            .borrow_mut()
            .as_mut()
            .map_or(Vec::new(), Live::arm);
        for due in due {
            let object = Rc::clone(&self);
            self.state.wait_until(async move {
                if let Err(error) = object.see_to(due).await {
                    worker::console_error!("{}", Entry::error(error.to_string()).line(now()));
                }
            });
        }
    }

    async fn see_to(self: Rc<Self>, due: Due) -> Result<()> {
        match due {
            Due::Timer(at) => {
                Delay::from(Duration::from_millis(at.saturating_sub(now()))).await;
                self.with(None, |live, state| {
                    if live.timer == Some(at) {
                        live.timer = None;
                    }
                    live.advance(state);
                })?;
            }
            Due::Alarm(at) => {
                let at = ScheduledTime::new(js_sys::Date::new(&(at as f64).into()));
                return self.state.storage().set_alarm(at).await;
            }
            Due::AskAlarm => {
                let set = self.state.storage().get_alarm().await?;
                let set = set.and_then(|at| Millis::try_from(at).ok());
                self.with(None, |live, _| live.alarm = Alarm::Set(set))?;
            }
        }
        self.arm();
        Ok(())
    }
}

fn refuse(fault: &Fault) -> Result<Response> {
    Ok(ResponseBuilder::new()
        .with_status(fault.code.status())
        .fixed(serde_json::to_vec(fault)?))
}

/// Answers a client's close frame. The runtime answers by itself from
/// compatibility date 2026-04-07 on, except where it does not: workerd
/// 1.20261117 leaves some hibernatable sockets without an answer, so that their
/// clients wait for it in vain. On one that was answered this does nothing.
fn answer_close(socket: &Socket, code: u16) {
    let _ = match code {
        // No status and abnormal closure must not be sent (RFC 6455, 7.4.1).
        1005 => socket.close(),
        1006 | 1015 => Ok(()),
        code => socket.close_with_code(code),
    };
}

fn place_of(socket: &Socket) -> Option<ConnId> {
    socket.conn().map(|conn| conn as ConnId)
}

impl Live {
    /// Builds the room from its storage and its sockets.
    fn wake(state: &State, env: &Env, name: Option<String>) -> Result<Self> {
        let began = now();
        let config =
            crate::http::serve::config(env).map_err(|error| Error::RustError(error.to_string()))?;
        let name = name.or_else(|| state.id().name());
        let (store, name) = Store::open(&state.storage(), name, fresh_id)?;
        let snapshot = store.load(&config.room, began)?;
        state.set_websocket_auto_response(&WebSocketRequestResponsePair::new(
            native::PING,
            native::PONG,
        )?);
        let mut live = Live {
            room: room::Room::new(name, config.clone(), snapshot),
            config,
            store,
            sockets: Vec::new(),
            calls: HashMap::new(),
            last_call: 0,
            began,
            turns: 0,
            last_tick: 0,
            quiet_ticks: 0,
            timer: None,
            alarm: Alarm::Unknown,
            replay: None,
            line_break: JsString::from("\n"),
            broken: false,
        };
        for ws in state.get_websockets() {
            let socket: Socket = ws.as_ref().clone().unchecked_into();
            if socket.ready_state() != web_sys::WebSocket::OPEN {
                continue;
            }
            match attachment(&socket) {
                Some(attachment) => {
                    let conn = live.room.recall(attachment, began);
                    live.place(conn, socket);
                }
                // Accepted just when storing failed.
                None => close(&socket, Close::Failed),
            }
        }
        live.log(
            Entry::info("wake")
                .with("connections", live.sockets.len())
                .with("seq", live.room.bounds().head)
                .took(now().saturating_sub(began)),
        );
        Ok(live)
    }

    fn place(&mut self, conn: ConnId, socket: Socket) {
        socket.set_conn(Some(conn as f64));
        if self.sockets.len() <= conn {
            self.sockets.resize_with(conn + 1, || None);
        }
        self.sockets[conn] = Some(socket);
    }

    fn displace(&mut self, conn: ConnId) -> Option<Socket> {
        let socket = self.sockets.get_mut(conn)?.take()?;
        socket.set_conn(None);
        // Without it the socket's close event, should one come, is of nobody.
        // Fails only on a socket that is gone already.
        let _ = socket.attach(&JsString::from(""));
        Some(socket)
    }

    /// Ends the tick, if anything waits for that.
    fn flush(&mut self, state: &State) {
        let waiting = self.room.waiting();
        if waiting > 0 {
            self.last_tick = waiting;
            self.advance(state);
        }
    }

    fn advance(&mut self, state: &State) {
        let mut out = Vec::new();
        self.room.advance(now(), &mut out);
        self.run(state, out);
    }

    /// Hides what is past retention by age.
    fn age(&mut self) {
        if let Some(limit) = self.room.age_limit(now()) {
            match self.store.aged(limit) {
                Ok((aged, oldest_at)) => self.room.aged(aged, oldest_at),
                Err(error) => self.log(Entry::error(error.to_string())),
            }
        }
    }

    /// What is to be set, if anything: only what is due before what is set.
    fn arm(&mut self) -> Vec<Due> {
        let mut due = Vec::new();
        if let Some(at) = self.room.timer()
            && self.timer.is_none_or(|set| at < set)
        {
            self.timer = Some(at);
            due.push(Due::Timer(at));
        }
        if let Some(at) = self.room.alarm_at() {
            match self.alarm {
                Alarm::Unknown => {
                    self.alarm = Alarm::Asking;
                    due.push(Due::AskAlarm);
                }
                Alarm::Set(set) if set.is_none_or(|set| at < set) => {
                    self.alarm = Alarm::Set(Some(at));
                    due.push(Due::Alarm(at));
                }
                Alarm::Asking | Alarm::Set(_) => {}
            }
        }
        due
    }

    fn log(&mut self, entry: Entry) {
        if entry.level < self.config.log_level {
            return;
        }
        let rows = self.store.take_rows_written();
        let entry = if rows > 0 {
            entry.with("rowsWritten", rows)
        } else {
            entry
        };
        let now = now();
        let entry = entry
            .room(self.room.name())
            .took(now.saturating_sub(self.began));
        worker::console_log!("{}", entry.line(now));
    }

    /// Carries out what the room wants done, in order.
    fn run(&mut self, state: &State, out: Vec<Output>) {
        let mut stored: Option<(String, JsString)> = None;
        let mut outputs = out.into_iter();
        while let Some(output) = outputs.next() {
            match output {
                Output::Store(change) => {
                    let body = match &change {
                        Change::Append(row) => JsString::from(row.body.as_str()),
                        _ => JsString::from(""),
                    };
                    if let Err(error) = self.store.apply(&change, &body) {
                        self.log(Entry::error(format!("storing failed: {error}")));
                        return self.fail(outputs);
                    }
                    if let Change::Append(row) = change {
                        stored = Some((row.body, body));
                    }
                }
                Output::Send { conn, frame } => {
                    self.send(state, conn, &JsString::from(frame.as_str()), frame.len());
                }
                Output::Deliver(delivery) => self.deliver(state, delivery, stored.take()),
                Output::Replay { conn, after, upto } => {
                    if let Err(error) = self.replay(state, conn, after, upto) {
                        self.log(Entry::error(format!("replay failed: {error}")));
                        return self.fail(outputs);
                    }
                }
                Output::Page { conn, id, range } => {
                    let answer = match self.store.page(range, self.room.floor()) {
                        Ok(page) => native::ack(
                            id,
                            &page.finish(self.room.bounds().head, self.room.epoch()),
                        ),
                        Err(error) => {
                            self.log(Entry::error(format!("reading failed: {error}")));
                            native::fault(Some(id), &Fault::internal())
                        }
                    };
                    self.send(state, conn, &JsString::from(answer.as_str()), answer.len());
                }
                Output::Attach { conn } => self.attach(conn),
                Output::Close { conn, why } => {
                    if let Some(socket) = self.displace(conn) {
                        close(&socket, why);
                    }
                }
                Output::Reply { call, answers } => {
                    if let Some(call) = self.calls.remove(&call) {
                        // A caller that went away needs no answer.
                        let _ = call.send(Ok(answers));
                    }
                }
                Output::Log(entry) => self.log(entry),
            }
        }
    }

    /// Storing failed: nothing that waited for it is true. Says so to all that
    /// wait; the room is read from storage again (`broken`).
    fn fail(&mut self, rest: impl Iterator<Item = Output>) {
        for output in rest {
            match output {
                Output::Deliver(delivery) => {
                    for (conn, id) in delivery.acked {
                        if let Some(Some(socket)) = self.sockets.get(conn) {
                            let answer = native::fault(Some(id), &Fault::internal());
                            // One that is gone needs no answer.
                            let _ = socket.send_string(&JsString::from(answer.as_str()));
                        }
                    }
                }
                Output::Close { conn, why } => {
                    if let Some(socket) = self.displace(conn) {
                        close(&socket, why);
                    }
                }
                _ => {}
            }
        }
        self.calls.clear();
        self.broken = true;
    }

    fn attach(&mut self, conn: ConnId) {
        let (Some(attachment), Some(Some(socket))) =
            (self.room.attachment(conn), self.sockets.get(conn))
        else {
            return;
        };
        let attached = serde_json::to_string(&attachment)
            .map_err(Error::from)
            .and_then(|json| Ok(socket.attach(&JsString::from(json.as_str()))?));
        if let Err(error) = attached {
            self.log(Entry::error(format!("attachment failed: {error}")));
        }
    }

    fn send(&mut self, state: &State, conn: ConnId, frame: &JsString, bytes: usize) {
        let Some(Some(socket)) = self.sockets.get(conn) else {
            return;
        };
        let mut out = Vec::new();
        if socket.send_string(frame).is_err() {
            // Closed under our hands: its close event is on the way.
            self.displace(conn);
            self.room.disconnect(conn, 1006, now(), &mut out);
        } else if self.room.sent(conn, bytes) {
            let pinged = runtime::pinged(state, socket);
            self.room.judge_slow(conn, pinged, now(), &mut out);
        }
        if !out.is_empty() {
            self.run(state, out);
        }
    }

    fn deliver(&mut self, state: &State, delivery: Delivery, stored: Option<(String, JsString)>) {
        // Mostly it is the very row that was stored: the same string serves.
        let shared = delivery.shared.map(|shared| match stored {
            Some((body, frame)) if body == shared => (frame, shared.len()),
            _ => (JsString::from(shared.as_str()), shared.len()),
        });
        let mut served = HashSet::with_capacity(delivery.custom.len());
        for custom in delivery.custom {
            served.insert(custom.conn);
            let mut frame = JsString::from(custom.private.as_str());
            if let Some((shared, _)) = &shared {
                for run in custom.shared.iter().flatten() {
                    let part = shared.slice(run.start as u32, run.end as u32);
                    frame = if frame.length() == 0 {
                        part
                    } else {
                        frame.concat(&self.line_break).concat(&part)
                    };
                }
            }
            let length = frame.length() as usize;
            if length > 0 {
                self.send(state, custom.conn, &frame, length);
            }
        }
        let Some((frame, bytes)) = shared else {
            return;
        };
        for conn in 0..self.sockets.len() {
            if !served.contains(&conn) && self.room.receives(conn, delivery.tick) {
                self.send(state, conn, &frame, bytes);
            }
        }
    }

    /// Sends what is stored as it is stored, in large frames.
    fn replay(&mut self, state: &State, conn: ConnId, after: u64, upto: u64) -> Result<()> {
        let frames = match &self.replay {
            Some((from, to, frames)) if (*from, *to) == (after, upto) => frames.clone(),
            _ => {
                let frames = Rc::new(self.frames(after, upto)?);
                self.replay = Some((after, upto, frames.clone()));
                frames
            }
        };
        for frame in frames.iter() {
            self.send(state, conn, frame, frame.length() as usize);
        }
        Ok(())
    }

    fn frames(&self, after: u64, upto: u64) -> Result<Vec<JsString>> {
        let mut frames = Vec::new();
        let mut frame: Option<JsString> = None;
        self.store.rows(after, upto, |first, last, body| {
            let body = if first > after && last <= upto {
                body
            } else {
                let text = String::from(&body);
                JsString::from(slice(first, &text, after, upto))
            };
            let joined = match frame.take() {
                Some(frame) => frame.concat(&self.line_break).concat(&body),
                None => body,
            };
            if joined.length() >= REPLAY_FRAME {
                frames.push(joined);
            } else {
                frame = Some(joined);
            }
        })?;
        frames.extend(frame);
        Ok(frames)
    }
}

fn attachment(socket: &Socket) -> Option<Attachment> {
    let json = socket.attachment().ok()?.as_string()?;
    serde_json::from_str(&json).ok()
}

fn close(socket: &Socket, why: Close) {
    // Fails only on a socket that is closed already.
    let _ = socket.close_with_code_and_reason(why.code(), why.reason());
}

/// An id that nobody has had: 64 random bits.
pub fn fresh_id() -> String {
    let bits = getrandom::u64().expect("the runtime has a random generator");
    format!("{bits:016x}")
}
