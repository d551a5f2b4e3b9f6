//! The stored text of logged events. A row holds consecutive events, one line per
//! event, in the order of their sequence numbers.

/// Returns the lines of a row whose sequence numbers are greater than `after` and
/// at most `upto`. `first` is the sequence number of the first line of `body`.
pub fn slice(first: u64, body: &str, after: u64, upto: u64) -> &str {
    let skip = (after + 1).saturating_sub(first) as usize;
    let keep = (upto + 1).saturating_sub(first.max(after + 1)) as usize;
    let from = nth_line(body, skip);
    let rest = &body[from..];
    let to = nth_line(rest, keep);
    rest[..to].trim_end_matches('\n')
}

/// Returns the byte offset of line `n` of `body`, or the length of `body` if it has
/// fewer lines.
fn nth_line(body: &str, n: usize) -> usize {
    if n == 0 {
        return 0;
    }
    body.match_indices('\n')
        .nth(n - 1)
        .map_or(body.len(), |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BODY: &str = "e5\ne6\ne7\ne8";

    #[test]
    fn slice_returns_the_lines_after_and_up_to() {
        assert_eq!(slice(5, BODY, 0, u64::MAX - 1), BODY);
        assert_eq!(slice(5, BODY, 4, 8), BODY);
        assert_eq!(slice(5, BODY, 6, 8), "e7\ne8");
        assert_eq!(slice(5, BODY, 5, 6), "e6");
        assert_eq!(slice(5, BODY, 8, 8), "");
        assert_eq!(slice(5, BODY, 0, 5), "e5");
        assert_eq!(slice(5, BODY, 0, 4), "");
    }

    proptest! {
        #[test]
        fn slice_agrees_with_filtering_by_number(first in 1u64..20, n in 1u64..20, after in 0u64..40, upto in 0u64..40) {
            let body = (first..first + n).map(|s| s.to_string()).collect::<Vec<_>>().join("\n");
            let expected = (first..first + n)
                .filter(|s| *s > after && *s <= upto)
                .map(|s| s.to_string())
                .collect::<Vec<_>>()
                .join("\n");
            prop_assert_eq!(slice(first, &body, after, upto), expected);
        }
    }
}
