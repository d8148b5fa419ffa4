//! What every command keeps to: help, exit codes, and messages that name what they are about.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use common::{Fixture, SMC_IMAGE, disk_content};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use testkit::program::{run, run_unheard};

/// Every command but umount, with arguments it takes; `path` is a file's.
fn commands(image: &str, path: &str) -> Vec<Vec<String>> {
    let dir = Path::new(path).parent().unwrap().display();
    let words = |line: String| line.split(' ').map(str::to_owned).collect();
    vec![
        words("ls".to_owned()),
        words(format!("info {image}")),
        words("verify".to_owned()),
        words(format!("digest {image}")),
        words(format!("diff {image} {image}")),
        words(format!("map {image}")),
        words(format!("serve {image} --socket {path}.sock")),
        words(format!("export {image} {path}")),
        words(format!("restore --yes {image} {path}")),
        words(format!("mount {image} {dir}")),
    ]
}

/// The same with a path in a directory that does not exist, save for mount, which looks there first.
fn on_missing_paths(image: &str) -> Vec<Vec<String>> {
    let mut commands = commands(image, "/nonexistent/x");
    commands.retain(|words| words[0] != "mount");
    commands
}

#[test]
fn help_is_there_for_every_command() {
    let mut all: Vec<String> = commands("a/1", "/x")
        .into_iter()
        .map(|mut words| words.remove(0))
        .collect();
    all.push("umount".to_owned());
    for command in all {
        let help = run(Command::new(SMC_IMAGE).args([&command, "--help"])).ok();
        assert!(
            help.contains("Usage: smc-image") && help.contains("--json"),
            "{help}"
        );
    }
    let help = run(Command::new(SMC_IMAGE).arg("--help")).ok();
    assert!(
        help.contains("/var/lib/smc/store") && help.contains("SMC_STORE") && help.contains("3 damage"),
        "{help}"
    );
    assert!(
        run(Command::new(SMC_IMAGE).arg("--version"))
            .ok()
            .starts_with("smc-image ")
    );
}

#[test]
fn wrong_use_is_2() {
    let fixture = Fixture::new();
    for command in commands("a/1", "/x") {
        fixture.run(&[&command[0], "--no-such-option"]).fails(2);
    }
    fixture.run(&["umount", "--no-such-option"]).fails(2);
    fixture.run(&["no-such-command"]).fails(2);
    fixture.run(&[]).fails(2);
    for bad in ["web01", "../1", "web01/x", "web01/1:../y"] {
        let said = fixture.run(&["info", bad]).fails(2);
        assert!(
            said.contains("JOB/NUMBER") || said.contains("does not fit"),
            "{said}"
        );
    }
    fixture.run(&["verify", "web01/1:vda"]).fails(2);
    fixture
        .run(&["digest", "web01/1", "--cluster-size", "32K"])
        .fails(2);
}

#[test]
fn missing_store_is_named_with_the_way_on() {
    let fixture = Fixture::new();
    let missing = fixture.join("nowhere");
    let empty = fixture.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let target = fixture.file("target", &[0; 4096]);
    for store in [missing, empty] {
        let mut all = commands("a/1", target.to_str().unwrap());
        all.extend(on_missing_paths("a/1"));
        all.push(
            ["serve", "--socket", "/nonexistent/s"]
                .map(str::to_owned)
                .to_vec(),
        );
        for command in all {
            let said = run(Command::new(SMC_IMAGE).arg("--store").arg(&store).args(&command)).fails(1);
            assert!(
                said.starts_with("smc-image: ") && said.contains(store.to_str().unwrap()),
                "{command:?}: {said}"
            );
            assert!(said.contains("SMC_STORE"), "{command:?}: {said}");
        }
    }
}

#[test]
fn store_is_taken_from_the_environment() {
    let fixture = Fixture::new();
    fixture.sync("web01", &[("vda", &disk_content(300_000, 1))]);
    let listed = run(Command::new(SMC_IMAGE)
        .env("SMC_STORE", fixture.store())
        .arg("ls"))
    .ok();
    assert!(listed.contains("web01/1"), "{listed}");
}

