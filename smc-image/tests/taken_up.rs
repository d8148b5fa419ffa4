//! Images of a job that continues another one, and of a copied chain: each name leads to its own image.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::{Fixture, MIB, disk, noise};
use std::fs;
use testkit::program::{Running, tool, wait_for};

/// Chain `web01` with an image of `web01` and one of `web02`.
fn taken_up() -> Fixture {
    let fixture = Fixture::new();
    fixture.sync("web01", &[("vda", &disk(1))]);
    fixture.take_up("web02", "web01", &[("vda", &disk(2))]);
    fixture
}

#[test]
fn an_export_in_any_format_is_of_the_image_that_was_asked_for() {
    let fixture = taken_up();
    fixture.namesake("web01", &[("vda", &disk(3))]);
    let raw = fixture.file("expected.raw", &disk(2));
    let digest = fixture.run(&["digest", raw.to_str().unwrap()]).ok();
    let digest = digest.split_whitespace().next().unwrap();
    let formats = [
        ("raw", "raw"),
        ("qcow2", "qcow2"),
        ("vhd", "vpc"),
        ("vhdx", "vhdx"),
        ("vmdk", "vmdk"),
    ];
    for (extension, format) in formats {
        let file = fixture.join(&format!("disk.{extension}"));
        let said = fixture.run(&["--json", "export", "web02/2", file.to_str().unwrap()]);
        assert_eq!(said.code, Some(0), "{extension}: {said:?}");
        let [said] = said.objects().try_into().unwrap();
        assert_eq!(said["image"], "web02/2:vda");
        assert_eq!(said["digest"], digest, "{extension}");
        let (raw, file) = (raw.to_str().unwrap(), file.to_str().unwrap());
        tool("qemu-img", &["compare", "-f", "raw", "-F", format, raw, file]);
    }
}

#[test]
fn info_names_a_parent_that_exists() {
    let fixture = taken_up();
    fixture.take_up("web02", "web01", &[("vda", &disk(3))]);
    let parent = |image: &str| {
        let said = fixture.run(&["info", image]).ok();
        let line = said.lines().find(|line| line.starts_with("parent")).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert!(
        parent("web02/3").starts_with("web02/2 ("),
        "{}",
        parent("web02/3")
    );
    assert!(
        parent("web02/2").starts_with("web01/1 ("),
        "{}",
        parent("web02/2")
    );
    assert_eq!(parent("web01/1"), "none");
    let said = fixture.run(&["info", "--json", "web02/3"]).objects();
    assert_eq!(said[0]["parent_image"], "web02/2");
    fixture.run(&["rm", "web02/2"]).ok();
    assert!(
        parent("web02/3").starts_with("number 2, deleted ("),
        "{}",
        parent("web02/3")
    );
}

#[test]
fn what_keeps_an_image_is_said_of_that_image() {
    let fixture = taken_up();
    fixture.run(&["pin", "web02/2"]).ok();
    let refused = fixture.run(&["rm", "web02/2"]).fails(1);
    assert!(refused.contains("image web02/2 is pinned"), "{refused}");
    let refused = fixture.run(&["unpin", "web02/2", "--name", "other"]).fails(1);
    assert!(refused.contains("image web02/2 has no pin other"), "{refused}");
    fixture.run(&["unpin", "web02/2"]).ok();
    let socket = fixture.join("nbd.sock");
    let mut command = fixture.command();
    command.args(["serve", "web02/2", "--socket"]).arg(&socket);
    let server = Running::start(&mut command);
    wait_for("the server", || socket.exists());
    let refused = fixture.run(&["rm", "web02/2"]).fails(1);
    assert!(refused.contains("image web02/2 is in use by"), "{refused}");
    assert!(!refused.contains("web01/2"), "{refused}");
    drop(server);
}

#[test]
fn a_copied_chain_is_ignored_with_a_warning() {
    let fixture = Fixture::new();
    fixture.sync("web01", &[("vda", &noise(MIB, 1))]);
    let store = fixture.store();
    let path = |name: &str| store.join(name).to_str().unwrap().to_owned();
    tool("cp", &["-a", &path("web01"), &path("copy")]);
    let listed = fixture.run(&["ls", "--json"]);
    let images: Vec<_> = listed
        .objects()
        .iter()
        .map(|image| image["image"].clone())
        .collect();
    assert_eq!(images, ["web01/1"]);
    let warning = "copy is a copy of chain web01 and is ignored: move it out of the store";
    assert!(listed.stderr.contains(warning), "{}", listed.stderr);
    assert_eq!(listed.stderr.matches(warning).count(), 1, "{}", listed.stderr);
    let missing = fixture.run(&["info", "copy/1"]).fails(1);
    assert!(missing.contains("no job copy; it has: web01"), "{missing}");

    // What happens to the job happens in its own directory.
    fixture.sync("web01", &[("vda", &noise(MIB, 2))]);
    fixture.run(&["rm", "web01/1"]).ok();
    assert!(fs::exists(fixture.manifest("copy", 1)).unwrap());
    assert!(!fs::exists(fixture.manifest("web01", 1)).unwrap());
    assert!(fs::exists(fixture.manifest("web01", 2)).unwrap());
    let exports = fixture.join("nbd.sock");
    let mut command = fixture.command();
    command.args(["serve", "--json", "--socket"]).arg(&exports);
    let mut server = Running::start(&mut command);
    // One image with one disk: by number and as the latest, each with and without the disk's name, and the default.
    let names: Vec<String> = server.lines(5);
    assert!(
        names.iter().all(|line| line.contains("\"image\":\"web01/2\"")),
        "{names:?}"
    );
    drop(server);

    // It is the one that counts where the other is gone.
    fs::remove_dir_all(store.join("web01")).unwrap();
    let listed = fixture.run(&["ls", "--json"]);
    assert!(listed.stderr.is_empty(), "{}", listed.stderr);
    assert_eq!(listed.objects()[0]["image"], "web01/1");
    fixture.run(&["verify"]).ok();
}
