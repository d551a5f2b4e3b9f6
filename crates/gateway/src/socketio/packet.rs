//! Parses and writes the packets of Socket.IO.

use bytes::Bytes;
use roomcast_proto::event_name;
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use socketioxide_core::Value;
use socketioxide_core::packet::Packet;
use socketioxide_core::parser::{Parse, ParseConfig, ParserState};
use socketioxide_parser_common::CommonParser;
use std::collections::VecDeque;
use std::fmt;

/// Maximum number of attachments of a packet.
const MAX_ATTACHMENTS: usize = 256;

/// Returns the message for an event in a namespace. `args` is a JSON list.
pub(crate) fn event_message(nsp: &str, args: &str) -> String {
    match CommonParser.encode(Packet::event(nsp.to_owned(), value(args, Vec::new()))) {
        Value::Str(text, _) => text.to_string(),
        Value::Bytes(_) => String::new(),
    }
}

/// Returns the arguments of a packet with attachments. `args` is a JSON list.
pub(super) fn value(args: &str, attachments: Vec<Bytes>) -> Value {
    let attachments = (!attachments.is_empty()).then(|| VecDeque::from(attachments));
    Value::Str(args.to_owned().into(), attachments)
}

/// Returns a packet and the number of attachments that follow it.
pub(super) fn decode(text: &str) -> Option<(Packet, usize)> {
    let (text, attachments) = match text.as_bytes().first()? {
        // The library measures the time between attachments with a clock that
        // WebAssembly does not have. So the packet is passed to it without attachments,
        // and the attachments are collected here.
        b'5' | b'6' => {
            let (count, rest) = text[1..].split_once('-')?;
            let count: usize = count.parse().ok()?;
            if count > MAX_ATTACHMENTS {
                return None;
            }
            (format!("{}0-{rest}", &text[..1]), count)
        }
        _ => (text.to_owned(), 0),
    };
    let packet = CommonParser
        .decode_str(
            &ParseConfig::default(),
            &ParserState::default(),
            text.into(),
        )
        .ok()?;
    Some((packet, attachments))
}

/// Returns `true` if `args` is a JSON list that begins with a valid event name.
pub(super) fn is_event(args: &str) -> bool {
    let Ok(EventName(name)) = serde_json::from_str::<EventName<'_>>(args) else {
        return false;
    };
    match serde_json::from_str::<String>(name) {
        // The reference server rejects the same names.
        Ok(name) => !event_name::is_socket_io_reserved(&name),
        Err(_) => name.parse::<u64>().is_ok(),
    }
}

/// The JSON text of the first element of a list. The other elements are checked and
/// dropped.
struct EventName<'a>(&'a str);

impl<'de: 'a, 'a> Deserialize<'de> for EventName<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;

        impl<'de> Visitor<'de> for First {
            type Value = EventName<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list that begins with the name of an event")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let name = list.next_element::<&RawValue>()?;
                let name = name.ok_or_else(|| A::Error::invalid_length(0, &self))?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(EventName(name.get()))
            }
        }

        deserializer.deserialize_seq(First)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_packets_are_not_decoded() {
        for text in [
            "", "9", "abc", "5", "5x-[]", "51[]", "5999-[]", "3[]", "7[]", "4{}",
        ] {
            assert!(decode(text).is_none(), "{text}");
        }
        let (packet, attachments) = decode(r#"52-/chat,7["x",{"_placeholder":true,"num":0}]"#)
            .expect("an event with attachments");
        assert_eq!((&*packet.ns, attachments), ("/chat", 2));
    }

    #[test]
    fn event_needs_a_name_that_is_not_reserved() {
        for args in [r#"["x"]"#, r#"[1,2]"#, r#"["x",{"a":[1]}]"#] {
            assert!(is_event(args), "{args}");
        }
        for args in [
            "",
            "{}",
            "[]",
            "[null]",
            r#"["disconnect"]"#,
            r#"["x""#,
            "[{}]",
        ] {
            assert!(!is_event(args), "{args}");
        }
    }
}
