//! The dialects: the vocabularies that namespaces of Socket.IO speak.
//!
//! Rooms know one vocabulary, that of the protocol. The gateway translates the commands of
//! clients to it ([`Dialect::parse_event`]), and the events ([`Dialect::event`]) and answers
//! ([`Dialect::answer`]) of rooms from it. An event is translated once for all clients of a
//! dialect that receive it.
//!
//! | module | dialect |
//! | --- | --- |
//! | `native` | the protocol's own vocabulary |
//! | `relay` | as `native`; unknown events of clients are sent to rooms as custom events |
//! | `module` | the interface of the NestJS module that roomcast replaces |
//!
//! A dialect is a [`Vocabulary`]: a table of its commands and of the events that have other
//! names or data. To add one: write its module, and add it to [`VOCABULARIES`].

mod module;
mod native;
mod relay;

use crate::translate::EventLine;
use roomcast_proto::command::Command;
use roomcast_proto::error::{Error, Result};
use roomcast_proto::event_name::{NEW_MESSAGE, is_reserved};
use roomcast_proto::framing;
use roomcast_proto::id::{RoomName, UserId};
use roomcast_proto::json::on_one_line;
use roomcast_proto::raw_object::TEXT;
use roomcast_proto::time::Millis;
use serde_json::value::RawValue;
use std::fmt;
use std::hash::{Hash, Hasher};

/// All dialects. The first one is the default.
const VOCABULARIES: [&Vocabulary; 3] = [&native::NATIVE, &module::MODULE, &relay::RELAY];

/// The vocabulary of a namespace.
#[derive(Clone, Copy)]
pub struct Dialect(&'static Vocabulary);

/// A definition of a dialect.
struct Vocabulary {
    /// The name in `NAMESPACES` and in the records of clients.
    name: &'static str,
    commands: Commands,
    /// The events with other names or data: the name in the protocol, and the translation.
    events: &'static [(&'static str, Translate)],
    /// Events of the protocol that are not in `events` are sent as they are. Otherwise, they
    /// are not sent.
    has_protocol_events: bool,
    /// Custom events have `meta` as second argument.
    has_meta: bool,
    /// The clients do not acknowledge delivery, so the server does.
    acknowledges: bool,
    /// Receipts name messages by their ids.
    needs_message_ids: bool,
}

/// The commands of a dialect.
enum Commands {
    /// Those of the protocol, by this parser. The answer goes to the acknowledgement callback.
    Protocol(fn(&RawValue, &[&RawValue]) -> Result<Command>),
    /// Those of a table. A command has at most one argument.
    Table(&'static [CommandRule]),
}

/// Translates an event to the start of a list: see [`open_args`]. Returns `None` if the dialect
/// does not have the event.
type Translate = fn(&EventLine<'_>, Millis) -> Option<String>;

/// A command in the table of a dialect.
struct CommandRule {
    /// The name of the event that clients send.
    name: &'static str,
    parse: fn(Option<&RawValue>) -> Result<Parsed>,
    /// Translates the data of the answer, which is JSON.
    answer: fn(&str, &AnswerContext<'_>) -> Translated,
    /// Translates an error.
    error: fn(&str) -> Translated,
}

/// A parsed command of a table.
struct Parsed {
    request: Request,
    /// A property of the command that its answer needs.
    flag: bool,
}

impl From<Command> for Parsed {
    fn from(command: Command) -> Self {
        Parsed {
            request: Request::Command(command),
            flag: false,
        }
    }
}

/// A request of a client.
#[derive(Debug, PartialEq)]
pub(crate) enum Request {
    Command(Command),
    /// Nothing but an answer.
    Nothing,
}

/// An event of a client.
#[derive(Debug, PartialEq)]
pub(crate) struct ClientEvent {
    /// Length in bytes of the same command as a line of the native framing. The limit of
    /// frames applies to it, so that both protocols accept the same commands.
    pub(crate) line_length: usize,
    /// The id under which rooms answer the command.
    pub(crate) id: Option<u32>,
    /// The request, or the error to answer.
    pub(crate) request: Result<Request>,
}

/// The circumstances of an answer.
pub(crate) struct AnswerContext<'a> {
    /// The user of the client.
    pub(crate) user: &'a UserId,
    /// The room that answers; `None` for answers of the gateway.
    pub(crate) room: Option<&'a RoomName>,
    /// [`Parsed::flag`] of the command.
    flag: bool,
    pub(crate) now: Millis,
    dialect: Dialect,
}

impl<'a> AnswerContext<'a> {
    pub(crate) fn new(
        dialect: Dialect,
        user: &'a UserId,
        room: Option<&'a RoomName>,
        now: Millis,
    ) -> Self {
        AnswerContext {
            user,
            room,
            flag: false,
            now,
            dialect,
        }
    }
}

/// A translated answer.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Translated {
    /// The events for the client, as [`open_args`] returns them.
    pub(crate) events: Vec<String>,
    /// The arguments of the acknowledgement, a JSON list.
    pub(crate) args: String,
    /// The id of the acknowledgement; `None` if the client has not requested one.
    pub(crate) ack: Option<i64>,
}

impl Translated {
    /// Returns an answer with one event, whose data is also the data of the acknowledgement.
    fn event(name: &str, data: &str) -> Self {
        Translated {
            events: vec![open_args(name, data, None)],
            ..Translated::acknowledgement(data)
        }
    }

