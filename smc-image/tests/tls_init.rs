//! `smc-image tls-init`: what it makes is what TLS libraries of other people accept.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::{Fixture, SMC_IMAGE};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use testkit::program::{Run, Running, run, tool, wait_for};

fn tls_init(dir: &Path, args: &[&str]) -> Run {
    run(Command::new(SMC_IMAGE).arg("tls-init").arg(dir).args(args))
}

fn made(dir: &Path, args: &[&str]) -> Vec<Value> {
    let done = tls_init(dir, &[args, &["--json"]].concat());
    let objects = done.objects();
    done.ok();
    objects
}

/// Every file and directory below `dir` with its content.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content(&path));
            found.insert(path, Vec::new());
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    let found = CertificateDer::pem_file_iter(file).unwrap();
    found.map(Result::unwrap).collect()
}

fn trusted(set: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for root in certificates(&set.join("ca-cert.pem")) {
        roots.add(root).unwrap();
    }
    Arc::new(roots)
}

fn pair(set: &Path, role: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = PrivateKeyDer::from_pem_file(set.join(format!("{role}-key.pem"))).unwrap();
    (certificates(&set.join(format!("{role}-cert.pem"))), key)
}

/// Lets a server and a client with these sets talk until both are content or one of them is not.
fn handshake(server: &Path, client: &Path, host: &str) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted(server), provider.clone());
    let (chain, key) = pair(server, "server");
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)?;
    let mut server = ServerConnection::new(Arc::new(config))?;
    let (chain, key) = pair(client, "client");
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(trusted(client))
        .with_client_auth_cert(chain, key)?;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name)?;
    while client.is_handshaking() || server.is_handshaking() {
        pass(&mut client, &mut server)?;
        pass(&mut server, &mut client)?;
    }
    Ok(())
}

fn pass<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Result<(), rustls::Error> {
    let mut records = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut records).unwrap();
    }
    let mut records = &records[..];
    while !records.is_empty() {
        to.read_tls(&mut records).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn both_sides_accept_each_other_under_the_names_given() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    tls_init(
        &dir,
        &[
            "--host",
            "backup.example",
            "--host",
            "10.1.2.3",
            "--host",
            "fd00::7",
        ],
    )
    .ok();
    let (server, client) = (dir.join("server"), dir.join("client"));
    for host in ["backup.example", "10.1.2.3", "fd00::7"] {
        assert_eq!(handshake(&server, &client, host), Ok(()), "{host}");
    }
    for other in ["other.example", "10.1.2.4", "localhost"] {
        let refused = handshake(&server, &client, other).unwrap_err();
        assert!(
            matches!(refused, rustls::Error::InvalidCertificate(_)),
            "{refused}"
        );
    }
}

#[test]
fn a_server_is_reached_from_its_own_machine_by_default() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    let objects = made(&dir, &[]);
    let own = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let hosts: Vec<&str> = objects[1]["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| host.as_str().unwrap())
        .collect();
    assert!(hosts.contains(&own.as_str()), "{hosts:?}");
    for host in [&*own, "localhost", "127.0.0.1", "::1"] {
        assert_eq!(
            handshake(&dir.join("server"), &dir.join("client"), host),
            Ok(()),
            "{host}"
        );
    }
}

