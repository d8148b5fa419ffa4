//! Connections of the API: so many at a time, and none that is silent keeps another one out.
//!
//! A connection that sends no complete header within [`Limits::header_timeout`] is closed. If there are as many connections
//! as there may be, the one that has been without a request for longest is closed for the next one. So clients that
//! connect and say nothing, or that never close what they opened, keep nobody out, and the daemon keeps descriptors for
//! its syncs.

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Connections at the same time. Each can keep one thread busy.
pub const CONNECTIONS_MAX: usize = 128;

/// How long is waited after a connection could not be accepted: for want of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many there may be.
    pub connections: usize,
    /// How long one may take to send the header of a request, or to begin the next one.
    pub header_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            header_timeout: Duration::from_secs(10),
        }
    }
}

/// Answers the requests of all who connect. It never ends.
pub async fn serve(listener: UnixListener, router: Router, limits: Limits) {
    let open = Arc::new(Open::default());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                open.make_room(limits.connections).await;
                open.begin(stream, router.clone(), limits.header_timeout);
            }
            Err(error) => {
                tracing::warn!("a connection to the API could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The open connections.
#[derive(Debug, Default)]
struct Open {
    connections: Mutex<Connections>,
    /// One was closed, or has no request any more.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    by_number: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    task: AbortHandle,
    /// Since when it has had no request; `None` while one is being answered.
    idle_since: Option<Instant>,
}

impl Open {
    /// Waits until there is room for one more, closing the connection that has been idle for longest if need be.
    async fn make_room(&self, max: usize) {
        loop {
            let freed = self.freed.notified();
            if self.has_room(max) {
                return;
            }
            // All are being answered: each answer takes a bounded time.
            freed.await;
        }
    }

    fn has_room(&self, max: usize) -> bool {
        let mut connections = self.connections();
        if connections.by_number.len() < max {
            return true;
        }
        let idle = connections
            .by_number
            .iter()
            .filter_map(|(&number, connection)| Some((connection.idle_since?, number)))
            .min();
        let Some((_, number)) = idle else { return false };
        if let Some(closed) = connections.by_number.remove(&number) {
            closed.task.abort();
        }
        true
    }

    /// Serves a connection in a task of its own.
    fn begin(self: &Arc<Self>, stream: UnixStream, router: Router, header_timeout: Duration) {
        // The task cannot remove its entry before it is here: it waits for the mutex.
        let mut connections = self.connections();
        let number = connections.next;
        connections.next += 1;
        let begun = Begun {
            open: self.clone(),
            number,
        };
        let task = tokio::spawn(async move {
            let answers = TowerToHyperService::new(router);
            let service = service_fn(|request: Request<Incoming>| {
                let busy = Busy::new(&begun);
                let answer = answers.call(request);
                async move {
                    let answer = answer.await;
                    drop(busy);
                    answer
                }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!("a connection to the API has ended: {error}");
            }
        });
        let connection = Connection {
            task: task.abort_handle(),
            idle_since: Some(Instant::now()),
        };
        connections.by_number.insert(number, connection);
    }

    fn set_idle(&self, number: u64, idle_since: Option<Instant>) {
        if let Some(connection) = self.connections().by_number.get_mut(&number) {
            connection.idle_since = idle_since;
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is served; it is closed when this is dropped.
struct Begun {
    open: Arc<Open>,
    number: u64,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.open.connections().by_number.remove(&self.number);
        self.open.freed.notify_one();
    }
}

/// A request that is being answered.
struct Busy {
    open: Arc<Open>,
    number: u64,
}

impl Busy {
    fn new(connection: &Begun) -> Self {
        connection.open.set_idle(connection.number, None);
        Self {
            open: connection.open.clone(),
            number: connection.number,
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.open.set_idle(self.number, Some(Instant::now()));
        self.open.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::answer::Body;
    use axum::routing::{get, post};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Client;
    use std::path::Path;
    use testkit::process::PATIENCE;

    /// Serves on a socket until the test ends.
    fn served(path: &Path, limits: Limits) -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let router = Router::new()
            .route("/", get(|| async { "answered" }))
            .route("/body", post(|Body(_): Body<serde_json::Value>| async { "read" }));
        let _context = runtime.enter();
        let listener = UnixListener::bind(path).unwrap();
        runtime.spawn(serve(listener, router, limits));
        runtime
    }

    fn connect(path: &Path) -> Client {
        let client = Client::connect(path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn ask(client: &mut Client) -> String {
        client.write_all(b"GET / HTTP/1.1\r\nHost: smcd\r\n\r\n").unwrap();
        let mut answer = [0; 4096];
        let len = client.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..len]).into_owned()
    }

    /// What comes until the other side closes.
    fn until_closed(client: &mut Client) -> Vec<u8> {
        let mut rest = Vec::new();
        match client.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        rest
    }

    #[test]
    fn silent_connections_keep_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let limits = Limits {
            connections: 8,
            header_timeout: Duration::from_secs(3600),
        };
        let _runtime = served(&path, limits);
        let mut kept = connect(&path);
        assert!(ask(&mut kept).starts_with("HTTP/1.1 200"));
        let mut silent: Vec<Client> = (0..100).map(|_| connect(&path)).collect();
        let mut last = connect(&path);
        assert!(ask(&mut last).contains("answered"));
        // The oldest were closed for the later ones.
        assert_eq!(until_closed(&mut kept), b"");
        assert_eq!(until_closed(&mut silent[0]), b"");
        assert!(ask(&mut last).contains("answered"), "the newest one stays");
    }

    #[test]
    fn a_header_that_does_not_come_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let limits = Limits {
            connections: 8,
            // It is waited for here, and long enough for a header that comes, on a busy machine.
            header_timeout: Duration::from_secs(3),
        };
        let _runtime = served(&path, limits);
        assert_eq!(until_closed(&mut connect(&path)), b"", "nothing was sent");
        let mut half = connect(&path);
        half.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
        until_closed(&mut half);
        let mut idle = connect(&path);
        assert!(ask(&mut idle).contains("answered"));
        assert_eq!(until_closed(&mut idle), b"", "no second request came");
    }

    #[test]
    fn a_body_that_does_not_come_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _runtime = served(&path, Limits::default());
        let mut half = connect(&path);
        half.write_all(b"POST /body HTTP/1.1\r\nHost: smcd\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            .unwrap();
        let answer = until_closed(&mut half);
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("did not arrive"),
            "{answer}"
        );
    }
}
