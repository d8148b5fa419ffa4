//! `smc-image serve`: what can be asked and done beside reading: changes, overlays, other ways in, errors in detail.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::{CLUSTER, Fixture, MIB, disk, noise, script, serving, uri};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use testkit::program::{nbdsh, run, tool};

/// A context's extents: offset, length, flags.
fn map(uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let map = tool("nbdinfo", &[&format!("--map={context}"), "--json", uri]);
    let map: Value = serde_json::from_slice(&map).unwrap();
    let field = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
    map.as_array()
        .unwrap()
        .iter()
        .map(|extent| {
            (
                field(extent, "offset"),
                field(extent, "length"),
                field(extent, "type"),
            )
        })
        .collect()
}

/// Which clusters of `new` differ from `old`, as extents.
fn differing(new: &[u8], old: &[u8]) -> Vec<(u64, u64, u64)> {
    let mut extents: Vec<(u64, u64, u64)> = Vec::new();
    for (index, cluster) in new.chunks(CLUSTER).enumerate() {
        let start = index * CLUSTER;
        let before = old.get(start..old.len().min(start + CLUSTER));
        let changed =
            u64::from(before.map_or(cluster.iter().any(|&byte| byte != 0), |before| before != cluster));
        match extents.last_mut() {
            Some(last) if last.2 == changed => last.1 += cluster.len() as u64,
            _ => extents.push((start as u64, cluster.len() as u64, changed)),
        }
    }
    extents
}

#[test]
fn what_changed_between_images_is_told_under_both_names() {
    let fixture = Fixture::new();
    let mut states = vec![disk(1)];
    for (at, byte) in [(3 * CLUSTER, 7), (25 * CLUSTER + 100, 8), (0, 9)] {
        let mut next = states.last().unwrap().clone();
        next[at] = byte;
        states.push(next);
    }
    // The last image's disk has grown.
    states
        .last_mut()
        .unwrap()
        .resize(disk(1).len() + 3 * CLUSTER, 0x33);
    for state in &states {
        fixture.sync("web", &[("vda", state)]);
    }
    let (_running, _) = serving(&fixture, &[], 10);
    for (of, new) in (1..).zip(&states) {
        let uri = uri(&fixture, &format!("web/{of}"));
        for (from, old) in (1..).zip(&states).filter(|(from, _)| *from != of) {
            let expected = differing(new, old);
            assert_eq!(
                map(&uri, &format!("smc:changed:web/{from}")),
                expected,
                "{of} from {from}"
            );
            assert_eq!(map(&uri, &format!("qemu:dirty-bitmap:web/{from}")), expected);
            if from + 1 == of {
                assert_eq!(map(&uri, "smc:changed"), expected);
            }
        }
    }
    let info = tool("nbdinfo", &["--json", &uri(&fixture, "web/1")]);
    let info: Value = serde_json::from_slice(&info).unwrap();
    let contexts: Vec<&str> = info["exports"][0]["contexts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|context| context.as_str().unwrap())
        .collect();
    // A first image has no parent to differ from.
    assert_eq!(contexts[0], "base:allocation");
    assert_eq!(contexts.len(), 1 + 2 * 3);
    assert!(!contexts.contains(&"smc:changed") && contexts.contains(&"smc:changed:web/4"));
}

#[test]
fn a_deleted_parent_is_no_context_any_more() {
    let fixture = Fixture::new();
    for seed in 1..4 {
        fixture.sync("web", &[("vda", &disk(seed))]);
    }
    fixture.run(&["rm", "web/2"]).ok();
    let (_running, _) = serving(&fixture, &[], 6);
    let info = tool("nbdinfo", &["--list", "--json", &uri(&fixture, "")]);
    let text = String::from_utf8(info).unwrap();
    assert!(!text.contains("web/2"), "{text}");
    let asked = run(Command::new("nbdinfo").args(["--map=smc:changed", &uri(&fixture, "web/3")]));
    assert!(asked.code != Some(0), "{asked:?}");
}

/// What every file of the store holds.
fn content(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn an_overlay_is_gone_with_its_last_client_and_the_image_never_changes() {
    let fixture = Fixture::new();
    let bytes = disk(1);
    fixture.sync("web", &[("vda", &bytes)]);
    let before = content(&fixture.store());
    let (running, _) = serving(&fixture, &["web/1", "--overlay", "--json"], 3);
    let uri = uri(&fixture, "web/1");
    let lines = format!(
        "assert not h.is_read_only() and h.can_multi_conn() and h.can_fast_zero() and h.can_trim()
h.pwrite(b'x' * 1000, 777)
h.zero({CLUSTER}, 0, flags=nbd.CMD_FLAG_FAST_ZERO)
h.trim({CLUSTER}, {CLUSTER})
h.pwrite(b'y' * 4096, {}, flags=nbd.CMD_FLAG_FUA)
h.flush()
other = nbd.NBD()
other.connect_uri('{uri}')
assert other.pread(4096, {}) == b'y' * 4096, 'two clients of one export see one overlay'
assert h.pread({CLUSTER}, 0) == bytes({CLUSTER})
other.shutdown()
h.shutdown()",
        20 * CLUSTER,
        20 * CLUSTER
    );
    script(&uri, &lines);
    assert_eq!(
        tool("nbdcopy", &[&uri, "-"]),
        bytes,
        "the next client finds the image"
    );
    assert_eq!(running.signal("TERM").0, Some(0));
    assert_eq!(content(&fixture.store()), before);
}

#[test]
fn what_an_image_stores_is_data_in_its_overlay_too() {
    let fixture = Fixture::new();
    let bytes = disk(1);
    fixture.sync("web", &[("vda", &bytes)]);
    let raw = fixture.file("raw", &bytes);
    let uri = uri(&fixture, "web/1");
    let (read_only, _) = serving(&fixture, &["web/1"], 3);
    let expected = map(&uri, "base:allocation");
    assert_eq!(read_only.signal("TERM").0, Some(0));
    let (_writable, _) = serving(&fixture, &["web/1", "--overlay"], 3);
    assert_eq!(map(&uri, "base:allocation"), expected);
    let raw = raw.to_str().unwrap();
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, &uri]);
}

