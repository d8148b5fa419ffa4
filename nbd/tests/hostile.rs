//! Clients that are slow, silent, greedy, illegal or gone, and a server that goes down.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::raw::{CMD_DISC, CMD_FLUSH, CMD_READ, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_LIST};
use common::raw::{OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_SHUTDOWN, Raw, option_bytes, request_bytes};
use common::{CLUSTER, Disks, Gate, MIB, MemoryDisk, Running, client, expect, path};
use nbd::{
    Access, Catalog, Client, ErrorKind, Export, ExportError, ExportInfo, Extent, Limits, ServeError, Server,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use testkit::process::{PATIENCE, wait_for};

/// A limit of time that a test waits out, and that nobody exceeds who does what he should, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(3);
/// How long something lasts that a test must not wait for.
const HOUR: Duration = Duration::from_secs(3600);
const EIO: u32 = 5;
const ESHUTDOWN: u32 = 108;

fn with_limits(disk: MemoryDisk, limits: Limits) -> Running {
    Running::start(Disks::new(vec![("disk", disk)]), limits)
}

fn data(length: u64) -> MemoryDisk {
    MemoryDisk::of(vec![0xda; usize::try_from(length).unwrap()])
}

/// The server still does its work.
fn assert_serving(server: &Running) {
    assert_eq!(expect("nbdinfo", &["--can", "read", &server.uri("")]), "");
}

#[test]
fn n10_a_silent_or_slow_client_is_dropped_when_the_handshake_time_is_over() {
    let server = with_limits(
        data(MIB),
        Limits {
            handshake: LIMIT,
            ..Limits::default()
        },
    );
    let mut silent = Raw::connect(&server.socket());
    let mut half_way = Raw::greeted(&server.socket());
    let mut slow = Raw::greeted(&server.socket());
    let drip = std::thread::spawn(move || {
        // An unknown option with 1000 bytes of data that come one by one.
        slow.say(&option_bytes(99, &[0; 1000])[..16]);
        wait_for("the slow client is dropped", || {
            std::io::Write::write_all(&mut slow.0, &[0]).is_err()
        });
    });
    assert_eq!(silent.rest().len(), 18);
    assert_eq!(half_way.rest(), [0; 0]);
    drip.join().unwrap();
    assert_serving(&server);
}

#[test]
fn an_idle_client_in_transmission_outlives_the_handshake_time() {
    let limits = Limits {
        handshake: LIMIT,
        ..Limits::default()
    };
    let server = with_limits(data(MIB), limits);
    let mut raw = Raw::transmitting(&server.socket(), false);
    // One that came later is dropped: the time is over.
    assert_eq!(Raw::greeted(&server.socket()).rest(), [0; 0]);
    raw.request(CMD_FLUSH, 1, 0, 0);
    assert_eq!(raw.simple_reply(), (0, 1));
}

#[test]
fn n10_one_connection_too_many_is_turned_away_and_room_comes_back() {
    let server = with_limits(
        data(MIB),
        Limits {
            connections: 2,
            ..Limits::default()
        },
    );
    let first = Raw::greeted(&server.socket());
    let _second = Raw::greeted(&server.socket());
    assert_eq!(Raw::connect(&server.socket()).rest(), [0; 0]);
    drop(first);
    wait_for("a third client is let in", || {
        Raw::connect(&server.socket()).rest_starts_with_greeting()
    });
}

impl Raw {
    fn rest_starts_with_greeting(&mut self) -> bool {
        self.0.read(&mut [0; 18]).unwrap_or(0) == 18
    }
}

#[test]
fn n4_a_client_may_vanish_at_every_byte() {
    // More than there are clients: the server may notice that they left after the next ones came.
    let limits = Limits {
        connections: 1024,
        ..Limits::default()
    };
    let server = with_limits(data(MIB), limits);
    let session = [
        vec![0, 0, 0, 3],
        option_bytes(99, b"unknown"),
        option_bytes(OPT_LIST, &[]),
        option_bytes(OPT_STRUCTURED_REPLY, &[]),
        option_bytes(OPT_GO, &[0; 6]),
        request_bytes(CMD_READ, 1, 0, 65536),
        request_bytes(CMD_FLUSH, 2, 0, 0),
        request_bytes(CMD_DISC, 3, 0, 0),
    ]
    .concat();
    for length in 0..=session.len() {
        let mut raw = Raw::connect(&server.socket());
        raw.say(&session[..length]);
    }
    assert_serving(&server);
}

#[test]
fn a_session_sent_byte_by_byte_is_understood() {
    let server = with_limits(data(MIB), Limits::default());
    let mut raw = Raw::connect(&server.socket());
    raw.take(18);
    let session = [
        vec![0, 0, 0, 3],
        option_bytes(OPT_EXPORT_NAME, b"disk"),
        request_bytes(CMD_READ, 7, 1, 3),
    ]
    .concat();
    session.chunks(1).for_each(|byte| raw.say(byte));
    raw.take(10);
    assert_eq!(raw.simple_reply(), (0, 7));
    assert_eq!(raw.take(3), [0xda; 3]);
}

#[test]
fn t16_disc_finishes_what_is_in_flight_and_closes_without_a_reply() {
    let disk = MemoryDisk {
        slow: Some((0, Duration::from_millis(200))),
        ..data(MIB)
    };
    let server = with_limits(disk, Limits::default());
    let mut raw = Raw::transmitting(&server.socket(), false);
    raw.request(CMD_READ, 1, 0, 100);
    raw.request(CMD_DISC, 2, 0, 0);
    assert_eq!(raw.simple_reply(), (0, 1));
    assert_eq!(raw.rest(), [0xda; 100]);
}

#[test]
fn h8_abort_is_acknowledged_and_the_connection_closed() {
    let server = with_limits(data(MIB), Limits::default());
    let mut raw = Raw::greeted(&server.socket());
    assert_eq!(raw.option(OPT_ABORT, b"why not"), REP_ACK);
    assert_eq!(raw.rest(), [0; 0]);
}

#[test]
fn requests_of_one_connection_run_in_parallel_and_out_of_order() {
    let gate = Arc::new(Gate::default());
    let disk = MemoryDisk {
        gate: Some((MIB, Arc::clone(&gate))),
        ..data(2 * MIB)
    };
    let at_once = Arc::clone(&disk.at_once);
    let server = with_limits(disk, Limits::default());
    let mut raw = Raw::transmitting(&server.socket(), false);
    (0..4).for_each(|cookie| raw.request(CMD_READ, cookie, MIB, 8));
    raw.request(CMD_READ, 99, 0, 8);
    assert_eq!(raw.simple_reply(), (0, 99));
    raw.take(8);
    wait_for("the other four run at once", || at_once.most() == 4);
    gate.open();
    for _ in 0..4 {
        assert_eq!(raw.simple_reply().0, 0);
        raw.take(8);
    }
}

#[test]
fn in_flight_requests_of_one_connection_are_bounded() {
    let disk = MemoryDisk {
        slow: Some((0, Duration::from_millis(200))),
        ..data(MIB)
    };
    let at_once = Arc::clone(&disk.at_once);
    let server = with_limits(
        disk,
        Limits {
            in_flight: 2,
            ..Limits::default()
        },
    );
    let mut raw = Raw::transmitting(&server.socket(), false);
    (0..6).for_each(|cookie| raw.request(CMD_READ, cookie, 0, 8));
    for _ in 0..6 {
        raw.simple_reply();
        raw.take(8);
    }
    assert!(at_once.most() <= 2, "more than two were in flight");
}

#[test]
fn a_damaged_cluster_is_an_error_with_its_text_and_the_connection_stays() {
    let bad = 3 * CLUSTER as u64 + 17;
    let disk = MemoryDisk {
        damaged: Some(bad),
        ..data(MIB)
    };
    let server = with_limits(disk, Limits::default());
    let mut raw = Raw::transmitting(&server.socket(), true);
    raw.request(CMD_READ, 5, CLUSTER as u64, 4 * CLUSTER as u32);
    let (flags, kind, cookie, payload) = raw.chunk();
    assert_eq!((flags, kind, cookie), (1, 0x8002, 5));
    assert_eq!(payload[..4], EIO.to_be_bytes());
    let text = "image web01/7, cluster 3 is damaged";
    assert_eq!(&payload[6..payload.len() - 8], text.as_bytes());
    assert_eq!(common::raw::be64(&payload[payload.len() - 8..]), bad);
    raw.request(CMD_READ, 6, 0, 512);
    assert_eq!(raw.chunk().3[8..], [0xda; 512]);

    let mut simple = Raw::transmitting(&server.socket(), false);
    simple.request(CMD_READ, 7, bad, 1);
    assert_eq!(simple.simple_reply(), (EIO, 7));
    simple.request(CMD_FLUSH, 8, 0, 0);
    assert_eq!(simple.simple_reply(), (0, 8));
}

#[test]
fn a_panic_in_an_export_is_one_requests_error() {
    let server = with_limits(
        MemoryDisk {
            panics: Some(4096),
            ..data(MIB)
        },
        Limits::default(),
    );
    let mut raw = Raw::transmitting(&server.socket(), false);
    for cookie in 0..20 {
        raw.request(CMD_READ, cookie, 4096, 512);
        assert_eq!(raw.simple_reply(), (EIO, cookie));
    }
    raw.request(CMD_READ, 77, 0, 512);
    assert_eq!(raw.simple_reply(), (0, 77));
    assert_serving(&server);
}

#[test]
fn a_client_killed_in_the_middle_of_a_copy_leaves_the_server_well() {
    let disk = MemoryDisk {
        slow: Some((0, Duration::from_millis(5))),
        ..data(64 * MIB)
    };
    let begun = Arc::clone(&disk.begun);
    let server = with_limits(
        disk,
        Limits {
            memory_bytes: 64 << 20,
            ..Limits::default()
        },
    );
    for _ in 0..5 {
        let before = begun.load(Ordering::SeqCst);
        let mut copy = Command::new("nbdcopy")
            .args(["--connections=4", &server.uri("disk"), "null:"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the copy is on its way", || {
            begun.load(Ordering::SeqCst) > before + 20
        });
        copy.kill().unwrap();
        copy.wait().unwrap();
    }
    // All of the memory is free again: this read needs a quarter of it, sixteen times.
    expect(
        "nbdcopy",
        &["--request-size=16777216", &server.uri("disk"), "null:"],
    );
}

/// Whether the server has ended a connection, whatever is still to be read.
fn has_hung_up(raw: &Raw) -> bool {
    let mut polled = [PollFd::new(raw.0.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).unwrap();
    polled[0].revents().unwrap().contains(PollFlags::POLLHUP)
}

#[test]
fn clients_that_take_no_replies_are_dropped_and_their_memory_comes_back() {
    let limits = Limits {
        stall: LIMIT,
        memory_bytes: 64 << 20,
        connection_memory_bytes: 32 << 20,
        ..Limits::default()
    };
    let server = with_limits(data(32 * MIB), limits);
    let mut greedy: Vec<Raw> = (0..4)
        .map(|_| Raw::transmitting(&server.socket(), false))
        .collect();
    for raw in &mut greedy {
        (0..16).for_each(|cookie| raw.request(CMD_READ, cookie, 0, 32 << 20));
    }
    // Needs more than is reserved for it, waits behind them in line, and must get through once they are dropped.
    let mut patient = Raw::transmitting(&server.socket(), false);
    patient.request(CMD_READ, 7, 0, 32 << 20);
    assert_eq!(patient.simple_reply(), (0, 7));
    patient.take(32 << 20);
    for mut raw in greedy {
        wait_for("the server hangs up", || has_hung_up(&raw));
        assert!(
            raw.rest().len() < 32 << 20,
            "a whole reply went into the socket's buffers"
        );
    }
}

#[test]
fn clients_that_take_no_replies_do_not_starve_one_that_does() {
    let limits = Limits {
        // They are not dropped while this test runs.
        stall: Duration::from_secs(600),
        memory_bytes: 64 << 20,
        connection_memory_bytes: 32 << 20,
        ..Limits::default()
    };
    let server = with_limits(data(32 * MIB), limits);
    let mut greedy: Vec<Raw> = (0..4)
        .map(|_| Raw::transmitting(&server.socket(), false))
        .collect();
    for raw in &mut greedy {
        (0..16).for_each(|cookie| raw.request(CMD_READ, cookie, 0, 32 << 20));
    }
    for _ in 0..3 {
        let mut modest = Raw::transmitting(&server.socket(), false);
        for (cookie, length) in (0..).zip([4096, 4096, 128 << 10, 256 << 10, 256 << 10]) {
            modest.request(CMD_READ, cookie, 4096 * cookie, length);
            assert_eq!(modest.simple_reply(), (0, cookie));
            assert_eq!(modest.take(length as usize).len(), length as usize);
        }
    }
    // With structured replies, reads of any length, one step after the other; and the map.
    for size in ["262144", "1048576"] {
        let size = format!("--request-size={size}");
        let disk = server.uri("disk");
        expect(
            "nbdcopy",
            &["--connections=1", "--requests=1", &size, &disk, "null:"],
        );
    }
    expect("nbdinfo", &["--map", &server.uri("disk")]);
}

#[test]
fn n10_silent_clients_take_no_place_of_others() {
    let limits = Limits {
        connections: 2,
        handshakes: 8,
        handshakes_per_address: 4,
        // They are not dropped for being slow.
        handshake: Duration::from_secs(600),
        ..Limits::default()
    };
    let server = with_limits(data(MIB), limits);
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(server.tcp).unwrap()).collect();
    for _ in 0..3 {
        expect("nbdinfo", &["--size", &server.tcp_uri("disk")]);
        assert_serving(&server);
    }
    // The first ones had to make way. Of the address's four, the clients took one place at a time.
    let is_closed = |stream: &TcpStream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // After the greeting at most.
        Raw(stream.try_clone().unwrap()).rest().len() <= 18
    };
    assert!(silent.iter().take(16).all(is_closed));
    // Those that have shown what they want hold a place of the others.
    let first = Raw::transmitting(&server.socket(), false);
    let _second = Raw::transmitting(&server.socket(), false);
    let refused = client("nbdinfo", &["--size", &server.tcp_uri("disk")]);
    assert!(
        refused.stderr.contains("policy prevents NBD_OPT_GO"),
        "{refused:?}"
    );
    drop(first);
    wait_for("its place is free", || {
        client("nbdinfo", &["--size", &server.tcp_uri("disk")]).code == Some(0)
    });
}

