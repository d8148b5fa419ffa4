//! libnbd's shell with its own checks switched off: illegal requests by a client that parses
//! every reply strictly.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use common::{CLUSTER, Disks, MIB, MemoryDisk, Running};
use nbd::Limits;
use testkit::program::run;

/// Runs `nbdsh`.
fn nbdsh(args: &[&str]) {
    run(testkit::program::nbdsh().args(args)).ok();
}

/// Runs a script on a connected handle `h`; its asserts decide.
fn script(uri: &str, lines: &str) {
    nbdsh(&[
        "-u",
        uri,
        "-c",
        "import errno",
        "-c",
        "h.set_strict_mode(0)",
        "-c",
        lines,
    ]);
}

/// Runs a script on a handle `h` in option mode.
fn haggle(server: &Running, lines: &str) {
    let start = format!(
        "import errno\nh.set_opt_mode(True)\nh.connect_unix('{}')\nassert h.aio_is_negotiating()\n",
        server.socket().display()
    );
    nbdsh(&["-c", &(start + lines)]);
}

const FAILS: &str = "
def fails(want, call, *args, **flags):
    try:
        call(*args, **flags)
    except nbd.Error as error:
        assert error.errno == want, (call, error.errno, want)
    else:
        raise AssertionError('%s succeeded' % call)
    assert h.pread(4, 0) == b'\\xda' * 4
";

#[test]
fn t10_illegal_requests_have_their_errors_and_the_connection_stays() {
    let server = Running::of(MemoryDisk::of(vec![0xda; MIB as usize]));
    let lines = format!(
        "{FAILS}
size = h.get_size()
fails('EINVAL', h.pread, 512, size)
fails('EINVAL', h.pread, 2, size - 1)
fails('EINVAL', h.pread, 512, (1 << 63) - 1)
fails('EINVAL', h.pread, 512, 0, flags=1 << 9)
fails('EINVAL', h.pread, 33 << 20, 0)
fails('EPERM', h.pwrite, b'x' * 512, 0)
fails('EPERM', h.pwrite, b'x' * (32 << 20), size)
fails('EINVAL', h.pwrite, b'x' * 512, 0, flags=nbd.CMD_FLAG_DF)
fails('EPERM', h.trim, 512, 0)
fails('EPERM', h.trim, 0xffffffff, 0)
fails('EPERM', h.zero, 512, 0)
fails('EPERM', h.zero, 0xffffffff, 0, flags=nbd.CMD_FLAG_NO_HOLE)
fails('EINVAL', h.zero, 512, 0, flags=nbd.CMD_FLAG_FAST_ZERO)
fails('EINVAL', h.cache, 512, size)
fails('EINVAL', h.cache, 512, 0, flags=nbd.CMD_FLAG_DF)
fails('EINVAL', h.block_status, 0xffffffff, 0, lambda *a: 0)
h.cache(size, 0)
h.flush()
h.flush(flags=nbd.CMD_FLAG_FUA)
assert h.pread(65536, 512, flags=nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_DF) == b'\\xda' * 65536
h.shutdown()"
    );
    script(&server.uri("web01/7:vda"), &lines);
    script(&server.tcp_uri("web01/7:vda"), &lines);
}

#[test]
fn t3_t5_sparse_reads_come_as_holes_and_df_reads_in_one_piece() {
    let mut bytes = vec![0xda; CLUSTER];
    bytes.resize(3 * CLUSTER, 0);
    bytes.resize(4 * CLUSTER, 0xda);
    let server = Running::of(MemoryDisk::of(bytes));
    let lines = format!(
        "
c = {CLUSTER}
seen = []
def chunk(buf, offset, status, error):
    seen.append((offset, len(buf), status))
data = h.pread_structured(4 * c, 0, chunk)
assert data == b'\\xda' * c + bytes(2 * c) + b'\\xda' * c
assert seen == [(0, c, nbd.READ_DATA), (c, 2 * c, nbd.READ_HOLE), (3 * c, c, nbd.READ_DATA)], seen
seen.clear()
assert h.pread_structured(4 * c, 0, chunk, nbd.CMD_FLAG_DF) == data
assert seen == [(0, 4 * c, nbd.READ_DATA)], seen"
    );
    script(&server.uri(""), &lines);
}

