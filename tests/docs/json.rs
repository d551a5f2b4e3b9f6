//! JSON documents as text.

use serde_json::Value;

/// Returns a JSON document as text with sorted keys. Other crates of the workspace may
/// switch on `preserve_order` of serde_json; the sorting makes the text independent of it.
pub(crate) fn pretty(mut document: Value) -> String {
    join_lines(&mut document);
    document.sort_all_objects();
    format!("{document:#}\n")
}

/// Joins the lines of descriptions, which are comments of the code.
fn join_lines(document: &mut Value) {
    match document {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "description" => *text = text.replace('\n', " "),
                    value => join_lines(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(join_lines),
        _ => {}
    }
}
