//! The protocol's own vocabulary: `docs/protocol.md`.

use super::{Commands, Vocabulary};
use roomcast_proto::framing;

/// The default dialect.
pub(super) const NATIVE: Vocabulary = Vocabulary {
    name: "roomcast",
    commands: Commands::Protocol(|name, args| framing::decode_parts(name, args.first().copied())),
    events: &[],
    has_protocol_events: true,
    has_meta: true,
    acknowledges: false,
    needs_message_ids: false,
};