#[test]
fn h13_t17_a_shutdown_is_told_to_those_who_ask() {
    let mut server = with_limits(
        data(MIB),
        Limits {
            grace: PATIENCE,
            ..Limits::default()
        },
    );
    let mut haggling = Raw::greeted(&server.socket());
    assert_eq!(haggling.option(OPT_LIST, &[]), REP_ACK);
    let mut transmitting = Raw::transmitting(&server.socket(), false);
    server.handle.shutdown();
    assert_eq!(haggling.option(OPT_LIST, &[]), REP_ERR_SHUTDOWN);
    assert_eq!(haggling.option(OPT_GO, &[0; 6]), REP_ERR_SHUTDOWN);
    assert_eq!(haggling.option(OPT_ABORT, &[]), REP_ACK);
    transmitting.request(CMD_READ, 3, 0, 512);
    assert_eq!(transmitting.simple_reply(), (ESHUTDOWN, 3));
    assert_eq!(transmitting.rest(), [0; 0]);
    server.stop().unwrap();
    assert!(!server.socket().exists());
}

#[test]
fn t17_a_request_in_flight_finishes_within_the_grace_time() {
    let gate = Arc::new(Gate::default());
    let disk = MemoryDisk {
        gate: Some((0, Arc::clone(&gate))),
        ..data(MIB)
    };
    let begun = Arc::clone(&disk.begun);
    let limits = Limits {
        grace: PATIENCE,
        ..Limits::default()
    };
    let mut server = with_limits(disk, limits);
    let mut raw = Raw::transmitting(&server.socket(), false);
    raw.request(CMD_READ, 3, 0, 512);
    wait_for("the read has begun", || begun.load(Ordering::SeqCst) > 0);
    server.handle.shutdown();
    // What is refused shows that the shutdown has begun.
    raw.request(CMD_READ, 4, 0, 512);
    assert_eq!(raw.simple_reply(), (ESHUTDOWN, 4));
    gate.open();
    server.stop().unwrap();
    assert_eq!(raw.simple_reply(), (0, 3));
    assert_eq!(raw.rest(), [0xda; 512]);
}

