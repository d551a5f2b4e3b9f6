//! Parses received lines and checks the promise of delivery: every connection
//! receives the events of a room in `seq` order, without holes, each once.
//!
//! To keep the load generator fast, frequent lines are recognized by their first
//! bytes and numbers are found by scanning. Only rare lines are parsed as JSON.

use memchr::{memchr, memmem};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A received line or Socket.IO packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A logged event with the expected `seq`.
    Message { seq: u64 },
    /// The successful answer to the command with this id.
    Ack { id: u64, seq: u64 },
    /// The connection is accepted. `head` is the head of the log, known only on the
    /// socket of a room.
    Connected { head: Option<u64> },
    /// The open packet of Engine.IO.
    Open,
    /// The ping of Engine.IO.
    Ping,
    /// Any other valid line: presence, membership, `pong`.
    Other,
}

/// The position of one connection in the log.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// The expected `seq`; `None` accepts any first event.
    next: Option<u64>,
}

impl Sequence {
    /// Expects the event after `since`, or any first event without `since`.
    pub(crate) fn after(since: Option<u64>) -> Self {
        Sequence {
            next: since.map(|seq| seq + 1),
        }
    }

    /// The `seq` of the last event, or of the start position.
    pub(crate) fn last(&self) -> u64 {
        self.next.unwrap_or(1) - 1
    }

