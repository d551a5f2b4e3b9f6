//! The offsets of Socket.IO's connection state recovery.
//!
//! The offset of an event contains the position of the connection in each of its rooms,
//! this event included. A client sends back only the last offset that it received, so
//! one offset covers all rooms. It is a list of numbers in base 36, separated by dots.
//! The first two identify the client and the order of its rooms; the others are the
//! positions in the rooms, in that order.

/// Appends a number to an offset.
pub(crate) fn push(out: &mut String, at: u64) {
    if !out.is_empty() {
        out.push('.');
    }
    let mut digits = [0u8; 13];
    let (mut rest, mut first) = (at, digits.len());
    loop {
        first -= 1;
        digits[first] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
        rest /= 36;
        if rest == 0 {
            break;
        }
    }
    out.extend(digits[first..].iter().map(|digit| char::from(*digit)));
}

/// Returns the numbers of an offset, or `None` if it is malformed.
pub(crate) fn parse(offset: &str) -> Option<Vec<u64>> {
    offset
        .split('.')
        .map(|at| {
            u64::from_str_radix(at, 36)
                .ok()
                .filter(|_| !at.starts_with('+'))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_is_parsed_as_it_was_written_and_forged_ones_are_rejected() {
        for positions in [vec![0], vec![5, 0, 35, 36], vec![u64::MAX, 1 << 53]] {
            let mut offset = String::new();
            positions.iter().for_each(|at| push(&mut offset, *at));
            assert_eq!(parse(&offset), Some(positions), "{offset}");
        }
        for forged in ["", ".", "a.", "-1", "+1", "a b", "zzzzzzzzzzzzzzzz", "é"] {
            assert_eq!(parse(forged), None, "{forged}");
        }
    }
}