#[test]
fn t17_n10_the_grace_time_bounds_a_shutdown() {
    let disk = MemoryDisk {
        slow: Some((0, HOUR)),
        ..data(MIB)
    };
    let begun = Arc::clone(&disk.begun);
    let mut server = with_limits(
        disk,
        Limits {
            grace: Duration::from_millis(300),
            ..Limits::default()
        },
    );
    let mut stuck = [false, true].map(|structured| Raw::transmitting(&server.socket(), structured));
    stuck.iter_mut().for_each(|raw| raw.request(CMD_READ, 4, 0, 512));
    let mut half_open = Raw::greeted(&server.socket());
    wait_for("both reads have begun", || begun.load(Ordering::SeqCst) >= 2);
    server.stop().unwrap();
    let [simple, structured] = &mut stuck;
    assert_eq!(simple.simple_reply(), (ESHUTDOWN, 4));
    let (_, kind, cookie, payload) = structured.chunk();
    assert_eq!((kind, cookie), (0x8001, 4));
    assert_eq!(payload[..4], ESHUTDOWN.to_be_bytes());
    assert_eq!(
        (simple.rest(), structured.rest(), half_open.rest()),
        (vec![], vec![], vec![])
    );
}

#[test]
fn t17_a_client_that_takes_no_replies_does_not_hold_up_a_shutdown() {
    let limits = Limits {
        grace: Duration::from_millis(300),
        stall: HOUR,
        ..Limits::default()
    };
    let disk = data(8 * MIB);
    let begun = Arc::clone(&disk.begun);
    let mut server = with_limits(disk, limits);
    let mut greedy = Raw::transmitting(&server.socket(), false);
    // In one piece: many small ones would fill the socket, and this client would wait for the server.
    let reads = (0..200).map(|cookie| request_bytes(CMD_READ, cookie, 0, 8 << 20));
    let flushes = (0..200).map(|cookie| request_bytes(CMD_FLUSH, cookie, 0, 0));
    greedy.say(&reads.chain(flushes).flatten().collect::<Vec<u8>>());
    wait_for("the first reads have begun", || begun.load(Ordering::SeqCst) > 0);
    server.stop().unwrap();
}

