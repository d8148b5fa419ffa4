//! Sockets that others made: one connected client, and listeners that are inherited.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use std::fs::File;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use common::raw::{CMD_DISC, CMD_READ, OPT_GO, REP_ACK, Raw};
use common::{Disks, MIB, MemoryDisk, expect, path};
use nbd::{ErrorKind, Limits, Server};

fn server() -> Server {
    let disk = MemoryDisk::of(vec![0xda; MIB as usize]);
    Server::new(Disks::new(vec![("disk", disk)]), Limits::default()).unwrap()
}

/// Has a greeted client read something.
fn use_it<S: std::io::Read + std::io::Write>(raw: &mut Raw<S>) {
    assert_eq!(raw.take(18), b"NBDMAGICIHAVEOPT\0\x03");
    raw.say(&[0, 0, 0, 3]);
    assert_eq!(raw.option(OPT_GO, &[0; 6]), REP_ACK);
    raw.request(CMD_READ, 1, 0, 100);
    assert_eq!(raw.simple_reply(), (0, 1));
    assert_eq!(raw.take(100), [0xda; 100]);
}

#[test]
fn a_server_of_connected_clients_ends_when_the_last_of_them_leaves() {
    let mut server = server();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        server.connect(theirs);
        clients.push(Raw(ours));
    }
    let running = std::thread::spawn(move || server.run());
    clients.iter_mut().for_each(use_it);
    clients[0].request(CMD_DISC, 2, 0, 0);
    assert!(clients[0].rest().is_empty());
    clients.swap_remove(0);
    assert!(!running.is_finished());
    for raw in &mut clients {
        raw.request(CMD_READ, 3, 5, 1);
        assert_eq!(raw.simple_reply(), (0, 3));
        assert_eq!(raw.take(1), [0xda]);
    }
    drop(clients);
    running.join().unwrap().unwrap();
}

#[test]
fn clients_that_have_left_before_the_server_runs_do_not_end_it_for_the_others() {
    for _ in 0..10 {
        let mut server = server();
        for _ in 0..50 {
            server.connect(UnixStream::pair().unwrap().1);
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        server.connect(theirs);
        let running = std::thread::spawn(move || server.run());
        use_it(&mut Raw(ours));
        running.join().unwrap().unwrap();
    }
}

#[test]
fn inherited_unix_and_tcp_listeners_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let unix = UnixListener::bind(&socket).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let mut server = server();
    server.listen_inherited(OwnedFd::from(unix), None).unwrap();
    server.listen_inherited(OwnedFd::from(tcp), None).unwrap();
    assert_eq!(server.unix_paths(), [socket.as_path()]);
    assert_eq!(server.tcp_addresses(), [(address, false)]);
    let handle = server.shutdown_handle();
    let running = std::thread::spawn(move || server.run());
    use_it(&mut Raw(UnixStream::connect(&socket).unwrap()));
    use_it(&mut Raw(TcpStream::connect(address).unwrap()));
    let size = expect(
        "nbdinfo",
        &["--size", &format!("nbd+unix:///?socket={}", path(&socket))],
    );
    assert_eq!(size.trim(), MIB.to_string());
    handle.shutdown();
    running.join().unwrap().unwrap();
    assert!(socket.exists(), "who made it removes it");
}

#[test]
fn what_does_not_listen_for_streams_is_not_inherited() {
    let directory = tempfile::tempdir().unwrap();
    let unusable: [(&str, OwnedFd); 5] = [
        ("a connected socket", UnixStream::pair().unwrap().0.into()),
        (
            "a Unix datagram socket",
            UnixDatagram::bind(directory.path().join("d")).unwrap().into(),
        ),
        ("a UDP socket", UdpSocket::bind("127.0.0.1:0").unwrap().into()),
        ("a file", File::create(directory.path().join("f")).unwrap().into()),
        ("a device", File::open("/dev/null").unwrap().into()),
    ];
    for (what, fd) in unusable {
        let error = server().listen_inherited(fd, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}");
        assert!(
            error.to_string().contains("no listening stream socket"),
            "{what}: {error}"
        );
    }
}

#[test]
fn all_of_this_holds_without_io_uring() {
    testkit::sandbox::repeat_without_io_uring("all_of_this_holds_without_io_uring");
}
