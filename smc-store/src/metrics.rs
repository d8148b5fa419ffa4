//! Health and metrics, by plain HTTP for this machine alone: a loopback address or a Unix socket.

use crate::config::Config;
use crate::registry;
use crate::seen::{self, SourceSeen};
use crate::serve::Target;
use crate::space;
use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at the same time; further ones wait.
const CONNECTIONS_MAX: usize = 8;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many look at the stores at the same time, also those whose client has gone: syncs need these threads too.
static LOOKING: Semaphore = Semaphore::const_new(2);

/// Why a client was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Reason {
    /// It did not come to an encrypted connection in time.
    Handshake,
    /// It has shown no certificate that is known here.
    Unknown,
    /// It may not do what it asked for.
    Rights,
    /// It, or all together, have as many connections or syncs as they may have.
    Busy,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSource {
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfJob {
    source: String,
    job: String,
}

/// What is counted while the service runs.
#[derive(Debug, Default, Clone)]
pub struct Counters {
    refused: Family<OfReason, Counter>,
}

impl Counters {
    /// A client was refused.
    pub fn refuse(&self, reason: Reason) {
        self.refused.get_or_create(&OfReason { reason }).inc();
    }
}

/// Where metrics are asked for.
#[derive(Debug)]
pub enum Listener {
    /// On a loopback address.
    Tcp(TcpListener),
    /// On a Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Listens at a loopback address, or at the path of a socket.
    ///
    /// # Errors
    /// What cannot be listened at.
    pub async fn bind(place: &str) -> Result<Listener> {
        let listen = async {
            if !place.starts_with('/') {
                return Ok(Listener::Tcp(TcpListener::bind(place).await?));
            }
            // One of a service that was killed.
            match fs::remove_file(place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            UnixListener::bind(place).map(Listener::Unix)
        };
        listen
            .await
            .with_context(|| format!("listen at {place} for metrics"))
    }

    /// Answers for ever.
    pub async fn serve(self, target: Arc<Target>) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else {
                return;
            };
            let accepted = match &self {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Either::Tcp(stream)),
                Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Either::Unix(stream)),
            };
            match accepted {
                Ok(stream) => {
                    let target = target.clone();
                    tokio::spawn(async move {
                        match stream {
                            Either::Tcp(stream) => talk(stream, target).await,
                            Either::Unix(stream) => talk(stream, target).await,
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("a connection for metrics could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

enum Either {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, target: Arc<Target>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let target = target.clone();
        async move { Ok::<_, Infallible>(answer(&request, target).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(PATIENCE, served).await {
        tracing::debug!("a connection for metrics has ended: {error}");
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: &Request<Incoming>, target: Arc<Target>) -> Answer {
    let path = request.uri().path().to_owned();
    if request.method() != Method::GET {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET is answered\n".to_owned(),
        );
    }
    let Ok(permit) = LOOKING.acquire().await else {
        return failed(&anyhow::anyhow!("smc-store ends"));
    };
    let asked = tokio::task::spawn_blocking(move || {
        let answer = look(&path, &target);
        drop(permit);
        answer
    });
    asked.await.unwrap_or_else(|error| failed(&error.into()))
}

fn look(path: &str, target: &Target) -> Answer {
    match path {
        "/healthz" => match check_health(&target.config, &target.registry) {
            Ok(()) => text(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            Err(error) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                format!("{error:#}\n"),
            ),
        },
        "/metrics" => match Figures::of(target).and_then(|figures| figures.text()) {
            Ok(figures) => text(StatusCode::OK, OPENMETRICS, figures),
            Err(error) => failed(&error),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "text/plain",
            "there are /healthz and /metrics here\n".to_owned(),
        ),
    }
}

fn failed(error: &anyhow::Error) -> Answer {
    tracing::error!("metrics could not be collected: {error:#}");
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "text/plain",
        format!("{error:#}\n"),
    )
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// Whether a sync that begins now would get anywhere.
///
/// # Errors
/// Why not.
pub fn check_health(config: &Config, registry: &registry::Registry) -> Result<()> {
    for (name, source) in registry.sources()? {
        if let Some(since) = source.first_image {
            let is_there = config.store_of(&name).join("store.json").exists();
            anyhow::ensure!(is_there, seen::gone(config, &name, since));
        }
    }
    let free = space::free_at(&config.stores).context("look how much space is free")?;
    anyhow::ensure!(free > space::RESERVE_BYTES, "the disk of the stores is full");
    Ok(())
}

type PerSource = Family<OfSource, Gauge>;
type PerJob = Family<OfJob, Gauge>;

/// The figures of one moment.
#[derive(Debug, Default)]
struct Figures {
    images: PerJob,
    received: PerJob,
    since_good: PerJob,
    has_good: PerJob,
    due: PerJob,
    used: PerSource,
    quota: PerSource,
    frozen: PerSource,
    unread: PerSource,
    syncs: PerSource,
    connections: Gauge,
    free: Gauge,
    counters: Counters,
}

impl Figures {
    fn of(target: &Target) -> Result<Figures> {
        let now = Timestamp::now();
        let figures = Figures {
            counters: target.counters.clone(),
            ..Figures::default()
        };
        let seen = seen::sources(&target.config, &target.registry, now)?;
        for source in seen.iter().filter(|source| source.of.is_none()) {
            figures.add(source, now);
        }
        for (source, syncs) in target.syncs_by_source() {
            figures
                .syncs
                .get_or_create(&OfSource { source })
                .set(signed(syncs as u64));
        }
        figures.connections.set(signed(target.connection_count() as u64));
        let free = space::free_at(&target.config.stores).context("look how much space is free")?;
        figures.free.set(signed(free));
        Ok(figures)
    }

    fn add(&self, seen: &SourceSeen, now: Timestamp) {
        let source = seen.source.clone();
        for job in &seen.jobs {
            let label = OfJob {
                source: source.clone(),
                job: job.job.clone(),
            };
            self.images.get_or_create(&label).set(signed(job.images as u64));
            if let Some(received) = job.received {
                self.received.get_or_create(&label).set(received.as_second());
            }
            // Without a good image it is as if the last one had come in 1970: every alarm goes off.
            let good = job.good_received.unwrap_or(Timestamp::UNIX_EPOCH);
            let since = now.duration_since(good).as_secs().max(0);
            self.since_good.get_or_create(&label).set(since);
            let has_good = i64::from(job.good_received.is_some());
            self.has_good.get_or_create(&label).set(has_good);
            if let Some(due) = job.next_due {
                self.due.get_or_create(&label).set(due.as_second());
            }
        }
        let label = OfSource { source };
        self.used.get_or_create(&label).set(signed(seen.used_bytes));
        if let Some(quota) = seen.quota_bytes {
            self.quota.get_or_create(&label).set(signed(quota));
        }
        self.frozen
            .get_or_create(&label)
            .set(i64::from(seen.frozen.is_some()));
        let is_unread = seen.problem.is_some() || seen.jobs.iter().any(|job| job.problem.is_some());
        self.unread.get_or_create(&label).set(i64::from(is_unread));
    }

    fn text(&self) -> Result<String> {
        let mut registry = Registry::with_prefix("smc_store");
        self.register_jobs(&mut registry);
        self.register_sources(&mut registry);
        registry.register("connections", "Connections of sources", self.connections.clone());
        registry.register_with_unit("free", "Free space for images", Unit::Bytes, self.free.clone());
        registry.register(
            "refused",
            "Clients that were refused since the service was started",
            self.counters.refused.clone(),
        );
        let mut text = String::new();
        encode(&mut text, &registry).context("write metrics")?;
        Ok(text)
    }

    fn register_jobs(&self, registry: &mut Registry) {
        registry.register("job_images", "Images of a job", self.images.clone());
        registry.register_with_unit(
            "job_newest_image_timestamp",
            "Unix time when the newest image was received",
            Unit::Seconds,
            self.received.clone(),
        );
        registry.register_with_unit(
            "job_since_good_image",
            "Time since the newest image was received that is not known to be damaged; since 1970 if there is none",
            Unit::Seconds,
            self.since_good.clone(),
        );
        registry.register(
            "job_has_good_image",
            "1 if a job has an image that is not known to be damaged, otherwise 0",
            self.has_good.clone(),
        );
        registry.register_with_unit(
            "job_next_image_due_timestamp",
            "Unix time when the next image is to be expected, by the usual interval",
            Unit::Seconds,
            self.due.clone(),
        );
    }

    fn register_sources(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "source_used",
            "Space that the images of a source take",
            Unit::Bytes,
            self.used.clone(),
        );
        registry.register_with_unit(
            "source_quota",
            "Space that the images of a source may take",
            Unit::Bytes,
            self.quota.clone(),
        );
        registry.register(
            "source_frozen",
            "1 while nothing of a source is deleted because an image is strange, otherwise 0",
            self.frozen.clone(),
        );
        registry.register(
            "source_unreadable",
            "1 if images of a source cannot be listed or read, or its store is gone, otherwise 0",
            self.unread.clone(),
        );
        registry.register("source_syncs", "Running syncs of a source", self.syncs.clone());
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