/// Says when it is dropped.
struct Closing(MemoryDisk, Arc<AtomicBool>);

impl Export for Closing {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        self.0.read_at(offset, buf)
    }
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        self.0.extents(offset, length)
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let thread = std::thread::current();
        self.1.store(
            thread.name().is_some_and(|name| name.starts_with("nbd-io")),
            Ordering::SeqCst,
        );
    }
}

struct OnlyClosing(Arc<AtomicBool>);

impl Catalog for OnlyClosing {
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError> {
        Ok(vec![])
    }
    fn info(&self, name: &str, _: &Client) -> Result<ExportInfo, ServeError> {
        Ok(ExportInfo {
            name: name.into(),
            description: None,
            size_bytes: 512,
            preferred_block_bytes: 512,
            access: Access::ReadOnly,
        })
    }
    fn open(&self, _: &str, _: &Client) -> Result<Arc<dyn Export>, ServeError> {
        Ok(Arc::new(Closing(data(512), Arc::clone(&self.0))))
    }
}

#[test]
fn an_export_is_closed_with_its_connection_and_where_blocking_is_allowed() {
    let closed_well = Arc::new(AtomicBool::new(false));
    let server = Running::start(Arc::new(OnlyClosing(Arc::clone(&closed_well))), Limits::default());
    let mut raw = Raw::transmitting(&server.socket(), true);
    raw.request(CMD_READ, 1, 0, 512);
    assert_eq!(raw.chunk().3.len(), 8 + 512);
    drop(raw);
    wait_for("the export is dropped on a pool thread", || {
        closed_well.load(Ordering::SeqCst)
    });
}

