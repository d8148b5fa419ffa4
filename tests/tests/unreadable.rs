//! Disks with places that cannot be read: a sync stops there, or skips them and says so; no reader of the image gets zeros
//! for them, and a later sync that can read them has them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use smc_tests::{Bench, code, stderr};
use std::fs;
use std::ops::Range;
use std::process::Command;
use testkit::failing::{BadPlace, FailingFile};
use testkit::guard::{LoopDevice, Mount};

const MIB: usize = 1 << 20;
const SIZE: usize = 8 * MIB;
/// A sector, and the last sectors of one cluster with the first of the next.
const BAD: [Range<u64>; 2] = [
    (3 << 20) + 512..(3 << 20) + 1024,
    (5 << 20) + 65536 - 4096..(5 << 20) + 65536 + 4096,
];
const SKIP: &str = "--on-read-error=skip";

/// A disk of noise whose places can be made unreadable, and a store.
struct Ground {
    device: LoopDevice,
    file: FailingFile,
    _bpf: Mount,
    bench: Bench,
}

impl Ground {
    fn new(name: &str) -> Self {
        let bench = Bench::new(name).unwrap();
        let bpf = Mount::bpf(&bench.dir.join("bpf")).unwrap();
        let served = bench.dir.join("failing");
        fs::create_dir(&served).unwrap();
        let file = FailingFile::serve(&served, &testkit::noise(SIZE, 1), &[]).unwrap();
        let device = LoopDevice::attach_with_blocks(file.path(), 512).unwrap();
        let ground = Self {
            device,
            file,
            _bpf: bpf,
            bench,
        };
        ground.fail_at(&BAD);
        ground
    }

    fn fail_at(&self, bad: &[Range<u64>]) {
        let place = |bytes: &Range<u64>| BadPlace {
            bytes: bytes.clone(),
            tolerated: 0,
        };
        let places: Vec<_> = bad.iter().map(place).collect();
        self.file.fail_at(&places).unwrap();
        // What the page cache has of the served file would hide them.
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    }

    /// A sync: its exit code, its report, and what it said.
    fn sync(&self, more: &[&str]) -> (i32, Value, String) {
        let output = self
            .bench
            .sync_with(&[("vda", self.device.path())], more)
            .unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (code(&output), report, stderr(&output))
    }

    fn skipping(&self, more: &[&str]) -> (Value, String) {
        let (code, report, said) = self.sync(&[&[SKIP], more].concat());
        assert_eq!(code, 0, "{said}");
        (report, said)
    }

