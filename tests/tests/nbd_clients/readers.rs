//! Clients of this machine's release read.

use crate::run::{client_ends, nbdsh, run_client};
use crate::served::{CHANGED, CLUSTER, DISK, KIB, MIB, NOISE, Store, TEXT, text};
use anyhow::Result;
use boot::nbd_uri;
use serde_json::Value;
use smc_tests::assert_same_bytes;
use std::fs;
use std::process::Command;
use testkit::process::Server;

/// Offsets and lengths of the extents that `nbdinfo --map --json` gave this type.
fn extents(map: &Value, kind: u64) -> Vec<(u64, u64)> {
    let of_kind = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["type"] == kind);
    of_kind
        .map(|extent| {
            (
                extent["offset"].as_u64().unwrap(),
                extent["length"].as_u64().unwrap(),
            )
        })
        .collect()
}

fn changed_extents() -> Vec<(u64, u64)> {
    CHANGED.iter().map(|offset| (*offset, CLUSTER)).collect()
}

#[test]
fn nbdinfo_sees_what_is_served_and_what_changed() -> Result<()> {
    let store = Store::new("nbd-clients-nbdinfo")?;
    let _server = store.serve(&[])?;
    let uri = store.uri("web01/2:vda");
    let export = run_client("nbdinfo", &["--json", &uri]).json()["exports"][0].clone();
    assert_eq!(export["export-name"], "web01/2:vda");
    assert_eq!(export["export-size"], DISK);
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["can_multi_conn"], true);
    assert_eq!(export["block_size_maximum"], 32 * MIB);
    let description = export["description"].as_str().unwrap();
    assert!(description.contains("web01/2"), "{description}");

    let listed = run_client("nbdinfo", &["--list", "--json", &store.uri("")]).json();
    let names: Vec<_> = listed["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|export| &export["export-name"])
        .collect();
    for name in ["web01/1", "web01/1:vda", "web01/2:vda", "web01/latest"] {
        assert!(
            names.iter().any(|listed| **listed == name),
            "{name} is not in {names:?}"
        );
    }
    let listed = run_client("qemu-nbd", &["--list", "-k", text(&store.socket())]).stdout;
    assert!(listed.contains("export: 'web01/2:vda'"), "{listed}");
    assert!(listed.contains("qemu:dirty-bitmap:web01/1"), "{listed}");

    let map = run_client("nbdinfo", &["--map", "--json", &uri]).json();
    let holes = extents(&map, 3);
    assert!(
        holes.contains(&(CHANGED[2] + CLUSTER, DISK - CHANGED[2] - CLUSTER)),
        "{holes:?}"
    );
    assert!(holes.contains(&(CHANGED[1], CLUSTER)), "{holes:?}");
    let data = extents(&map, 0);
    assert!(data.contains(&NOISE), "{data:?}");
    assert_eq!(map.as_array().unwrap().len(), holes.len() + data.len());

    for context in ["smc:changed", "smc:changed:web01/1", "qemu:dirty-bitmap:web01/1"] {
        let map = run_client("nbdinfo", &[&format!("--map={context}"), "--json", &uri]).json();
        assert_eq!(extents(&map, 1), changed_extents(), "{context}");
    }
    let said = client_ends(1, "nbdinfo", &["--map=smc:changed:web01/7", &uri]).stderr;
    assert!(said.contains("smc:changed:web01/7"), "{said}");
    client_ends(2, "nbdinfo", &["--can", "write", &uri]);
    client_ends(1, "nbdinfo", &["--size", &store.uri("web01/9:vda")]);
    store.assert_unchanged()
}

#[test]
fn nbdcopy_qemu_img_and_nbdkit_copy_every_byte() -> Result<()> {
    let store = Store::new("nbd-clients-copy")?;
    let _server = store.serve(&[])?;
    let copy = store.path("copy.img");
    for (i, truth) in store.truth.iter().enumerate() {
        let uri = store.uri(&format!("web01/{}:vda", i + 1));
        for options in [
            &["--connections=4", "--requests=64"][..],
            &["--synchronous"],
            &["--no-extents"],
        ] {
            fs::File::create(&copy)?.set_len(DISK)?;
            run_client("nbdcopy", &[options, &[&uri, text(&copy)]].concat());
            assert_same_bytes(&copy, truth)?;
        }
        run_client(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &uri, text(truth)],
        );
        let qcow = store.path("copy.qcow2");
        run_client(
            "qemu-img",
            &[
                "convert",
                "-m",
                "16",
                "-W",
                "-f",
                "raw",
                "-O",
                "qcow2",
                &uri,
                text(&qcow),
            ],
        );
        run_client(
            "qemu-img",
            &["compare", "-f", "qcow2", "-F", "raw", text(&qcow), text(truth)],
        );
    }
    client_ends(
        1,
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &store.uri("web01/1:vda"),
            text(&store.truth[1]),
        ],
    );

    let plugin = store.path("plugin.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args([
        "--foreground",
        "--readonly",
        "--unix",
        text(&plugin),
        "--filter=retry",
        "nbd",
    ]);
    nbdkit
        .arg(format!("uri={}", store.uri("web01/2:vda")))
        .arg("shared=true");
    println!("in front of it: {}", testkit::process::display(&nbdkit));
    let log = store.path("nbdkit.log");
    let _nbdkit = Server::start_on_socket(&mut nbdkit, &plugin, &log)?;
    let through = nbd_uri(&plugin, "");
    run_client("nbdcopy", &["--connections=4", &through, text(&copy)]);
    assert_same_bytes(&copy, &store.truth[1])?;
    let through = run_client("nbdinfo", &["--map", "--json", &through]).json();
    assert_eq!(
        through,
        run_client("nbdinfo", &["--map", "--json", &store.uri("web01/2:vda")]).json()
    );
    store.assert_unchanged()
}

