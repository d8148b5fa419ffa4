//! Writing: unmodified clients, and a raw one for what they would not do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::disk::{Only, WritableDisk};
use common::raw::{
    CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, FUA, Raw, request_bytes,
};
use common::{MIB, MemoryDisk, Running, expect, path};
use nbd::{Access, Limits};
use testkit::process::{PATIENCE, wait_for};

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

fn serve(disk: WritableDisk, limits: Limits) -> (Arc<WritableDisk>, Running) {
    let disk = Arc::new(disk);
    let server = Running::start(Only::writable(&disk), limits);
    (disk, server)
}

fn script(uri: &str, lines: &str) {
    let strict_off = "h.set_strict_mode(0)";
    expect(
        "/usr/bin/python3",
        &["-m", "nbd", "-u", uri, "-c", strict_off, "-c", lines],
    );
}

#[test]
fn clients_that_take_no_replies_do_not_starve_one_that_writes() {
    let limits = Limits {
        // They are not dropped while this test runs.
        stall: Duration::from_secs(600),
        memory_bytes: 32 << 20,
        connection_memory_bytes: 32 << 20,
        ..Limits::default()
    };
    let (disk, server) = serve(WritableDisk::of(32 * MIB), limits);
    let mut greedy: Vec<Raw> = (0..2)
        .map(|_| Raw::transmitting(&server.socket(), false))
        .collect();
    for raw in &mut greedy {
        (0..16).for_each(|cookie| raw.request(CMD_READ, cookie, 0, 32 << 20));
    }
    let mut modest = Raw::transmitting(&server.socket(), false);
    // The longest one arrives in pieces.
    for (cookie, length) in (0..).zip([4096, 256 << 10, 5 << 20]) {
        modest.write(FUA, cookie, 0, &vec![cookie as u8 + 1; length]);
        assert_eq!(modest.simple_reply(), (0, cookie));
        assert!(
            disk.bytes.lock().unwrap()[..length]
                .iter()
                .all(|byte| *byte == cookie as u8 + 1)
        );
    }
}