#[test]
fn a_named_overlay_waits_for_its_client_to_come_back() {
    let fixture = Fixture::new();
    let mut bytes = disk(1);
    fixture.sync("web", &[("vda", &bytes)]);
    let (_running, _) = serving(&fixture, &["--overlay"], 4);
    let guest = uri(&fixture, "web/1@guest");
    script(&guest, "h.pwrite(b'kept', 70000)");
    // The same disk under its other names is the same overlay.
    assert_eq!(
        script(
            &uri(&fixture, "web/latest:vda@guest"),
            "print(bytes(h.pread(4, 70000)))"
        ),
        "b'kept'\n"
    );
    assert_ne!(
        script(&uri(&fixture, "web/1@other"), "print(bytes(h.pread(4, 70000)))"),
        "b'kept'\n"
    );
    assert_eq!(tool("nbdcopy", &[&uri(&fixture, "web/1"), "-"]), bytes);
    bytes[70000..70004].copy_from_slice(b"kept");
    assert_eq!(tool("nbdcopy", &[&guest, "-"]), bytes);
    let listed = String::from_utf8(tool("nbdinfo", &["--list", "--json", &uri(&fixture, "")])).unwrap();
    assert!(listed.contains("web/1:vda@guest"), "{listed}");
    for bad in ["web/1@", "web/1@a/b", "web/9@guest", "web/1@guest@more"] {
        let asked = run(Command::new("nbdinfo").arg(uri(&fixture, bad)));
        assert!(asked.code != Some(0), "{bad} is served");
    }
}

#[test]
fn without_overlays_nothing_can_be_written_and_no_overlay_can_be_named() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let (_running, _) = serving(&fixture, &["web/1"], 3);
    let refused = "h.set_strict_mode(0)
try:
    h.pwrite(b'x', 0)
    raise SystemExit('written')
except nbd.Error as error:
    print(error.errno)";
    assert_eq!(script(&uri(&fixture, "web/1"), refused), "EPERM\n");
    let named = run(Command::new("nbdinfo").arg(uri(&fixture, "web/1@guest")));
    assert!(named.code != Some(0), "{named:?}");
}

