//! How fast a target takes what is sent: noise, which it counts and does not keep.

use crate::error::{Error, ErrorKind, Result};
use crate::files::TargetFiles;
use crate::http::{self, Tested};
use hyper::Method;
use hyper::body::{Body, Bytes, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// What a test has measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// Bytes that the target has received.
    pub sent_bytes: u64,
    /// How long that took.
    pub took: Duration,
}

/// Bytes of noise that are sent again and again; nothing on the way compresses them.
const NOISE_BYTES: usize = 256 << 10;

/// Sends noise to a target for so long, by as many connections as a sync has.
///
/// # Errors
/// `Unreachable`, `Refused`; `Untrue` where the target claims to have received more than was sent.
pub fn measure_speed(files: &TargetFiles, connections: u32, time: Duration) -> Result<Speed> {
    let late = |_| Error::unreachable(format!("{} does not answer", files.record.address));
    http::runtime()?.block_on(async {
        let sent = send(files, connections.max(1), time);
        timeout(time + 2 * http::CONNECT_PATIENCE, sent)
            .await
            .map_err(late)?
    })
}

async fn send(files: &TargetFiles, connections: u32, time: Duration) -> Result<Speed> {
    let mut noise = vec![0; NOISE_BYTES];
    getrandom::fill(&mut noise)
        .map_err(|error| Error::invalid("get random numbers from the kernel").caused_by(error))?;
    let noise = Bytes::from(noise);
    let mut lanes = Vec::new();
    for _ in 0..connections {
        lanes.push(http::open::<Noise>(&files.record.address, files.tls()?).await?);
    }
    let (begun, given_bytes) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut tests = JoinSet::new();
    for lane in lanes {
        let address = files.record.address.clone();
        let body = Noise {
            chunk: noise.clone(),
            left: http::TEST_MAX_BYTES / u64::from(connections),
            until: begun + time,
            given_bytes: given_bytes.clone(),
        };
        tests.spawn(http::send::<Noise, Tested>(
            lane,
            address,
            Method::POST,
            "/v1/test",
            body,
        ));
    }
    let mut sent_bytes: u64 = 0;
    while let Some(test) = tests.join_next().await {
        let tested = test
            .map_err(|error| Error::new(ErrorKind::Io, "a test of the line has failed").caused_by(error))?;
        sent_bytes = sent_bytes.saturating_add(tested?.received_bytes);
    }
    if sent_bytes > given_bytes.load(Ordering::Relaxed) {
        return Err(Error::untrue(
            "the target claims to have received more than was sent",
        ));
    }
    Ok(Speed {
        sent_bytes,
        took: begun.elapsed(),
    })
}

/// The body of a request that is sent for some time, up to a length.
struct Noise {
    chunk: Bytes,
    left: u64,
    until: Instant,
    /// Bytes that all connections of the test have taken to send.
    given_bytes: Arc<AtomicU64>,
}

impl Body for Noise {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        let noise = self.get_mut();
        let length = u64::min(noise.left, noise.chunk.len() as u64);
        if length == 0 || Instant::now() >= noise.until {
            return Poll::Ready(None);
        }
        noise.left -= length;
        noise.given_bytes.fetch_add(length, Ordering::Relaxed);
        let end = usize::try_from(length).unwrap_or(noise.chunk.len());
        Poll::Ready(Some(Ok(Frame::data(noise.chunk.slice(..end)))))
    }
}
