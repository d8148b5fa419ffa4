//! The fuzzers' functions on stable: every file of the corpora, and a fixed number of mutations of them.

use super::support::*;
use crate::fuzzing::TARGETS;
use std::fs;
use std::path::Path;
use testkit::corpus::{Corpora, call};

const CORPORA: Corpora = Corpora::of(env!("CARGO_MANIFEST_DIR"));

#[test]
fn every_file_of_the_corpora_is_read_without_a_panic() {
    CORPORA.run(&TARGETS).unwrap();
}

#[test]
fn the_corpora_are_small_and_those_of_the_targets() {
    let root = CORPORA.directory("");
    let mut names: Vec<String> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    targets.sort_unstable();
    assert_eq!(names, targets);
    let bytes: usize = names
        .iter()
        .flat_map(|name| CORPORA.inputs(name).unwrap())
        .map(|input| input.len())
        .sum();
    assert!(bytes < 400_000, "{bytes} bytes");
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// Some bytes changed, inserted, removed, doubled, or taken from another input.
    fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let len = self.below(24).min(input.len() - at);
            let byte = self.below(256) as u8;
            match self.below(6) {
                0 if at < input.len() => input[at] ^= 1 << (byte % 8),
                1 if at < input.len() => input[at] = byte,
                2 => drop(input.drain(at..at + len)),
                3 => input.insert(at, byte),
                4 => input.extend_from_within(at..at + len),
                _ => {
                    let from = self.below(other.len() + 1);
                    let taken = other[from..(from + len).min(other.len())].to_vec();
                    drop(input.splice(at..at + len, taken));
                }
            }
        }
    }
}

fn mutated_runs(name: &str, runs: usize) {
    let target = TARGETS.into_iter().find(|(found, _)| *found == name).unwrap();
    let inputs = CORPORA.inputs(name).unwrap();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..runs {
        let mut input = inputs[numbers.below(inputs.len())].clone();
        let other = &inputs[numbers.below(inputs.len())];
        numbers.mutate(&mut input, other);
        call(target, &input);
    }
}

#[test]
fn mutated_manifests_never_panic() {
    mutated_runs("manifest", 20_000);
}

#[test]
fn mutated_headers_never_panic() {
    mutated_runs("header", 50_000);
}

#[test]
fn mutated_nodes_never_panic() {
    mutated_runs("node", 20_000);
}

#[test]
fn mutated_clusters_never_panic() {
    mutated_runs("cluster", 10_000);
}

#[test]
fn mutated_stores_never_panic() {
    mutated_runs("store", 1000);
}

/// The first inputs, by hand; the fuzzers find the rest.
#[test]
#[ignore = "writes the first files of fuzz/corpus"]
fn write_the_first_corpora() {
    let put = |target: &str, number: usize, bytes: &[u8]| CORPORA.write_first(target, number, bytes).unwrap();
    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1/store");
    for (number, image) in [
        "web/images/000001.json",
        "db/images/000001.json",
        "db/images/000003.json",
    ]
    .iter()
    .enumerate()
    {
        let text = fs::read(store.join(image)).unwrap();
        put("manifest", number * 2, &text);
        put("manifest", number * 2 + 1, &text[..text.len() - 72]);
    }
    put("manifest", 6, b"web01/latest:vda");
    for number in 0..6usize {
        put(
            "header",
            number,
            &[&[number as u8][..], &random_bytes(number as u64, number * 3)].concat(),
        );
        put(
            "node",
            number,
            &[
                &[number as u8, 0x30, 0, 0, number as u8, 1][..],
                &random_bytes(number as u64, number * 7),
            ]
            .concat(),
        );
        // Payloads of any bytes, raw and compressed.
        let packed = zstd::bulk::compress(&vec![number as u8; 12288], 1).unwrap();
        put(
            "node",
            10 + number,
            &[&[0, 0x30, 0, 0, (number % 2) as u8, 0][..], &packed].concat(),
        );
        let plain = text_bytes(number as u64, 300 << number);
        put(
            "cluster",
            number,
            &[&[(number as u8) << 2][..], &[0; 4], &plain].concat(),
        );
        let len = (plain.len() as u32 - 1).to_le_bytes();
        let packed = zstd::bulk::compress(&plain, [1, 3, 5, 9, 15, 19][number]).unwrap();
        put("cluster", 10 + number, &[&[2][..], &len, &packed].concat());
        put(
            "cluster",
            20 + number,
            &[&[3][..], &len, &plain, &vec![2; plain.len().div_ceil(4096)]].concat(),
        );
    }
    for number in 0..40usize {
        put("store", number, &random_bytes(number as u64, 6 + number));
    }
}
