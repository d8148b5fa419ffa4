//! docs/testing.md is a map of the suite: it names every test program and every crate that has tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

/// The directories of the workspace's packages.
fn crates() -> Vec<PathBuf> {
    let all = entries(root());
    all.into_iter()
        .filter(|path| path.join("Cargo.toml").is_file())
        .collect()
}

/// What cargo makes a test program of: `tests/NAME.rs`, `tests/NAME/main.rs`.
fn test_programs() -> Vec<String> {
    let all = crates().into_iter().flat_map(|path| entries(&path.join("tests")));
    let programs = all.filter_map(|path| match path.extension() {
        Some(extension) if extension == "rs" => Some(path),
        _ => Some(path.join("main.rs")).filter(|main| main.is_file()),
    });
    programs
        .map(|path| path.strip_prefix(root()).unwrap().display().to_string())
        .collect()
}

fn document() -> String {
    fs::read_to_string(root().join("docs/testing.md")).unwrap()
}

#[test]
fn every_test_program_and_every_crate_is_on_the_map() {
    let (document, programs) = (document(), test_programs());
    assert!(programs.len() > 30, "{programs:?}");
    for program in programs {
        assert!(
            document.contains(&format!("`{program}`")),
            "docs/testing.md does not name {program}"
        );
    }
    for path in crates() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            document.contains(&format!("`{name}/`")),
            "docs/testing.md does not name {name}/"
        );
    }
}

#[test]
fn what_the_map_calls_quick_is_what_test_quick_runs() {
    let script = fs::read_to_string(root().join("scripts/test-quick.sh")).unwrap();
    let (_, files) = script.split_once("\nfiles=(").unwrap();
    let files: Vec<&str> = files.split(')').next().unwrap().split_whitespace().collect();
    let document = document();
    let (_, programs) = document.split_once("### Test programs").unwrap();
    let (programs, _) = programs.split_once("\n### ").unwrap();
    for row in programs.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [names, _, _, quick] = cells[..] else {
            panic!("another number of columns: {row}");
        };
        for name in names.split('`').skip(1).step_by(2) {
            let (package, file) = name.split_once("/tests/").unwrap();
            let file = file.trim_end_matches(".rs").trim_end_matches("/main");
            let is_listed = files.contains(&&*format!("{package}:{file}"));
            assert_eq!(is_listed, quick == "yes", "{name}: the map says {quick}");
            // Cargo selects by the file's name, in whichever crate it is.
            let runs = files.iter().any(|listed| listed.ends_with(&format!(":{file}")));
            assert_eq!(runs, is_listed, "{name} runs because of another crate's");
        }
    }
}
