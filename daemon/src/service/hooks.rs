//! Programs run around a sync and around its freeze, so that a database can flush or an application be notified.
//!
//! Those of the hooks directory run for every job, in the order of their names, then the job's own one; afterwards
//! the other way round. Each gets the name of its stage as its argument and what it is about in its environment. Its
//! process group is killed when its time is over or the sync is stopped.

use crate::engine::Place;
use crate::job::JobRecord;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before the disks are opened.
    Pre,
    /// Just before the filesystems are frozen.
    Freeze,
    /// When nothing is frozen any more, or nothing was.
    Thaw,
    /// After the image is durable, or the sync has failed.
    Post,
}

impl Stage {
    /// As hooks get it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Post => "post",
        }
    }

    /// Whether the first of its hooks that fails is the end. What hooks of such a stage begin, those of another one end: all of
    /// them run.
    fn begins(self) -> bool {
        matches!(self, Self::Pre | Self::Freeze)
    }

    /// The job's own hook of this stage.
    fn own(self, job: &JobRecord) -> Option<&String> {
        match self {
            Self::Pre => job.hooks.pre.as_ref(),
            Self::Freeze => job.hooks.freeze.as_ref(),
            Self::Thaw => job.hooks.thaw.as_ref(),
            Self::Post => job.hooks.post.as_ref(),
        }
    }

    /// How long each of its hooks may run.
    fn limit(self, job: &JobRecord) -> Duration {
        Duration::from_secs(match self {
            Self::Freeze => job.hooks.freeze_timeout_seconds,
            Self::Pre | Self::Thaw | Self::Post => job.hooks.timeout_seconds,
        })
    }
}

/// What hooks are env beside the job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HookEnv {
    /// Number of the run.
    pub run: u64,
    /// `succeeded`, `failed`, ...: afterwards only.
    pub outcome: String,
    /// The image that was made.
    pub image: String,
}

/// How often a hook is looked after: what a freeze hook has paused waits for this.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What is kept of a hook's output, for the message about its failure.
const OUTPUT_KEPT: usize = 2000;

