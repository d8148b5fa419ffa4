//! Accepts connections on plain sockets and hands them to worker threads, each with a ring or an event loop of
//! its own.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use admission::Admission;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::buffer::Spares;
use crate::connection::{self, Guest};
use crate::listen::{Accepted, Listener, Socket};
use crate::pool::Pool;
use crate::shared::{Shared, Stage};
use crate::{Catalog, ErrorKind, Limits, ServeError, Tls, driver};

/// How long accepting rests when the system is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A server: it gets its sockets first, then it [runs](Server::run).
pub struct Server {
    catalog: Arc<dyn Catalog>,
    limits: Limits,
    listeners: Vec<Listener>,
    /// Served from the start.
    connected: Vec<UnixStream>,
    handle: ShutdownHandle,
    /// Readable once the handle was used.
    woken: UnixStream,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("limits", &self.limits)
            .field("listeners", &self.listeners)
            .finish_non_exhaustive()
    }
}

/// Ends a running [`Server`] from another thread.
#[derive(Debug, Clone)]
pub struct ShutdownHandle {
    stage: watch::Sender<Stage>,
    wake: Arc<UnixStream>,
}

impl ShutdownHandle {
    /// Stops accepting, answers options and new requests with the protocol's shutdown errors,
    /// lets requests in flight finish within the grace time, then makes [`Server::run`] return.
    /// Returns at once; may be called again, and before `run`.
    pub fn shutdown(&self) {
        self.advance(Stage::Draining);
        // A full buffer or a server that is gone needs no waking.
        let _ = (&*self.wake).write(&[1]);
    }

    fn advance(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let later = *now < stage;
            *now = stage.max(*now);
            later
        });
    }
}

impl Server {
    /// A server of `catalog` that listens nowhere yet.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the limits contradict each other.
    pub fn new(catalog: Arc<dyn Catalog>, limits: Limits) -> Result<Self, ServeError> {
        limits.check()?;
        let (wake, woken) =
            wake_pair().map_err(|error| ServeError::io("cannot make a socket pair", error))?;
        let handle = ShutdownHandle {
            stage: watch::Sender::new(Stage::Serving),
            wake: Arc::new(wake),
        };
        Ok(Self {
            catalog,
            limits,
            listeners: Vec::new(),
            connected: Vec::new(),
            handle,
            woken,
        })
    }

    /// Listens on a Unix socket that it creates at `path` with mode 0600, and removes when the
    /// server is done. Replaces a stale socket, and nothing else.
    ///
    /// # Errors
    /// When another server listens there, when something that is no socket is in the way, or when the socket cannot be
    /// made.
    pub fn listen_unix(&mut self, path: impl AsRef<Path>) -> Result<(), ServeError> {
        self.listeners.push(Listener::unix(path.as_ref())?);
        Ok(())
    }

    /// Listens on a TCP address; port 0 takes a free one. Returns the address bound. Without
    /// `tls` nothing is encrypted and every client is let in: meant for loopback and trusted networks.
    ///
    /// # Errors
    /// When the address is in use or not one of this machine.
    pub fn listen_tcp(&mut self, address: SocketAddr, tls: Option<Tls>) -> Result<SocketAddr, ServeError> {
        let listener = Listener::tcp(address, tls)?;
        let bound = listener.tcp_address().map_or(address, |(bound, _)| bound);
        self.listeners.push(listener);
        Ok(bound)
    }

    /// Listens on a socket that another program made, Unix or TCP, such as systemd's. `tls` is for
    /// TCP, as in [`listen_tcp`](Server::listen_tcp).
    ///
    /// # Errors
    /// When it is no listening stream socket, and when `tls` is given for a Unix socket.
    pub fn listen_inherited(&mut self, socket: OwnedFd, tls: Option<Tls>) -> Result<(), ServeError> {
        self.listeners.push(Listener::inherited(socket, tls)?);
        Ok(())
    }

    /// Serves one client that is connected already. A server that listens nowhere ends when the
    /// last of these has left.
    pub fn connect(&mut self, stream: UnixStream) {
        self.connected.push(stream);
    }

    /// The TCP addresses listened on, in the order they were added, and whether they have TLS.
    pub fn tcp_addresses(&self) -> Vec<(SocketAddr, bool)> {
        self.listeners.iter().filter_map(Listener::tcp_address).collect()
    }