#[test]
fn nbdsh_writes_zeroes_trims_caches_and_flushes() {
    let (disk, server) = serve(WritableDisk::of(4 * MIB), Limits::default());
    let lines = "
assert not h.is_read_only() and h.can_multi_conn()
assert h.can_trim() and h.can_zero() and h.can_fast_zero() and h.can_fua() and h.can_flush() and h.can_cache()
h.pwrite(b'\\xda' * 1000, 5)
h.pwrite(b'\\xdb' * (2 << 20), 1 << 20, nbd.CMD_FLAG_FUA)
assert h.pread(1010, 0) == bytes(5) + b'\\xda' * 1000 + bytes(5)
h.zero(100, 105)
h.zero(512, 3 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(512, 4096, nbd.CMD_FLAG_FUA)
h.cache(4096, 0)
h.flush()
def fails(want, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == want, (error.errno, want)
    else:
        raise AssertionError('not refused')
fails('ENOTSUP', h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails('ENOSPC', h.pwrite, b'x' * 512, (4 << 20) - 1)
fails('ENOSPC', h.zero, 512, (4 << 20) - 1)
fails('EINVAL', h.trim, 512, (4 << 20) - 1)
fails('EINVAL', h.pwrite, b'x', 0, nbd.CMD_FLAG_DF)
assert h.pread(110, 0) == bytes(5) + b'\\xda' * 100 + bytes(5)";
    script(&server.uri(""), lines);
    let mut expected = vec![0; 4 * MIB as usize];
    expected[5..1005].fill(0xda);
    expected[105..205].fill(0);
    expected[MIB as usize..3 * MIB as usize].fill(0xdb);
    assert!(*disk.bytes.lock().unwrap() == expected);
    assert_eq!(disk.logged().iter().filter(|done| *done == "flush").count(), 4);
}

#[test]
fn qemu_io_writes_patterns_and_finds_them_again() {
    let (disk, server) = serve(WritableDisk::of(8 * MIB), Limits::default());
    let commands = [
        "write -P 0x5a 0 1M",
        "write -f -P 0x5b 1M 64k",
        "aio_write -P 0x5c 2M 3M",
        "aio_flush",
        "write -z 512k 64k",
        "write -z -u 600k 8k",
        "discard 7M 64k",
        "flush",
        "read -P 0x5a 0 512k",
        "read -P 0 512k 64k",
        "read -P 0x5b 1M 64k",
        "read -P 0x5c 2M 3M",
    ];
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let uri = server.uri("");
    args.push(&uri);
    let reported = expect("qemu-io", &args);
    assert!(!reported.contains("Pattern verification failed"), "{reported}");
    assert_eq!(disk.read(2 * MIB, 3 * MIB as usize), vec![0x5c; 3 * MIB as usize]);
}

#[test]
fn fio_writes_at_random_and_verifies_what_it_wrote() {
    let (_, server) = serve(WritableDisk::of(16 * MIB), Limits::default());
    let uri = format!("--uri={}", server.uri(""));
    let args = [
        "--name=t",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bs=4k",
        "--iodepth=32",
        "--size=16m",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--do_verify=1",
        "--verify_fatal=1",
        "--randseed=7",
        "--output-format=json",
    ];
    let reported = expect("fio", &args);
    let reported: serde_json::Value =
        serde_json::from_str(reported.get(reported.find('{').unwrap()..).unwrap()).unwrap();
    assert_eq!(reported["jobs"][0]["error"], 0);
    assert!(reported["jobs"][0]["write"]["io_bytes"].as_u64().unwrap() > MIB);
}

#[test]
fn t9_nbdcopy_writes_over_four_connections() {
    let source = MemoryDisk::mixed().bytes;
    let (disk, server) = serve(WritableDisk::of(source.len() as u64), Limits::default());
    let file = server.path("source.img");
    fs::write(&file, &source).unwrap();
    for extra in [
        &["--connections=4", "--flush"][..],
        &["--synchronous"],
        &["--request-size=33554432"],
    ] {
        disk.bytes.lock().unwrap().fill(0xee);
        let uri = server.uri("");
        expect("nbdcopy", &[extra, &[path(&file), &uri]].concat());
        assert!(*disk.bytes.lock().unwrap() == source, "{extra:?}");
    }
}

#[test]
fn t7_t8_t9_a_flush_and_fua_are_done_before_their_reply_and_cover_all_connections() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lasting");
    let (disk, server) = serve(WritableDisk::lasting(MIB, &file), Limits::default());
    let lasting = |at: usize| fs::read(&file).unwrap()[at];
    let mut first = Raw::transmitting(&server.socket(), false);
    let mut second = Raw::transmitting(&server.socket(), false);
    for (turn, offset) in (1..10).zip((0..).step_by(4096)) {
        first.write(0, 1, offset, &[turn; 4096]);
        assert_eq!(first.simple_reply(), (0, 1));
        assert_eq!(lasting(offset as usize), 0, "nothing was flushed yet");
        second.request(CMD_FLUSH, 2, 0, 0);
        assert_eq!(second.simple_reply(), (0, 2));
        assert_eq!(lasting(offset as usize), turn);
    }
    let log = disk.logged().len();
    second.write(FUA, 3, 65536, &[0xfa; 4096]);
    assert_eq!(second.simple_reply(), (0, 3));
    assert_eq!(lasting(65536), 0xfa);
    assert_eq!(disk.logged()[log..], ["write 65536+4096", "flush"]);
    let mut zeroes = request_bytes(CMD_WRITE_ZEROES, 4, 65536, 4096);
    zeroes[5] = FUA as u8;
    second.say(&zeroes);
    assert_eq!(second.simple_reply(), (0, 4));
    assert_eq!(lasting(65536), 0);
    // Several pieces: one flush, after all of them.
    let (disk, server) = serve(WritableDisk::of(4 * MIB), Limits::default());
    let mut raw = Raw::transmitting(&server.socket(), false);
    raw.write(FUA, 5, 1, &vec![7; 3 * MIB as usize + 5]);
    assert_eq!(raw.simple_reply(), (0, 5));
    let log = disk.logged();
    assert_eq!((log.len(), &*log[4]), (5, "flush"));
}

#[test]
fn t7_a_flush_that_fails_is_told_and_the_connection_stays() {
    let disk = WritableDisk {
        flush_fails: true,
        ..WritableDisk::of(MIB)
    };
    let (_, server) = serve(disk, Limits::default());
    let lines = "
def fails(call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == 'EIO', error
    else:
        raise AssertionError('not reported')
fails(h.flush)
fails(h.pwrite, b'x' * 512, 0, nbd.CMD_FLAG_FUA)
fails(h.trim, 512, 0, nbd.CMD_FLAG_FUA)
fails(h.flush)
assert h.pread(2, 0) == b'xx'";
    script(&server.uri(""), lines);
}

#[test]
fn t12_a_write_of_64_mib_is_taken_and_a_longer_one_read_past_and_refused() {
    let (disk, server) = serve(WritableDisk::of(70 * MIB), Limits::default());
    for structured in [false, true] {
        disk.bytes.lock().unwrap().fill(0);
        let mut raw = Raw::transmitting(&server.socket(), structured);
        let verdict = |raw: &mut Raw, cookie| {
            if structured {
                let (_, kind, found, payload) = raw.chunk();
                assert_eq!(found, cookie);
                if kind == 0 {
                    0
                } else {
                    u32::from_be_bytes(payload[..4].try_into().unwrap())
                }
            } else {
                let (error, found) = raw.simple_reply();
                assert_eq!(found, cookie);
                error
            }
        };
        raw.write(0, 1, MIB, &vec![0xab; 64 * MIB as usize]);
        assert_eq!(verdict(&mut raw, 1), 0);
        raw.write(0, 2, 0, &vec![0xcd; 65 * MIB as usize]);
        assert_eq!(verdict(&mut raw, 2), EINVAL);
        raw.write(0, 3, 70 * MIB, &vec![0xcd; MIB as usize]);
        assert_eq!(verdict(&mut raw, 3), ENOSPC);
        raw.write(0, 4, 0, &[9; 9]);
        assert_eq!(verdict(&mut raw, 4), 0);
        let bytes = disk.bytes.lock().unwrap();
        assert!(
            bytes[..9].iter().all(|byte| *byte == 9) && bytes[9..MIB as usize].iter().all(|byte| *byte == 0)
        );
        assert!(
            bytes[MIB as usize..65 * MIB as usize]
                .iter()
                .all(|byte| *byte == 0xab)
        );
        assert!(bytes[65 * MIB as usize..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn n10_clients_that_stop_in_the_middle_of_a_write_are_dropped_and_their_memory_comes_back() {
    let limits = Limits {
        // It is waited for here, and nobody exceeds it who goes on, on a busy machine either.
        stall: Duration::from_secs(3),
        memory_bytes: 32 << 20,
        connection_memory_bytes: 32 << 20,
        ..Limits::default()
    };
    let (_, server) = serve(WritableDisk::of(64 * MIB), limits);
    // More than there is memory for: a megabyte each.
    let mut stopped: Vec<Raw> = (0..40)
        .map(|_| Raw::transmitting(&server.socket(), false))
        .collect();
    for raw in &mut stopped {
        raw.say(&request_bytes(CMD_WRITE, 1, 0, 8 << 20));
        raw.say(&[1; 1000]);
    }
    let mut raw = Raw::transmitting(&server.socket(), false);
    raw.write(0, 2, 0, &vec![2; 48 * MIB as usize]);
    assert_eq!(raw.simple_reply(), (0, 2));
    for mut raw in stopped {
        assert!(raw.rest().is_empty());
    }
}

#[test]
fn n4_a_client_that_vanishes_in_the_middle_of_a_write_harms_nobody() {
    let (disk, server) = serve(WritableDisk::of(4 * MIB), Limits::default());
    for sent in [0, 1, 1000, MIB as usize, 2 * MIB as usize + 7] {
        let mut raw = Raw::transmitting(&server.socket(), true);
        raw.say(&request_bytes(CMD_WRITE, 1, 0, 3 << 20));
        raw.say(&vec![1; sent]);
    }
    let mut raw = Raw::transmitting(&server.socket(), false);
    raw.write(0, 2, 3 * MIB, &[3; 5]);
    assert_eq!(raw.simple_reply(), (0, 2));
    assert_eq!(disk.read(3 * MIB, 5), [3; 5]);
}

#[test]
fn t15_a_full_disk_is_enospc_with_its_text_and_its_first_byte() {
    let disk = WritableDisk {
        full_from: Some(2 * MIB + 5),
        ..WritableDisk::of(8 * MIB)
    };
    let (_, server) = serve(disk, Limits::default());
    let mut raw = Raw::transmitting(&server.socket(), true);
    // Several pieces fail, in any order; the first byte of all is told.
    raw.write(0, 1, 0, &vec![1; 6 * MIB as usize]);
    let (flags, kind, cookie, payload) = raw.chunk();
    assert_eq!((flags, kind, cookie), (1, 0x8002, 1));
    assert_eq!(payload[..4], ENOSPC.to_be_bytes());
    assert_eq!(&payload[6..payload.len() - 8], b"the pool is full");
    assert_eq!(payload[payload.len() - 8..], (2 * MIB + 5).to_be_bytes());
    raw.write(0, 2, 0, &[1; 512]);
    assert_eq!(raw.chunk().1, 0);
    raw.request(CMD_WRITE_ZEROES, 3, 0, 3 << 20);
    assert_eq!(raw.chunk().3[..4], ENOSPC.to_be_bytes());
    raw.request(CMD_TRIM, 4, 7 * MIB, 512);
    assert_eq!(raw.chunk().1, 0);
}

#[test]
fn a_panicking_write_is_one_requests_error() {
    let disk = WritableDisk {
        panics: Some(MIB + 5),
        ..WritableDisk::of(4 * MIB)
    };
    let (disk, server) = serve(disk, Limits::default());
    let mut raw = Raw::transmitting(&server.socket(), false);
    for cookie in 0..20 {
        raw.write(0, cookie, 0, &vec![1; 3 * MIB as usize]);
        assert_eq!(raw.simple_reply(), (EIO, cookie));
    }
    raw.write(FUA, 77, 0, &[7; 512]);
    assert_eq!(raw.simple_reply(), (0, 77));
    assert_eq!(disk.read(0, 512), [7; 512]);
}

#[test]
fn t16_disc_waits_for_writes_and_their_replies() {
    let disk = WritableDisk {
        slow: Duration::from_millis(200),
        ..WritableDisk::of(MIB)
    };
    let (disk, server) = serve(disk, Limits::default());
    let mut raw = Raw::transmitting(&server.socket(), false);
    raw.write(FUA, 1, 0, &[5; 512]);
    raw.request(CMD_DISC, 2, 0, 0);
    assert_eq!(raw.simple_reply(), (0, 1));
    assert!(raw.rest().is_empty());
    assert_eq!(disk.logged(), ["write 0+512", "flush"]);
}

#[test]
fn t17_a_write_in_flight_is_finished_on_shutdown_within_the_grace_time() {
    let limits = Limits {
        grace: PATIENCE,
        ..Limits::default()
    };
    let (disk, mut server) = serve(WritableDisk::of(4 * MIB), limits);
    let mut raw = Raw::transmitting(&server.socket(), false);
    raw.say(&request_bytes(CMD_WRITE, 1, 0, 2 << 20));
    raw.say(&vec![5; MIB as usize]);
    wait_for("the first piece is written", || {
        disk.logged() == ["write 0+1048576"]
    });
    server.handle.shutdown();
    // What is left of it comes only now.
    raw.say(&vec![5; MIB as usize]);
    raw.write(0, 2, 0, &[6; 512]);
    let mut replies = [raw.simple_reply(), raw.simple_reply()];
    replies.sort_unstable();
    assert_eq!(replies, [(0, 1), (ESHUTDOWN, 2)]);
    server.stop().unwrap();
    assert_eq!(disk.read(0, 2 * MIB as usize), vec![5; 2 * MIB as usize]);
}

#[test]
fn t17_the_grace_time_bounds_a_write_too() {
    let disk = WritableDisk {
        slow: Duration::from_secs(3600),
        ..WritableDisk::of(MIB)
    };
    let limits = Limits {
        grace: Duration::from_millis(300),
        ..Limits::default()
    };
    let (disk, mut server) = serve(disk, limits);
    let mut raw = Raw::transmitting(&server.socket(), false);
    let mut half = Raw::transmitting(&server.socket(), false);
    raw.write(0, 1, 0, &[5; 512]);
    half.say(&request_bytes(CMD_WRITE, 2, 0, 4096));
    wait_for("the write has begun", || disk.begun.load(Ordering::SeqCst) > 0);
    server.stop().unwrap();
    assert_eq!(raw.simple_reply(), (ESHUTDOWN, 1));
    assert!(raw.rest().is_empty() && half.rest().is_empty());
}

#[test]
fn what_is_not_shared_is_not_offered_over_several_connections() {
    let export = Arc::new(WritableDisk::of(MIB));
    let access = Access::Writable { shared: false };
    let server = Running::start(Arc::new(Only { export, access }), Limits::default());
    script(
        &server.uri(""),
        "assert not h.can_multi_conn() and not h.is_read_only()",
    );
}

#[test]
fn a_read_after_a_replied_write_sees_it() {
    let (_, server) = serve(WritableDisk::of(MIB), Limits::default());
    let mut writer = Raw::transmitting(&server.socket(), false);
    let mut reader = Raw::transmitting(&server.socket(), false);
    for turn in 1..=50 {
        writer.write(0, 1, 4096, &[turn; 4096]);
        assert_eq!(writer.simple_reply(), (0, 1));
        reader.request(CMD_READ, 2, 4096, 4096);
        assert_eq!(reader.simple_reply(), (0, 2));
        assert_eq!(reader.take(4096), [turn; 4096]);
    }
}

#[test]
fn all_of_this_holds_without_io_uring() {
    testkit::sandbox::repeat_without_io_uring("all_of_this_holds_without_io_uring");
}
