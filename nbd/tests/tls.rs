//! TLS: unmodified clients with and without the right certificates, and a raw one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::certificates::Authority;
use common::disk::{Only, WritableDisk};
use common::raw::{CMD_FLUSH, CMD_READ, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_LIST, OPT_STARTTLS};
use common::raw::{OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_TLS_REQD, Raw, option_bytes, request_bytes};
use common::{Disks, MIB, MemoryDisk, Running, client, expect, path};
use nbd::{Catalog, ErrorKind, Limits, Tls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use testkit::process::{PATIENCE, wait_for};

const REP_ERR_INVALID: u32 = (1 << 31) + 3;
const REVOKED: u64 = 66;

/// A server with TLS, and directories with certificates: "good", "revoked", "foreign" (of another
/// authority) and "none" (of the right authority, without one of the client's own).
struct Setup {
    server: Running,
    directory: tempfile::TempDir,
}

impl Setup {
    fn new(catalog: Arc<dyn Catalog>, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let ours = Authority::new("ours");
        ours.issue(&at("server"), "server", 1);
        ours.issue(&at("good"), "client", 2);
        ours.issue(&at("revoked"), "client", REVOKED);
        ours.revoke(&at("server"), REVOKED);
        Authority::new("theirs").issue(&at("foreign"), "client", 2);
        // It knows whom it talks to; only the server does not.
        fs::copy(at("good").join("ca-cert.pem"), at("foreign").join("ca-cert.pem")).unwrap();
        fs::create_dir(at("none")).unwrap();
        fs::copy(at("good").join("ca-cert.pem"), at("none").join("ca-cert.pem")).unwrap();
        let tls = Tls::from_directory(&at("server")).unwrap();
        let server = Running::start_with(catalog, limits, Some(tls));
        Self { server, directory }
    }

    fn of(disk: MemoryDisk) -> Self {
        Self::new(Disks::new(vec![("disk", disk)]), Limits::default())
    }

    fn certificates(&self, who: &str) -> PathBuf {
        self.directory.path().join(who)
    }

    fn uri(&self, who: &str) -> String {
        let (port, directory) = (self.server.tcp.port(), self.certificates(who));
        format!(
            "nbds://localhost:{port}/disk?tls-certificates={}",
            directory.display()
        )
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.tcp).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A client in the clear that has been greeted.
    fn greeted(&self) -> Raw<TcpStream> {
        let mut raw = Raw(self.tcp());
        assert_eq!(raw.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        raw.say(&[0, 0, 0, 3]);
        raw
    }

    /// A client that has said STARTTLS, and nothing of TLS.
    fn about_to_encrypt(&self) -> Raw<TcpStream> {
        let mut raw = self.greeted();
        assert_eq!(raw.option(OPT_STARTTLS, &[]), REP_ACK);
        raw
    }

    /// A client within TLS, over a socket of the caller's making.
    fn encrypted<S: Read + Write>(&self, who: &str, wrap: impl FnOnce(TcpStream) -> S) -> Encrypted<S> {
        let stream = wrap(self.about_to_encrypt().0);
        Raw(StreamOwned::new(client_side(&self.certificates(who)), stream))
    }

    fn assert_serving(&self) {
        let mut raw = self.encrypted("good", |stream| stream);
        assert_eq!(raw.option(OPT_LIST, &[]), REP_ACK);
    }
}

type Encrypted<S> = Raw<StreamOwned<ClientConnection, S>>;

fn client_side(directory: &Path) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(directory.join("ca-cert.pem")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let certificate = CertificateDer::from_pem_file(directory.join("client-cert.pem"));
    let config = match certificate {
        Ok(certificate) => {
            let key = PrivateKeyDer::from_pem_file(directory.join("client-key.pem")).unwrap();
            config.with_client_auth_cert(vec![certificate], key).unwrap()
        }
        Err(_) => config.with_no_client_auth(),
    };
    ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap()
}

/// The first thing that a client sends.
fn client_hello(setup: &Setup) -> Vec<u8> {
    let mut hello = Vec::new();
    client_side(&setup.certificates("good"))
        .write_tls(&mut hello)
        .unwrap();
    hello
}

/// Sends every byte by itself.
struct Drip(TcpStream);

impl Read for Drip {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Drip {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf.get(..1).unwrap_or_default())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn small() -> MemoryDisk {
    MemoryDisk::of(vec![0xda; MIB as usize])
}

#[test]
fn libnbd_reads_through_tls_over_four_connections() {
    let disk = MemoryDisk::mixed();
    let original = disk.bytes.clone();
    let setup = Setup::of(disk);
    let uri = setup.uri("good");
    expect("nbdinfo", &["--is", "tls", &uri]);
    assert_eq!(
        expect("nbdinfo", &["--size", &uri]).trim(),
        original.len().to_string()
    );
    let copy = setup.server.path("copy.img");
    for extra in [
        &["--connections=4", "--requests=64"][..],
        &["--synchronous"],
        &["--request-size=33554432"],
    ] {
        expect("nbdcopy", &[extra, &[&uri, path(&copy)]].concat());
        assert!(fs::read(&copy).unwrap() == original, "{extra:?}");
    }
}

#[test]
fn libnbd_writes_through_tls() {
    let source = MemoryDisk::mixed().bytes;
    let disk = Arc::new(WritableDisk::of(source.len() as u64));
    let setup = Setup::new(Only::writable(&disk), Limits::default());
    let file = setup.server.path("source.img");
    fs::write(&file, &source).unwrap();
    expect(
        "nbdcopy",
        &["--connections=4", "--flush", path(&file), &setup.uri("good")],
    );
    assert!(*disk.bytes.lock().unwrap() == source);
}

#[test]
fn qemu_img_compares_through_tls() {
    let mut disk = MemoryDisk::mixed();
    disk.bytes.truncate(16 * MIB as usize);
    let original = disk.bytes.clone();
    let setup = Setup::of(disk);
    let file = setup.server.path("original.img");
    fs::write(&file, original).unwrap();
    let compare = |who: &str| {
        let directory = setup.certificates(who);
        let credentials = format!(
            "tls-creds-x509,id=tls,endpoint=client,dir={}",
            directory.display()
        );
        let port = setup.server.tcp.port();
        let image = format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=tls");
        let local = format!("driver=raw,file.driver=file,file.filename={}", path(&file));
        let args = [
            "compare",
            "--object",
            &credentials,
            "--image-opts",
            &image,
            &local,
        ];
        client("qemu-img", &args)
    };
    compare("good").ok();
    for who in ["none", "foreign", "revoked"] {
        assert_ne!(compare(who).code, Some(0), "{who} was let in");
    }
}

#[test]
fn clients_without_a_good_certificate_are_turned_away() {
    let setup = Setup::of(small());
    for who in ["none", "foreign", "revoked"] {
        assert_ne!(
            client("nbdinfo", &[&setup.uri(who)]).code,
            Some(0),
            "{who} was let in"
        );
        // With TLS 1.3 a client learns of it only when it reads.
        let mut raw = setup.encrypted(who, |stream| stream);
        let said = raw.0.write_all(&option_bytes(OPT_LIST, &[]));
        let heard = raw.0.read(&mut [0; 1]);
        assert!(said.is_err() || !matches!(heard, Ok(1..)), "{who} was answered");
    }
    setup.assert_serving();
}

#[test]
fn h12_in_the_clear_nothing_but_starttls_is_served() {
    let setup = Setup::of(small());
    let in_the_clear = setup.server.tcp_uri("disk");
    assert_ne!(client("nbdinfo", &[&in_the_clear]).code, Some(0));
    let mut raw = setup.greeted();
    for (option, length) in [
        (OPT_LIST, 0),
        (OPT_GO, 6),
        (OPT_STRUCTURED_REPLY, 0),
        (99, 1 << 20),
    ] {
        assert_eq!(raw.option(option, &vec![0; length]), REP_ERR_TLS_REQD);
    }
    assert_eq!(raw.option(OPT_ABORT, &[]), REP_ACK);
    assert!(raw.rest().is_empty());
    let mut raw = setup.greeted();
    raw.say(&option_bytes(OPT_EXPORT_NAME, b"disk"));
    assert!(raw.rest().is_empty());
    // The Unix socket is guarded by its mode.
    expect("nbdinfo", &[&setup.server.uri("disk")]);
}

#[test]
fn h12_within_tls_another_starttls_is_invalid_and_everything_else_as_ever() {
    let setup = Setup::of(small());
    let mut raw = setup.encrypted("good", |stream| stream);
    assert_eq!(raw.option(OPT_STARTTLS, &[]), REP_ERR_INVALID);
    assert_eq!(raw.option(OPT_GO, &[0; 6]), REP_ACK);
    raw.request(CMD_READ, 1, 0, 512);
    assert_eq!(raw.simple_reply(), (0, 1));
    assert_eq!(raw.take(512), [0xda; 512]);
}

#[test]
fn h12_n7_what_was_injected_behind_starttls_is_not_heard() {
    let setup = Setup::of(small());
    let mut raw = setup.greeted();
    raw.say(
        &[
            option_bytes(OPT_STARTTLS, &[]),
            option_bytes(OPT_STRUCTURED_REPLY, &[]),
        ]
        .concat(),
    );
    assert!(raw.rest().is_empty(), "an answer in the clear");
    // Sent after the acknowledgement it is no TLS.
    let mut raw = setup.about_to_encrypt();
    raw.say(&option_bytes(OPT_STRUCTURED_REPLY, &[]));
    assert_no_reply(&raw.rest());
    setup.assert_serving();
}

/// At most an alert of TLS.
fn assert_no_reply(bytes: &[u8]) {
    assert!(
        bytes.is_empty() || (bytes[0] == 0x15 && bytes.len() < 32),
        "{bytes:?}"
    );
}

#[test]
fn n11_garbage_instead_of_a_handshake_ends_the_connection() {
    let setup = Setup::of(small());
    for garbage in [
        &[0; 5][..],
        &[0xff; 100_000],
        &[0x16, 3, 1, 0xff, 0xff, 1],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut raw = setup.about_to_encrypt();
        // It may be closed before all of it is sent.
        let _ = raw.0.write_all(garbage);
        let _ = raw.0.shutdown(Shutdown::Write);
        assert_no_reply(&raw.rest());
    }
    setup.assert_serving();
}

#[test]
fn n11_an_end_of_stream_at_any_byte_of_the_handshake_ends_the_connection() {
    let setup = Setup::new(Disks::new(vec![("disk", small())]), Limits::default());
    let hello = client_hello(&setup);
    for length in (0..hello.len()).step_by(7) {
        let mut raw = setup.about_to_encrypt();
        raw.say(&hello[..length]);
        raw.0.shutdown(Shutdown::Write).unwrap();
        // The client is still there: it is the server that ends it.
        assert_no_reply(&raw.rest());
    }
    let mut raw = setup.about_to_encrypt();
    raw.say(&hello);
    raw.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        raw.rest().first(),
        Some(&0x16),
        "the server's own part of the handshake"
    );
    setup.assert_serving();
}

#[test]
fn n11_an_end_of_stream_within_a_record_ends_the_connection_and_gives_its_place_back() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let setup = Setup::new(Disks::new(vec![("disk", small())]), limits);
    for length in [1, 4, 5, 6, 20, 40] {
        let mut raw = None;
        wait_for("the last connection is over", || {
            let mut stream = setup.tcp();
            let let_in = matches!(stream.read(&mut [0; 18]), Ok(18));
            raw = let_in.then_some(Raw(stream));
            let_in
        });
        let mut plain = raw.unwrap();
        plain.say(&[0, 0, 0, 3]);
        assert_eq!(plain.option(OPT_STARTTLS, &[]), REP_ACK);
        let session = client_side(&setup.certificates("good"));
        let mut raw = Raw(StreamOwned::new(session, plain.0));
        assert_eq!(raw.option(OPT_GO, &[0; 6]), REP_ACK);
        let mut record = Vec::new();
        raw.0
            .conn
            .writer()
            .write_all(&request_bytes(CMD_READ, 1, 0, 512))
            .unwrap();
        raw.0.conn.write_tls(&mut record).unwrap();
        raw.0.sock.write_all(&record[..length]).unwrap();
        raw.0.sock.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        raw.0.sock.read_to_end(&mut rest).unwrap();
        assert!(rest.len() < 64, "a reply to a request that never came whole");
    }
}

#[test]
fn n10_silent_clients_do_not_shut_out_one_with_a_certificate() {
    let limits = Limits {
        connections: 1,
        handshakes: 4,
        handshakes_per_address: 4,
        // They are not dropped for being slow.
        handshake: Duration::from_secs(600),
        ..Limits::default()
    };
    let setup = Setup::new(Disks::new(vec![("disk", small())]), limits);
    let silent: Vec<TcpStream> = (0..20).map(|_| setup.tcp()).collect();
    setup.assert_serving();
    drop(silent);
}

#[test]
fn n10_a_tls_handshake_has_the_time_of_any_handshake() {
    let limits = Limits {
        // It is waited for here, and long enough for what comes before the end on a busy machine.
        handshake: Duration::from_secs(3),
        ..Limits::default()
    };
    let setup = Setup::new(Disks::new(vec![("disk", small())]), limits);
    let hello = client_hello(&setup);
    let mut raw = setup.about_to_encrypt();
    raw.say(&hello[..hello.len() - 1]);
    assert!(raw.rest().is_empty());
}

#[test]
fn a_session_whose_records_come_byte_by_byte_is_understood() {
    let setup = Setup::of(small());
    let mut raw = setup.encrypted("good", Drip);
    assert_eq!(raw.option(OPT_STRUCTURED_REPLY, &[]), REP_ACK);
    assert_eq!(raw.option(OPT_GO, &[0; 6]), REP_ACK);
    raw.request(CMD_READ, 7, 5, 3);
    let (flags, kind, cookie, payload) = raw.chunk();
    assert_eq!((flags, kind, cookie, &payload[8..]), (1, 1, 7, &[0xda; 3][..]));
}

#[test]
fn reads_and_writes_of_32_mib_go_through_tls_both_ways_at_once() {
    let disk = Arc::new(WritableDisk::of(64 * MIB));
    let setup = Setup::new(Only::writable(&disk), Limits::default());
    let mut raw = setup.encrypted("good", |stream| stream);
    assert_eq!(raw.option(OPT_GO, &[0; 6]), REP_ACK);
    let data: Vec<u8> = (0..32 * MIB).map(|at| (at % 251) as u8).collect();
    raw.write(0, 1, 5, &data);
    assert_eq!(raw.simple_reply(), (0, 1));
    raw.request(CMD_READ, 2, 5, 32 << 20);
    raw.request(CMD_FLUSH, 3, 0, 0);
    for _ in 0..2 {
        match raw.simple_reply() {
            (0, 2) => assert!(raw.take(32 << 20) == data),
            other => assert_eq!(other, (0, 3)),
        }
    }
    assert!(disk.read(5, data.len()) == data);
}

#[test]
fn t16_a_connection_is_ended_within_tls() {
    let setup = Setup::of(small());
    let mut raw = setup.encrypted("good", |stream| stream);
    assert_eq!(raw.option(OPT_ABORT, &[]), REP_ACK);
    // An end without TLS's own goodbye would be an error here.
    assert_eq!(raw.0.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn files_that_do_not_serve_for_tls_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let fresh = |name: &str| {
        let at = directory.path().join(name);
        Authority::new("ours").issue(&at, "server", 1);
        at
    };
    for missing in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        for content in [None, Some(""), Some("no certificate")] {
            let at = fresh("missing");
            fs::remove_file(at.join(missing)).unwrap();
            if let Some(content) = content {
                fs::write(at.join(missing), content).unwrap();
            }
            let error = Tls::from_directory(&at).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(missing), "{error}");
        }
    }
    let (one, other) = (fresh("one"), fresh("other"));
    fs::copy(one.join("server-key.pem"), other.join("server-key.pem")).unwrap();
    let error = Tls::from_directory(&other).unwrap_err();
    assert!(error.to_string().contains("do not work together"), "{error}");
}

#[test]
fn all_of_this_holds_without_io_uring() {
    testkit::sandbox::repeat_without_io_uring("all_of_this_holds_without_io_uring");
}