#[test]
fn qemu_reads_images_and_their_changes() -> Result<()> {
    let store = Store::new("nbd-clients-qemu")?;
    let _server = store.serve(&[])?;
    let uri = store.uri("web01/2:vda");
    let info = run_client("qemu-img", &["info", "--output=json", "-f", "raw", &uri]).json();
    assert_eq!(info["virtual-size"], DISK);
    let map = run_client("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).json();
    let zero = |offset: u64| {
        let extents = map.as_array().unwrap();
        let holds = |extent: &&Value| {
            let start = extent["start"].as_u64().unwrap();
            (start..start + extent["length"].as_u64().unwrap()).contains(&offset)
        };
        extents.iter().find(holds).unwrap()["zero"] == true
    };
    assert!(zero(CHANGED[1]) && zero(DISK - 1) && !zero(NOISE.0) && !zero(CHANGED[2]));

    // QEMU shows what the bitmap says through `data`: false is dirty.
    let options = format!(
        "driver=nbd,export=web01/2:vda,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:web01/1",
        store.socket().display()
    );
    let map = run_client("qemu-img", &["map", "--output=json", "--image-opts", &options]).json();
    let dirty = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["data"] == false);
    let dirty: Vec<_> = dirty
        .map(|extent| {
            (
                extent["start"].as_u64().unwrap(),
                extent["length"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(dirty, changed_extents());

    let reads = [
        format!("read -P 0 {} {CLUSTER}", CHANGED[1]),
        format!("aio_read -P 0 {} 1M", 56 * MIB),
        format!("read -P 1 {} 1", 44 * MIB),
        format!("read -v {} 512", TEXT.0),
    ];
    let mut args = vec!["-r", "-f", "raw"];
    reads.iter().for_each(|read| args.extend(["-c", read]));
    let said = run_client("qemu-io", &[&args[..], &[&uri]].concat()).stdout;
    assert!(
        !said.contains("failed") && said.contains("all.work.and"),
        "{said}"
    );
    client_ends(1, "qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri]);
    run_client(
        "fio",
        &[
            "--name=t",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randread",
            "--bsrange=512-256k",
            "--iodepth=32",
            "--size=64m",
            "--runtime=20",
            "--output-format=terse",
        ],
    );
    store.assert_unchanged()
}

#[test]
fn illegal_requests_are_refused_and_the_connection_stays() -> Result<()> {
    let store = Store::new("nbd-clients-illegal")?;
    let _server = store.serve(&[])?;
    let lines = format!(
        "
first = h.pread(4096, {noise})
def fails(want, call, *args, **flags):
    try:
        call(*args, **flags)
    except nbd.Error as error:
        assert error.errno == want, (call, error.errno, want)
    else:
        raise AssertionError('%s succeeded' % call)
    assert h.pread(4096, {noise}) == first
size = h.get_size()
fails('EINVAL', h.pread, 512, size)
fails('EINVAL', h.pread, 2, size - 1)
fails('EINVAL', h.pread, 512, (1 << 63) - 1)
fails('EINVAL', h.pread, 512, 0, flags=1 << 9)
fails('EINVAL', h.pread, 33 << 20, 0)
fails('EPERM', h.pwrite, b'x' * 512, 0)
fails('EPERM', h.pwrite, b'x' * (32 << 20), size)
fails('EPERM', h.trim, 512, 0)
fails('EPERM', h.zero, 512, 0)
fails('EINVAL', h.cache, 512, size)
fails('EINVAL', h.block_status, 0xffffffff, 0, lambda *a: 0)
h.flush()
h.cache({kib}, 0)
h.shutdown()",
        noise = NOISE.0,
        kib = 64 * KIB,
    );
    nbdsh(&[
        "-u",
        &store.uri("web01/2:vda"),
        "-c",
        "h.set_strict_mode(0)",
        "-c",
        &lines,
    ]);
    store.assert_unchanged()
}
