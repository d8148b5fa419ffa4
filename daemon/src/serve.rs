//! The service as systemd sees it: its socket, its watchdog, and its end.

use crate::clock::{Clock, SystemClock, TestClock};
use crate::config::Config;
use crate::http;
use crate::service::{self, Parts, Scheduler, actions};
use crate::signals;
use anyhow::{Context, Result, bail};
use blockio::{LockResult, LockedFile};
use sd_notify::NotifyState;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Runs until it is told to end.
///
/// # Errors
/// A directory, a socket or a state that cannot be opened, and threads that cannot be started.
pub fn run(config: Config) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(stop.clone())?;
    make_dir(&config.state_dir)?;
    let _alone = lock(&config.state_dir)?;
    let (listener, own) = listener(&config.socket)?;
    // A thread that waits for a disk keeps the process's sockets: nobody must take those for a daemon that answers.
    let own = own.then(|| listener.try_clone()).transpose()?;
    let clock = clock(&config);
    let stop_timeout = config.stop_timeout;
    let service = service::start(config, clock)?;
    serve(&service, listener)?;
    tell(&[NotifyState::Ready, NotifyState::Status("watching jobs")]);
    let io = blockio::io_method();
    // In the text too: journalctl shows no fields unless it is asked to.
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %io, "smcd is ready; disks are read and written by {io}");
    watch(&service, &stop);
    tell(&[NotifyState::Stopping]);
    end(&service, stop_timeout);
    if let Some(own) = own {
        let _ = nix::sys::socket::shutdown(own.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
    Ok(())
}

/// A request to end is kept in `stop`; every other signal is noted.
fn stop_on_signals(stop: Arc<AtomicBool>) -> Result<()> {
    signals::watch(move |signal| {
        let name = signals::name(signal);
        if signals::ENDING.contains(&signal) {
            tracing::info!("{name}: smcd is stopping");
            stop.store(true, Ordering::Relaxed);
        } else if signal == signals::HANGUP {
            tracing::warn!(
                "{name} is ignored: smcd reads its configuration when it starts (`systemctl restart smcd`)"
            );
        } else {
            tracing::warn!("{name} is ignored");
        }
    })
}

fn clock(config: &Config) -> Arc<dyn Clock> {
    match &config.test_clock {
        None => Arc::new(SystemClock::new()),
        Some(file) => {
            tracing::warn!(file = %file.display(), "test mode: the clock is moved by a file");
            Arc::new(TestClock::new(file.clone()))
        }
    }
}

/// A directory for root alone.
fn make_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("create directory {}", path.display()))
}

/// Two daemons on one state would confuse both.
fn lock(state_dir: &Path) -> Result<LockedFile> {
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    lock_within(file, LOCK_PATIENCE).map_err(|(_, error)| {
        anyhow::anyhow!(
            "{} is locked by another smcd ({error}): only one can use a state directory. `systemctl status smcd` shows it",
            path.display()
        )
    })
}

/// A daemon that was killed while it started a hook leaves a child that holds the lock until it has become the hook.
fn lock_within(mut file: File, patience: Duration) -> LockResult {
    let begun = Instant::now();
    loop {
        match LockedFile::try_lock(file) {
            Err((back, _)) if begun.elapsed() < patience => file = back,
            tried => return tried,
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// How long another daemon's lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The socket that systemd passed, or one of our own, and whether it is.
fn listener(path: &Path) -> Result<(UnixListener, bool)> {
    let mut passed = sd_notify::listen_fds().context("receive the socket from systemd")?;
    if let Some(fd) = passed.next() {
        if passed.next().is_some() {
            bail!("systemd passed several sockets: smcd.socket must have exactly one ListenStream=");
        }
        // SAFETY: systemd gave this descriptor to this process alone, as LISTEN_PID says; nobody else in it knows of it,
        // and this happens once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        return Ok((UnixListener::from(fd), false));
    }
    bind(path).map(|listener| (listener, true))
}

/// Binds a socket for root alone; a stale one is replaced, a living one is not.
fn bind(path: &Path) -> Result<UnixListener> {
    let shown = path.display();
    let begun = Instant::now();
    while UnixStream::connect(path).is_ok() {
        if begun.elapsed() >= LOCK_PATIENCE {
            bail!("another process already listens on {shown}: is another smcd running?");
        }
        thread::sleep(Duration::from_millis(20));
    }
    let there = fs::symlink_metadata(path);
    if there.is_ok_and(|there| !there.file_type().is_socket()) {
        bail!("{shown} is not a socket, so smcd does not replace it. Move it away, or set another `socket`");
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the stale socket {shown}"));
        }
        _ => {}
    }
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    // Bound under another name, so that nobody can connect before it has its mode.
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).with_context(|| format!("bind {shown}"))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("bind {shown}"))?;
    Ok(listener)
}

/// Answers requests from threads of its own.
fn serve(service: &Arc<Parts>, listener: UnixListener) -> Result<()> {
    listener.set_nonblocking(true).context("set up the socket")?;
    let router = http::router(service.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        // Every request gets one: no connection has two at a time.
        .max_blocking_threads(http::CONNECTIONS_MAX)
        .thread_name("api")
        .enable_all()
        .build()
        .context("start the API")?;
    let (ready, begun) = std::sync::mpsc::channel();
    thread::Builder::new()
        .name("api".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                match tokio::net::UnixListener::from_std(listener) {
                    Ok(listener) => {
                        let _ = ready.send(Ok(()));
                        // It accepts until the process ends.
                        http::serve(listener, router, http::Limits::default()).await;
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            });
        })
        .context("start the API")?;
    begun.recv().context("start the API")?.context("start the API")
}

/// The schedule, and the watchdog: as long as this thread gets round, systemd hears of it.
fn watch(service: &Arc<Parts>, stop: &AtomicBool) {
    let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 3);
    let mut fed = Instant::now();
    let mut scheduler = Scheduler::default();
    let changes = service.listen();
    while !stop.load(Ordering::Relaxed) {
        scheduler.tick(service);
        if watchdog.is_some_and(|every| fed.elapsed() >= every) {
            fed = Instant::now();
            tell(&[NotifyState::Watchdog]);
        }
        changes.wait(POLL_INTERVAL.min(service.poll_interval()));
    }
}

/// How often a signal to end is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Lets syncs keep what they have stored, for so long. A thread that waits for a disk that does not answer is not
/// waited for: it ends with the process.
fn end(service: &Parts, limit: Duration) {
    let begun = Instant::now();
    let changes = service.listen();
    actions::close(service);
    while actions::running(service) > 0 && begun.elapsed() < limit {
        changes.wait(Duration::from_millis(50));
    }
    match actions::running(service) {
        0 => tracing::info!("smcd is stopped; unfinished syncs resume at its next start"),
        left => tracing::warn!(
            "smcd is stopped although {left} syncs do not respond; they resume from their last checkpoints"
        ),
    }
}

/// Says something to systemd, if it is there.
fn tell(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
