//! Images that are sent to a target: what arrives is what the disk holds, whatever happens to the line, to either side, and whatever a
//! source tries.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::Result;
use imagefmt::{Codec, Digest, DiskIdentity, DiskMeta};
use remote::{Link, LinkOptions, LinkWait, PushRequest, TargetFiles};
use serde_json::Value;
use smc_tests::target::{Line, Source, Target};
use smc_tests::{Bench, Disk, code, cuts, stderr};
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::process::{Child, Stdio};
use testkit::guard::Mount;
use testkit::process::{spawn, wait_for};
use wire::message::{Begin, BeginPass, Commit, EndPass, Nothing, Refusal};
use wire::{Id128, Message, Piece, PutBuilder, Root};

const MIB: u64 = 1 << 20;

/// A target with a source, and a disk with some noise on it.
struct Scene {
    bench: Bench,
    target: Target,
    source: Source,
    disk: Disk,
}

impl Scene {
    fn new(name: &str, settings: &str) -> Result<Scene> {
        let target = Target::new(&format!("{name}-target"), settings)?;
        let source = target.enrol("web01", target.address)?;
        let bench = Bench::new(name)?;
        let disk = bench.disk("disk.img", 96 * MIB)?;
        disk.write_noise(5 * MIB, 24 << 20, 1)?;
        disk.write_at(80 * MIB, &b"text ".repeat(100_000))?;
        Ok(Scene {
            bench,
            target,
            source,
            disk,
        })
    }

    /// A sync that is slow enough to be disturbed, once the target has a checkpoint of it.
    fn slow_sync(&self) -> Result<Child> {
        let mut command = self.source.sync_command(
            self.disk.path(),
            &["--send-limit", "6MiB", "--checkpoint-every", "0"],
        );
        let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let checkpoint = self.target.store("web01").join("web/checkpoint.json");
        wait_for("the target has a checkpoint", || checkpoint.exists());
        Ok(child)
    }

    fn newest(&self) -> String {
        let list = self.target.list().unwrap();
        list["sources"][0]["jobs"][0]["newest"].to_string()
    }
}

fn stored(report: &Value) -> u64 {
    report["disks"][0]["stored_bytes"].as_u64().unwrap()
}

#[test]
fn images_arrive_and_cost_what_changed_and_two_servers_with_a_job_of_one_name_never_meet() -> Result<()> {
    let scene = Scene::new("targets-life", "")?;
    let full = scene.source.sync(&scene.disk, &[])?;
    assert!(stored(&full) > 24 * MIB && stored(&full) < 30 * MIB, "{full}");
    scene.source.check("web/1", scene.disk.path())?;
    scene.disk.write_noise(60 * MIB, 1 << 20, 2)?;
    scene.disk.write_at(5 * MIB, &[0; 65536])?;
    let second = scene.source.sync(&scene.disk, &[])?;
    assert_eq!(second["disks"][0]["dirty_bytes"], 17 * 65536, "{second}");
    assert!(stored(&second) < 2 * MIB, "{second}");
    scene.source.check("web/2", scene.disk.path())?;
    let third = scene.source.sync(&scene.disk, &[])?;
    assert_eq!(third["disks"][0]["dirty_bytes"], 0);
    scene.source.check("web/latest", scene.disk.path())?;

    let other = scene.target.enrol("web02", scene.target.address)?;
    let other_disk = scene.bench.disk("other.img", 8 * MIB)?;
    other_disk.write_noise(0, 1 << 20, 3)?;
    other.sync(&other_disk, &[])?;
    other.check("web/1", other_disk.path())?;
    let list = scene.target.list()?;
    assert_eq!(list["sources"][0]["jobs"][0]["images"], 3, "{list}");
    assert_eq!(list["sources"][1]["jobs"][0]["images"], 1, "{list}");
    Ok(())
}

