//! Answers to clients whose protocol the server does not speak. Each answer is in the format of
//! that protocol, so that the application gets an error that says what to do, and the client
//! does not reconnect by itself.
//!
//! | client | answer | effect |
//! | --- | --- | --- |
//! | Engine.IO 3: `socket.io-client` 1 and 2 | [`engineio3_packets`] | the event `error` with [`ENGINEIO3`], then the event `disconnect` |
//! | `socket.io-msgpack-parser` | [`msgpack_connect_error`] | the event `connect_error` with [`MSGPACK`] |

use roomcast_proto::answer::to_json;
use serde_json::json;

/// The error for a client of Engine.IO 3.
pub(crate) const ENGINEIO3: &str = "this server requires Engine.IO 4: update the client library to one for Socket.IO 3 or later, such as socket.io-client 4";

/// The error for a client that does not use the default parser of Socket.IO.
pub(crate) const MSGPACK: &str = "this server sends and receives JSON: remove the option `parser` (socket.io-msgpack-parser) from the client";

/// Ping interval of the session that an Engine.IO 3 client believes to have: it does not
/// reconnect, and must not ping.
const PING_INTERVAL: u32 = 1 << 30;

/// Returns the Engine.IO packets that refuse a client of Engine.IO 3: the handshake, the
/// ERROR packet of Socket.IO 2, which a client shows in every namespace, and a DISCONNECT for
/// each of these namespaces, after which it does not reconnect.
pub fn engineio3_packets<'a>(namespaces: impl Iterator<Item = &'a str>) -> Vec<String> {
    let open = json!({
        "sid": "unsupported",
        "upgrades": [],
        "pingInterval": PING_INTERVAL,
        "pingTimeout": PING_INTERVAL / 2,
    });
    let disconnects = namespaces.map(|nsp| match nsp {
        "/" => "41".to_owned(),
        nsp => format!("41{nsp},"),
    });
    let refusal = [
        format!("0{}", to_json(&open)),
        format!("44{}", to_json(&json!(ENGINEIO3))),
    ];
    refusal.into_iter().chain(disconnects).collect()
}

/// Returns the body of a polling answer of Engine.IO 3: each packet after its length in UTF-16
/// code units.
pub fn engineio3_payload(packets: &[String]) -> String {
    let packets = packets.iter().map(|packet| {
        let length = packet.encode_utf16().count();
        format!("{length}:{packet}")
    });
    packets.collect()
}

/// Returns a CONNECT_ERROR packet for `socket.io-msgpack-parser`: the map
/// `{ type: 4, nsp, data: { message } }`. Returns `None` if `nsp` has more than 255 bytes.
pub(crate) fn msgpack_connect_error(nsp: &str) -> Option<Vec<u8>> {
    const MAP_OF_3: u8 = 0x83;
    const MAP_OF_1: u8 = 0x81;
    const CONNECT_ERROR: u8 = 4;
    let mut packet = vec![MAP_OF_3];
    push_text(&mut packet, "type")?;
    packet.push(CONNECT_ERROR);
    push_text(&mut packet, "nsp")?;
    push_text(&mut packet, nsp)?;
    push_text(&mut packet, "data")?;
    packet.push(MAP_OF_1);
    push_text(&mut packet, "message")?;
    push_text(&mut packet, MSGPACK)?;
    Some(packet)
}

/// Appends a string of at most 255 bytes: `str 8` of
/// <https://github.com/msgpack/msgpack/blob/master/spec.md>.
fn push_text(packet: &mut Vec<u8>, text: &str) -> Option<()> {
    const STR_8: u8 = 0xd9;
    packet.extend([STR_8, u8::try_from(text.len()).ok()?]);
    packet.extend(text.as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engineio3_client_is_disconnected_from_every_namespace() {
        let packets = engineio3_packets(["/", "/chat"].into_iter());
        let [open, error, root, chat] = &packets[..] else {
            panic!("{packets:?}");
        };
        assert!(open.starts_with("0{"));
        assert_eq!(*error, format!("44\"{ENGINEIO3}\""));
        assert_eq!([root, chat], ["41", "41/chat,"]);
        assert_eq!(engineio3_payload(&["41".into(), "4é𝄞".into()]), "2:414:4é𝄞");
    }

    #[test]
    fn msgpack_connect_error_is_a_map_of_strings() {
        let packet = msgpack_connect_error("/chat").expect("a short name");
        let start =
            b"\x83\xd9\x04type\x04\xd9\x03nsp\xd9\x05/chat\xd9\x04data\x81\xd9\x07message\xd9";
        assert_eq!(packet[..start.len()], start[..]);
        assert_eq!(usize::from(packet[start.len()]), MSGPACK.len());
        assert!(packet.ends_with(MSGPACK.as_bytes()));
        assert_eq!(msgpack_connect_error(&"x".repeat(256)), None);
    }
}