fn server_at(socket: &std::path::Path) -> Result<Server, ServeError> {
    let mut server = Server::new(Disks::new(vec![("disk", data(512))]), Limits::default())?;
    server.listen_unix(socket).map(|()| server)
}

#[test]
fn a_unix_socket_is_private_and_replaces_nothing_but_a_stale_one() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    fs::write(&socket, "a file").unwrap();
    assert_eq!(server_at(&socket).unwrap_err().kind(), ErrorKind::AddressInUse);
    assert_eq!(fs::read(&socket).unwrap(), b"a file");
    fs::remove_file(&socket).unwrap();

    let live = UnixListener::bind(&socket).unwrap();
    assert_eq!(server_at(&socket).unwrap_err().kind(), ErrorKind::AddressInUse);
    assert!(socket.exists());
    drop(live);

    let server = server_at(&socket).unwrap();
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(server.unix_paths(), [socket.as_path()]);
    drop(server);
    assert!(!socket.exists());
}

#[test]
fn a_socket_file_that_is_no_longer_ours_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let server = server_at(&socket).unwrap();
    fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    drop(server);
    assert!(socket.exists());
}

#[test]
fn addresses_and_limits_that_cannot_work_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("x".repeat(200));
    assert!(server_at(&long).is_err());
    let server = Server::new(Disks::new(vec![]), Limits::default()).unwrap();
    assert_eq!(server.run().unwrap_err().kind(), ErrorKind::InvalidInput);
    let limits = Limits {
        memory_bytes: 1 << 20,
        ..Limits::default()
    };
    assert_eq!(
        Server::new(Disks::new(vec![]), limits).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let mut first = Server::new(Disks::new(vec![]), Limits::default()).unwrap();
    let taken = first.listen_tcp("127.0.0.1:0".parse().unwrap(), None).unwrap();
    assert_eq!(first.tcp_addresses(), [(taken, false)]);
    let mut second = Server::new(Disks::new(vec![]), Limits::default()).unwrap();
    assert_eq!(
        second.listen_tcp(taken, None).unwrap_err().kind(),
        ErrorKind::AddressInUse
    );
}

