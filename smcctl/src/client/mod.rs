//! smcd's control API over its socket: a connection a request, bounded in time and size.

mod answer;
mod request;
mod trouble;

pub use answer::Answer;
pub use request::{Request, job, target, with_query};

use crate::client::trouble::{Question, Trouble};
use anyhow::Context;
use cli::interrupt::Interrupt;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{StatusCode, http};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Bytes of an answer; a larger one is none of smcd's.
const BODY_MAX_BYTES: usize = 64 << 20;

/// How often a wait looks whether somebody asked to stop, and a full queue of connections is tried again.
const LOOK: Duration = Duration::from_millis(50);

/// The daemon, by its socket.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
    interrupt: Option<Interrupt>,
}

impl Client {
    /// The daemon that listens on `socket`; it is not asked anything yet.
    ///
    /// # Errors
    /// A runtime that cannot be started.
    pub fn new(socket: PathBuf) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(Self {
            socket,
            runtime: runtime.context("start the client")?,
            interrupt: None,
        })
    }

    /// From now on, SIGINT and SIGTERM end what is waited for with an [`Interrupted`](cli::interrupt::Interrupted).
    ///
    /// # Errors
    /// Signals that cannot be caught.
    pub fn catch_interrupts(&mut self) -> anyhow::Result<()> {
        self.interrupt = Some(Interrupt::install()?);
        Ok(())
    }

    /// Sends a request and waits for the answer. An answer that is no success is an [`api::ErrorBody`] as the error,
    /// or another error where it does not come from smcd.
    ///
    /// # Errors
    /// When smcd cannot be reached, does not answer, or refuses; an interrupt, if these are caught.
    pub fn send(&self, request: &Request) -> anyhow::Result<Answer> {
        let question = Question {
            request: request.to_string(),
            socket: self.socket.clone(),
        };
        let exchange = self.exchange(request.to_http()?, request.patience());
        match self.runtime.block_on(self.unless_interrupted(exchange))? {
            Ok((status, body)) => Answer::new(question, status, &body)?.success(),
            Err(trouble) => Err(trouble.over(&question)),
        }
    }

    /// Waits, unless somebody asks to stop.
    ///
    /// # Errors
    /// An interrupt.
    pub fn pause(&self, duration: Duration) -> anyhow::Result<()> {
        let pause = async { time::sleep(duration).await };
        self.runtime.block_on(self.unless_interrupted(pause))
    }

    async fn exchange(
        &self,
        request: http::Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), Trouble> {
        let stream = self.connect().await.map_err(Trouble::Unreachable)?;
        let talked = time::timeout(patience, talk(stream, request)).await;
        talked.unwrap_or(Err(Trouble::Silent(patience)))
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let connecting = async {
            loop {
                match UnixStream::connect(&self.socket).await {
                    // Too many wait to be accepted; the kernel does not tell when there is room again.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => time::sleep(LOOK).await,
                    connected => break connected,
                }
            }
        };
        let connected = time::timeout(CONNECT, connecting).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn unless_interrupted<T>(&self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        let Some(interrupt) = &self.interrupt else {
            return Ok(work.await);
        };
        let mut work = pin!(work);
        loop {
            match time::timeout(LOOK, work.as_mut()).await {
                Ok(done) => return Ok(done),
                Err(_) => interrupt.check()?,
            }
        }
    }
}

/// Sends the request and receives the whole answer.
async fn talk(
    stream: UnixStream,
    request: http::Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Trouble> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let received = Limited::new(response.into_body(), BODY_MAX_BYTES).collect().await;
    driver.abort();
    match received {
        Ok(body) => Ok((status, body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(Trouble::TooLarge(BODY_MAX_BYTES)),
        // The only other error of a body is hyper's, of a connection that ended in the middle.
        Err(_) => Err(Trouble::Cut),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cli::exit::full_message;
    use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::sync::mpsc::channel;
    use std::thread;
    use testkit::guard::ScratchDir;

    fn client(socket: &Path) -> Client {
        Client::new(socket.to_owned()).unwrap()
    }

    #[test]
    fn one_that_does_not_answer_is_not_waited_for() {
        let scratch = ScratchDir::new("smcctl").unwrap();
        let listener = UnixListener::bind(scratch.join("s")).unwrap();
        let status = Request::get("/status").within(Duration::from_millis(100));
        let error = client(&scratch.join("s")).send(&status).unwrap_err();
        drop(listener);
        let said = full_message(&error);
        assert!(
            said.starts_with("GET /v1/status: ") && said.contains("did not answer within 0 s"),
            "{said}"
        );
    }

    /// Connects without waiting, until the queue is full.
    fn fill(socket: &Path) -> Vec<OwnedFd> {
        let address = UnixAddr::new(socket).unwrap();
        let connect = || {
            let end = socket::socket(
                AddressFamily::Unix,
                SockType::Stream,
                SockFlag::SOCK_NONBLOCK,
                None,
            );
            let end = end.unwrap();
            socket::connect(end.as_raw_fd(), &address).map(|()| end)
        };
        std::iter::from_fn(|| connect().ok()).collect()
    }

    #[test]
    fn a_queue_that_is_full_is_waited_for() {
        let scratch = ScratchDir::new("smcctl").unwrap();
        let path = scratch.join("s");
        let listener = UnixListener::bind(&path).unwrap();
        socket::listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let waiting = fill(&path);
        assert!(!waiting.is_empty());
        let client = client(&path);
        let (tell, tried) = channel();
        // Runs as soon as the client, on the same thread, has tried and waits.
        client.runtime.spawn(async move { tell.send(()) });
        let serving = thread::spawn(move || {
            tried.recv().unwrap();
            for _ in &waiting {
                listener.accept().unwrap();
            }
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .unwrap();
        });
        let answer = client.send(&Request::get("/status")).unwrap();
        assert!(!answer.is_empty());
        serving.join().unwrap();
    }

    #[test]
    fn nobody_there_is_told_with_the_way_on() {
        let scratch = ScratchDir::new("smcctl").unwrap();
        let path = scratch.join("s");
        let missing = client(&path).send(&Request::get("/status")).unwrap_err();
        drop(UnixListener::bind(&path).unwrap());
        let refusing = client(&path).send(&Request::get("/status")).unwrap_err();
        for error in [missing, refusing] {
            assert!(full_message(&error).starts_with(&format!("connect to smcd on {}: ", path.display())));
            let advice = error.to_string();
            assert!(
                advice.contains("systemctl status smcd") && advice.contains("SMC_SOCKET"),
                "{advice}"
            );
        }
    }
}
