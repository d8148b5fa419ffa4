//! docs/hostile.md names tests for every item of its list, and they exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const DOCUMENT: &str = include_str!("../../../docs/hostile.md");
const ITEMS: usize = 20;

/// Names of all functions below a directory that are marked as tests.
fn tests_below(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            tests_in(&fs::read_to_string(&path).unwrap(), found);
        }
    }
}

fn tests_in(source: &str, found: &mut BTreeSet<String>) {
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        match line.strip_prefix("fn ") {
            Some(rest) if marked => {
                found.extend(rest.split('(').next().map(str::to_owned));
                marked = false;
            }
            _ if line == "#[test]" => marked = true,
            // Between the mark and the function there may be other attributes and comments.
            _ => marked &= line.starts_with('#') || line.starts_with("//"),
        }
    }
}

fn rows() -> Vec<Vec<&'static str>> {
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| I"));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn every_item_of_the_list_names_tests_that_exist() {
    let mut tests = BTreeSet::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests_below(&root.join("src"), &mut tests);
    tests_below(&root.join("tests"), &mut tests);
    let rows = rows();
    let items: Vec<String> = rows.iter().map(|row| row[0].to_owned()).collect();
    let expected: Vec<String> = (1..=ITEMS).map(|number| format!("I{number}")).collect();
    assert_eq!(items, expected);
    for row in rows {
        let [item, meaning, named] = row[..] else {
            panic!("a row has other columns: {row:?}");
        };
        assert!(meaning.len() > 20, "{item} does not say what it means here");
        let named: Vec<&str> = named.split('`').filter(|name| !name.trim().is_empty()).collect();
        assert!(!named.is_empty(), "{item} names no test");
        for name in named {
            assert!(
                tests.contains(name),
                "{item} names {name}, which is no test of imagefmt"
            );
        }
    }
}