    /// The Unix sockets listened on, in the order they were added.
    pub fn unix_paths(&self) -> Vec<PathBuf> {
        self.listeners.iter().filter_map(Listener::unix_path).collect()
    }

    /// What ends this server.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.handle.clone()
    }

    /// Serves until [`ShutdownHandle::shutdown`]; blocks.
    ///
    /// # Errors
    /// When it has neither listeners nor connections, and when the kernel refuses threads or descriptors.
    pub fn run(self) -> Result<(), ServeError> {
        self.run_when_ready(|| ())
    }

    /// The same, and calls `ready` when everything that the kernel could refuse is there.
    ///
    /// # Errors
    /// As for [`run`](Server::run); then `ready` was not called, unless accepting connections failed later.
    pub fn run_when_ready(self, ready: impl FnOnce()) -> Result<(), ServeError> {
        let Self {
            catalog,
            limits,
            listeners,
            connected,
            handle,
            woken,
        } = self;
        if listeners.is_empty() && connected.is_empty() {
            let text = "nothing to serve on: add a Unix socket or a TCP address first";
            return Err(ServeError::new(ErrorKind::InvalidInput, text));
        }
        let pool = Pool::new(limits.io_threads).map_err(|error| cannot_start("an I/O thread", error))?;
        let memory = Arc::new(Semaphore::new(limits.memory_bytes.min(Semaphore::MAX_PERMITS)));
        let stage = handle.stage.subscribe();
        let spares = Arc::new(Spares::new(2 * (limits.io_threads + limits.workers)));
        let shared = Arc::new(Shared {
            catalog,
            limits,
            pool,
            memory,
            spares,
            stage,
        });
        let last_leaves = listeners.is_empty().then(|| {
            let handle = handle.clone();
            Box::new(move || handle.shutdown()) as Box<dyn Fn() + Send + Sync>
        });
        let mut door = Door {
            workers: Workers::start(&shared)?,
            admission: Admission::new(shared.limits.bounds(), last_leaves),
        };
        ready();
        door.let_in_all(connected);
        let accepted = door.accept_until_woken(&listeners, &woken);
        // After a failure too: connections get the protocol's shutdown errors, and the files of Unix sockets are removed first.
        handle.advance(Stage::Draining);
        drop(listeners);
        let finished = door.workers.finish(shared.limits.grace, &handle);
        accepted.and(finished)
    }
}

/// A pair whose ends never block: a full buffer must not hold up a second shutdown.
fn wake_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    Ok((wake, woken))
}

fn cannot_start(what: &str, source: io::Error) -> ServeError {
    ServeError::io(format!("cannot start {what} of the NBD server"), source)
}

/// Lets clients in.
struct Door {
    workers: Workers,
    admission: Arc<Admission>,
}

impl Door {
    fn accept_until_woken(
        &mut self,
        listeners: &[Listener],
        mut woken: &UnixStream,
    ) -> Result<(), ServeError> {
        while let Err(error) = woken.read(&mut [0]) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(ServeError::io("cannot read the shutdown signal", error));
            }
            for listener in wait_for_clients(listeners, woken)? {
                self.accept_one(listener);
            }
        }
        Ok(())
    }

    fn accept_one(&mut self, listener: &Listener) {
        match listener.accept() {
            Ok(accepted) => self.let_in(accepted),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    fn let_in(&mut self, accepted: Accepted) {
        let (place, evicted) = match accepted.socket {
            // Who may connect to a Unix socket, its mode has said.
            Socket::Unix(_) => match self.admission.admit_known(&accepted.client) {
                Some(place) => (place, oneshot::channel().1),
                None => return,
            },
            _ => self.admission.wait(accepted.client.network()),
        };
        self.workers.hand_over(Guest {
            accepted,
            place,
            evicted,
        });
    }

    /// Lets in clients that are connected already, as many as there are: whoever made the server
    /// chose them.
    fn let_in_all(&mut self, connected: Vec<UnixStream>) {
        // One of them may have left before the last is in, and must not be the last to leave.
        let whole = self.admission.admit_chosen();
        for stream in connected {
            self.workers.hand_over(Guest {
                accepted: Accepted::unix(stream),
                place: self.admission.admit_chosen(),
                evicted: oneshot::channel().1,
            });
        }
        drop(whole);
    }
}

/// The listeners on which somebody waits; none if the wake socket is readable.
fn wait_for_clients<'a>(
    listeners: &'a [Listener],
    woken: &UnixStream,
) -> Result<Vec<&'a Listener>, ServeError> {
    let mut polled: Vec<PollFd> = listeners
        .iter()
        .map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN))
        .collect();
    polled.push(PollFd::new(woken.as_fd(), PollFlags::POLLIN));
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(ServeError::io("cannot wait for clients", error.into())),
    }
    let ready = listeners
        .iter()
        .zip(&polled)
        .filter(|(_, fd)| fd.any().unwrap_or(false));
    Ok(ready.map(|(listener, _)| listener).collect())
}

