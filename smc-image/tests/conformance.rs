//! What every command keeps to: help, exit codes, and messages that name what they are about.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use common::{Fixture, SMC_IMAGE, disk_content};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use testkit::program::run;

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
