//! Runs the fuzz targets on the committed corpus and on earlier crashes.

use roomcast_sim as fuzz;

use std::path::{Path, PathBuf};

/// Returns the files of a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

#[test]
fn fuzz_corpus_and_regressions_pass() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (target, run) in fuzz::TARGETS {
        let corpus = files(&root.join("corpus").join(target));
        assert!(!corpus.is_empty(), "{target} has no corpus");
        let regressions = files(&root.join("regressions").join(target));
        for file in corpus.into_iter().chain(regressions) {
            let input = std::fs::read(&file).expect("a readable file");
            // Shown if the input panics.
            println!("{}", file.display());
            run(&input);
        }
    }
}
