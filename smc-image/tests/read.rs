//! ls, info, verify, digest, diff and map, on stores made by the format's library.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use common::{Fixture, MIB, SMC_IMAGE, disk_content, noise};
use imagefmt::ClusterSize;
use serde_json::json;
use std::process::Command;
use testkit::guard::LoopDevice;
use testkit::process::Server;
use testkit::program::run;

#[test]
fn ls_shows_every_image() {
    let fixture = Fixture::new();
    assert!(fixture.run(&["ls"]).ok().contains("no images"));
    let mut content = disk_content(2 * MIB, 1);
    fixture.sync("web01", &[("vda", &content), ("vdb", &noise(MIB, 9))]);
    content[0] ^= 1;
    fixture.sync("web01", &[("vda", &content), ("vdb", &noise(MIB, 9))]);
    fixture.sync("db", &[("sda", &noise(MIB, 2))]);

    let listed = fixture.run(&["ls"]).ok();
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 4, "{listed}");
    assert!(
        lines[0].starts_with("IMAGE ") && lines[0].ends_with("BOOTED"),
        "{listed}"
    );
    assert!(lines[1].starts_with("db/1 "), "{listed}");
    for word in ["web01/2 ", "incremental", "scan", "crash", "3 MiB", "64 KiB"] {
        assert!(lines[3].contains(word), "{word} in {listed}");
    }
    assert_eq!(fixture.run(&["ls", "db"]).ok().lines().count(), 2);

    let objects = fixture.run(&["ls", "web01", "--json"]).objects();
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[1]["parent"]["id"], objects[0]["id"]);
    assert_eq!(objects[1]["dirty_bytes"], 65536);
    assert_eq!(objects[1]["size_bytes"], 3 * MIB);
    assert_eq!(objects[0]["parent"], json!(null));
}

#[test]
fn ls_goes_on_past_a_damaged_manifest() {
    let fixture = Fixture::new();
    fixture.sync("web01", &[("vda", &noise(MIB, 1))]);
    fixture.sync("web01", &[("vda", &noise(MIB, 2))]);
    fixture.damage(&fixture.manifest("web01", 1), b"\"kind\"");
    let listed = fixture.run(&["ls"]);
    assert_eq!(listed.code, Some(3));
    let lines: Vec<&str> = listed.stdout.lines().collect();
    assert!(
        lines[1].starts_with("web01/1  damaged: ") && lines[2].starts_with("web01/2 "),
        "{listed:?}"
    );
    let objects = fixture.run(&["ls", "--json"]).objects();
    assert_eq!(
        (&objects[0]["damaged"], &objects[1]["image"]),
        (&json!(true), &json!("web01/2"))
    );
}

#[test]
fn info_shows_what_is_recorded() {
    let fixture = Fixture::new();
    let manifest = fixture.sync(
        "web01",
        &[("vda", &disk_content(2 * MIB, 1)), ("vdb", &noise(MIB, 9))],
    );
    let shown = fixture.run(&["info", "web01/latest", "--unreadable"]).ok();
    let digest = format!("smc1-64k:{}", manifest.disks[0].digest);
    let id = manifest.id.to_string();
    for text in [
        "web01/1:vda",
        "web01/1:vdb",
        "serial-vda",
        "made by a test",
        "1 layer",
        "nothing",
        &digest,
        &id,
    ] {
        assert!(shown.contains(text), "{text} in {shown}");
    }
    assert!(!fixture.run(&["info", "web01/1:vdb"]).ok().contains("vda"));
    let object = &fixture.run(&["info", "web01/1", "--json"]).objects()[0];
    assert_eq!(object["disks"][0]["digest"], digest);
    assert_eq!(object["disks"][1]["size_bytes"], MIB);
    assert_eq!(object["chain"]["name"], "web01");
}

#[test]
fn verify_finds_a_flipped_bit_in_every_image_that_has_it() {
    let fixture = Fixture::new();
    let mut content = noise(4 * MIB, 1);
    fixture.sync("web01", &[("vda", &content)]);
    content[3 * MIB] ^= 1;
    fixture.sync("web01", &[("vda", &content)]);
    fixture.sync("db", &[("sda", &noise(MIB, 2))]);
    let good = fixture.run(&["verify"]).ok();
    assert!(
        good.contains("db/1: good") && good.contains("3 images verified") && good.contains("no damage"),
        "{good}"
    );

    fixture.damage(&fixture.layer("web01", 1), &content[5 * 65536..][..64]);
    let found = fixture.run(&["verify"]);
    assert_eq!(found.code, Some(3));
    for text in [
        "web01/1:vda cluster 5 (byte 327680)",
        "web01/2:vda cluster 5",
        "db/1: good",
        "2 damaged, 2 findings",
    ] {
        assert!(found.stdout.contains(text), "{text} in {found:?}");
    }
    fixture.run(&["verify", "db"]).ok();
    let objects = fixture.run(&["verify", "--json", "web01/2"]).objects();
    assert_eq!(objects[0]["type"], "finding");
    assert_eq!(
        (&objects[0]["offset"], &objects[0]["cluster_count"]),
        (&json!(327_680), &json!(1))
    );
    assert_eq!(
        (&objects[1]["good"], &objects[2]["damaged_images"]),
        (&json!(false), &json!(1))
    );
}

