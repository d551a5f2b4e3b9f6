//! The text of logged events: a line each, in the order of their numbers.

/// The part of a row's body that comes after `after` and up to `upto`.
pub fn slice(first: u64, body: &str, after: u64, upto: u64) -> &str {
    let skip = (after + 1).saturating_sub(first) as usize;
    let keep = (upto + 1).saturating_sub(first.max(after + 1)) as usize;
    let from = nth_line(body, skip);
    let rest = &body[from..];
    let to = nth_line(rest, keep);
    rest[..to].trim_end_matches('\n')
}

/// Where line `n` of `body` starts; its end when there are fewer.
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
    fn a_slice_is_what_comes_after() {
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
        fn slices_agree_with_counting(first in 1u64..20, n in 1u64..20, after in 0u64..40, upto in 0u64..40) {
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
