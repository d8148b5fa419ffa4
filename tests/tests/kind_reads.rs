//! Syncs are kind to their disks: however a sync finds what to read, its reads have the I/O priority that was asked for, as
//! the kernel records them, and are no faster than the limit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use smc_tests::{Bench, Disk, code, program, stderr};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;
use testkit::guard::Mount;
use testkit::process::wait_for;
use testkit::requests::Requests;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 32 * MIB;

/// What a sync may read before it knows its priority's disks: partition tables, what udev looks at.
const OTHERS_BYTES_MAX: u64 = MIB;

/// A disk of noise, a store, and a place for the tracker.
struct Ground {
    _bpf: Mount,
    disk: Disk,
    bench: Bench,
}

impl Ground {
    fn new(name: &str) -> Self {
        let bench = Bench::new(name).unwrap();
        let bpf = Mount::bpf(&bench.dir.join("bpf")).unwrap();
        let disk = bench.disk("disk.img", SIZE_BYTES).unwrap();
        let ground = Self {
            _bpf: bpf,
            disk,
            bench,
        };
        ground.write(SIZE_BYTES, 1);
        ground
    }

    fn write(&self, bytes: u64, seed: u64) {
        let bytes = usize::try_from(bytes).unwrap();
        self.disk.write_noise(0, bytes, seed).unwrap();
    }

    /// The option for a tracker that is pinned in a directory of this name.
    fn tracker(&self, name: &str) -> String {
        let directory = self.bench.dir.join("bpf").join(name);
        format!("--tracker-directory={}", directory.display())
    }

    /// A sync by this method, as it has to be.
    fn sync(&self, method: &str, more: &[&str]) -> Value {
        let output = self.bench.sync_with(&[("vda", self.disk.path())], more).unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["method"], method, "{report}");
        report
    }

    /// Begins a sync of the job that has no image yet, and kills it after it has stored something.
    fn leave_unfinished(&self) {
        let layers = self.bench.store().join("web01/layers");
        let mut sync = Command::new(program("smcd"))
            .args([
                "sync",
                "--job",
                "web01",
                "--bandwidth-limit=64KiB",
                "--checkpoint-every=0",
            ])
            .arg(self.tracker("smc"))
            .arg("--store")
            .arg(self.bench.store())
            .arg("--disk")
            .arg(format!("vda={}", self.disk.path().display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the sync to store something", || {
            self.bench.store().join("web01/checkpoint.json").exists()
                && fs::read_dir(&layers).is_ok_and(|layers| layers.count() > 0)
        });
        sync.kill().unwrap();
        sync.wait().unwrap();
    }

    /// Calls `check` with the options and the method of a sync of every kind: resumed, tracked from now on, read in part,
    /// and read as a whole.
    fn syncs(&self, mut check: impl FnMut(&str, &[&str])) {
        let (tracker, none) = (self.tracker("smc"), self.tracker("other"));
        self.leave_unfinished();
        check("full", &["--track", &tracker]);
        self.write(8 * MIB, 2);
        check("tracked", &["--track", &tracker]);
        self.write(4 * MIB, 3);
        check("scan", &[&none]);
    }
}

/// Bytes that were audited, of a tracked sync.
fn number(report: &Value, key: &str) -> u64 {
    report["disks"][0][key].as_u64().unwrap_or(0)
}

#[test]
fn every_kind_of_read_has_the_priority_that_was_asked_for() {
    let ground = Ground::new("kind-priority");
    for (round, (option, shown)) in [("idle", "idle,0,0"), ("best-effort:7", "be,0,7")]
        .iter()
        .enumerate()
    {
        let priority = format!("--io-priority={option}");
        let check = |method: &str, more: &[&str]| {
            let requests = Requests::record(&ground.disk.device).unwrap();
            let report = ground.sync(method, &[more, &[&priority]].concat());
            assert_eq!(
                number(&report, "audited_bytes") > 0,
                method == "tracked",
                "{report}"
            );
            let Some(requests) = requests else { return };
            let mut read = requests.read_bytes().unwrap();
            let asked_for = read.remove(*shown).unwrap_or(0);
            assert!(
                asked_for >= number(&report, "compared_bytes"),
                "{method}: {asked_for} of {report}"
            );
            let others: u64 = read.values().sum();
            assert!(others < OTHERS_BYTES_MAX, "{method}: {read:?}");
        };
        if round == 0 {
            ground.syncs(check);
        } else {
            check("scan", &[&ground.tracker("other")]);
        }
    }
}

#[test]
fn no_kind_of_sync_reads_faster_than_its_limit() {
    const LIMIT: u64 = 8 * MIB;
    /// A read that begins is paid for afterwards.
    const AHEAD: u64 = MIB;
    let ground = Ground::new("kind-limit");
    ground.syncs(|method, more| {
        let begun = Instant::now();
        let report = ground.sync(method, &[more, &["--bandwidth-limit=8MiB"]].concat());
        let took = begun.elapsed().as_millis();
        let paid = u128::from(number(&report, "compared_bytes").saturating_sub(AHEAD));
        assert!(
            took >= paid * 1000 / u128::from(LIMIT),
            "{method}: {took} ms for {report}"
        );
    });
}
