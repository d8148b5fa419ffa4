//! Clients write, each to an overlay, and no image is changed by it.

use crate::run::{client_ends, nbdsh, run_client};
use crate::served::{DISK, MIB, NOISE, Store, text};
use anyhow::Result;
use smc_tests::assert_same_bytes;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use testkit::noise;

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back() -> Result<()> {
    let store = Store::new("nbd-clients-qemu-io")?;
    let _server = store.serve(&["--overlay"])?;
    let uri = store.uri("web01/2:vda");
    let commands = [
        "write -P 0x5a 1M 3M",
        "read -P 0x5a 1M 3M",
        "write -f -P 0x33 33333 777",
        "aio_write -P 0x77 10M 64k",
        "aio_flush",
        "read -P 0x77 10M 64k",
        "write -z 2M 100k",
        "write -z -u 3M 100k",
        "aio_write -z 23M 64k",
        "discard 21M 1M",
        "flush",
        "read -P 0x33 33333 777",
        "read -P 0x5a 1M 1M",
        "read -P 0 2M 100k",
        "read -P 0 3M 100k",
        "read -P 0 21M 1M",
        "read -P 0 23M 64k",
        "write -P 0x11 67108352 512",
        "read -P 0x11 67108352 512",
    ];
    let mut args = vec!["-f", "raw", "-d", "unmap"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let said = run_client("qemu-io", &[&args[..], &[&uri]].concat()).stdout;
    assert!(!said.contains("failed"), "{said}");
    // The overlay has left with its only client: this one meets the image.
    run_client(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, text(&store.truth[1])],
    );

    for (flag, expected) in [
        ("write", 0),
        ("trim", 0),
        ("zero", 0),
        ("fast-zero", 0),
        ("fua", 0),
        ("multi-conn", 0),
    ] {
        client_ends(expected, "nbdinfo", &["--can", flag, &uri]);
    }
    store.assert_unchanged()
}

#[test]
fn nbdcopy_writes_a_whole_disk_and_a_named_overlay_keeps_it() -> Result<()> {
    let store = Store::new("nbd-clients-nbdcopy-in")?;
    let _server = store.serve(&["--overlay"])?;
    let written = store.path("written.img");
    fs::copy(&store.truth[0], &written)?;
    let file = File::options().write(true).open(&written)?;
    file.write_all_at(&noise(3 << 20, 99), 51 * MIB)?;
    file.write_all_at(&vec![0; 2 << 20], NOISE.0)?;
    let named = store.uri("web01/2:vda@restored");
    run_client("nbdcopy", &["--connections=4", "--flush", text(&written), &named]);
    // Nobody is connected in between.
    let copy = store.path("copy.img");
    run_client("nbdcopy", &["--connections=4", &named, text(&copy)]);
    assert_same_bytes(&copy, &written)?;
    run_client(
        "nbdcopy",
        &[
            "--synchronous",
            "--destination-is-zero",
            &store.uri("web01/1:vda"),
            "null:",
        ],
    );
    // Neither another name nor the export itself sees it.
    for other in ["web01/2:vda@other", "web01/2:vda"] {
        let other = store.uri(other);
        run_client(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &other, text(&store.truth[1])],
        );
    }
    run_client(
        "qemu-img",
        &[
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            "raw",
            text(&store.truth[0]),
            &store.uri("web01/2@qemu"),
        ],
    );
    let said = run_client(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &store.uri("web01/2@qemu"),
            text(&store.truth[0]),
        ],
    );
    assert!(said.stdout.contains("identical"), "{}", said.stdout);
    store.assert_unchanged()
}

#[test]
fn fio_writes_at_random_and_verifies() -> Result<()> {
    let store = Store::new("nbd-clients-fio")?;
    // So little memory that most of it goes through the file.
    let _server = store.serve(&["--overlay", "--overlay-limit", "1GiB"])?;
    for (workers, depth) in [("1", "32"), ("2", "8")] {
        let uri = format!("--uri={}", store.uri("web01/2:vda@fio"));
        let numjobs = format!("--numjobs={workers}");
        let depth = format!("--iodepth={depth}");
        let args = [
            "--name=v",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bsrange=512-128k",
            &depth,
            &numjobs,
            "--size=32m",
            "--offset_increment=32m",
            "--io_size=96m",
            "--verify=crc32c",
            "--verify_state_save=0",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_backlog=256",
            "--fsync=64",
            "--group_reporting",
            "--output-format=terse",
        ];
        let said = run_client("fio", &args);
        assert!(!said.stderr.contains("verify"), "{}", said.stderr);
    }
    store.assert_unchanged()
}

#[test]
fn illegal_writes_are_refused_and_the_connection_stays() -> Result<()> {
    let store = Store::new("nbd-clients-illegal-writes")?;
    let _server = store.serve(&["--overlay", "--overlay-limit", "8MiB"])?;
    let lines = format!(
        "
h.pwrite(b'\\xda' * 4096, 0)
def fails(want, call, *args, **flags):
    try:
        call(*args, **flags)
    except nbd.Error as error:
        assert error.errno == want, (call, error.errno, want)
    else:
        raise AssertionError('%s succeeded' % call)
    assert h.pread(4096, 0) == b'\\xda' * 4096
size = h.get_size()
fails('ENOSPC', h.pwrite, b'x' * 512, size)
fails('ENOSPC', h.pwrite, b'x' * 512, size - 511)
fails('EINVAL', h.pwrite, b'x' * 512, 8192, flags=nbd.CMD_FLAG_DF)
fails('EINVAL', h.trim, 512, size)
fails('ENOSPC', h.zero, 512, size)
fails('EINVAL', h.zero, 512, 0, flags=1 << 9)
fails('EINVAL', h.trim, 512, 0, flags=nbd.CMD_FLAG_REQ_ONE)
# What all overlays together may hold is full at some time; what is there stays readable.
wrote = 0
try:
    while wrote < {disk}:
        h.pwrite(b'y' * (1 << 20), wrote + (1 << 20))
        wrote += 1 << 20
except nbd.Error as error:
    assert error.errno == 'ENOSPC', error.errno
else:
    raise AssertionError('there is no limit')
assert 4 << 20 <= wrote <= 8 << 20, wrote
assert h.pread(4096, 0) == b'\\xda' * 4096
assert h.pread(wrote, 1 << 20) == b'y' * wrote
h.trim(8 << 20, 1 << 20)
h.pwrite(b'z' * (1 << 20), 40 << 20, flags=nbd.CMD_FLAG_FUA)
assert h.pread(1 << 20, 40 << 20) == b'z' * (1 << 20)
h.shutdown()",
        disk = DISK - 2 * MIB,
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