    /// Returns an answer without events.
    fn acknowledgement(data: &str) -> Self {
        Translated {
            args: format!("[{data}]"),
            ..Translated::default()
        }
    }
}

/// The answer to a command, as rooms write it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome<'a> {
    /// The data, as JSON.
    Data(&'a str),
    /// The error, as JSON.
    Error(&'a str),
}

/// The number of bits of an id for the command of a table and its flag. The others have the id
/// of the acknowledgement, increased by one; 0 is none. So ids need no memory, which would be
/// lost in hibernation.
const COMMAND_BITS: u32 = 5;

/// The number of the command that is not in the table.
const UNKNOWN: usize = (1 << (COMMAND_BITS - 1)) - 1;

/// The largest id of an acknowledgement in dialects with a table.
const MAX_TABLE_ACK: i64 = (1 << (u32::BITS - COMMAND_BITS)) - 2;

/// Returns the id of a command of a table. An acknowledgement with a larger id is not called.
fn table_id(ack: Option<i64>, command: usize, flag: bool) -> u32 {
    let ack = ack.filter(|ack| (0..=MAX_TABLE_ACK).contains(ack));
    let ack = ack.map_or(0, |ack| ack as u32 + 1);
    (ack << COMMAND_BITS) | ((command as u32) << 1) | u32::from(flag)
}

impl Dialect {
    /// Returns the dialect with this name.
    pub fn parse(name: &str) -> Option<Self> {
        let mut all = VOCABULARIES.into_iter();
        all.find(|one| one.name == name).map(Dialect)
    }

    /// Returns all dialects.
    pub(crate) fn all() -> impl Iterator<Item = Dialect> {
        VOCABULARIES.into_iter().map(Dialect)
    }

    /// Returns the name.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Returns `true` if the server acknowledges delivery for the clients.
    pub(crate) fn acknowledges(self) -> bool {
        self.0.acknowledges
    }

    /// Returns `true` if receipts name messages by their ids.
    pub(crate) fn needs_message_ids(self) -> bool {
        self.0.needs_message_ids
    }

    /// Returns `true` if a command without `roomId` is for the only room of the client.
    pub(crate) fn has_only_room(self) -> bool {
        self == Dialect(&relay::RELAY)
    }

    /// Parses an event of a client: its name, and its first argument as the data. Returns `None`
    /// if `args` is not a JSON list with a name.
    pub(crate) fn parse_event(self, args: &str, ack: Option<i64>) -> Option<ClientEvent> {
        let args = on_one_line(args);
        let args: Vec<&RawValue> = serde_json::from_str(&args).ok()?;
        let (name, data) = args.split_first()?;
        let first = data.first().copied();
        let (id, request) = match &self.0.commands {
            Commands::Protocol(parse) => {
                let command = parse(name, data).map(Request::Command);
                (self.id_of_unparsed(ack), command)
            }
            Commands::Table(rules) => parse_by_table(rules, name, first, ack),
        };
        let id = id.filter(|_| ack.is_some() || self.has_table());
        Some(ClientEvent {
            line_length: line_length(name, first, ack),
            id,
            request,
        })
    }

    fn has_table(self) -> bool {
        matches!(self.0.commands, Commands::Table(_))
    }

    /// Returns the id for the answer to an event that was not parsed.
    pub(crate) fn id_of_unparsed(self, ack: Option<i64>) -> Option<u32> {
        match self.0.commands {
            Commands::Protocol(_) => u32::try_from(ack?).ok(),
            Commands::Table(_) => Some(table_id(ack, UNKNOWN, false)),
        }
    }

    /// Returns the largest valid id of an acknowledgement.
    pub(crate) fn max_ack(self) -> i64 {
        match self.0.commands {
            Commands::Protocol(_) => i64::from(u32::MAX),
            Commands::Table(_) => MAX_TABLE_ACK,
        }
    }

    /// Translates an event of a room or of the gateway to the start of the list of its name and
    /// its arguments: see [`open_args`]. Returns `None` if the dialect does not have the event.
    pub(crate) fn event(self, line: &EventLine<'_>, now: Millis) -> Option<String> {
        let mut events = self.0.events.iter();
        if let Some((_, translate)) = events.find(|(name, _)| *name == line.name) {
            return translate(line, now);
        }
        if !self.0.has_protocol_events && is_reserved(line.name) {
            return None;
        }
        // The data of a message has the fields of `meta`.
        let is_message = line.name == NEW_MESSAGE && line.data.starts_with('{');
        let meta = line.meta.filter(|_| self.0.has_meta && !is_message);
        Some(open_args(line.name, line.data, meta))
    }

    /// Translates the answer to the command with the id `id`.
    pub(crate) fn answer(
        self,
        id: i64,
        outcome: Outcome<'_>,
        context: &AnswerContext<'_>,
    ) -> Translated {
        let Commands::Table(rules) = &self.0.commands else {
            let args = match outcome {
                Outcome::Data(data) => format!("[{data}]"),
                Outcome::Error(error) => format!(r#"[{{"error":{error}}}]"#),
            };
            return Translated {
                args,
                ack: Some(id),
                events: Vec::new(),
            };
        };
        let command = (id >> 1) as usize & UNKNOWN;
        let rule = rules.get(command).or(rules.first());
        let context = AnswerContext {
            flag: id & 1 == 1,
            ..*context
        };
        let translated = match (outcome, rule) {
            (Outcome::Data(data), Some(rule)) => (rule.answer)(data, &context),
            (Outcome::Error(error), Some(rule)) => (rule.error)(error),
            (_, None) => Translated::default(),
        };
        Translated {
            ack: (id >> COMMAND_BITS).checked_sub(1).filter(|ack| *ack >= 0),
            ..translated
        }
    }
}

impl Default for Dialect {
    fn default() -> Self {
        Dialect(VOCABULARIES[0])
    }
}

impl PartialEq for Dialect {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Dialect {}

impl Hash for Dialect {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl fmt::Debug for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

fn parse_by_table(
    rules: &[CommandRule],
    name: &RawValue,
    data: Option<&RawValue>,
    ack: Option<i64>,
) -> (Option<u32>, Result<Request>) {
    let parsed = framing::event_name(name, data).and_then(|name| {
        let index = rules.iter().position(|rule| rule.name == name);
        let index = index.ok_or_else(|| unknown_event(&name))?;
        let data = data.filter(|data| data.get() != "null");
        Ok((index, (rules[index].parse)(data)))
    });
    match parsed {
        Ok((index, Ok(Parsed { request, flag }))) => {
            (Some(table_id(ack, index, flag)), Ok(request))
        }
        Ok((index, Err(error))) => (Some(table_id(ack, index, false)), Err(error)),
        Err(error) => (Some(table_id(ack, UNKNOWN, false)), Err(error)),
    }
}

fn unknown_event(name: &str) -> Error {
    let shown = roomcast_proto::command::shown_event(name);
    Error::bad_request(format!("unknown event `{shown}`"))
}

/// Returns the length of a line of the native framing with this command.
fn line_length(name: &RawValue, data: Option<&RawValue>, ack: Option<i64>) -> usize {
    let field = |key: &str, value: usize| key.len() + value;
    let mut length = field(r#"{"event":}"#, name.get().len());
    if let Some(data) = data {
        length += field(r#","data":"#, data.get().len());
    }
    if let Some(id) = ack.and_then(|ack| u32::try_from(ack).ok()) {
        let digits = id.checked_ilog10().unwrap_or(0) as usize + 1;
        length += field(r#","id":"#, digits);
    }
    length
}

/// Returns a JSON list with the name and the arguments of an event, without its final bracket,
/// because an offset may follow. `data` and `meta` are JSON.
pub(crate) fn open_args(name: &str, data: &str, meta: Option<&str>) -> String {
    let meta_length = meta.map_or(0, str::len);
    let mut args = String::with_capacity(name.len() + data.len() + meta_length + 64);
    args.push_str("[\"");
    // The names of events have no characters that JSON escapes.
    args.push_str(name);
    args.push_str("\",");
    args.push_str(data);
    if let Some(meta) = meta {
        args.push(',');
        args.push_str(meta);
    }
    args
}

/// Returns the text of a JSON string, or `None` if `json` is none.
fn text(json: &str) -> Option<String> {
    (TEXT.read)(json)
}
