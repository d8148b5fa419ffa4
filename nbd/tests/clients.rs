//! Unmodified clients of others against the server: libnbd's and QEMU's tools, and fio.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use std::fs;

use common::{Disks, KIB, MIB, MemoryDisk, Running, client, expect, path};
use nbd::Limits;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn nbdinfo_sees_size_flags_contexts_and_block_sizes() {
    let server = Running::of(MemoryDisk::mixed());
    for uri in [server.uri("web01/7:vda"), server.tcp_uri("web01/7:vda")] {
        let reported = json(&expect("nbdinfo", &["--json", &uri]));
        let export = &reported["exports"][0];
        assert_eq!(reported["protocol"], "newstyle-fixed");
        assert_eq!(reported["structured"], true);
        assert_eq!(export["export-name"], "web01/7:vda");
        assert_eq!(export["description"], "the disk called web01/7:vda");
        assert_eq!(export["export-size"], 16 * MIB + 1234);
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 64 * KIB);
        assert_eq!(export["block_size_maximum"], 32 * MIB);
        for (flag, expected) in [
            ("is_read_only", true),
            ("can_multi_conn", true),
            ("can_flush", true),
            ("can_fua", true),
            ("can_df", true),
            ("can_cache", true),
            ("can_trim", false),
            ("can_zero", false),
            ("can_fast_zero", false),
            ("is_rotational", false),
        ] {
            assert_eq!(export[flag], expected, "{flag}");
        }
    }
}

#[test]
fn nbdinfo_asks_single_questions_by_exit_code() {
    let server = Running::of(MemoryDisk::mixed());
    let uri = server.uri("web01/7:vda");
    expect("nbdinfo", &["--can", "multi-conn", &uri]);
    expect("nbdinfo", &["--can", "df", &uri]);
    expect("nbdinfo", &["--can", "structured-reply", &uri]);
    expect("nbdinfo", &["--is", "readonly", &uri]);
    assert_eq!(
        expect("nbdinfo", &["--size", &uri]).trim(),
        (16 * MIB + 1234).to_string()
    );
    assert_eq!(client("nbdinfo", &["--can", "write", &uri]).code, Some(2));
    assert_eq!(client("nbdinfo", &["--is", "tls", &uri]).code, Some(2));
}

#[test]
fn nbdinfo_map_is_the_exports_map() {
    let disk = MemoryDisk::mixed();
    let expected = disk.map();
    let server = Running::of(disk);
    let reported = json(&expect(
        "nbdinfo",
        &["--map", "--json", &server.uri("web01/7:vda")],
    ));
    let number = |extent: &Value, field: &str| extent[field].as_u64().unwrap();
    let map: Vec<_> = reported.as_array().unwrap().iter().collect();
    let map: Vec<_> = map
        .iter()
        .map(|e| (number(e, "offset"), number(e, "length"), number(e, "type") == 3))
        .collect();
    assert_eq!(map, expected);
}