#[test]
fn strangers_and_mixed_up_roles_are_turned_away() {
    let fixture = Fixture::new();
    let (ours, theirs) = (fixture.join("ours"), fixture.join("theirs"));
    tls_init(&ours, &[]).ok();
    tls_init(&theirs, &[]).ok();
    let stranger = fixture.join("stranger");
    fs::create_dir(&stranger).unwrap();
    // Its own certificate, though it believes in our server.
    for file in ["client-cert.pem", "client-key.pem"] {
        fs::copy(theirs.join("client").join(file), stranger.join(file)).unwrap();
    }
    fs::copy(ours.join("client/ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    assert!(handshake(&ours.join("server"), &stranger, "localhost").is_err());
    assert!(handshake(&ours.join("server"), &theirs.join("client"), "localhost").is_err());
    // The server's certificate in a client's hands, and the other way round.
    for file in ["cert", "key"] {
        let as_role = |from: &str, to: &str| {
            fs::copy(
                ours.join(format!("{from}/{from}-{file}.pem")),
                stranger.join(format!("{to}-{file}.pem")),
            )
            .unwrap()
        };
        as_role("server", "client");
        as_role("client", "server");
    }
    assert!(handshake(&ours.join("server"), &stranger, "localhost").is_err());
    assert!(handshake(&stranger, &ours.join("client"), "localhost").is_err());
    assert_eq!(
        handshake(&ours.join("server"), &ours.join("client"), "localhost"),
        Ok(())
    );
}

#[test]
fn files_are_their_owners_alone() {
    let fixture = Fixture::new();
    let dir = fixture.join("etc/smc/tls");
    tls_init(&dir, &[]).ok();
    tls_init(&dir, &["--client", "second"]).ok();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let all = content(&dir);
    let names = ["ca", "client", "clients", "clients/second", "server"];
    let dirs: Vec<&PathBuf> = all.keys().filter(|path| path.is_dir()).collect();
    assert_eq!(dirs, names.map(|name| dir.join(name)).iter().collect::<Vec<_>>());
    for path in all.keys() {
        assert_eq!(
            mode(path),
            if path.is_dir() { 0o700 } else { 0o600 },
            "{}",
            path.display()
        );
    }
    let keys = all
        .values()
        .filter(|content| content.starts_with(b"-----BEGIN PRIVATE KEY-----"));
    assert_eq!(keys.count(), 4);
    assert_eq!(all.len(), 5 + 2 + 3 * 3);
}

#[test]
fn nothing_is_overwritten() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    tls_init(&dir, &["--client", "first"]).ok();
    tls_init(&dir, &["--client", "second"]).ok();
    let before = content(&dir);
    let again: [(&[&str], &str); 3] = [
        (&[], "--renew-server"),
        (&["--client", "second"], "clients/second exists"),
        (&["--client", "third", "--host", "web01"], "--renew-server"),
    ];
    for (args, complaint) in again {
        let said = tls_init(&dir, args).fails(1);
        assert!(said.contains(complaint), "{said}");
        assert_eq!(content(&dir), before, "{args:?}");
    }
    fs::rename(dir.join("ca"), fixture.join("ca")).unwrap();
    let said = tls_init(&dir, &["--client", "third"]).fails(1);
    assert!(said.contains("bring ca back"), "{said}");
}

#[test]
fn clients_are_added_and_the_server_renewed() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    tls_init(&dir, &["--host", "one.example", "--host", "10.0.0.1"]).ok();
    let objects = made(&dir, &["--client", "backup2"]);
    assert_eq!(objects.len(), 1);
    assert_eq!(objects[0]["dir"], dir.join("clients/backup2").to_str().unwrap());
    let second = dir.join("clients/backup2");
    assert_eq!(handshake(&dir.join("server"), &second, "one.example"), Ok(()));
    let before = fs::read(dir.join("server/server-cert.pem")).unwrap();
    // With the hosts that it had.
    let said = tls_init(&dir, &["--renew-server"]).ok();
    assert!(
        said.contains("one.example, 10.0.0.1") && said.contains("server.1"),
        "{said}"
    );
    assert_eq!(fs::read(dir.join("server.1/server-cert.pem")).unwrap(), before);
    for host in ["one.example", "10.0.0.1"] {
        assert_eq!(handshake(&dir.join("server"), &second, host), Ok(()), "{host}");
    }
    made(&dir, &["--renew-server", "--host", "two.example"]);
    assert_eq!(
        handshake(&dir.join("server"), &dir.join("client"), "two.example"),
        Ok(())
    );
    assert!(handshake(&dir.join("server"), &second, "one.example").is_err());
    assert!(dir.join("server.2/server-key.pem").exists());
}

/// As after a crash, or after somebody removed what is not needed any more.
#[test]
fn what_is_missing_is_made() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    tls_init(&dir, &[]).ok();
    fs::remove_dir_all(dir.join("server")).unwrap();
    fs::remove_dir_all(dir.join("client")).unwrap();
    let objects = made(&dir, &[]);
    let what: Vec<&Value> = objects.iter().map(|object| &object["made"]).collect();
    assert_eq!(what, ["server", "client"]);
    assert_eq!(
        handshake(&dir.join("server"), &dir.join("client"), "localhost"),
        Ok(())
    );
}

#[test]
fn nothing_is_valid_longer_than_the_authority() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    let objects = made(&dir, &["--days", "30"]);
    let ends = &objects[0]["valid_until"];
    let objects = made(&dir, &["--client", "second", "--days", "3000"]);
    assert_eq!(&objects[0]["valid_until"], ends);
    let objects = made(&dir, &["--client", "third", "--days", "3"]);
    assert!(objects[0]["valid_until"].as_str() < ends.as_str());
}