#[test]
fn a_source_without_rights_gets_nowhere() -> Result<()> {
    let scene = Scene::new("targets-rights", "")?;
    scene.source.sync(&scene.disk, &[])?;
    // An invitation was used up by the first enrolment.
    let line = testkit::process::run(&mut scene.target.command(&[
        "enrol",
        "web02",
        "--address",
        &scene.target.address.to_string(),
    ]))?;
    let forged = line.replace(":web02:", ":web01:");
    let add = |line: &str, name: &str| {
        let mut add = std::process::Command::new(smc_tests::program("smcd"));
        add.args(["target", "add", name, line.trim(), "--targets-directory"]);
        add.arg(scene.bench.dir.join("others")).output().unwrap()
    };
    // The name in the line is for people: the secret says who is invited.
    let added = add(&forged, "one");
    assert_eq!(code(&added), 0, "{added:?}");
    assert!(
        String::from_utf8_lossy(&added.stdout).contains("source web02"),
        "{added:?}"
    );
    let again = add(&line, "two");
    assert_eq!(code(&again), 1);
    assert!(stderr(&again).contains("was used already"), "{again:?}");

    testkit::process::run(&mut scene.target.command(&["revoke", "web01"]))?;
    let refused = scene.source.sync_command(scene.disk.path(), &[]).output()?;
    assert_eq!(code(&refused), 1);
    assert!(
        stderr(&refused).contains("not enrolled here (any more)"),
        "{refused:?}"
    );
    scene.source.check("web/1", scene.disk.path())?;
    Ok(())
}