#[test]
fn every_client_lists_every_export_and_none_is_opened() {
    let small = || MemoryDisk::of(vec![7; 4096]);
    let disks = Disks::new(vec![
        ("web01/7:vda", small()),
        ("web01/latest", small()),
        ("ö ✓", small()),
    ]);
    let server = Running::start(disks.clone(), Limits::default());
    let listed = json(&expect("nbdinfo", &["--list", "--json", &server.uri("")]));
    let names: Vec<_> = listed["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|export| export["export-name"].clone())
        .collect();
    assert_eq!(names, ["web01/7:vda", "web01/latest", "ö ✓"]);
    let opened_by_nbdinfo = disks.opened.load(std::sync::atomic::Ordering::SeqCst);
    let listed = expect("qemu-nbd", &["--list", "-k", path(&server.socket())]);
    assert!(listed.contains("exports available: 3"), "{listed}");
    assert!(
        listed.contains("export: 'web01/latest'") && listed.contains("base:allocation"),
        "{listed}"
    );
    assert!(listed.contains("description: the disk called ö ✓"), "{listed}");
    // N5: qemu-nbd asks LIST, INFO and LIST_META_CONTEXT, none of which may open anything.
    assert_eq!(
        disks.opened.load(std::sync::atomic::Ordering::SeqCst),
        opened_by_nbdinfo
    );
}

#[test]
fn nbdcopy_over_four_connections_yields_the_same_bytes() {
    let disk = MemoryDisk::mixed();
    let original = disk.bytes.clone();
    let server = Running::of(disk);
    let copy = server.path("copy.img");
    for (uri, extra) in [
        (
            server.uri("web01/7:vda"),
            vec!["--connections=4", "--requests=64"],
        ),
        (
            server.tcp_uri("web01/7:vda"),
            vec!["--connections=4", "--requests=64"],
        ),
        (server.uri("web01/7:vda"), vec!["--synchronous"]),
        (
            server.uri("web01/7:vda"),
            vec!["--no-extents", "--request-size=4194304"],
        ),
    ] {
        fs::File::create(&copy)
            .unwrap()
            .set_len(original.len() as u64)
            .unwrap();
        let args: Vec<&str> = extra.into_iter().chain([uri.as_str(), path(&copy)]).collect();
        expect("nbdcopy", &args);
        assert!(
            fs::read(&copy).unwrap() == original,
            "{args:?} copied other bytes"
        );
    }
}

#[test]
fn qemu_img_reads_converts_compares_and_maps() {
    let mut disk = MemoryDisk::mixed();
    // QEMU's block layer rounds sizes up to sectors.
    disk.bytes.truncate((16 * MIB) as usize);
    let server = Running::of(disk);
    let original = server.path("original.img");
    let disk = MemoryDisk::mixed();
    fs::write(&original, &disk.bytes[..(16 * MIB) as usize]).unwrap();
    for uri in [server.uri("web01/7:vda"), server.tcp_uri("web01/7:vda")] {
        let info = json(&expect("qemu-img", &["info", "--output=json", "-f", "raw", &uri]));
        assert_eq!(info["virtual-size"], 16 * MIB);
        expect(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &uri, path(&original)],
        );
        let copy = server.path("copy.qcow2");
        let convert = [
            "convert",
            "-m",
            "16",
            "-W",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &uri,
            path(&copy),
        ];
        expect("qemu-img", &convert);
        expect(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "qcow2", &uri, path(&copy)],
        );
        let map = json(&expect("qemu-img", &["map", "--output=json", "-f", "raw", &uri]));
        assert_eq!(map[1]["zero"], true);
        assert_eq!(map[1]["start"], 192 * KIB);
    }
}

#[test]
fn qemu_io_reads_patterns_and_is_refused_writes() {
    let mut bytes = vec![0x5a; MIB as usize];
    bytes.resize(3 * MIB as usize, 0);
    let server = Running::of(MemoryDisk::of(bytes));
    let uri = server.uri("web01/7:vda");
    let commands = [
        "read -P 0x5a 0 1M",
        "read -P 0 1M 2M",
        "read -P 0x5a 511 77",
        "aio_read -P 0 2M 64k",
    ];
    let mut args = vec!["-r", "-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(&uri);
    let reported = expect("qemu-io", &args);
    assert!(!reported.contains("Pattern verification failed"), "{reported}");
    client("qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri]).fails(1);
}

#[test]
fn fio_reads_at_random_without_an_error() {
    let server = Running::of(MemoryDisk::mixed());
    let uri = format!("--uri={}", server.uri("web01/7:vda"));
    let args = [
        "--name=t",
        "--ioengine=nbd",
        &uri,
        "--rw=randread",
        "--bsrange=512-256k",
        "--iodepth=32",
    ];
    let bounds = [
        "--size=16m",
        "--io_size=64m",
        "--runtime=10",
        "--output-format=json",
    ];
    let reported = expect("fio", &[&args[..], &bounds[..]].concat());
    let reported = json(reported.get(reported.find('{').unwrap()..).unwrap());
    assert_eq!(reported["jobs"][0]["error"], 0);
    assert_eq!(reported["jobs"][0]["read"]["io_kbytes"], 64 * KIB);
}

#[test]
fn all_of_this_holds_without_io_uring() {
    testkit::sandbox::repeat_without_io_uring("all_of_this_holds_without_io_uring");
}