#[test]
fn verify_counts_findings_past_twenty() {
    let fixture = Fixture::new();
    let content = noise(4 * MIB, 1);
    fixture.sync("web01", &[("vda", &content)]);
    let layer = fixture.layer("web01", 1);
    for cluster in (0..64).step_by(2) {
        fixture.damage(&layer, &content[cluster * 65536..][..64]);
    }
    let found = fixture.run(&["verify"]);
    assert_eq!(found.code, Some(3));
    assert_eq!(
        found
            .stdout
            .lines()
            .filter(|line| line.contains("cluster "))
            .count(),
        20,
        "{found:?}"
    );
    assert!(
        found.stdout.contains("web01/1:vda: 12 findings more"),
        "{found:?}"
    );
    let objects = fixture.run(&["verify", "--json"]).objects();
    assert_eq!(
        objects
            .iter()
            .filter(|object| object["type"] == "finding")
            .count(),
        32
    );
}

#[test]
fn verify_reports_an_image_that_cannot_be_opened_and_goes_on() {
    let fixture = Fixture::new();
    fixture.sync("web01", &[("vda", &noise(MIB, 1))]);
    fixture.sync("web01", &[("vda", &noise(MIB, 2))]);
    fixture.damage(&fixture.manifest("web01", 1), b"\"disks\"");
    let found = fixture.run(&["verify"]);
    assert_eq!(found.code, Some(3));
    assert!(
        found.stdout.contains("\nweb01/1: ") && found.stdout.contains("web01/2: good"),
        "{found:?}"
    );
}

#[test]
fn digest_is_the_same_wherever_the_content_is() {
    let fixture = Fixture::new();
    let content = disk_content(5 * MIB + 8192, 1);
    fixture.sync("web01", &[("vda", &content)]);
    fixture.sync_with("small", ClusterSize::K16, &[("vda", &content)]);
    let file = fixture.file("disk.raw", &content);
    let device = LoopDevice::attach(&file).unwrap();
    let socket = fixture.join("nbd.sock");
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--read-only", "--persistent", "--format=raw", "--socket"])
        .arg(&socket)
        .arg(&file);
    let log = fixture.join("nbd.log");
    let _server = Server::start_on_socket(&mut command, &socket, &log).unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let digest = |args: &[&str]| {
        let said = fixture.run(&[&["digest"], args].concat()).ok();
        said.split("  ").next().unwrap().to_owned()
    };

    let recorded = digest(&["web01/1"]);
    assert!(
        recorded.starts_with("smc1-64k:") && recorded.len() == 9 + 64,
        "{recorded}"
    );
    for what in [file.to_str().unwrap(), device.path().to_str().unwrap(), &uri] {
        assert_eq!(digest(&[what]), recorded, "{what}");
        assert_eq!(
            digest(&[what, "--cluster-size", "16k"]),
            digest(&["small/1"]),
            "{what}"
        );
    }
    assert_eq!(digest(&["web01/1:vda", "--recompute"]), recorded);
    assert_eq!(digest(&["small/1", "--cluster-size", "64K"]), recorded);
    let object = &fixture.run(&["digest", "--json", &uri]).objects()[0];
    assert_eq!(
        (&object["digest"], &object["size_bytes"]),
        (&json!(recorded), &json!(content.len()))
    );
}

#[test]
fn digest_of_what_is_not_there_fails() {
    let fixture = Fixture::new();
    let missing = fixture.join("missing");
    assert!(
        fixture
            .run(&["digest", missing.to_str().unwrap()])
            .fails(1)
            .contains("missing")
    );
    assert!(
        fixture
            .run(&["digest", "/dev/null"])
            .fails(1)
            .contains("/dev/null")
    );
    let uri = format!("nbd+unix:///?socket={}", missing.display());
    let said = fixture.run(&["digest", &uri]).fails(1);
    assert!(said.contains(&uri) && said.contains("No such file"), "{said}");
    let mut command = Command::new(SMC_IMAGE);
    let said = run(command.env("PATH", fixture.join("empty")).args(["digest", &uri])).fails(1);
    assert!(said.contains("install libnbd-bin"), "{said}");
}