/// Runs all hooks of a stage. Before a sync or freeze, the first that fails is the end; afterwards, every one is run. A hook that runs
/// when `stopped` says so is killed, and no other is begun.
///
/// # Errors
/// Name the hook, how it ended and what it wrote last.
pub fn run(
    stage: Stage,
    dir: &Path,
    job: &JobRecord,
    env: &HookEnv,
    stopped: &dyn Fn() -> bool,
) -> Result<()> {
    let mut failures = Vec::new();
    for path in programs(stage, dir, job)? {
        if !stage.begins() && stopped() {
            failures.push(format!("{} hook {} did not run", stage.label(), path.display()));
            break;
        }
        let ended = run_one(stage, &path, job, env, stopped)
            .with_context(|| format!("{} hook {}", stage.label(), path.display()));
        match ended {
            Ok(()) => {}
            Err(error) if stage.begins() => return Err(error),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("; "))
}

/// The programs of a stage, in order.
fn programs(stage: Stage, dir: &Path, job: &JobRecord) -> Result<Vec<PathBuf>> {
    let mut common = executables(dir).with_context(|| format!("list hooks in {}", dir.display()))?;
    let own = stage.own(job).into_iter().map(PathBuf::from);
    if stage.begins() {
        return Ok(common.into_iter().chain(own).collect());
    }
    common.reverse();
    Ok(own.chain(common).collect())
}

/// Executable files of a directory by name, as run-parts(8) would take them; none if it is not there.
fn executables(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let named = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().iter().all(good));
        let runs = fs::metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
        if named && runs {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn run_one(
    stage: Stage,
    path: &Path,
    job: &JobRecord,
    env: &HookEnv,
    stopped: &dyn Fn() -> bool,
) -> Result<()> {
    let (wrote, writer) = Output::piped()?;
    let child = Command::new(path)
        .arg(stage.label())
        .envs(environment(stage, job, env))
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()
        .context("cannot be run")?;
    let limit = stage.limit(job);
    let ended = watch(child, limit, stopped);
    match ended {
        Watched::Ended(status) if status.success() => Ok(()),
        Watched::Ended(status) => bail!("ended with {status}{}", wrote.tail()),
        Watched::TimedOut => bail!("was killed after {} s{}", limit.as_secs(), wrote.tail()),
        Watched::Stopped if stage.begins() => {
            bail!("was killed because the sync was stopped{}", wrote.tail())
        }
        Watched::Stopped => bail!(
            "was killed because smcd ends; it runs again at the next start{}",
            wrote.tail()
        ),
        Watched::Lost(error) => Err(error).context("cannot be waited for"),
    }
}

fn environment(stage: Stage, job: &JobRecord, env: &HookEnv) -> Vec<(&'static str, OsString)> {
    let disks: Vec<String> = job
        .disks
        .iter()
        .map(|disk| format!("{}={}", disk.name, disk.path.display()))
        .collect();
    let mut environment: Vec<(&str, OsString)> = vec![
        ("SMC_STAGE", stage.label().into()),
        ("SMC_JOB", job.name.clone().into()),
        ("SMC_RUN", env.run.to_string().into()),
        match &job.place {
            Place::Store(store) => ("SMC_STORE", store.clone().into()),
            Place::Target(target) => ("SMC_TARGET", target.clone().into()),
        },
        ("SMC_DISKS", disks.join(" ").into()),
    ];
    if stage == Stage::Post {
        environment.push(("SMC_OUTCOME", env.outcome.clone().into()));
        environment.push(("SMC_IMAGE", env.image.clone().into()));
    }
    environment
}

enum Watched {
    Ended(ExitStatus),
    TimedOut,
    Stopped,
    Lost(std::io::Error),
}

fn watch(mut child: Child, limit: Duration, stopped: &dyn Fn() -> bool) -> Watched {
    let begun = Instant::now();
    let why = loop {
        match child.try_wait() {
            Ok(Some(status)) => return Watched::Ended(status),
            Err(error) => break Watched::Lost(error),
            Ok(None) if begun.elapsed() >= limit => break Watched::TimedOut,
            Ok(None) if stopped() => break Watched::Stopped,
            Ok(None) => thread::sleep(POLL_INTERVAL),
        }
    };
    // Its group has its number, and it has not been waited for: the number is nobody else's.
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    // A process that was killed ends, unless it waits for a disk in the kernel: nobody waits for that here.
    let reaper = thread::Builder::new().name("reap hook".to_owned());
    if let Err(error) = reaper.spawn(move || child.wait()) {
        tracing::warn!("a hook that was killed stays a zombie until smcd ends: {error}");
    }
    why
}

/// The end of what a hook or another program writes, read in a thread of its own.
pub(super) struct Output {
    kept: Arc<Mutex<Vec<u8>>>,
    /// Closed when everything is read.
    ended: Receiver<()>,
}

/// How long is waited for the rest of a hook's output when it has ended: a child that outlives it may hold the pipe for as
/// long as it likes.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(1);

impl Output {
    /// What is written to a pipe.
    ///
    /// # Errors
    /// Where there is no pipe or no thread to be had.
    pub(super) fn piped() -> Result<(Self, std::io::PipeWriter)> {
        let (reader, writer) = std::io::pipe().context("create a pipe for its output")?;
        let output = Self::collect(reader).context("start a thread that reads its output")?;
        Ok((output, writer))
    }

    fn collect(mut reader: std::io::PipeReader) -> std::io::Result<Self> {
        let kept: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (end, ended) = channel();
        let output = Self {
            kept: kept.clone(),
            ended,
        };
        let read = move || {
            let _end: Sender<()> = end;
            let mut piece = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut piece) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&piece[..len]);
                let surplus = kept.len().saturating_sub(OUTPUT_KEPT);
                kept.drain(..surplus);
            }
        };
        thread::Builder::new()
            .name("hook output".to_owned())
            .spawn(read)?;
        Ok(output)
    }

    /// What was written last.
    pub(super) fn text(&self) -> String {
        // Nothing is ever sent: this waits for the thread to end.
        let _ = self.ended.recv_timeout(OUTPUT_PATIENCE);
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim().to_owned()
    }

    /// The same on one line.
    fn tail(&self) -> String {
        let text = self.text();
        if text.is_empty() {
            return String::new();
        }
        format!(": {}", text.escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, HandClock};
    use crate::config::Config;
    use crate::job::{ResolvedInput, new_record};
    use std::io::Write;
    use testkit::process::wait_for;

    fn job(dir: &Path) -> JobRecord {
        let request = api::CreateJob {
            name: "web01".to_owned(),
            ..Default::default()
        };
        let given = ResolvedInput {
            place: Place::Store(dir.to_owned()),
            disks: Vec::new(),
        };
        new_record(
            &request,
            given,
            &Config::load(None).unwrap(),
            &HandClock::new().now(),
        )
        .unwrap()
    }

    fn script(path: &Path, text: &str) {
        let mut file = fs::File::create(path).unwrap();
        writeln!(file, "#!/bin/sh\n{text}").unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
        drop(file);
    }

    fn never() -> bool {
        false
    }

    #[test]
    fn hooks_run_in_order_and_back_and_know_what_it_is_about() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = dir.path().join("hooks.d");
        fs::create_dir(&hooks).unwrap();
        let log = dir.path().join("log");
        let say = format!(
            "echo $(basename $0) $1 $SMC_JOB $SMC_OUTCOME >> {}",
            log.display()
        );
        for name in ["20-b", "10-a", "30.bak"] {
            script(&hooks.join(name), &say);
        }
        fs::write(hooks.join("README"), "no program").unwrap();
        let own = dir.path().join("own");
        script(&own, &say);
        let mut job = job(dir.path());
        job.hooks.pre = Some(own.display().to_string());
        job.hooks.post = job.hooks.pre.clone();
        let env = HookEnv {
            outcome: "succeeded".to_owned(),
            ..HookEnv::default()
        };
        run(Stage::Pre, &hooks, &job, &env, &never).unwrap();
        run(Stage::Post, &hooks, &job, &env, &never).unwrap();
        assert_eq!(
            fs::read_to_string(log).unwrap(),
            "10-a pre web01\n20-b pre web01\nown pre web01\nown post web01 succeeded\n20-b post web01 succeeded\n\
             10-a post web01 succeeded\n"
        );
    }

    #[test]
    fn a_hook_that_fails_is_named_with_what_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        script(&own, "echo the database is busy; exit 3");
        let mut job = job(dir.path());
        job.hooks.pre = Some(own.display().to_string());
        let missing = dir.path().join("none");
        let error = run(Stage::Pre, &missing, &job, &HookEnv::default(), &never).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("own") && text.contains("exit status: 3"), "{text}");
        assert!(text.contains("the database is busy"), "{text}");
    }

    #[test]
    fn a_hook_that_writes_without_end_costs_little() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        script(
            &own,
            "head -c 50000000 /dev/zero | tr '\\0' x; echo the end; exit 1",
        );
        let mut job = job(dir.path());
        job.hooks.pre = Some(own.display().to_string());
        let missing = dir.path().join("none");
        let error = run(Stage::Pre, &missing, &job, &HookEnv::default(), &never).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.ends_with("the end") && text.len() < 3000,
            "{} bytes",
            text.len()
        );
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        script(
            &own,
            &format!("echo $$ > {}/pid; sleep 1000 & sleep 1000", dir.path().display()),
        );
        let mut job = job(dir.path());
        job.hooks.pre = Some(own.display().to_string());
        job.hooks.timeout_seconds = 1;
        let missing = dir.path().join("none");
        let error = run(Stage::Pre, &missing, &job, &HookEnv::default(), &never).unwrap_err();
        assert!(format!("{error:#}").contains("killed after 1 s"));
        let group = fs::read_to_string(dir.path().join("pid")).unwrap();
        let group = Pid::from_raw(group.trim().parse().unwrap());
        wait_for("its group is gone", || killpg(group, None).is_err());
    }

    #[test]
    fn freeze_hooks_have_a_deadline_of_their_own_and_thaw_hooks_run_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = dir.path().join("hooks.d");
        fs::create_dir(&hooks).unwrap();
        let log = dir.path().join("log");
        let say = format!("echo $(basename $0) $1 $SMC_STAGE >> {}", log.display());
        script(&hooks.join("10-a"), &say);
        let own = dir.path().join("own");
        script(&own, &format!("{say}; [ $1 = thaw ] || sleep 1000"));
        let mut job = job(dir.path());
        job.hooks.freeze = Some(own.display().to_string());
        job.hooks.thaw = job.hooks.freeze.clone();
        job.hooks.freeze_timeout_seconds = 1;
        let error = run(Stage::Freeze, &hooks, &job, &HookEnv::default(), &never).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("freeze hook") && text.contains("killed after 1 s"),
            "{text}"
        );
        run(Stage::Thaw, &hooks, &job, &HookEnv::default(), &never).unwrap();
        assert_eq!(
            fs::read_to_string(log).unwrap(),
            "10-a freeze freeze\nown freeze freeze\nown thaw thaw\n10-a thaw thaw\n"
        );
    }

    #[test]
    fn a_stopped_sync_does_not_wait_for_its_hook() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        script(&own, "sleep 1000");
        let mut job = job(dir.path());
        job.hooks.pre = Some(own.display().to_string());
        let missing = dir.path().join("none");
        let error = run(Stage::Pre, &missing, &job, &HookEnv::default(), &|| true).unwrap_err();
        assert!(format!("{error:#}").contains("the sync was stopped"));
    }
}