#[test]
fn overlays_end_where_their_limit_is() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &vec![1; 4 * MIB])]);
    let args = ["web/1", "--overlay", "--overlay-limit", "1MiB"];
    let (_running, _) = serving(&fixture, &args, 3);
    let lines = format!(
        "h.pwrite(b'a' * {MIB}, 0)
try:
    h.pwrite(b'b' * {MIB}, {})
    raise SystemExit('written')
except nbd.Error as error:
    print(error.errno)
assert h.pread({MIB}, 0) == b'a' * {MIB}
h.trim({MIB}, 0)
h.pwrite(b'c' * 65536, {})
h.shutdown()",
        2 * MIB,
        3 * MIB
    );
    assert_eq!(script(&uri(&fixture, "web/1"), &lines), "ENOSPC\n");
    // What the client had is there for the next one.
    script(&uri(&fixture, "web/1"), &format!("h.pwrite(b'd' * {MIB}, 0)"));
}

/// A server of one disk that its client starts.
fn started_by_client<'a>(store: &'a str, option: &[&'a str]) -> Vec<&'a str> {
    let server = [common::SMC_IMAGE, "--store", store, "serve", "web/1:vda"];
    [&server[..], option].concat()
}

/// Lets libnbd start the server, and asks for the disk's size.
fn size_by(connect: &str, server: &[&str]) {
    let line =
        format!("import nbd\nh = nbd.NBD()\nh.{connect}({server:?})\nprint(h.get_size())\nh.shutdown()");
    let shell = run(nbdsh().args(["-c", &line]));
    assert_eq!(shell.stdout, format!("{}\n", disk(1).len()), "{shell:?}");
}

#[test]
fn one_client_is_served_on_standard_input_and_output() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let store = fixture.store();
    let server = started_by_client(store.to_str().unwrap(), &["--stdio"]);
    size_by("connect_command", &server);
    // A client that says nothing and leaves is the end as well.
    fixture.run(&["serve", "web/1", "--stdio"]).ok();
}

#[test]
fn sockets_that_systemd_opened_are_served() {
    let fixture = Fixture::new();
    fixture.sync("web", &[("vda", &disk(1))]);
    let store = fixture.store();
    let server = started_by_client(store.to_str().unwrap(), &[]);
    size_by("connect_systemd_socket_activation", &server);
    let copy = fixture.join("copy");
    let copy = copy.to_str().unwrap();
    tool("nbdcopy", &[&["--", "["], &server[..], &["]", copy]].concat());
    assert_eq!(std::fs::read(copy).unwrap(), disk(1));
}

#[test]
fn a_structured_read_around_damage_tells_its_offset_image_and_cluster_and_the_next_one_works() {
    let fixture = Fixture::new();
    let bytes = noise(4 * MIB, 1);
    fixture.sync("web", &[("vda", &bytes)]);
    let damaged = 25;
    fixture.damage_cluster("web", &bytes[damaged * CLUSTER..(damaged + 1) * CLUSTER]);
    let (_running, _) = serving(&fixture, &["web/1"], 3);
    let lines = format!(
        "found = []
def chunk(buf, offset, status, error):
    found.append((offset, len(buf), status))
    return 0
h.set_debug(True)
try:
    h.pread_structured({MIB}, {MIB}, chunk)
    raise SystemExit('damage was served')
except nbd.Error as error:
    print(error.errno)
bad = [at for at, _, status in found if status == nbd.READ_ERROR]
print(bad)
print(h.pread({CLUSTER}, 0) is not None)"
    );
    let shell = run(nbdsh().args(["--uri", &uri(&fixture, "web/1"), "-c", &lines]));
    let at = damaged * CLUSTER;
    assert_eq!(shell.stdout, format!("EIO\n[{at}]\nTrue\n"), "{shell:?}");
    // libnbd's debugging output has the server's words.
    assert!(
        shell.stderr.contains("web/1:vda") && shell.stderr.contains(&format!("cluster {damaged}")),
        "{shell:?}"
    );
}