#[test]
fn an_authority_that_cannot_sign_is_told() {
    let fixture = Fixture::new();
    let (dir, other) = (fixture.join("tls"), fixture.join("other"));
    tls_init(&dir, &[]).ok();
    tls_init(&other, &[]).ok();
    let key = dir.join("ca/ca-key.pem");
    fs::copy(other.join("ca/ca-key.pem"), &key).unwrap();
    let said = tls_init(&dir, &["--client", "second"]).fails(1);
    assert!(said.contains("is not that of the certificate"), "{said}");
    fs::remove_file(&key).unwrap();
    let said = tls_init(&dir, &["--client", "second"]).fails(1);
    assert!(said.contains("ca-key.pem"), "{said}");
    assert!(!dir.join("clients").exists());
}

#[test]
fn everything_is_made_although_nobody_listens() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(SMC_IMAGE)
        .arg("tls-init")
        .arg(&dir)
        .stdout(writer)
        .status();
    assert!(status.unwrap().success());
    assert_eq!(
        handshake(&dir.join("server"), &dir.join("client"), "localhost"),
        Ok(())
    );
}

#[test]
fn wrong_use_is_told() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    for args in [
        ["--host", "http://x"],
        ["--client", "../x"],
        ["--client", ""],
        ["--days", "0"],
    ] {
        tls_init(&dir, &args).fails(2);
    }
    assert!(!dir.exists());
}

/// GnuTLS's opinion, of both sides, by libnbd, nbdkit and QEMU, which looks at certificates in ways of its own.
#[test]
fn libnbd_nbdkit_and_qemu_accept_the_files_as_they_are() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    tls_init(&dir, &["--host", "backup.example"]).ok();
    let socket = fixture.join("nbd.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--tls=require", "--tls-verify-peer", "--unix"]);
    nbdkit
        .arg(&socket)
        .arg(format!("--tls-certificates={}", dir.join("server").display()));
    let _running = Running::start(nbdkit.args(["memory", "1M"]));
    wait_for("nbdkit to listen", || socket.exists());
    let (socket, client) = (socket.display(), dir.join("client"));
    let uri = format!(
        "nbds+unix:///?socket={socket}&tls-certificates={}",
        client.display()
    );
    assert_eq!(tool("nbdinfo", &["--size", &uri]), b"1048576\n");
    let other = fixture.join("other");
    tls_init(&other, &[]).ok();
    let uri = format!(
        "nbds+unix:///?socket={socket}&tls-certificates={}",
        other.join("client").display()
    );
    assert!(
        run(Command::new("nbdinfo").arg(uri)).code != Some(0),
        "nbdkit lets in a stranger"
    );
    let look = |host: &str| {
        let credentials = format!("tls-creds-x509,id=tls,dir={},endpoint=client", client.display());
        let image =
            format!("driver=nbd,server.type=unix,server.path={socket},tls-creds=tls,tls-hostname={host}");
        run(Command::new("qemu-img").args(["info", "--object", &credentials, "--image-opts", &image]))
    };
    let said = look("backup.example").ok();
    assert!(said.contains("1 MiB"), "{said}");
    assert!(
        look("other.example").code != Some(0),
        "QEMU believes in another host"
    );
}

/// QEMU as the server, which looks at its own certificate before it serves.
#[test]
fn qemu_serves_with_the_servers_files() {
    let fixture = Fixture::new();
    let dir = fixture.join("tls");
    tls_init(&dir, &[]).ok();
    let (disk, socket) = (fixture.sparse_file("disk", 1 << 20), fixture.join("nbd.sock"));
    let credentials = format!(
        "tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=on",
        dir.join("server").display()
    );
    let mut qemu = Command::new("qemu-nbd");
    qemu.args([
        "--format=raw",
        "--persistent",
        "--object",
        &credentials,
        "--tls-creds=tls",
        "--socket",
    ]);
    let _running = Running::start(qemu.arg(&socket).arg(disk));
    wait_for("qemu-nbd to listen", || socket.exists());
    let uri = format!(
        "nbds+unix:///?socket={}&tls-certificates={}",
        socket.display(),
        dir.join("client").display()
    );
    assert_eq!(tool("nbdinfo", &["--size", &uri]), b"1048576\n");
}
