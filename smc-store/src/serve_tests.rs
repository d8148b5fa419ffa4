//! What a connection may do that lasts longer than its rights.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use remote::{Credentials, Invitation};
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A target that listens, and a source that is enrolled there.
struct Scene {
    target: Arc<Target>,
    invitation: Invitation,
    own: Credentials,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::open(Config {
            stores: dir.path().join("stores"),
            state_dir: dir.path().to_owned(),
            ..Config::default()
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let invitation = Invitation {
            address: listener.local_addr().unwrap().to_string(),
            source: "web01".to_owned(),
            authority: tls::key_hash_of_pem(target.identity.authority.certificate()).unwrap(),
            secret: target
                .registry
                .invite("web01", None, false, Timestamp::now())
                .unwrap(),
        };
        tokio::spawn(target.clone().serve(listener));
        let line = invitation.clone();
        let enrolled = tokio::task::spawn_blocking(move || remote::enrol(&line)).await;
        let (_, own) = enrolled.unwrap().unwrap();
        Scene {
            target,
            invitation,
            own,
            _dir: dir,
        }
    }

    async fn connect(&self) -> Connected {
        let stream = TcpStream::connect(&self.invitation.address).await.unwrap();
        let name = ServerName::try_from(tls::TARGET_NAME).unwrap();
        let connector = TlsConnector::from(self.own.tls().unwrap());
        Connected(connector.connect(name, stream).await.unwrap())
    }
}

/// A connection by which one request is sent after the other.
struct Connected(TlsStream<TcpStream>);

impl Connected {
    /// The status of the answer to a request, and its body.
    async fn ask(&mut self, request: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let text = format!("{request} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}");
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap();
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, String::from_utf8(body).unwrap())
    }
}

#[tokio::test]
async fn a_connection_has_no_more_rights_than_its_key_has_now() {
    let scene = Scene::new().await;
    let mut connected = scene.connect().await;
    assert_eq!(connected.ask("GET /v1/status", "").await.0, 200);
    assert_eq!(connected.ask("GET /v1/jobs/web/images", "").await.0, 200);
    // A newer key has been shown: who still has this one, a thief for one, gets nothing by it, and no new key either.
    let shown = tls::key_hash_of_pem(&scene.own.certificate).unwrap();
    let registry = &scene.target.registry;
    assert_eq!(
        registry.add_key("web01", &shown, &[2; 32]).unwrap(),
        Some(Role::Push)
    );
    assert_eq!(
        connected.ask("GET /v1/status", "").await.0,
        200,
        "it was not shown yet"
    );
    assert!(registry.with_key(&[2; 32]).unwrap().is_some());
    for request in [
        "GET /v1/status",
        "GET /v1/jobs/web/images",
        "POST /v1/renew",
        "GET /v1/push",
    ] {
        let (status, body) = connected.ask(request, "{}").await;
        assert_eq!(status, 401, "{request}: {body}");
        assert!(body.contains(NOT_ENROLLED), "{body}");
    }
    assert_eq!(registry.sources().unwrap()["web01"].keys.len(), 1);
    registry.revoke("web01").unwrap();
    assert_eq!(connected.ask("GET /v1/status", "").await.0, 401);
}

#[tokio::test]
async fn what_a_source_asks_wrongly_is_refused_with_the_reason() {
    let scene = Scene::new().await;
    let mut connected = scene.connect().await;
    for request in [
        "POST /v1/jobs/..%2Fweb/discard",
        "GET /v1/jobs/..%2Fweb/newest",
        "GET /v1/jobs/..%2Fweb/images",
    ] {
        let (status, body) = connected.ask(request, "").await;
        assert_eq!(status, 400, "{request}: {body}");
        assert!(body.contains("job"), "{body}");
    }
    let (status, body) = connected.ask("POST /v1/jobs/web/discard", "").await;
    assert_eq!((status, body.as_str()), (200, "false"));
}