#[test]
fn unknown_images_are_named_with_those_that_exist() {
    let fixture = Fixture::new();
    fixture.sync("web01", &[("vda", &disk_content(300_000, 1))]);
    let target = fixture.file("target", &[0; 4096]);
    for image in ["web01/9", "other/1"] {
        let mut all = commands(image, target.to_str().unwrap());
        all.extend(on_missing_paths(image));
        for command in all {
            if command.len() == 1 {
                continue;
            }
            let said = fixture
                .run(&command.iter().map(String::as_str).collect::<Vec<_>>())
                .fails(1);
            let known = if image == "other/1" {
                "web01"
            } else {
                "images of web01: 1"
            };
            assert!(
                said.contains(known) && said.trim_end().lines().count() <= 2,
                "{command:?}: {said}"
            );
        }
    }
    let said = fixture.run(&["map", "web01/1:vdz"]).fails(1);
    assert!(said.contains("vdz") && said.contains("vda"), "{said}");
    assert!(fixture.run(&["ls", "other"]).fails(1).contains("web01"));
}

#[test]
fn damaged_store_is_3() {
    let fixture = Fixture::new();
    fixture.sync("web01", &[("vda", &disk_content(300_000, 1))]);
    let target = fixture.file("target", &vec![0; 300_000]);
    fixture.damage(&fixture.manifest("web01", 1), b"\"consistency\"");
    for command in commands("web01/1", target.to_str().unwrap()) {
        let ended = fixture.run(&command.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ended.code, Some(3), "{command:?}: {ended:?}");
        assert!(
            format!("{}{}", ended.stdout, ended.stderr).contains("web01/1"),
            "{command:?}: {ended:?}"
        );
    }
    fixture.damage(&fixture.store().join("store.json"), b"\"format\"");
    fixture.run(&["ls"]).fails(3);
}

#[test]
fn reader_that_leaves_is_no_failure() {
    let fixture = Fixture::new();
    // Every other cluster is zero: a map of many lines.
    let mut content = disk_content(48 << 20, 3);
    content
        .chunks_mut(16 << 10)
        .step_by(2)
        .for_each(|cluster| cluster.fill(0));
    fixture.sync_with("web01", imagefmt::ClusterSize::K16, &[("vda", &content)]);
    for args in [vec!["map", "web01/1"], vec!["map", "web01/1", "--json"]] {
        let mut child = fixture
            .command()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 10];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    }
}

/// What a command ends with if nobody ever reads what it prints.
fn code_without_a_reader(fixture: &Fixture, args: &[&str]) -> Option<i32> {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = fixture.command();
    command.args(args).stdout(writer).stderr(Stdio::null());
    command.status().unwrap().code()
}

/// The exit code is an answer too, and what a command does is done whether or not somebody reads on.
#[test]
fn without_a_reader_the_exit_code_is_the_same() {
    let fixture = Fixture::new();
    for seed in 1..=4 {
        fixture.sync("web01", &[("vda", &disk_content(300_000, seed))]);
    }
    assert_eq!(code_without_a_reader(&fixture, &["verify"]), Some(0));
    fixture.damage_cluster("web01", &disk_content(300_000, 4)[..64 << 10]);
    fixture.damage(&fixture.manifest("web01", 1), b"\"consistency\"");
    for args in [
        vec!["verify"],
        vec!["verify", "--json"],
        vec!["ls"],
        vec!["ls", "--json"],
    ] {
        assert_eq!(code_without_a_reader(&fixture, &args), Some(3), "{args:?}");
    }
    assert_eq!(
        code_without_a_reader(&fixture, &["rm", "web01/2", "web01/4"]),
        Some(3)
    );
    assert!(!fixture.manifest("web01", 2).exists() && !fixture.manifest("web01", 4).exists());
}

/// Two ranges are printed before the damage is met.
#[test]
fn a_comparison_without_a_reader_still_finds_damage() {
    const CLUSTER: usize = 64 << 10;
    let fixture = Fixture::new();
    let mut content = testkit::noise(18 << 20, 1);
    fixture.sync("web01", &[("vda", &content)]);
    for cluster in [0, 2, 260] {
        content[cluster * CLUSTER..][..CLUSTER].copy_from_slice(&testkit::noise(CLUSTER, 2 + cluster as u64));
    }
    fixture.sync("web01", &[("vda", &content)]);
    assert_eq!(
        code_without_a_reader(&fixture, &["diff", "web01/1", "web01/2"]),
        Some(0)
    );
    // The second leaf follows its only cluster that is stored here.
    let layer = fixture.layer("web01", 2);
    let mut bytes = std::fs::read(&layer).unwrap();
    let stored = common::find(&bytes, &content[260 * CLUSTER..][..CLUSTER]).unwrap();
    bytes[stored + CLUSTER + 40] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    for json in [&[][..], &["--json"]] {
        let args = [&["diff", "web01/1", "web01/2"], json].concat();
        assert_eq!(code_without_a_reader(&fixture, &args), Some(3), "{args:?}");
    }
}