#[test]
fn damaged_content_has_no_recomputed_digest() {
    let fixture = Fixture::new();
    let content = noise(MIB, 1);
    fixture.sync("web01", &[("vda", &content)]);
    fixture.damage(&fixture.layer("web01", 1), &content[3 * 65536..][..64]);
    fixture.run(&["digest", "web01/1"]).ok();
    assert!(
        fixture
            .run(&["digest", "web01/1", "--recompute"])
            .fails(3)
            .contains("cluster 3")
    );
}

#[test]
fn diff_gives_exactly_what_differs() {
    let fixture = Fixture::new();
    let before = disk_content(20 * MIB + 100, 1);
    fixture.sync("web01", &[("vda", &before)]);
    let mut after = before.clone();
    for at in [0, 65536, 10 * MIB + 1, 20 * MIB + 99] {
        after[at] ^= 1;
    }
    fixture.sync("web01", &[("vda", &after)]);
    let objects = fixture.run(&["diff", "--json", "web01/1", "web01/2"]).objects();
    let ranges: Vec<_> = objects
        .iter()
        .filter(|object| object["type"] == "range")
        .collect();
    let found: Vec<_> = ranges
        .iter()
        .map(|range| (range["start"].as_u64(), range["length"].as_u64()))
        .collect();
    let mib = MIB as u64;
    let expected = [(0, 131_072), (10 * mib, 65536), (20 * mib, 100)];
    assert_eq!(found, expected.map(|(start, length)| (Some(start), Some(length))));
    assert!(ranges.iter().all(|range| range["disk"] == "vda"));
    assert_eq!(objects.last().unwrap()["differing_bytes"], 131_072 + 65536 + 100);

    let said = fixture.run(&["diff", "web01/1", "web01/2"]).ok();
    assert!(said.contains("3 ranges") && said.contains("10485760"), "{said}");
    let said = fixture.run(&["diff", "web01/1", "web01/1"]).ok();
    assert!(said.contains("no difference"), "{said}");
}

#[test]
fn diff_tells_sizes_and_disks_apart() {
    let fixture = Fixture::new();
    let content = noise(MIB, 1);
    fixture.sync("web01", &[("vda", &content)]);
    let grown = [content.clone(), vec![0; 20 * MIB]].concat();
    fixture.sync("web01", &[("vda", &grown)]);
    let said = fixture.run(&["diff", "web01/1", "web01/2"]).ok();
    assert!(
        said.contains("no difference") && said.contains("has 1048576 bytes"),
        "{said}"
    );
    let objects = fixture.run(&["diff", "--json", "web01/1", "web01/2"]).objects();
    assert_eq!(objects[0]["equal"], false);

    fixture.sync("two", &[("vda", &content), ("vdb", &noise(MIB, 3))]);
    let said = fixture.run(&["diff", "two/1", "two/1"]).ok();
    assert_eq!(said.matches("no difference").count(), 2, "{said}");
    let said = fixture.run(&["diff", "two/1", "web01/1"]).ok();
    assert!(said.contains("web01/1 has no such disk"), "{said}");
    assert!(
        fixture
            .run(&["diff", "two/1:vdb", "web01/1"])
            .ok()
            .contains("1 range")
    );

    fixture.sync_with("small", ClusterSize::K16, &[("vda", &content)]);
    let said = fixture.run(&["diff", "web01/1", "small/1"]).fails(1);
    assert!(
        said.contains("cluster size") && said.contains("smc-image digest"),
        "{said}"
    );
}

#[test]
fn map_covers_the_disk() {
    let fixture = Fixture::new();
    let mut content = vec![0; 3 * MIB + 5];
    content[MIB..MIB + 65536].copy_from_slice(&noise(65536, 1));
    content[3 * MIB + 4] = 1;
    fixture.sync("web01", &[("vda", &content), ("zero", &vec![0; MIB])]);
    let objects = fixture.run(&["map", "--json", "web01/1:vda"]).objects();
    let extents: Vec<_> = objects
        .iter()
        .map(|extent| (&extent["start"], &extent["length"], &extent["data"]))
        .collect();
    let mib = MIB as u64;
    let expected = [
        (0, mib, false),
        (mib, 65536, true),
        (mib + 65536, 2 * mib - 65536, false),
        (3 * mib, 5, true),
    ];
    let expected = expected.map(|(start, length, data)| (json!(start), json!(length), json!(data)));
    assert_eq!(extents.len(), expected.len());
    assert!(
        extents
            .iter()
            .zip(&expected)
            .all(|(a, b)| *a == (&b.0, &b.1, &b.2)),
        "{extents:?}"
    );
    let said = fixture.run(&["map", "web01/1:zero"]).ok();
    assert_eq!(said.lines().count(), 2);
    assert!(said.lines().nth(1).unwrap().ends_with("zero"));
    assert!(fixture.run(&["map", "web01/1"]).fails(1).contains("web01/1:vda"));
}