#[test]
fn a_target_that_is_not_the_one_it_was_gets_nothing() -> Result<()> {
    let mut scene = Scene::new("targets-other", "")?;
    scene.source.sync(&scene.disk, &[])?;
    scene.target.kill();
    // Somebody else listens at the address, with an authority of its own.
    fs::remove_dir_all(scene.target.dir.join("state"))?;
    fs::create_dir(scene.target.dir.join("state"))?;
    scene.target.start()?;
    let refused = scene
        .source
        .sync_command(scene.disk.path(), &["--target-timeout", "1s"])
        .output()?;
    assert_eq!(code(&refused), 3, "{refused:?}");
    assert!(
        stderr(&refused).contains("is not the target that this machine knows"),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn a_line_that_is_cut_again_and_again_only_takes_longer() -> Result<()> {
    let scene = Scene::new("targets-cut", "")?;
    let line = Line::to(scene.target.address)?;
    let source = scene.target.enrol("web02", line.address)?;
    line.cut_every(1_700_001);
    source.sync(&scene.disk, &[])?;
    assert!(line.cuts() >= 10, "{}", line.cuts());
    source.check("web/1", scene.disk.path())?;
    line.count();
    scene.disk.write_noise(40 * MIB, 1 << 20, 4)?;
    source.sync(&scene.disk, &[])?;
    source.check("web/2", scene.disk.path())
}

/// At any byte: of the handshake, of a header, in the middle of a cluster, of the commit.
#[test]
fn a_line_that_is_cut_once_at_any_byte_costs_nothing() -> Result<()> {
    let scene = Scene::new("targets-byte", "")?;
    let line = Line::to(scene.target.address)?;
    let source = scene.target.enrol("web02", line.address)?;
    let disk = scene.bench.disk("small.img", 4 * MIB)?;
    line.count();
    source.sync(&disk, &[])?;
    let whole = line.passed();
    for (round, at) in (1..whole + 100).step_by(97).enumerate() {
        disk.write_noise((round as u64 % 60) * 65536, 1000, round as u64)?;
        line.cut_once_after(at);
        println!("round {round}, cut at {at} of {whole}");
        let report = source.sync(&disk, &[])?;
        source.check("web/latest", disk.path())?;
        assert_eq!(
            report["disks"][0]["dirty_bytes"], 65536,
            "round {round}, cut at {at}"
        );
    }
    Ok(())
}

/// A short `make test-target`.
#[test]
fn whatever_is_cut_or_killed_little_is_sent_twice() -> Result<()> {
    for counts in [
        cuts::cut(1, 3)?,
        cuts::kill_sources(1, 2)?,
        cuts::kill_targets(1, 2)?,
    ] {
        println!("{}", counts.in_short());
        assert!(counts.syncs >= 2, "{counts:?}");
    }
    Ok(())
}

#[test]
fn a_target_that_is_killed_has_what_was_durable_and_the_next_sync_resumes() -> Result<()> {
    let mut scene = Scene::new("targets-kill", "")?;
    let child = scene.slow_sync()?;
    scene.target.kill();
    scene.target.start()?;
    let ended = child.wait_with_output()?;
    assert_eq!(code(&ended), 1);
    assert!(
        stderr(&ended).contains("the next sync resumes this one"),
        "{ended:?}"
    );
    let resumed = scene.source.sync(&scene.disk, &[])?;
    assert_eq!(resumed["resumed"], true, "{resumed}");
    scene.source.check("web/latest", scene.disk.path())
}

#[test]
fn a_source_that_is_killed_leaves_what_came_and_nobody_waits_for_it() -> Result<()> {
    let scene = Scene::new("targets-source", "")?;
    let mut child = scene.slow_sync()?;
    child.kill()?;
    child.wait()?;
    let resumed = scene.source.sync(&scene.disk, &[])?;
    assert_eq!(resumed["resumed"], true, "{resumed}");
    scene.source.check("web/latest", scene.disk.path())
}

#[test]
fn two_syncs_of_one_job_at_once_take_turns() -> Result<()> {
    let scene = Scene::new("targets-twice", "")?;
    let child = scene.slow_sync()?;
    // It waits for ten seconds, in which the first one may be done.
    let second = scene.source.sync_command(scene.disk.path(), &[]).output()?;
    let said = stderr(&second);
    assert!(
        second.status.success() || said.contains("another process writes"),
        "{second:?}"
    );
    let first = child.wait_with_output()?;
    assert_eq!(code(&first), 0, "{first:?}");
    scene.source.check("web/1", scene.disk.path())?;
    scene.source.check("web/latest", scene.disk.path())
}

#[test]
fn a_target_that_is_away_for_a_while_is_waited_for() -> Result<()> {
    let scene = Scene::new("targets-away", "")?;
    let line = Line::to(scene.target.address)?;
    let source = scene.target.enrol("web02", line.address)?;
    let said = scene.bench.dir.join("said");
    let mut command = source.sync_command(scene.disk.path(), &["--send-limit", "12MiB"]);
    let mut child = spawn(command.stdout(Stdio::null()).stderr(fs::File::create(&said)?))?;
    line.count();
    wait_for("something is sent", || line.passed() > 4 * MIB);
    line.set_down(true);
    let told = |what: &str| fs::read_to_string(&said).unwrap().contains(what);
    wait_for("it is told", || told("the sync is held up: "));
    line.set_down(false);
    assert_eq!(child.wait()?.code(), Some(0));
    assert!(told("no longer held up"));
    source.check("web/1", scene.disk.path())
}

#[test]
fn a_target_that_was_set_back_is_told_and_the_next_image_is_right() -> Result<()> {
    let mut scene = Scene::new("targets-back", "")?;
    scene.source.sync(&scene.disk, &[])?;
    let (store, kept) = (scene.target.store("web01"), scene.target.dir.join("kept"));
    scene.target.kill();
    testkit::process::run(std::process::Command::new("cp").arg("-a").args([&store, &kept]))?;
    scene.target.start()?;
    scene.disk.write_noise(50 * MIB, 1 << 20, 5)?;
    scene.source.sync(&scene.disk, &[])?;
    scene.target.kill();
    fs::remove_dir_all(&store)?;
    fs::rename(&kept, &store)?;
    scene.target.start()?;
    scene.disk.write_noise(55 * MIB, 1 << 20, 6)?;
    let output = scene.source.sync_command(scene.disk.path(), &[]).output()?;
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(
        stderr(&output).contains("set back to an earlier state"),
        "{output:?}"
    );
    scene.source.check("web/latest", scene.disk.path())
}

#[test]
fn a_quota_ends_a_sync_and_keeps_every_image() -> Result<()> {
    let mut scene = Scene::new("targets-quota", "quota = '40MiB'")?;
    scene.source.sync(&scene.disk, &[])?;
    scene.disk.write_noise(40 * MIB, 24 << 20, 7)?;
    let refused = scene.source.sync_command(scene.disk.path(), &[]).output()?;
    assert_eq!(code(&refused), 1);
    assert!(
        stderr(&refused).contains("the quota of this source, 40 MiB, is used up"),
        "{refused:?}"
    );
    assert_eq!(scene.newest(), "1");
    scene.target.configure("quota = '80MiB'")?;
    scene.target.kill();
    scene.target.start()?;
    scene.source.sync(&scene.disk, &[])?;
    scene.source.check("web/latest", scene.disk.path())
}

#[test]
fn retention_is_the_targets_and_an_image_that_is_strange_ends_it() -> Result<()> {
    let scene = Scene::new("targets-retention", "max_images = 3\nkeep_within = '0s'")?;
    for round in 0..6 {
        scene.disk.write_noise(30 * MIB, 100_000, round)?;
        scene.source.sync(&scene.disk, &[])?;
    }
    let images = |scene: &Scene| scene.target.list().unwrap()["sources"][0]["jobs"][0]["images"].clone();
    assert_eq!(images(&scene), 3);
    // As if somebody had encrypted the disk.
    scene.disk.write_noise(0, 96 << 20, 99)?;
    scene.source.sync(&scene.disk, &[])?;
    for round in 0..3 {
        scene.disk.write_noise(30 * MIB, 100_000, round)?;
        scene.source.sync(&scene.disk, &[])?;
    }
    assert_eq!(images(&scene), 7, "nothing is deleted");
    let list = scene.target.list()?;
    assert!(
        list["sources"][0]["frozen"]["reason"]
            .as_str()
            .unwrap()
            .contains("% of the disks"),
        "{list}"
    );
    scene.source.check("web/latest", scene.disk.path())?;
    testkit::process::run(&mut scene.target.command(&["accept", "web01"]))?;
    scene.source.sync(&scene.disk, &[])?;
    assert_eq!(images(&scene), 7, "one is deleted, one came");
    Ok(())
}

#[test]
fn a_sync_that_has_ended_holds_no_image() -> Result<()> {
    let scene = Scene::new("targets-held", "")?;
    for round in 0..2 {
        scene.disk.write_noise(30 * MIB, 100_000, round)?;
        scene.source.sync(&scene.disk, &[])?;
    }
    // The second one was compared with it.
    wait_for("the image can be deleted", || {
        code(&scene.source.image(&["rm", "web/1"]).unwrap()) == 0
    });
    Ok(())
}

#[test]
fn an_image_younger_than_it_may_be_is_not_deleted() -> Result<()> {
    let scene = Scene::new("targets-young", "max_images = 1\nkeep_within = '1day'")?;
    for round in 0..3 {
        scene.disk.write_noise(30 * MIB, 100_000, round)?;
        scene.source.sync(&scene.disk, &[])?;
    }
    assert_eq!(scene.target.list()?["sources"][0]["jobs"][0]["images"], 3);
    Ok(())
}

#[test]
fn a_tracked_sync_reads_and_asks_for_only_what_changed() -> Result<()> {
    let scene = Scene::new("targets-tracked", "")?;
    let bpf = scene.bench.dir.join("bpf");
    let _bpf = Mount::bpf(&bpf)?;
    let tracked = |more: &[&str]| {
        let directory = bpf.join("smc").to_string_lossy().into_owned();
        scene.source.sync(
            &scene.disk,
            &[&["--track", "--tracker-directory", &directory], more].concat(),
        )
    };
    tracked(&[])?;
    scene.disk.write_noise(70 * MIB, 300_000, 8)?;
    let second = tracked(&[])?;
    assert_eq!(second["disks"][0]["method"], "tracked", "{second}");
    assert!(
        second["disks"][0]["compared_bytes"].as_u64().unwrap() < 64 * MIB,
        "{second}"
    );
    scene.source.check("web/latest", scene.disk.path())
}

#[test]
fn a_key_that_is_renewed_during_a_sync_is_the_one_that_its_next_connections_show() -> Result<()> {
    let scene = Scene::new("targets-renewed", "")?;
    let line = Line::to(scene.target.address)?;
    let source = scene.target.enrol("web02", line.address)?;
    let mut command = source.sync_command(scene.disk.path(), &["--send-limit", "4MiB"]);
    let child = spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
    line.count();
    wait_for("something is sent", || line.passed() > 4 * MIB);
    let files = TargetFiles::open(&source.directory, "backup")?;
    remote::renew(&files)?;
    // The new one is shown: the target takes the old one no more.
    remote::status(&files)?;
    line.set_down(true);
    line.set_down(false);
    let ended = child.wait_with_output()?;
    assert_eq!(code(&ended), 0, "{ended:?}");
    source.check("web/1", scene.disk.path())
}

#[test]
fn renewals_at_the_same_time_leave_a_key_that_the_target_takes() -> Result<()> {
    let scene = Scene::new("targets-renewals", "")?;
    let files = TargetFiles::open(&scene.source.directory, "backup")?;
    let renew = || (0..4).for_each(|_| remote::renew(&files).unwrap());
    std::thread::scope(|scope| {
        (0..4).for_each(|_| {
            scope.spawn(renew);
        });
        // What others do at the same time goes on.
        scope.spawn(|| (0..20).for_each(|_| drop(remote::status(&files).unwrap())));
    });
    // None of them is old now.
    let kept = files.credentials()?;
    remote::renew_if_old(&files)?;
    assert_eq!(files.credentials()?, kept);
    scene.source.sync(&scene.disk, &[])?;
    scene.source.check("web/1", scene.disk.path())
}

#[test]
fn a_source_that_loses_its_rights_loses_its_running_sync_too() -> Result<()> {
    let scene = Scene::new("targets-revoked", "")?;
    let child = scene.slow_sync()?;
    testkit::process::run(&mut scene.target.command(&["revoke", "web01"]))?;
    let ended = child.wait_with_output()?;
    assert_eq!(code(&ended), 1, "{ended:?}");
    assert!(
        stderr(&ended).contains("not enrolled here (any more)"),
        "{ended:?}"
    );
    let checkpoint = scene.target.store("web01").join("web/checkpoint.json");
    assert!(checkpoint.exists(), "what came is kept");
    Ok(())
}

#[test]
fn a_sync_that_can_send_nothing_although_the_target_answers_ends_and_says_why() -> Result<()> {
    let scene = Scene::new("targets-lanes", "")?;
    let line = Line::to(scene.target.address)?;
    let source = scene.target.enrol("web02", line.address)?;
    // The control connection, and none beside it.
    line.set_most(1);
    let ended = source
        .sync_command(scene.disk.path(), &["--target-timeout", "8s"])
        .output()?;
    assert_eq!(code(&ended), 1, "{ended:?}");
    let said = stderr(&ended);
    assert!(
        said.contains("the sync is held up: no data connection to the target can be made"),
        "{said}"
    );
    line.set_most(u64::MAX);
    source.sync(&scene.disk, &[])?;
    source.check("web/latest", scene.disk.path())
}

#[test]
fn a_machine_that_is_enrolled_again_goes_on_with_its_images() -> Result<()> {
    let scene = Scene::new("targets-again", "")?;
    scene.source.sync(&scene.disk, &[])?;
    let line_for = |args: &[&str]| -> Result<String> {
        let address = scene.target.address.to_string();
        let enrol = [&["enrol"], args, &["--address", &address]].concat();
        let line = testkit::process::run(&mut scene.target.command(&enrol))?;
        Ok(line.trim().to_owned())
    };
    let add = |line: &str, more: &[&str]| {
        let mut add = std::process::Command::new(smc_tests::program("smcd"));
        add.args(["target", "add", "backup", line, "--targets-directory"]);
        add.arg(&scene.source.directory).args(more).output().unwrap()
    };
    let other = add(&line_for(&["web02"])?, &["--again"]);
    assert!(
        stderr(&other).contains("this machine is source web01"),
        "{other:?}"
    );
    // Its key is gone, as if it had been too long out of use.
    fs::remove_file(scene.source.directory.join("backup/identity.json"))?;
    let line = line_for(&["web01", "--again"])?;
    let known = add(&line, &[]);
    assert!(
        stderr(&known).contains("enrol at that one again with --again"),
        "{known:?}"
    );
    let again = add(&line, &["--again"]);
    assert_eq!(code(&again), 0, "{again:?}");
    let second = scene.source.sync_command(scene.disk.path(), &[]).output()?;
    let report: Value = serde_json::from_slice(&second.stdout)?;
    assert_eq!(report["disks"][0]["dirty_bytes"], 0, "{report}");
    // What it remembers of its images there is kept.
    assert!(scene.source.directory.join("backup/job-web.json").exists());
    Ok(())
}

struct Wanted;

impl LinkWait for Wanted {
    fn is_wanted(&self) -> bool {
        true
    }

    fn held_up(&self, _: Option<&str>) {}
}

/// A source that has rights and keeps to no rules.
struct Hostile {
    link: Link,
}

impl Hostile {
    fn begin(source: &Source, disk: &str, bytes: u64) -> Result<Hostile> {
        let files = TargetFiles::open(&source.directory, "backup")?;
        let link = Link::begin(&files, LinkOptions::default())?;
        let hostile = Hostile { link };
        let begin = Begin {
            run: Id128([7; 16]),
            request: serde_json::to_value(PushRequest {
                job: "web".to_owned(),
                take_up: None,
                cluster_bytes: None,
                owner: None,
                may_shrink: false,
            })?,
            disks: vec![serde_json::to_value(DiskMeta {
                name: disk.to_owned(),
                size_bytes: bytes,
                logical_block_size: 512,
                identity: DiskIdentity::default(),
            })?],
        };
        hostile.link.ask(Message::Begin(begin), &Wanted)?;
        Ok(hostile)
    }

    fn begin_pass(&self) -> Result<()> {
        let begin = BeginPass {
            disk: 0,
            method: "scan".into(),
            reason: String::new(),
        };
        self.link.ask(Message::BeginPass(begin), &Wanted)?;
        Ok(())
    }

    fn put(&self, cluster: u64, digest: Digest, stored: &[u8]) -> Result<()> {
        let mut builder = PutBuilder::default();
        let piece = Piece {
            cluster,
            codec: Codec::Raw as u8,
            digest: digest.0,
            stored,
        };
        builder.push(0, &piece);
        self.link.send(Message::Put(builder.take()?.unwrap()), &Wanted)?;
        Ok(())
    }

    /// What the target answers in the end.
    fn commit(&self, digest: Digest) -> remote::Error {
        let end = EndPass {
            disk: 0,
            compared_bytes: 0,
        };
        let commit = Commit {
            run: Id128([7; 16]),
            consistency: "offline".into(),
            reason: String::new(),
            disks: vec![Root(digest.0)],
        };
        let sent = self.link.send(Message::EndPass(end), &Wanted);
        let asked = sent.and_then(|_| self.link.ask(Message::Commit(commit), &Wanted));
        asked.expect_err("the target has committed it")
    }
}

fn refused(error: &remote::Error, code: Refusal) {
    assert_eq!(
        error.kind(),
        remote::ErrorKind::Refused(code),
        "{}",
        error.full_message()
    );
}

#[test]
fn what_a_source_sends_that_is_not_true_is_not_committed() -> Result<()> {
    let scene = Scene::new("targets-hostile", "")?;
    scene.source.sync(&scene.disk, &[])?;
    let size = 96 * MIB;
    let noise = vec![0xA5; 65536];

    let other_digest = Hostile::begin(&scene.source, "vda", size)?;
    other_digest.begin_pass()?;
    other_digest.put(3, Digest([9; 32]), &noise)?;
    refused(&other_digest.commit(Digest::NULL), Refusal::Damaged);

    let other_root = Hostile::begin(&scene.source, "vda", size)?;
    other_root.begin_pass()?;
    other_root.put(3, Digest::of_cluster(&noise), &noise)?;
    refused(&other_root.commit(Digest([9; 32])), Refusal::Mismatch);

    let behind_the_end = Hostile::begin(&scene.source, "vda", size)?;
    behind_the_end.begin_pass()?;
    behind_the_end.put(u64::MAX, Digest::of_cluster(&noise), &noise)?;
    refused(&behind_the_end.commit(Digest::NULL), Refusal::Damaged);

    let no_pass = Hostile::begin(&scene.source, "vda", size)?;
    no_pass.put(3, Digest::of_cluster(&noise), &noise)?;
    refused(&no_pass.commit(Digest::NULL), Refusal::Invalid);

    let out_of_order = Hostile::begin(&scene.source, "vda", size)?;
    out_of_order.link.send(Message::Left(Nothing {}), &Wanted)?;
    refused(&out_of_order.commit(Digest::NULL), Refusal::Protocol);

    // Neither another disk nor a name that leads out of the store.
    for name in ["vdz", "../../etc", ""] {
        let error = Hostile::begin(&scene.source, name, size).err().unwrap();
        refused(error.downcast_ref().unwrap(), Refusal::Invalid);
    }
    assert_eq!(scene.newest(), "1");
    scene.source.check("web/1", scene.disk.path())?;
    scene.source.sync(&scene.disk, &[])?;
    scene.source.check("web/latest", scene.disk.path())
}

/// There are far more of them than may wait to show who they are: a new one takes the place of the one that waited longest.
#[test]
fn clients_that_say_nothing_keep_no_source_out() -> Result<()> {
    let scene = Scene::new("targets-silent", "")?;
    let mut silent: Vec<_> = (0..400)
        .map(|_| TcpStream::connect(scene.target.address).unwrap())
        .collect();
    scene.source.sync(&scene.disk, &[])?;
    wait_for("the target says whom it has turned out", || {
        scene.target.log().contains("too many such clients are connected")
    });
    for one in &mut silent[..300] {
        assert_eq!(one.read(&mut [0]).unwrap_or(0), 0, "it is still connected");
    }
    drop(silent);
    scene.source.check("web/1", scene.disk.path())
}

#[test]
fn a_target_that_is_asked_to_stop_keeps_what_came() -> Result<()> {
    let scene = Scene::new("targets-stop", "")?;
    let child = scene.slow_sync()?;
    let mut target = scene.target;
    assert_eq!(target.stop()?, Some(0));
    // The source waits for it to come back, and learns then that it has to begin anew.
    target.start()?;
    let ended = child.wait_with_output()?;
    assert_eq!(code(&ended), 1, "{ended:?}");
    let resumed = scene.source.sync(&scene.disk, &["--connections", "1"])?;
    assert_eq!(resumed["resumed"], true, "{resumed}");
    scene.source.check("web/latest", scene.disk.path())
}