    /// Checks one line. Returns an error if an event is missing, repeated or out of
    /// order, or if the server reports an error.
    pub(crate) fn line(&mut self, line: &[u8]) -> Result<Line, String> {
        if line.starts_with(br#"{"event":"newMessage""#) {
            let seq = number_after(line, br#""seq":"#)
                .ok_or_else(|| describe("an event without seq", line))?;
            return self.message(seq);
        }
        if line.starts_with(br#"{"ack":"#) {
            let id = number_after(line, br#""ack":"#);
            let seq = number_after(line, br#""seq":"#);
            return match (id, seq) {
                (Some(id), Some(seq)) => Ok(Line::Ack { id, seq }),
                _ => Err(describe("not acknowledged", line)),
            };
        }
        self.rare(line)
    }

    /// Checks one Socket.IO packet of the main namespace.
    pub(crate) fn packet(&mut self, packet: &[u8]) -> Result<Line, String> {
        if packet.starts_with(br#"42["newMessage","#) {
            let seq = number_after(packet, br#""seq":"#)
                .ok_or_else(|| describe("an event without seq", packet))?;
            return self.message(seq);
        }
        match packet {
            [b'4', b'3', ..] => match (
                number_after(packet, b"43"),
                number_after(packet, br#""seq":"#),
            ) {
                (Some(id), Some(seq)) => Ok(Line::Ack { id, seq }),
                _ => Err(describe("not acknowledged", packet)),
            },
            b"2" => Ok(Line::Ping),
            [b'0', ..] => Ok(Line::Open),
            [b'4', b'0', ..] => Ok(Line::Connected { head: None }),
            _ if packet.starts_with(br#"42["error""#) || packet.starts_with(br#"42["gap""#) => {
                Err(describe("the server reports", packet))
            }
            // Any other event, and the noop packet.
            [b'4', b'2', ..] | b"6" => Ok(Line::Other),
            _ => Err(describe("cannot parse", packet)),
        }
    }

    fn message(&mut self, seq: u64) -> Result<Line, String> {
        match self.next {
            Some(next) if next < seq => {
                Err(format!("a hole: events {next} to {} are missing", seq - 1))
            }
            Some(next) if next > seq => Err(format!(
                "event {seq} again or out of order, expected {next}"
            )),
            _ => {
                self.next = Some(seq + 1);
                Ok(Line::Message { seq })
            }
        }
    }

    fn rare(&mut self, line: &[u8]) -> Result<Line, String> {
        #[derive(Deserialize)]
        struct Frame<'a> {
            event: &'a str,
            #[serde(borrow)]
            data: &'a RawValue,
        }
        if line == b"pong" || line.is_empty() {
            return Ok(Line::Other);
        }
        let frame: Frame<'_> =
            serde_json::from_slice(line).map_err(|_| describe("cannot parse", line))?;
        let seq = || number_after(frame.data.get().as_bytes(), br#""seq":"#);
        match frame.event {
            "connected" => Ok(Line::Connected { head: seq() }),
            // A server that writes `data` before `event`.
            "newMessage" => {
                let seq = seq().ok_or_else(|| describe("an event without seq", line))?;
                self.message(seq)
            }
            "error" | "gap" => Err(describe("the server reports", line)),
            _ => Ok(Line::Other),
        }
    }
}

/// Splits a frame into lines and calls `each` with every line.
pub(crate) fn lines(
    mut frame: &[u8],
    mut each: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    while let Some(end) = memchr(b'\n', frame) {
        each(&frame[..end])?;
        frame = &frame[end + 1..];
    }
    if frame.is_empty() {
        Ok(())
    } else {
        each(frame)
    }
}

/// Returns the number directly after the first `key`.
pub(crate) fn number_after(line: &[u8], key: &[u8]) -> Option<u64> {
    let digits = &line[memmem::find(line, key)? + key.len()..];
    let length = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&digits[..length]).ok()?.parse().ok()
}

/// Returns `what` with the beginning of the line.
fn describe(what: &str, line: &[u8]) -> String {
    let line = String::from_utf8_lossy(&line[..line.len().min(300)]);
    format!("{what}: {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64) -> Vec<u8> {
        format!(r#"{{"event":"newMessage","data":{{"content":"x","seq":{seq}}}}}"#).into_bytes()
    }

    #[test]
    fn missing_repeated_and_reordered_events_are_errors() {
        let mut sequence = Sequence::after(Some(4));
        assert_eq!(sequence.line(&event(5)), Ok(Line::Message { seq: 5 }));
        assert!(sequence.line(&event(5)).unwrap_err().contains("again"));
        assert!(sequence.line(&event(7)).unwrap_err().contains("hole"));
        assert_eq!(sequence.line(&event(6)), Ok(Line::Message { seq: 6 }));
        assert_eq!(sequence.last(), 6);
    }

    #[test]
    fn key_order_does_not_matter() {
        let mut sequence = Sequence::after(Some(0));
        let line = br#"{"data":{"seq":1},"event":"newMessage"}"#;
        assert_eq!(sequence.line(line), Ok(Line::Message { seq: 1 }));
    }

    #[test]
    fn errors_reported_by_the_server_are_errors() {
        let mut sequence = Sequence::after(None);
        let refused = br#"{"ack":1,"error":{"code":"rateLimited","message":"slow down"}}"#;
        assert!(sequence.line(refused).is_err());
        assert!(sequence.line(br#"{"event":"error","data":{}}"#).is_err());
        assert!(sequence.line(b"what").is_err());
        let presence = br#"{"event":"presenceUpdate","data":{"userId":"a"}}"#;
        assert_eq!(sequence.line(presence), Ok(Line::Other));
    }

    #[test]
    fn socketio_packets_are_checked_like_lines() {
        let mut sequence = Sequence::after(Some(4));
        let message = |seq: u64| format!(r#"42["newMessage",{{"seq":{seq}}},"a.b"]"#).into_bytes();
        assert_eq!(sequence.packet(&message(5)), Ok(Line::Message { seq: 5 }));
        assert!(sequence.packet(&message(5)).unwrap_err().contains("again"));
        assert!(sequence.packet(&message(7)).unwrap_err().contains("hole"));
        let ack = br#"4312[{"messageId":"m","seq":6}]"#;
        assert_eq!(sequence.packet(ack), Ok(Line::Ack { id: 12, seq: 6 }));
        assert_eq!(sequence.packet(b"2"), Ok(Line::Ping));
        assert_eq!(
            sequence.packet(br#"40{"sid":"s"}"#),
            Ok(Line::Connected { head: None })
        );
        let connected = br#"42["connected",{}]"#;
        assert_eq!(sequence.packet(connected), Ok(Line::Other));
        let refused = br#"433[{"error":{"code":"rateLimited"}}]"#;
        assert!(sequence.packet(refused).is_err());
        let error = br#"42["error",{"code":"internal"}]"#;
        assert!(sequence.packet(error).is_err());
        assert!(sequence.packet(br#"44{"message":"unauthorized"}"#).is_err());
    }

    #[test]
    fn a_frame_is_split_into_its_lines() {
        let mut seen = Vec::new();
        let read = lines(b"a\nbc\n\nd", |line| {
            seen.push(line.to_vec());
            Ok(())
        });
        assert_eq!(read, Ok(()));
        assert_eq!(seen, [&b"a"[..], b"bc", b"", b"d"]);
    }
}
