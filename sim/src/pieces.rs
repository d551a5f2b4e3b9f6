//! Splits an input into pieces at NUL. The first byte of a piece selects an action; a
//! piece without one is text.

use roomcast_proto::time::Millis;

pub(crate) enum Piece<'a> {
    Later(Millis),
    Hibernate,
    Binary(&'a [u8]),
    Reconnect(&'a [u8]),
    Text(String),
}

/// Returns the pieces of an input. The byte of [`Piece::Later`] counts in units of `unit`.
pub(crate) fn pieces(input: &[u8], unit: Millis) -> impl Iterator<Item = Piece<'_>> {
    // More pieces are slower and reach no other states.
    input.split(|byte| *byte == 0).take(8).map(move |piece| {
        let rest = piece.get(1..).unwrap_or_default();
        match piece.first() {
            Some(1) => Piece::Later(u64::from(rest.first().copied().unwrap_or(1)) * unit),
            Some(2) => Piece::Hibernate,
            Some(3) => Piece::Binary(rest),
            Some(4) => Piece::Reconnect(rest),
            // The runtime replaces invalid UTF-8.
            _ => Piece::Text(String::from_utf8_lossy(piece).into_owned()),
        }
    })
}