    /// What `smc-image` prints.
    fn image(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.bench.image(arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
        (code(&output), said)
    }
}

fn unreadable(report: &Value) -> u64 {
    report["disks"][0]["unreadable_clusters"].as_u64().unwrap()
}

#[test]
fn a_sync_stops_at_a_bad_sector_and_names_it_unless_it_is_to_skip() {
    let ground = Ground::new("unreadable");
    let (code, _, said) = ground.sync(&[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&format!("{}", BAD[0].start)), "{said}");

    let (report, said) = ground.skipping(&[]);
    assert_eq!(unreadable(&report), 3, "{report}");
    assert!(
        said.contains("vda: 8.5 KiB could not be read from the disk, at byte 3146240, 5304320."),
        "{said}"
    );
    let image = report["image"].as_str().unwrap();
    let (code, info) = ground.image(&["info", image, "--unreadable"]);
    assert_eq!(code, 0, "{info}");
    assert!(info.contains("3 clusters"), "{info}");
    assert!(
        info.contains("sectors within 64 KiB from byte 3145728 on"),
        "{info}"
    );
    let (code, said) = ground.image(&["verify"]);
    assert_eq!(
        code, 0,
        "what is recorded as unreadable is no damage of the store: {said}"
    );

    // Nobody takes it for a whole disk.
    let target = ground.bench.dir.join("restored");
    fs::write(&target, vec![0; SIZE]).unwrap();
    let (code, said) = ground.image(&["restore", image, target.to_str().unwrap()]);
    assert_ne!(code, 0, "{said}");
    assert!(said.contains("unreadable at the source"), "{said}");
}

#[test]
fn everything_but_the_bad_sectors_is_in_the_image() {
    let ground = Ground::new("unreadable-rest");
    ground.skipping(&[]);
    let socket = ground.bench.dir.join("nbd.sock");
    let _server = ground.bench.serve(&socket).unwrap();
    let script = format!(
        "want = open('{}', 'rb').read()
for at in range(0, len(want), 512):
    try:
        assert h.pread(512, at) == want[at:at + 512], at
    except nbd.Error as error:
        print(at, error.errno)
",
        ground.file.content().display()
    );
    let uri = format!("nbd+unix:///web01/1:vda?socket={}", socket.display());
    // The system's Python has the module; another one may come first in PATH.
    let output = Command::new("/usr/bin/python3")
        .args(["-m", "nbd", "-u", &uri, "-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let told: Vec<u64> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.strip_suffix(" EIO").unwrap().parse().unwrap())
        .collect();
    let expected: Vec<u64> = BAD.iter().flat_map(|bad| bad.clone().step_by(512)).collect();
    assert_eq!(told, expected);
}

#[test]
fn a_later_sync_that_can_read_them_has_them() {
    let ground = Ground::new("unreadable-healed");
    ground.skipping(&[]);
    let (report, _) = ground.skipping(&[]);
    assert_eq!(unreadable(&report), 3, "{report}");
    assert_eq!(report["disks"][0]["dirty_bytes"], 0, "as before: {report}");
    ground.fail_at(&BAD[1..]);
    let (report, _) = ground.skipping(&[]);
    assert_eq!(unreadable(&report), 2, "{report}");
    ground.fail_at(&[]);
    let (report, said) = ground.skipping(&[]);
    assert_eq!(unreadable(&report), 0, "{report}");
    assert!(!said.contains("could not be read"), "{said}");
    let device = ground.device.path().to_str().unwrap();
    let (code, said) = ground.image(&["verify", "web01/4", "--against", device]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_tracked_sync_tries_them_again() {
    let ground = Ground::new("unreadable-tracked");
    let pins = format!(
        "--tracker-directory={}",
        ground.bench.dir.join("bpf/smc").display()
    );
    let track = ["--track", pins.as_str()];
    ground.skipping(&track);
    let (report, _) = ground.skipping(&track);
    assert_eq!(report["disks"][0]["method"], "tracked", "{report}");
    assert_eq!(unreadable(&report), 3, "{report}");
    ground.fail_at(&[]);
    let (report, _) = ground.skipping(&track);
    assert_eq!(report["disks"][0]["method"], "tracked", "{report}");
    assert_eq!(unreadable(&report), 0, "{report}");
    let device = ground.device.path().to_str().unwrap();
    let (code, said) = ground.image(&["verify", "web01/3", "--against", device]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn the_last_image_with_everything_stays() {
    let ground = Ground::new("unreadable-kept");
    ground.fail_at(&[]);
    ground.skipping(&[]);
    ground.fail_at(&BAD);
    let (_, said) = ground.skipping(&["--max-images=1"]);
    assert!(
        said.contains("web01/1 is kept as well, as it is the newest image that has everything of its disks"),
        "{said}"
    );
    ground.fail_at(&[]);
    ground.skipping(&["--max-images=1"]);
    let (_, listed) = ground.image(&["ls"]);
    assert!(
        listed.contains("web01/3") && !listed.contains("web01/1"),
        "{listed}"
    );
}

#[test]
fn a_disk_that_is_gone_is_not_an_unreadable_one() {
    let ground = Ground::new("unreadable-gone");
    ground.fail_at(&[]);
    ground.skipping(&[]);
    let half = SIZE as u64 / 2;
    ground.fail_at(&[0..half, half..SIZE as u64]);
    let (code, _, said) = ground.sync(&[SKIP]);
    assert_eq!(code, 1, "{said}");
    let (_, listed) = ground.image(&["ls"]);
    assert!(!listed.contains("web01/2"), "{listed}");
    assert!(said.contains("is the disk still connected?"), "{said}");
}
