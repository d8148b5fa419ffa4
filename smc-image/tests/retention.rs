//! rm, pin, unpin, gc, and verify as a habit.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use blockio::LockedFile;
use common::{Fixture, MIB, disk_content, is_locked, noise};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use testkit::program::{Running, tool, wait_for};

/// Three images of 4 MiB; each differs from the one before it in its first MiB.
fn three_images() -> (Fixture, Vec<u8>) {
    let fixture = Fixture::new();
    let mut content = disk_content(4 * MIB, 1);
    content[3 * MIB..].copy_from_slice(&noise(MIB, 50));
    for seed in 1..=3 {
        content[..MIB].copy_from_slice(&noise(MIB, seed));
        fixture.sync("web01", &[("vda", &content)]);
    }
    (fixture, content)
}

fn listed(fixture: &Fixture) -> Vec<String> {
    let objects = fixture.run(&["ls", "--json"]).objects();
    objects
        .iter()
        .map(|object| object["image"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn rm_deletes_what_is_named_and_tells_what_came_back() {
    let (fixture, _) = three_images();
    let said = fixture.run(&["rm", "web01/2"]).ok();
    assert!(said.contains("web01/2 deleted, 1.0 MiB freed"), "{said}");
    let said = fixture.run(&["rm", "web01/2", "web01/latest", "--json"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.stderr.contains("no image web01/2; images of web01: 1, 3"),
        "{said:?}"
    );
    assert_eq!(said.objects()[0]["deleted"], "web01/3");
    assert_eq!(listed(&fixture), ["web01/1"]);
    fixture.run(&["verify"]).ok();
    assert!(fixture.run(&["gc"]).ok().contains("web01: 0 B freed"));
}

#[test]
fn rm_spares_the_last_image_that_may_be_good_while_a_newer_one_is_damaged() {
    let (fixture, _) = three_images();
    fixture.run(&["verify", "web01/1"]).ok();
    // The first cluster of the second image.
    fixture.damage_cluster("web01", &noise(MIB, 2)[..64 << 10]);
    fixture.run(&["verify", "web01/2"]).fails(3);
    let said = fixture.run(&["rm", "web01/1"]).fails(1);
    assert!(
        said.contains("web01/2 is damaged") && said.contains("--force"),
        "{said}"
    );
    assert_eq!(listed(&fixture), ["web01/1", "web01/2", "web01/3"]);
    // The third one has other bytes there. Now that this is known, the first one is not needed.
    fixture.run(&["verify", "web01/latest"]).ok();
    fixture.run(&["rm", "web01/1"]).ok();
    fixture.run(&["rm", "web01/2"]).ok();
    assert_eq!(listed(&fixture), ["web01/3"]);

    let (fixture, _) = three_images();
    fixture.damage(&fixture.manifest("web01", 3), b"\"consistency\"");
    fixture.run(&["rm", "web01/2"]).fails(1);
    // Space is kept, as the third one cannot be read.
    fixture.run(&["rm", "--force", "web01/2"]).fails(3);
    assert!(!fixture.manifest("web01", 2).exists());
}

#[test]
fn rm_takes_no_disk_and_no_unfinished_sync_that_is_not_there() {
    let (fixture, _) = three_images();
    assert!(
        fixture
            .run(&["rm", "web01/1:vda"])
            .fails(2)
            .contains("leave :vda out")
    );
    assert!(
        fixture
            .run(&["rm", "web01/unfinished"])
            .fails(1)
            .contains("no unfinished sync")
    );
    assert!(fixture.run(&["rm", "db/1"]).fails(1).contains("no job db"));
    fixture.run(&["rm"]).fails(2);
    assert_eq!(listed(&fixture).len(), 3);
}

#[test]
fn a_pinned_image_stays_until_it_is_unpinned() {
    let (fixture, _) = three_images();
    fixture.run(&["pin", "web01/latest", "--name", "audit"]).ok();
    assert!(fixture.run(&["ls"]).ok().contains("web01/3  pinned: audit"));
    assert!(fixture.run(&["rm", "web01/3"]).fails(1).contains("audit"));
    fixture.run(&["pin", "web01/3", "--name", "../x"]).fails(1);
    assert!(
        fixture
            .run(&["unpin", "web01/3", "--name", "other"])
            .fails(1)
            .contains("no pin other")
    );
    fixture.run(&["unpin", "web01/3"]).ok();
    fixture.run(&["rm", "web01/3"]).ok();
    assert_eq!(listed(&fixture), ["web01/1", "web01/2"]);
}

#[test]
fn an_image_that_is_served_stays_and_the_message_says_who_serves_it() {
    let (fixture, _) = three_images();
    let socket = fixture.join("nbd.sock");
    let mut serve = fixture.command();
    serve.args(["serve", "--socket", socket.to_str().unwrap(), "web01/1"]);
    let server = Running::start(&mut serve);
    wait_for("the image to be held", || {
        is_locked(&fixture.manifest("web01", 1))
    });
    let said = fixture.run(&["rm", "web01/1", "web01/2"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let holder = format!("smc-image (pid {})", server.0.id());
    assert!(said.stderr.contains(&holder), "{said:?}");
    assert_eq!(listed(&fixture), ["web01/1", "web01/3"]);
    server.signal("TERM");
    fixture.run(&["rm", "web01/1"]).ok();
}

#[test]
fn gc_finds_what_nothing_points_to() {
    let (fixture, _) = three_images();
    let stray = fixture.layer("web01", 0x77);
    fs::write(&stray, noise(MIB, 7)).unwrap();
    fs::remove_file(fixture.manifest("web01", 2)).unwrap();
    let said = fixture.run(&["gc", "web01"]).ok();
    assert!(said.contains("2 layers removed"), "{said}");
    assert!(!stray.exists());
    fixture.run(&["verify"]).ok();
    fixture.run(&["gc", "db"]).fails(1);
}

#[test]
fn results_of_verifying_are_kept_and_shown() {
    let (fixture, content) = three_images();
    for slice in 1..=4 {
        let said = fixture.run(&["verify", "web01/1", "--sample", "25%"]).ok();
        assert!(said.contains("1 MiB of content"), "{said}");
        let shown = fixture.run(&["ls"]).ok();
        let state = if slice < 4 {
            format!("{}% good 2", slice * 25)
        } else {
            "  good 2".to_owned()
        };
        assert!(shown.contains(&state), "{slice}: {shown}");
    }
    fixture.damage_cluster("web01", &content[3 * MIB..]);
    fixture.run(&["verify", "--all"]).fails(3);
    let shown = fixture.run(&["ls"]).ok();
    assert_eq!(shown.matches("DAMAGED").count(), 3, "{shown}");
    for (wrong, why) in [("0", "0.001%"), ("x", "percentage"), ("101%", "0.001%")] {
        assert!(fixture.run(&["verify", "--sample", wrong]).fails(2).contains(why));
    }
    fixture.run(&["verify", "--rate", "0"]).fails(2);
    assert!(
        fixture
            .run(&["verify", "--continue"])
            .fails(1)
            .contains("interrupted")
    );
}

/// Bytes that a process has read, from wherever.
fn bytes_read_by(pid: u32) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    count.unwrap().parse().unwrap()
}

#[test]
fn a_verification_is_interrupted_and_gone_on_with() {
    let fixture = Fixture::new();
    let content = noise(40 * MIB, 3);
    fixture.sync("web01", &[("vda", &content)]);
    fixture.sync("web01", &[("vda", &content)]);
    let record = fixture.store().join("web01/images/000001.verified");
    let interrupted = |format: &[&str]| {
        let mut slow = fixture.command();
        slow.args(["verify", "--rate", "20MiB"]).args(format);
        let mut running = Running::start(&mut slow);
        let mut stdout = running.0.stdout.take().unwrap();
        // More than a leaf's 16 MiB, and far less than all.
        let pid = running.0.id();
        wait_for("the first leaf", || bytes_read_by(pid) > 18 * MIB);
        let (code, complaint) = running.signal("INT");
        assert_eq!(code, Some(130), "{complaint}");
        std::io::read_to_string(&mut stdout).unwrap()
    };
    let said = interrupted(&["--json"]);
    assert!(
        said.contains("\"stopped_percent\":") && said.contains("\"interrupted\":true"),
        "{said}"
    );
    assert!(!said.contains("\"good\""), "{said}");
    let said = interrupted(&[]);
    assert!(said.contains("interrupted, no damage so far"), "{said}");
    assert!(!said.contains("good"), "{said}");
    assert!(record.exists());
    let shown = fixture.run(&["ls"]).ok();
    assert!(shown.contains("stopped at"), "{shown}");
    let said = fixture.run(&["verify", "--continue"]).ok();
    assert!(said.contains("web01/1: good\nweb01/2: good\n"), "{said}");
    assert_eq!(fixture.run(&["ls"]).ok().matches("good 2").count(), 2);
}

#[test]
fn an_image_is_compared_with_a_device() {
    let (fixture, mut content) = three_images();
    let equal = fixture.file("equal", &content);
    let path = |file: &std::path::Path| file.to_str().unwrap().to_owned();
    let said = fixture
        .run(&["verify", "web01/3", "--against", &path(&equal)])
        .ok();
    assert!(said.contains("they hold the same"), "{said}");
    content[3 * MIB] ^= 1;
    content.truncate(4 * MIB - 1000);
    let other = fixture.file("other", &content);
    let said = fixture.run(&["verify", "web01/3", "--against", &path(&other)]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let range = format!("bytes {} to {} differ", 3 * MIB, 3 * MIB + 65536);
    assert!(
        said.stdout.contains(&range) && said.stdout.contains("has 4193304"),
        "{said:?}"
    );
    fixture
        .run(&["verify", "web01", "--against", &path(&equal)])
        .fails(1);
    fixture
        .run(&["verify", "web01/3", "--against", "/nonexistent"])
        .fails(1);
    let verdict = &fixture.run(&["ls", "--json"]).objects()[2]["verified"]["against"];
    assert_eq!(verdict["equal"], false);
}

#[test]
fn an_unfinished_sync_is_listed_and_can_be_dropped() {
    let fixture = Fixture::new();
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/../imagefmt/fixtures/v1/store");
    let store = fixture.store();
    fs::remove_dir_all(&store).unwrap();
    tool("cp", &["-r", kept, store.to_str().unwrap()]);
    let shown = fixture.run(&["ls", "log"]).ok();
    let last = shown.lines().last().unwrap();
    assert!(
        last.starts_with("log/unfinished ") && last.contains("incremental"),
        "{shown}"
    );
    assert!(shown.contains("log/3  pinned: audit"), "{shown}");
    let objects = fixture.run(&["ls", "log", "--json"]).objects();
    assert_eq!(objects[2]["unfinished"], "log/unfinished");
    assert_eq!(objects[2]["dirty_bytes"], 16384);

    fixture.run(&["rm", "log/1", "log/unfinished"]).ok();
    let shown = fixture.run(&["ls", "log"]).ok();
    assert!(
        !shown.contains("unfinished") && shown.contains("log/3 "),
        "{shown}"
    );
    fixture.run(&["verify"]).ok();
}

/// One of them may have been suspended.
#[test]
fn a_command_says_for_whom_it_waits() {
    let (fixture, _) = three_images();
    for command in [["pin", "web01/1"], ["rm", "web01/2"], ["gc", "web01"]] {
        let lock = fixture.store().join("web01/reclaim.lock");
        let held = LockedFile::try_lock(fs::File::open(lock).unwrap()).unwrap();
        let mut waiting = Running::start(fixture.command().args(command));
        let mut stderr = BufReader::new(waiting.0.stderr.take().unwrap());
        let mut said = String::new();
        stderr.read_line(&mut said).unwrap();
        let pid = format!("(pid {})", std::process::id());
        assert!(
            said.contains("smc-image: waiting until") && said.contains(&pid),
            "{said}"
        );
        drop(held);
        assert!(waiting.0.wait().unwrap().success());
        said.clear();
        stderr.read_to_string(&mut said).unwrap();
        assert_eq!(said, "smc-image: the wait is over\n");
    }
    assert_eq!(listed(&fixture), ["web01/1", "web01/3"]);
}
