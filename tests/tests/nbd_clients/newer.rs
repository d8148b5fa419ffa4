//! Clients of a release that knows extended headers, which this machine's may be too old for.

use crate::run::{newer, newer_nbdsh};
use crate::served::{CHANGED, CLUSTER, DISK, NOISE, Store, text};
use anyhow::Result;
use smc_tests::assert_same_bytes;

const FAILS: &str = "
assert h.get_extended_headers_negotiated()
assert h.get_structured_replies_negotiated()
def fails(want, call, *args, **flags):
    try:
        call(*args, **flags)
    except nbd.Error as error:
        assert error.errno == want, (call, error.errno, want)
    else:
        raise AssertionError('%s succeeded' % call)
    assert h.pread(4096, 20 << 20) == first
first = h.pread(4096, 20 << 20)
size = h.get_size()
";

#[test]
fn newer_readers_negotiate_extended_headers() -> Result<()> {
    let store = Store::new("nbd-clients-newer")?;
    let _server = store.serve(&[])?;
    let uri = store.uri("web01/2:vda");
    let info = newer("nbdinfo", &["--json", &uri]).json();
    assert_eq!(info["extended"], true, "{info}");
    newer("nbdinfo", &["--can", "extended-headers", &uri]);
    let map = newer("nbdinfo", &["--map=qemu:dirty-bitmap:web01/1", "--json", &uri]).json();
    let dirty: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["type"] == 1)
        .map(|extent| {
            (
                extent["offset"].as_u64().unwrap(),
                extent["length"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(dirty, CHANGED.map(|offset| (offset, CLUSTER)));
    let copy = store.path("copy.img");
    newer("nbdcopy", &["--connections=4", &uri, text(&copy)]);
    assert_same_bytes(&copy, &store.truth[1])?;
    newer(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, text(&store.truth[1])],
    );
    let qcow = store.path("copy.qcow2");
    newer(
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
    newer(
        "qemu-img",
        &[
            "compare",
            "-f",
            "qcow2",
            "-F",
            "raw",
            text(&qcow),
            text(&store.truth[1]),
        ],
    );
    let map = newer("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).json();
    let tail = map.as_array().unwrap().last().unwrap();
    assert_eq!(tail["zero"], true);
    assert_eq!(tail["length"], DISK - CHANGED[2] - CLUSTER);
    let listed = newer("qemu-nbd", &["--list", "-k", text(&store.socket())]).stdout;
    assert!(listed.contains("export: 'web01/2:vda'"), "{listed}");
    store.assert_unchanged()
}

#[test]
fn a_64_bit_block_status_and_its_payload_filter() -> Result<()> {
    let store = Store::new("nbd-clients-newer-status")?;
    let _server = store.serve(&[])?;
    let lines = format!(
        "{FAILS}
base, changed = 'base:allocation', 'smc:changed'
assert h.can_meta_context(base) and h.can_meta_context(changed) and h.can_block_status_payload()
def status(call, *args):
    seen = {{}}
    call(*args, lambda context, offset, entries, error: seen.setdefault(context, list(entries)) and 0)
    return seen
both = status(h.block_status_64, size, 0)
assert set(both) == {{base, changed}}, both
assert [length for length, flags in both[changed] if flags == 1] == [{CLUSTER}] * 3, both
assert (8 << 20, 0) in both[base], both
for wanted in [[base], [changed], [base, changed]]:
    filtered = status(h.block_status_filter, size, 0, wanted)
    assert filtered == {{name: both[name] for name in wanted}}, (wanted, filtered)
# The old call of libnbd is answered too, by extents that it shortens to 32 bits.
assert sum(status(h.block_status, size, 0)[base][::2]) == size
h.set_strict_mode(nbd.STRICT_AUTO_FLAG)
fails('EINVAL', h.block_status_64, size + 1, 0, lambda *a: 0)
fails('EINVAL', h.block_status_64, 1 << 40, 0, lambda *a: 0)
fails('EINVAL', h.pread, 512, size)
fails('EINVAL', h.pread, 33 << 20, 0)
fails('EPERM', h.pwrite, b'x' * 512, 0)
fails('EPERM', h.zero, 1 << 33, 0)
fails('EPERM', h.trim, 1 << 33, 0)
h.cache(size, 0)
seen = []
data = h.pread_structured(2 << 20, 19 << 20, lambda buf, offset, status, error: seen.append((offset, len(buf), status)))
assert seen[0] == (19 << 20, 1 << 20, nbd.READ_HOLE), seen
assert seen[1][0] == {noise} and all(piece[2] == nbd.READ_DATA for piece in seen[1:]), seen
assert data[:1 << 20] == bytes(1 << 20) and data[1 << 20:][:4096] == first
h.shutdown()",
        noise = NOISE.0
    );
    newer_nbdsh(&[
        "-c",
        "h.add_meta_context('base:allocation')",
        "-c",
        "h.add_meta_context('smc:changed')",
        "-c",
        "h.set_uri_allow_local_file(True)",
        "-c",
        &format!("h.connect_uri('{}')", store.uri("web01/2:vda")),
        "-c",
        &lines,
    ]);
    store.assert_unchanged()
}

#[test]
fn newer_writers_use_an_overlay() -> Result<()> {
    let store = Store::new("nbd-clients-newer-overlay")?;
    let _server = store.serve(&["--overlay"])?;
    let lines = format!(
        "{FAILS}
h.pwrite(b'\\xda' * 65536, 1 << 20, flags=nbd.CMD_FLAG_FUA)
assert h.pread(65536, 1 << 20) == b'\\xda' * 65536
h.zero(32768, 1 << 20)
h.zero(16384, (1 << 20) + 32768, flags=nbd.CMD_FLAG_NO_HOLE)
assert h.pread(65536, 1 << 20) == bytes(49152) + b'\\xda' * 16384
h.trim(44 << 20, 20 << 20)
assert h.pread(8 << 20, 20 << 20) == bytes(8 << 20)
h.pwrite(first, 20 << 20)
# Longer than a compact request could say.
h.set_strict_mode(nbd.STRICT_AUTO_FLAG)
fails('ENOSPC', h.zero, 1 << 33, 0)
fails('EINVAL', h.trim, 1 << 33, 0)
fails('ENOSPC', h.pwrite, b'x' * 512, size)
h.flush()
h.shutdown()"
    );
    newer_nbdsh(&["-u", &store.uri("web01/2:vda"), "-c", &lines]);
    let uri = store.uri("web01/1:vda");
    let commands = [
        "write -P 0x5a 1M 3M",
        "write -z 2M 100k",
        "write -z -u 3M 100k",
        "discard 21M 1M",
        "flush",
        "read -P 0x5a 1M 1M",
        "read -P 0 2M 100k",
        "read -P 0 3M 100k",
        "read -P 0 21M 1M",
    ];
    let mut args = vec!["-f", "raw", "-d", "unmap"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let said = newer("qemu-io", &[&args[..], &[&uri]].concat()).stdout;
    assert!(!said.contains("failed"), "{said}");
    let named = store.uri("web01/2:vda@restored");
    newer(
        "nbdcopy",
        &["--connections=4", "--flush", text(&store.truth[0]), &named],
    );
    newer(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &named, text(&store.truth[0])],
    );
    store.assert_unchanged()
}