/// A part of the store that cannot be listed is told, and nothing is taken for what is left.
#[test]
fn what_cannot_be_listed_is_told_and_never_passed_over() {
    let fixture = Fixture::new();
    fixture.sync("db", &[("vda", &disk_content(300_000, 1))]);
    fixture.sync("web01", &[("vda", &disk_content(300_000, 2))]);
    let images = fixture.store().join("web01/images");
    std::fs::rename(&images, fixture.join("aside")).unwrap();
    std::fs::write(&images, "no directory").unwrap();
    for args in [
        vec!["ls"],
        vec!["verify"],
        vec!["gc"],
        vec!["ls", "--json"],
        vec!["verify", "--json"],
    ] {
        let said = fixture.run(&args);
        let text = format!("{}{}", said.stdout, said.stderr);
        assert_eq!(said.code, Some(1), "{args:?}: {text}");
        assert!(
            text.contains("chain web01") && text.contains("cannot be listed"),
            "{args:?}: {text}"
        );
        assert!(text.contains("db"), "{args:?}: {text}");
    }
    fixture.run(&["digest", "db/latest"]).ok();
    for args in [
        vec!["digest", "web01/latest"],
        vec!["rm", "web01/1"],
        vec!["pin", "web01/1"],
        vec!["ls", "web01"],
        vec!["gc", "web01"],
        vec!["info", "nobody/1"],
    ] {
        let said = fixture.run(&args).fails(1);
        assert!(
            said.contains("chain web01") && said.contains("cannot be listed"),
            "{args:?}: {said}"
        );
    }
    std::fs::remove_file(&images).unwrap();
    std::fs::rename(fixture.join("aside"), &images).unwrap();
    // A file beside the chains is none.
    std::fs::write(fixture.store().join("README"), "about this store").unwrap();
    fixture.run(&["ls"]).ok();
    fixture.run(&["verify"]).ok();
}

/// Nobody reads what it says: stderr on a full disk, cron's pipe closed. It does its work, or fails, and never panics.
#[test]
fn nothing_panics_where_nothing_can_be_printed() {
    let fixture = Fixture::new();
    let content = disk_content(300_000, 1);
    fixture.sync("web01", &[("vda", &content)]);
    fixture.sync("web01", &[("vda", &disk_content(300_000, 2))]);
    let damaged = fixture.sync("broken", &[("vda", &disk_content(300_000, 3))]);
    fixture.damage_cluster("broken", &disk_content(300_000, 3));
    assert_eq!(damaged.sequence, 1);
    let target = fixture.file("target", &vec![0; 400_000]);
    let target = target.to_str().unwrap();
    let exported = fixture.join("unheard.raw");
    let exported = exported.to_str().unwrap();
    let mut all = vec![
        vec!["--help"],
        vec!["--version"],
        vec!["no-such-command"],
        vec!["completions", "bash"],
    ];
    for image in ["web01/1", "broken/1", "none/1"] {
        all.extend([
            vec!["info", image],
            vec!["digest", image, "--recompute"],
            vec!["diff", "web01/2", image],
            vec!["map", image],
            vec!["verify", image],
            vec!["verify", image, "--against", target],
            vec!["export", image, exported, "--force"],
            vec!["restore", image, target],
            vec!["restore", "--yes", image, target],
            vec!["pin", image, "--name", "x"],
            vec!["unpin", image, "--name", "x"],
            vec!["serve", image, "--socket", "/nonexistent/s"],
            vec!["mount", image, "/nonexistent"],
        ]);
    }
    all.extend([
        vec!["ls"],
        vec!["gc"],
        vec!["umount", "/nonexistent"],
        vec!["rm", "none/1"],
    ]);
    for args in all {
        for json in [false, true] {
            run_unheard(|| {
                let mut command = fixture.command();
                command.args(&args).args(json.then_some("--json"));
                command
            });
        }
    }
    // What was said is lost, what was done is not.
    run_unheard(|| {
        let image = fixture.sync("gone", &[("vda", &content)]);
        let mut command = fixture.command();
        command.args(["rm", &format!("gone/{}", image.sequence)]);
        command
    });
    assert!(!fixture.run(&["ls"]).stdout.contains("gone/"));
}

/// A script that looks whether there is help gets to know that it was not written.
#[test]
fn help_that_cannot_be_written_is_a_failure() {
    for args in ["--help", "--version"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let ended = Command::new(SMC_IMAGE).arg(args).stdout(full).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(
            String::from_utf8_lossy(&ended.stderr).contains("stdout"),
            "{ended:?}"
        );
    }
}
