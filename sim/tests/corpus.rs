//! The corpus of the fuzz targets, natively: what was found stays fixed.

use roomcast_sim as fuzz;

use std::path::{Path, PathBuf};

/// The files of a folder.
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
fn whatever_was_found_by_fuzzing_stays_fixed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (target, run) in fuzz::TARGETS {
        let corpus = files(&root.join("corpus").join(target));
        assert!(!corpus.is_empty(), "{target} has no corpus");
        let regressions = files(&root.join("regressions").join(target));
        for file in corpus.into_iter().chain(regressions) {
            let input = std::fs::read(&file).expect("a readable file");
            // Of a panic the output that is shown names the input.
            println!("{}", file.display());
            run(&input);
        }
    }
}