#[test]
fn a_server_that_was_told_to_stop_before_it_ran_returns_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let server = server_at(&socket).unwrap();
    let handle = server.shutdown_handle();
    handle.shutdown();
    handle.clone().shutdown();
    server.run().unwrap();
    assert!(!path(&socket).is_empty() && !socket.exists());
}

#[test]
fn n5_nothing_is_opened_before_go() {
    let disks = Disks::new(vec![("disk", data(MIB))]);
    let server = Running::start(Arc::<Disks>::clone(&disks), Limits::default());
    let mut raw = Raw::greeted(&server.socket());
    let opened = || disks.opened.load(Ordering::SeqCst);
    // LIST, INFO, LIST_META_CONTEXT and SET_META_CONTEXT.
    raw.option(OPT_STRUCTURED_REPLY, &[]);
    for (option, data) in [(3, &[][..]), (6, &[0; 6]), (9, &[0; 8]), (10, &[0; 8])] {
        assert_eq!(raw.option(option, data), REP_ACK);
    }
    assert_eq!(opened(), 0);
    raw.option(OPT_GO, &[0; 6]);
    assert_eq!(opened(), 1);
}

/// A large export that counts how often it is read.
struct Counted(Arc<AtomicUsize>);

impl Export for Counted {
    fn size_bytes(&self) -> u64 {
        64 * MIB
    }
    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        buf.fill(1);
        Ok(())
    }
    fn extents(&self, _: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::data(length)])
    }
}

struct OnlyCounted(Arc<AtomicUsize>);

impl Catalog for OnlyCounted {
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError> {
        Ok(vec![])
    }
    fn info(&self, name: &str, _: &Client) -> Result<ExportInfo, ServeError> {
        Ok(ExportInfo {
            name: name.into(),
            description: None,
            size_bytes: 64 * MIB,
            preferred_block_bytes: 4096,
            access: Access::ReadOnly,
        })
    }
    fn open(&self, _: &str, _: &Client) -> Result<Arc<dyn Export>, ServeError> {
        Ok(Arc::new(Counted(Arc::clone(&self.0))))
    }
}

#[test]
fn what_a_client_asked_for_is_not_read_any_more_once_it_is_gone() {
    let reads = Arc::new(AtomicUsize::new(0));
    let limits = Limits {
        in_flight: 4,
        ..Limits::default()
    };
    let server = Running::start(Arc::new(OnlyCounted(Arc::clone(&reads))), limits);
    let mut raw = Raw::transmitting(&server.socket(), true);
    // As many as the server takes in at once.
    let requests: Vec<u8> = (0..2000)
        .flat_map(|cookie| request_bytes(CMD_READ, cookie, 0, 1 << 20))
        .collect();
    raw.say(&requests);
    wait_for("the first are read", || reads.load(Ordering::SeqCst) > 0);
    drop(raw);
    // The export is held by the connection and by this test.
    wait_for("the connection is over", || Arc::strong_count(&reads) == 2);
    assert!(reads.load(Ordering::SeqCst) < 200, "{reads:?}");
}

#[test]
fn all_of_this_holds_without_io_uring() {
    testkit::sandbox::repeat_without_io_uring("all_of_this_holds_without_io_uring");
}
