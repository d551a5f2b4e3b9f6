//! The pages that are generated from the code. `cargo xtask docs` writes them by running
//! this test with `ROOMCAST_DOCS=write`; without it, the test fails if a page is stale.

mod settings;

use std::path::Path;

/// A generated file: its path in the repository and the function that generates it.
type Page = (&'static str, fn() -> String);

const PAGES: &[Page] = &[("docs/settings.md", settings::page)];

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
