//! Writing JSON text, and checks of JSON text that is not parsed.

use std::borrow::Cow;
use std::fmt::Write;

/// Maximum nesting depth of JSON from clients and services. Deeper input is rejected,
/// so that it cannot reach the depth limit of a receiver's parser (128 in serde_json).
pub const MAX_DEPTH: usize = 64;

/// Returns `true` if `json` nests deeper than [`MAX_DEPTH`]. `json` need not be valid.
pub fn too_deep(json: &str) -> bool {
    nests_deeper_than(MAX_DEPTH, json)
}

/// Returns `true` if `json` nests deeper than `max_depth`. `json` need not be valid.
pub fn nests_deeper_than(max_depth: usize, json: &str) -> bool {
    let mut depth = 0usize;
    let mut in_string = false;
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                bytes.next();
            }
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > max_depth {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Returns `json` without line breaks. Line breaks inside JSON strings are escaped, so
/// the ones found here separate tokens and can be replaced by spaces.
pub fn on_one_line(json: &str) -> Cow<'_, str> {
    if json.bytes().any(|b| b == b'\n' || b == b'\r') {
        Cow::Owned(json.replace(['\n', '\r'], " "))
    } else {
        Cow::Borrowed(json)
    }
}

/// Appends `text` to `out` as a JSON string.
pub fn push_string(out: &mut String, text: &str) {
    if text
        .bytes()
        .all(|b| b >= 0x20 && b != b'"' && b != b'\\' && b != 0x7f)
    {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        // Serialising a string cannot fail.
        out.push_str(&serde_json::to_string(text).unwrap_or_default());
    }
}

/// Appends `number` to `out`.
pub fn push_number(out: &mut String, number: u64) {
    // Writing to a `String` cannot fail.
    let _ = write!(out, "{number}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_inside_strings_do_not_count_as_depth() {
        assert!(!too_deep(&"[".repeat(MAX_DEPTH)));
        assert!(too_deep(&"[".repeat(MAX_DEPTH + 1)));
        assert!(!too_deep(&format!("\"{}\"", "[".repeat(1000))));
        assert!(!too_deep(&format!("\"\\\"{}\"", "[".repeat(1000))));
        assert!(!too_deep(&"[]".repeat(1000)));
    }
}
