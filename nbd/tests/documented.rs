//! docs/nbd.md names the place and the test of every rule, and all of them exist.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const DOCUMENT: &str = include_str!("../../docs/nbd.md");

/// Names of all functions that are marked as tests, and everything else that has a name, in the
/// sources below a directory.
#[derive(Default)]
struct Names {
    tests: BTreeSet<String>,
    others: BTreeSet<String>,
}

impl Names {
    fn below(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.below(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                self.read(&fs::read_to_string(&path).unwrap());
            }
        }
    }

    fn read(&mut self, source: &str) {
        let mut marked = false;
        for line in source.lines().map(str::trim) {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let named = words
                .windows(2)
                .find(|pair| ["fn", "struct", "enum", "trait", "const"].contains(&pair[0]));
            if let Some(&[_, name]) = named
                && !line.starts_with("//")
            {
                let names = if marked { &mut self.tests } else { &mut self.others };
                names.insert(name.to_owned());
                marked = false;
            } else if line == "#[test]" {
                marked = true;
            } else {
                // Between the mark and the function there may be other attributes and comments.
                marked &= line.starts_with('#') || line.starts_with("//");
            }
        }
    }

    fn of_this_crate() -> Self {
        let mut names = Self::default();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        names.below(&root.join("src"));
        names.below(&root.join("tests"));
        names.below(&root.join("fuzz/oracle"));
        names
    }

    /// Whether there is such a test, or, for a name that ends in a star, any that begins so.
    fn has_test(&self, name: &str) -> bool {
        match name.strip_suffix('*') {
            Some(start) => self.tests.iter().any(|test| test.starts_with(start)),
            None => self.tests.contains(name),
        }
    }
}

/// The cells of a table row.
fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

/// What stands in backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Rows of rules: their first cell is one or more ids, such as H1 or T16, or a limit's name.
fn rows_of(section: &str) -> Vec<Vec<&'static str>> {
    let (_, rest) = DOCUMENT.split_once(&format!("\n## {section}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.map(cells)
        .filter(|row| row.last() != Some(&"test"))
        .collect()
}

#[test]
fn every_rule_of_the_list_is_there_and_names_tests_that_exist() {
    let names = Names::of_this_crate();
    let rows = rows_of("Where the rules are implemented");
    let mut ids = BTreeSet::new();
    for row in rows.iter().chain(&rows_of("Lessons from other implementations")) {
        let [id, rule, code, tests] = row[..] else {
            panic!("a row has other columns: {row:?}");
        };
        ids.extend(id.split(", ").map(str::to_owned));
        assert!(rule.len() > 10, "{id} does not say what it means");
        assert!(!quoted(tests).is_empty(), "{id} names no test");
        for test in quoted(tests) {
            assert!(names.has_test(test), "{id} names {test}, which is no test of nbd");
        }
        assert!(!quoted(code).is_empty(), "{id} names no place");
        for place in quoted(code) {
            let last = place.rsplit("::").next().unwrap();
            let exists = names.others.contains(last) || place.ends_with(".rs");
            assert!(exists, "{id} names {place}, which is nothing in nbd");
        }
    }
    let numbered = |letter: char, count: u32| (1..=count).map(move |number| format!("{letter}{number}"));
    let expected = numbered('H', 13)
        .chain(numbered('T', 18))
        .chain(numbered('N', 13));
    for id in expected.chain(numbered('E', 6)) {
        assert!(ids.contains(&id), "{id} is missing");
    }
}

#[test]
fn every_limit_is_there_and_names_tests_that_exist() {
    let names = Names::of_this_crate();
    let rows = rows_of("What clients can make the server do: limits");
    let reported: Vec<&str> = rows.iter().flat_map(|row| quoted(row[0])).collect();
    let source = include_str!("../src/limits.rs");
    let (_, fields) = source.split_once("pub struct Limits {").unwrap();
    let fields = fields.split("\n}").next().unwrap().lines();
    let fields: Vec<&str> = fields
        .filter_map(|line| line.trim().strip_prefix("pub ")?.split(':').next())
        .collect();
    assert!(fields.len() > 10, "{fields:?}");
    for field in fields {
        assert!(reported.contains(&field), "the limit {field} is not in the list");
    }
    for row in rows {
        for test in quoted(row.last().unwrap()) {
            assert!(names.has_test(test), "{test} is no test of nbd");
        }
    }
}

/// Outside of the tables tests are named as well: whatever looks like a test's name must be one.
#[test]
fn names_in_the_text_exist() {
    let names = Names::of_this_crate();
    for quoted in quoted(DOCUMENT) {
        let looks_like_a_test = quoted.matches('_').count() >= 4
            && quoted
                .chars()
                .all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c));
        let exists = names.tests.contains(quoted) || names.others.contains(quoted);
        assert!(!looks_like_a_test || exists, "{quoted}");
    }
}
