//! Offsets of Socket.IO's connection state recovery: where a connection stood in
//! each of its rooms when an event was sent to it. One string holds them all,
//! for the client sends back only the last it saw: the positions in the order
//! of the connection's rooms, in base 36, with a dot between.

/// Appends a position.
pub fn push(out: &mut String, at: u64) {
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

/// Reads an offset; `None` where it is none of ours.
pub fn parse(offset: &str) -> Option<Vec<u64>> {
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
    fn an_offset_is_read_as_it_was_written() {
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
