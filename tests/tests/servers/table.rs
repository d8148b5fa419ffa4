//! The table of kernels: what was found, which way was taken, and whether the sync was right.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use vm_tests::system::Said;

/// The conditions of `guest.sh`, and what they stand for.
const CONDITIONS: [(&str, &str); 8] = [
    ("plain", "as installed"),
    ("sysctl", "`kernel.io_uring_disabled=2`"),
    ("filter", "a seccomp filter forbids io_uring"),
    ("container", "in a container: no capabilities, a seccomp filter"),
    ("no-bpf", "without the system call bpf"),
    ("no-btf", "without BTF"),
    ("no-bpffs", "no bpffs is mounted"),
    ("lockdown", "`lockdown=confidentiality`"),
];
const DOCUMENT: &str = "../docs/kernels.md";

/// One kernel in one condition.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    kernel: String,
    condition: &'static str,
    io_uring: String,
    bpf: String,
    /// How disks were read, as the log says.
    io: String,
    method: String,
    is_right: bool,
}

impl Row {
    /// The row of one condition.
    pub fn of(said: &Said, name: &str) -> Result<Self> {
        let (name, condition) = CONDITIONS
            .iter()
            .find(|(known, _)| *known == name)
            .with_context(|| format!("no condition {name}"))?;
        let text = |word: &str| {
            let word = format!("SMC-{word}-{name}");
            said.value(&word)
                .with_context(|| format!("{word} is missing in\n{}", said.describe()))
        };
        let precheck: Value = serde_json::from_str(text("PRECHECK")?)?;
        let sync: Value = serde_json::from_str(text("SYNC")?)?;
        let row = Self {
            kernel: release(said.value("SMC-KERNEL").context("no kernel")?),
            condition,
            io_uring: finding(&precheck, "io_uring")?,
            bpf: finding(&precheck, "bpf")?,
            io: logged(text("LOG")?).context("smcd's log says how it reads disks")?,
            method: sync["method"].as_str().context("a method")?.to_owned(),
            is_right: text("RIGHT")? == "yes",
        };
        // What a service says in its log, a single sync says to its user.
        let warned = text("WARNINGS")?.contains("disks are read and written by threads");
        ensure!(warned != row.has_io_uring(), "{row:?}: {}", text("WARNINGS")?);
        ensure!(row.is_right, "{row:?}: the image differs from the disk");
        Ok(row)
    }

    /// The rows of all conditions that the guest was in.
    pub fn all(said: &Said) -> Result<Vec<Self>> {
        CONDITIONS
            .iter()
            .filter(|(name, _)| said.value(&format!("SMC-SYNC-{name}")).is_some())
            .map(|(name, _)| Self::of(said, name))
            .collect()
    }

    /// Whether disks were read through io_uring.
    pub fn has_io_uring(&self) -> bool {
        self.io == "io_uring"
    }
}

/// The first two numbers of a kernel's release: what a document can name for longer than a month.
fn release(full: &str) -> String {
    full.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// `yes`, or what `precheck` says is missing.
fn finding(precheck: &Value, id: &str) -> Result<String> {
    let checks = precheck["checks"].as_array().context("a list of checks")?;
    let check = checks
        .iter()
        .find(|check| check["id"] == id)
        .with_context(|| format!("no check {id} in {precheck:#}"))?;
    if check["level"] == "ok" {
        return Ok("yes".to_owned());
    }
    let found = check["found"].as_str();
    Ok(found.with_context(|| format!("no text in {check:#}"))?.to_owned())
}

/// How disks are read, in the line of the log that says that smcd is ready.
fn logged(line: &str) -> Option<String> {
    let (_, io) = line.split_once("disks are read and written by ")?;
    Some(io.trim().to_owned())
}

/// No kernel is without a row as installed, and what is missing is found missing.
pub fn assert_rows(rows: &[Row]) -> Result<()> {
    for row in rows {
        let forbids_io_uring = row.condition.contains("io_uring") || row.condition.contains("container");
        ensure!(row.has_io_uring() != forbids_io_uring, "{row:?}");
        ensure!(row.has_io_uring() == (row.io_uring == "yes"), "{row:?}");
    }
    Ok(())
}

/// The table as documents show it.
pub fn markdown(rows: &[Row]) -> String {
    let mut table = String::from(
        "| kernel | condition | disks are read by | changes are found by |\n|---|---|---|---|\n",
    );
    for row in rows {
        let io = row.io.split(',').next().unwrap_or_default();
        let _ = writeln!(
            table,
            "| {} | {} | {io} | {} |",
            row.kernel, row.condition, row.method
        );
    }
    table
}

/// The document shows what was found.
pub fn assert_documented(rows: &[Row]) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    for line in markdown(rows).lines() {
        ensure!(
            text.contains(line),
            "docs/kernels.md does not have the line\n{line}"
        );
    }
    Ok(())
}
