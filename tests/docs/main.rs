//! The files that are generated from the code. `cargo xtask docs` writes them by running
//! this test with `ROOMCAST_DOCS=write`; without it, the test fails if a file is stale.

mod asyncapi;
mod json;
mod openapi;
mod settings;

use serde_json::Value;
use std::path::Path;

/// A generated file: its path in the repository and the function that generates it.
type Page = (&'static str, fn() -> String);

const PAGES: &[Page] = &[
    ("docs/settings.md", settings::page),
    ("docs/asyncapi.json", asyncapi::document),
    ("src/http/openapi.json", openapi::document),
];

#[test]
fn generated_pages_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let write = std::env::var("ROOMCAST_DOCS").is_ok_and(|mode| mode == "write");
    for (path, generate) in PAGES {
        let (file, page) = (root.join(path), generate());
        if write {
            std::fs::write(&file, &page).expect("the page can be written");
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(committed == page, "{path} is stale: run `cargo xtask docs`");
    }
}

#[test]
fn every_reference_of_the_documents_leads_to_something() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    for generate in [asyncapi::document, openapi::document] {
        let document: Value = serde_json::from_str(&generate()).expect("JSON");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
