//! The functions of fuzzers on stable: with every file of their corpora, and with inputs that a test makes.

use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::IoContext;

/// The name of a target, and its function, which panics if a rule is broken.
pub type Target = (&'static str, fn(&[u8]));

/// Fewer inputs than this are no corpus.
const INPUTS_MIN: usize = 5;
/// What is shown of an input that makes a target panic.
const SHOWN_BYTES: usize = 8192;

/// The corpora of one crate's fuzzers, in `fuzz/corpus` of its directory.
#[derive(Debug, Clone, Copy)]
pub struct Corpora {
    crate_directory: &'static str,
}

impl Corpora {
    /// Those of the crate in this directory, its `CARGO_MANIFEST_DIR`.
    pub const fn of(crate_directory: &'static str) -> Self {
        Self { crate_directory }
    }

    /// The directory of a target's corpus.
    pub fn directory(&self, target: &str) -> PathBuf {
        Path::new(self.crate_directory).join("fuzz/corpus").join(target)
    }

    /// The files of a target's corpus, in the order of their names.
    ///
    /// # Errors
    /// A directory or file that cannot be read.
    pub fn inputs(&self, target: &str) -> Result<Vec<Vec<u8>>> {
        let directory = self.directory(target);
        let context = || format!("read {}", directory.display());
        let mut paths = Vec::new();
        for entry in fs::read_dir(&directory).context(context)? {
            paths.push(entry.context(context)?.path());
        }
        paths.sort();
        let read = |path: PathBuf| fs::read(&path).context(|| format!("read {}", path.display()));
        paths.into_iter().map(read).collect()
    }

    /// Calls each target with all of its corpus and with nothing. Returns how many bytes the corpora have.
    ///
    /// # Errors
    /// As for [`inputs`](Self::inputs).
    ///
    /// # Panics
    /// If a target panics, or has next to no corpus.
    pub fn run(&self, targets: &[Target]) -> Result<usize> {
        let mut size = 0;
        for &target in targets {
            let inputs = self.inputs(target.0)?;
            assert!(
                inputs.len() >= INPUTS_MIN,
                "corpus of {} has {} files",
                target.0,
                inputs.len()
            );
            inputs.iter().for_each(|input| call(target, input));
            call(target, &[]);
            size += inputs.iter().map(Vec::len).sum::<usize>();
        }
        Ok(size)
    }

    /// Writes one of the first inputs of a target, which are made by hand.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_first(&self, target: &str, number: usize, input: &[u8]) -> Result<()> {
        let directory = self.directory(target);
        let context = || format!("write into {}", directory.display());
        fs::create_dir_all(&directory).context(context)?;
        fs::write(directory.join(format!("first-{number:02}")), input).context(context)
    }
}

/// Calls a target.
///
/// # Panics
/// If it does. The input is shown in hexadecimal, to be put into a file and run again.
pub fn call((name, target): Target, input: &[u8]) {
    let called = catch_unwind(AssertUnwindSafe(|| target(input)));
    let shown = &input[..input.len().min(SHOWN_BYTES)];
    assert!(called.is_ok(), "target {name} panics on {}", hexadecimal(shown));
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A String takes all that is written to it.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