#[test]
fn a_damaged_byte_is_an_error_chunk_at_its_offset() {
    let disk = MemoryDisk {
        damaged: Some(70_000),
        ..MemoryDisk::of(vec![0xda; MIB as usize])
    };
    let server = Running::of(disk);
    let lines = format!(
        "{FAILS}
seen = []
def chunk(buf, offset, status, error):
    seen.append((offset, status, error.value))
    return 0
try:
    h.pread_structured(100000, 0, chunk)
except nbd.Error as error:
    assert error.errno == 'EIO'
else:
    raise AssertionError('a damaged cluster was read')
assert seen == [(70000, nbd.READ_ERROR, errno.EIO)], seen
fails('EIO', h.pread, 1, 70000)
assert h.pread(1, 70001) == b'\\xda'"
    );
    script(&server.uri(""), &lines);
}

#[test]
fn t6_block_status_with_and_without_req_one() {
    let mut bytes = vec![0xda; CLUSTER];
    bytes.resize(4 * CLUSTER, 0);
    let server = Running::of(MemoryDisk::of(bytes));
    let lines = format!(
        "
c = {CLUSTER}
seen = []
def extent(context, offset, entries, error):
    assert context == nbd.CONTEXT_BASE_ALLOCATION
    seen.append((offset, list(entries)))
h.block_status(2 * c, 0, extent)
h.block_status(2 * c, 0, extent, nbd.CMD_FLAG_REQ_ONE)
h.block_status(c, c + 512, extent, nbd.CMD_FLAG_REQ_ONE)
assert seen == [(0, [c, 0, c, 3]), (0, [c, 0]), (c + 512, [c, 3])], seen"
    );
    nbdsh(&[
        "--base-allocation",
        "-u",
        &server.uri("web01/7:vda"),
        "-c",
        "h.set_strict_mode(0)",
        "-c",
        &lines,
    ]);
}

#[test]
fn clients_without_structured_replies_or_fixed_newstyle_are_served() {
    let server = Running::of(MemoryDisk::of(vec![0xda; MIB as usize]));
    let socket = server.socket();
    for setting in [
        "h.set_request_structured_replies(False)",
        "h.set_handshake_flags(0)",
    ] {
        let lines = format!(
            "{setting}
h.set_export_name('web01/7:vda')
h.connect_unix('{}')
assert not h.get_structured_replies_negotiated()
assert not h.can_df()
assert h.pread(65536, 1) == b'\\xda' * 65536
h.set_strict_mode(0)
try:
    h.pread(1, h.get_size())
except nbd.Error as error:
    assert error.errno == 'EINVAL', error.errno
assert h.pread(1, 0) == b'\\xda'",
            socket.display()
        );
        nbdsh(&["-c", &lines]);
    }
}

#[test]
fn options_can_be_asked_again_and_again() {
    let small = || MemoryDisk::of(vec![0xda; MIB as usize]);
    let server = Running::start(
        Disks::new(vec![("a", small()), ("b", small())]),
        Limits::default(),
    );
    haggle(
        &server,
        "
names = []
assert h.opt_list(lambda name, description: names.append((name, description))) == 2
assert names == [('a', 'the disk called a'), ('b', 'the disk called b')], names
def refused(call):
    try:
        call()
    except nbd.Error:
        assert h.aio_is_negotiating()
    else:
        raise AssertionError('not refused')
for name in ['nothing', 'forbidden', 'x' * 4096]:
    h.set_export_name(name)
    refused(h.opt_info)
    refused(h.opt_go)
h.set_export_name('b')
h.set_full_info(True)
h.opt_info()
assert h.get_size() == 1 << 20 and h.is_read_only()
assert h.get_canonical_export_name() == 'b'
assert h.get_export_description() == 'the disk called b'
assert h.get_block_size(nbd.SIZE_PREFERRED) == 65536
h.add_meta_context('base:allocation')
contexts = []
assert h.opt_list_meta_context(contexts.append) == 1
assert contexts == ['base:allocation'], contexts
h.opt_go()
assert h.can_meta_context('base:allocation')
assert h.pread(1, 0) == b'\\xda'",
    );
}

#[test]
fn an_aborted_handshake_is_a_clean_end() {
    let server = Running::of(MemoryDisk::of(vec![0xda; 512]));
    haggle(&server, "h.opt_abort()\nassert h.aio_is_closed()");
}
