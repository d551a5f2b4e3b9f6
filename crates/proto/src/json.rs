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

/// Returns `json` with the characters that are not ASCII in place of their escapes. `json` need
/// not be valid.
pub fn unescape_non_ascii(json: &str) -> Cow<'_, str> {
    let mut out = String::new();
    // The start of the text that is not in `out` yet.
    let mut start = 0;
    let mut at = 0;
    while let Some(backslash) = json[at..].find('\\') {
        let backslash = at + backslash;
        let escape = |at: usize| {
            let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
            let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| u16::from_str_radix(digits, 16).ok())?
        };
        // A character takes one or two escapes.
        let units = [escape(backslash), escape(backslash + 6)];
        let mut chars = char::decode_utf16(units.into_iter().map_while(|unit| unit));
        match chars.next() {
            Some(Ok(c)) if !c.is_ascii() => {
                out.push_str(&json[start..backslash]);
                out.push(c);
                at = backslash + 6 * c.len_utf16();
                start = at;
            }
            // The escaped character may be a backslash, and may have several bytes if the JSON
            // is not valid.
            _ => {
                let escaped = json[backslash + 1..].chars().next();
                at = backslash + 1 + escaped.map_or(0, char::len_utf8);
            }
        }
    }
    if start == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[start..]);
    Cow::Owned(out)
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
    use proptest::prelude::*;

    #[test]
    fn escapes_of_ascii_characters_and_lone_surrogates_stay() {
        for same in [
            r#""a\n\u0000\u0041\"\\u00e9""#,
            r#""\ud83d \udc69\ud83d""#,
            r#""\u00g1\u+0e9\u00""#,
            "\\é",
            "\\",
        ] {
            assert_eq!(unescape_non_ascii(same), same);
        }
        assert_eq!(unescape_non_ascii(r#""\\\u00e9\u00e9""#), r#""\\éé""#);
    }

    proptest! {
        #[test]
        fn unescaped_json_has_the_same_value(text in any::<String>()) {
            let plain = serde_json::to_string(&text).expect("JSON");
            let mut ascii = String::new();
            for unit in plain.encode_utf16() {
                match u8::try_from(unit) {
                    Ok(byte) if byte.is_ascii() => ascii.push(char::from(byte)),
                    _ => ascii.push_str(&format!("\\u{unit:04X}")),
                }
            }
            prop_assert_eq!(unescape_non_ascii(&ascii), plain);
        }

        #[test]
        fn any_text_is_unescaped_without_a_panic(text in r#"[\\u0-9dé"]{0,20}"#) {
            let _ = unescape_non_ascii(&text);
        }
    }

    #[test]
    fn brackets_inside_strings_do_not_count_as_depth() {
        assert!(!too_deep(&"[".repeat(MAX_DEPTH)));
        assert!(too_deep(&"[".repeat(MAX_DEPTH + 1)));
        assert!(!too_deep(&format!("\"{}\"", "[".repeat(1000))));
        assert!(!too_deep(&format!("\"\\\"{}\"", "[".repeat(1000))));
        assert!(!too_deep(&"[]".repeat(1000)));
    }
}