/// The threads that drive connections.
struct Workers {
    inboxes: Vec<mpsc::UnboundedSender<Guest>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// Closed when the last worker is done.
    done: std_mpsc::Receiver<()>,
    next: usize,
}

impl Workers {
    fn start(shared: &Arc<Shared>) -> Result<Self, ServeError> {
        let (alive, done) = std_mpsc::channel::<()>();
        let mut workers = Self {
            inboxes: Vec::new(),
            threads: Vec::new(),
            done,
            next: 0,
        };
        for index in 0..shared.limits.workers {
            let (inbox, incoming) = mpsc::unbounded_channel();
            let (ready, is_ready) = std_mpsc::channel();
            let (shared, alive) = (Arc::clone(shared), alive.clone());
            let run = move || {
                let _alive = alive;
                // The starter waits for this.
                let say_ready = || ready.send(()).unwrap_or_default();
                driver::block_on(shared.limits.io_uring, say_ready, work(incoming, shared))
            };
            let thread = thread::Builder::new()
                .name(format!("nbd-worker-{index}"))
                .spawn(run)
                .map_err(|error| cannot_start("a worker thread", error))?;
            workers.inboxes.push(inbox);
            workers.threads.push(thread);
            if is_ready.recv().is_err() {
                return Err(workers.join().err().unwrap_or_else(no_worker));
            }
        }
        Ok(workers)
    }

    /// Gives a connection to the next worker that still lives; if none does, drops it.
    fn hand_over(&mut self, connection: Guest) {
        let mut connection = Some(connection);
        for _ in 0..self.inboxes.len() {
            self.next = (self.next + 1) % self.inboxes.len();
            let Some(taken) = connection.take() else { return };
            if let Some(inbox) = self.inboxes.get(self.next) {
                connection = inbox.send(taken).err().map(|refused| refused.0);
            }
        }
    }

    /// Lets the workers end what they have, within the grace time and a little for last words.
    fn finish(mut self, grace: Duration, handle: &ShutdownHandle) -> Result<(), ServeError> {
        self.inboxes.clear();
        if self.done.recv_timeout(grace) == Err(std_mpsc::RecvTimeoutError::Timeout) {
            handle.advance(Stage::Closing);
        }
        self.join()
    }

    fn join(self) -> Result<(), ServeError> {
        drop(self.inboxes);
        let mut result = Ok(());
        for thread in self.threads {
            result = result.and(match thread.join() {
                Ok(ended) => ended.map_err(|error| cannot_start("an event loop", error)),
                Err(_) => Err(ServeError::new(
                    ErrorKind::Io,
                    "a worker thread of the NBD server panicked",
                )),
            });
        }
        result
    }
}

fn no_worker() -> ServeError {
    ServeError::new(
        ErrorKind::Io,
        "a worker thread of the NBD server ended before it began",
    )
}

/// A worker's life: takes connections while there are any to come, then sees them end.
async fn work(mut incoming: mpsc::UnboundedReceiver<Guest>, shared: Arc<Shared>) {
    let mut live = JoinSet::new();
    loop {
        tokio::select! {
            connection = incoming.recv() => match connection {
                Some(guest) => {
                    live.spawn_local(connection::serve(guest, Arc::clone(&shared)));
                }
                None => break,
            },
            Some(_) = live.join_next(), if !live.is_empty() => {}
        }
    }
    while live.join_next().await.is_some() {}
}
