//! The service as people run it: `smcd` on a configuration of its own, asked through `smcctl` alone, with a clock that
//! tests move.

use crate::{Disk, code, program, started_by, stderr};
use anyhow::{Context, Result, ensure};
use hostdev::{ProcessStat, Root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use testkit::guard::{Mount, ScratchDir};
use testkit::process::{PATIENCE, wait_until};

/// A daemon, its state, its store and its clock.
#[derive(Debug)]
pub struct Service {
    daemon: Option<Child>,
    elapsed_seconds: u64,
    /// Words of a program that runs the daemon, from its next start on.
    pub by: Vec<String>,
    /// Everything lies in here.
    pub dir: ScratchDir,
}

impl Service {
    /// A running daemon that knows no job.
    pub fn new(name: &str) -> Result<Self> {
        Self::with_config(name, "")
    }

    /// A running daemon on a machine that can track. The tracker's pins go with the mount, which lies in the daemon's directory
    /// and is to be dropped first: as the second of two variables is.
    pub fn tracking(name: &str) -> Result<(Self, Mount)> {
        let service = Self::new(name)?;
        let bpf = service.dir.join("bpf");
        let bpf = Mount::bpf(&bpf)?;
        Ok((service, bpf))
    }

    /// Creates `web01`, a job of one disk that keeps three images.
    ///
    /// # Errors
    /// When smcctl refuses it.
    pub fn create(&self, disk: &Disk, more: &[&str]) -> Result<()> {
        let device = format!("vda={}", disk.path().display());
        let create = ["job", "create", "web01", "--disk", &device, "--max-images", "3"];
        self.ask(&[&create, more].concat()).map(drop)
    }

    /// As [`new`](Self::new), with more lines of configuration (before the first table).
    pub fn with_config(name: &str, more: &str) -> Result<Self> {
        let dir = ScratchDir::new(name)?;
        let config = format!(
            "store = {:?}\nstate_dir = {:?}\nsocket = {:?}\nhooks_dir = {:?}\ncheckpoint_every = \"0s\"\n{more}\n\
             [laboratory]\nclock = {:?}\ntracker = {:?}\n",
            dir.join("store"),
            dir.join("state"),
            dir.join("smcd.sock"),
            dir.join("hooks.d"),
            dir.join("clock"),
            // No BPF filesystem, unless a test mounts one: what tests do must not show in the machine's tracker.
            dir.join("bpf/smc"),
        );
        fs::write(dir.join("smcd.toml"), config)?;
        fs::create_dir(dir.join("hooks.d"))?;
        let mut service = Self {
            daemon: None,
            elapsed_seconds: 0,
            by: Vec::new(),
            dir,
        };
        service.start()?;
        Ok(service)
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        let mut command = Command::new(program("smcd"));
        command.arg("--config").arg(self.dir.join("smcd.toml"));
        let mut command = started_by(&self.by, command);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        self.daemon = Some(command.spawn().context("start smcd")?);
        // For a moment, a child of a daemon that was killed may hold its socket: the pid tells who answers.
        let answers = wait_until(PATIENCE, || self.has_ended() || self.answers());
        answers.with_context(|| format!("smcd does not answer:\n{}", self.log()))?;
        ensure!(!self.has_ended(), "smcd has ended:\n{}", self.log());
        Ok(())
    }

    fn answers(&self) -> bool {
        let status = self.ask(&["--json", "status"]).unwrap_or_default();
        let status: Value = serde_json::from_str(&status).unwrap_or_default();
        let own = self.daemon.as_ref().map(Child::id);
        own.is_some() && status["pid"].as_u64() == own.map(u64::from)
    }

    fn has_ended(&self) -> bool {
        let Some(daemon) = &self.daemon else { return true };
        // A zombie is one that nobody has waited for.
        ProcessStat::read(&Root::system(), daemon.id())
            .is_ok_and(|found| found.is_none_or(|found| found.state == 'Z'))
    }

    /// The daemon's process.
    pub fn pid(&self) -> Result<Pid> {
        let daemon = self.daemon.as_ref().context("smcd does not run")?;
        Ok(Pid::from_raw(i32::try_from(daemon.id())?))
    }

    /// Kills the daemon as a power cut would: it has no say.
    pub fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("smcd does not run")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Asks the daemon to end, and waits for it.
    pub fn terminate(&mut self) -> Result<()> {
        kill(self.pid()?, Signal::SIGTERM)?;
        let mut daemon = self.daemon.take().context("smcd does not run")?;
        let status = daemon.wait()?;
        ensure!(status.success(), "smcd ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// A loop device of `size_bytes` zeros.
    pub fn disk(&self, name: &str, size_bytes: u64) -> Result<Disk> {
        Disk::new(&self.dir, name, size_bytes)
    }

    /// Lets time pass.
    pub fn pass(&mut self, seconds: u64) -> Result<()> {
        self.elapsed_seconds += seconds;
        let temporary = self.dir.join("clock.new");
        fs::write(
            &temporary,
            json!({ "elapsed_seconds": self.elapsed_seconds }).to_string(),
        )?;
        fs::rename(temporary, self.dir.join("clock"))?;
        Ok(())
    }

    /// Lets time pass, and waits until the scheduler has looked at all jobs since. What shows that is another job, which
    /// starts then: because of its name, the scheduler looks at it last.
    pub fn pass_and_look(&mut self, seconds: u64) -> Result<()> {
        let until = self.elapsed_seconds + seconds;
        let witness = format!("zz-witness-{until}");
        let disk = self.dir.join(&witness);
        fs::write(&disk, [7; 4096])?;
        let (disk, start) = (disk.display().to_string(), format!("+{until}s"));
        // smcctl's clock is the machine's, and smcd's is ahead by what has passed.
        self.ask(&[
            "job",
            "create",
            &witness,
            "--disk",
            &disk,
            "--once",
            "--start-at",
            &start,
        ])?;
        ensure!(self.job(&witness)?["status"] == "Ready", "it starts later");
        self.pass(seconds)?;
        self.wait_status(&witness, "Finished")?;
        Ok(())
    }

    /// Runs `smcctl`.
    pub fn ctl(&self, args: &[&str]) -> Result<Output> {
        Command::new(program("smcctl"))
            .arg("--socket")
            .arg(self.dir.join("smcd.sock"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("run smcctl")
    }

    /// Runs `smcctl`, which must succeed, and returns what it printed.
    pub fn ask(&self, args: &[&str]) -> Result<String> {
        let output = self.ctl(args)?;
        ensure!(
            output.status.success(),
            "smcctl {args:?}: {}\n{}",
            stderr(&output),
            self.log()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `smcctl`, which must refuse with this exit code, and returns its message.
    pub fn refused(&self, expected: i32, args: &[&str]) -> Result<String> {
        let output = self.ctl(args)?;
        ensure!(code(&output) == expected, "smcctl {args:?}: {output:?}");
        Ok(stderr(&output))
    }

    /// A job as `smcctl job show --json` tells it.
    pub fn job(&self, name: &str) -> Result<Value> {
        let text = self.ask(&["--json", "job", "show", name])?;
        serde_json::from_str(&text).with_context(|| format!("parse {text}"))
    }

    /// A job's runs, newest first.
    pub fn runs(&self, name: &str) -> Result<Vec<Value>> {
        let text = self.ask(&["--json", "job", "history", name])?;
        let parse = |line| serde_json::from_str(line).with_context(|| format!("parse {line}"));
        text.lines().map(parse).collect()
    }

    /// Waits until a job tells what `wanted` looks for.
    pub fn wait_for(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut seen = Value::Null;
        let mut failure = None;
        let found = wait_until(PATIENCE, || match self.job(name) {
            Ok(job) => {
                seen = job;
                wanted(&seen)
            }
            Err(error) => {
                failure = Some(error);
                true
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        found.with_context(|| format!("job {name} does not get to {what}: {seen:#}\n{}", self.log()))?;
        Ok(seen)
    }

    /// Waits until a job is in a state.
    pub fn wait_status(&self, name: &str, status: &str) -> Result<Value> {
        self.wait_for(name, status, |job| {
            job["status"] == status || (job["status"] == "InError" && status != "InError")
        })
        .and_then(|job| {
            ensure!(job["status"] == status, "job {name}: {job:#}\n{}", self.log());
            Ok(job)
        })
    }

    /// The digests of an image and of a device, as `smc-image digest` prints them.
    pub fn same_content(&self, image: &str, device: &Path) -> Result<()> {
        let of_image = self.digest(image)?;
        let of_device = self.digest(&device.display().to_string())?;
        ensure!(
            of_image == of_device,
            "{image} is {of_image}, the device {of_device}"
        );
        Ok(())
    }

    fn digest(&self, what: &str) -> Result<String> {
        let output = Command::new(program("smc-image"))
            .arg("--store")
            .arg(self.store())
            .args(["digest", what])
            .output()?;
        ensure!(output.status.success(), "digest of {what}: {}", stderr(&output));
        let text = String::from_utf8(output.stdout)?;
        let digest = text.split_whitespace().find(|word| word.starts_with("smc1-"));
        digest
            .map(str::to_owned)
            .with_context(|| format!("no digest in {text}"))
    }

    /// Verifies every image of the store.
    pub fn verify(&self) -> Result<()> {
        let output = Command::new(program("smc-image"))
            .arg("--store")
            .arg(self.store())
            .arg("verify")
            .output()?;
        ensure!(output.status.success(), "verify: {}", stderr(&output));
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
