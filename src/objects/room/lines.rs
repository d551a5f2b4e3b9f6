//! Texts of several lines as JavaScript strings. The texts of the log stay in JavaScript.

use js_sys::JsString;

/// Returns `text` and `more` with a line break between them, or `more` if `text` is empty.
pub(super) fn append_lines(text: &JsString, more: JsString) -> JsString {
    thread_local! {
        static LINE_BREAK: JsString = JsString::from("\n");
    }
    match text.length() {
        0 => more,
        _ => LINE_BREAK.with(|line_break| text.concat(line_break).concat(&more)),
    }
}
