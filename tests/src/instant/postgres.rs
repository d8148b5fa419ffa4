//! PostgreSQL in the workload: its data on one disk, its write-ahead log on the other, so that it recovers only from one instant of both.
//! pgbench writes to it.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown};
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use testkit::process::{PATIENCE, run, spawn, wait_until};

/// Whose server it is: it refuses to be root's.
const USER: &str = "postgres";

/// Small, so that it checkpoints, removes log and vacuums all the time.
const SETTINGS: &str = "
listen_addresses = ''
shared_buffers = 16MB
max_connections = 20
min_wal_size = 2MB
max_wal_size = 16MB
checkpoint_timeout = 30s
autovacuum_naptime = 2s
jit = off
";

/// Asks for sums that every transaction of pgbench changes by the same.
pub const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches), \
                    (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history)";

/// A server that runs, and what writes to it.
#[derive(Debug)]
pub struct Database {
    server: Child,
    load: Option<Child>,
}

impl Database {
    /// A new one, with its data on the first of two filesystems and its log on the second; its sockets and messages are in `home`,
    /// which is on neither of them and is where both are mounted.
    ///
    /// # Errors
    /// What cannot be made.
    pub fn start(mounts: [&Path; 2], home: &Path) -> Result<Self> {
        let place = Place::of(mounts, home)?;
        place.make(mounts[1])?;
        let log = File::create(home.join("postgres.log"))?;
        let mut server = place.command("postgres")?;
        server.arg("-D").arg(&place.data).arg("-k").arg(home);
        let server = spawn(server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
        let mut database = Self { server, load: None };
        let is_ready = || place.ask("SELECT 1").is_ok();
        wait_until(PATIENCE, is_ready).context("PostgreSQL does not start")?;
        place.ask("CREATE EXTENSION amcheck")?;
        run(place.client("pgbench")?.args(["-i", "-q", "-s", "1", USER]))?;
        let mut load = place.client("pgbench")?;
        load.args(["-n", "-c", "4", "-R", "200", "-T", "1000000", USER]);
        database.load = Some(spawn(load.stdout(Stdio::null()).stderr(Stdio::null()))?);
        let has_written = || {
            place
                .ask("SELECT count(*) > 9 FROM pgbench_history")
                .is_ok_and(|said| said == "t\n")
        };
        wait_until(PATIENCE, has_written).context("pgbench writes nothing")?;
        Ok(database)
    }

    /// Asks all of its processes to end at once, as a power cut would. None of them can while its filesystem is frozen.
    pub fn interrupt(&mut self) {
        let _ = self.load.as_mut().map(Child::kill);
        if let Ok(process) = i32::try_from(self.server.id()) {
            let _ = kill(Pid::from_raw(process), Signal::SIGQUIT);
        }
    }

    /// Waits until they have ended.
    pub fn wait(mut self) {
        let _ = self.load.as_mut().map(Child::wait);
        let _ = self.server.wait();
    }
}

/// Checks what a copy of both filesystems has: the server starts and recovers, its tables and indexes are whole, what transactions keep
/// equal is equal, and the checksums of all pages are right. Returns how many transactions there are.
///
/// # Errors
/// What is wrong.
pub fn check(mounts: [&Path; 2], home: &Path) -> Result<u64> {
    let place = Place::of(mounts, home)?;
    let control = |action: &str| -> Result<Command> {
        let mut command = place.command("pg_ctl")?;
        command
            .args([action, "-s", "-w", "-t", "300", "-D"])
            .arg(&place.data);
        Ok(command)
    };
    let log = home.join("recovered.log");
    chown(
        File::create(&log).map(|_| log.as_path())?,
        Some(place.user.uid),
        Some(place.user.gid),
    )?;
    // Nothing has to last.
    let options = format!("-F -k {}", home.display());
    let mut start = control("start")?;
    let started = run(start.arg("-l").arg(&log).arg("-o").arg(options));
    let said = fs::read_to_string(&log).unwrap_or_default();
    started.with_context(|| format!("PostgreSQL does not recover:\n{said}"))?;
    let transactions = place.check_running();
    run(control("stop")?.args(["-m", "fast"]))?;
    run(place.command("pg_checksums")?.arg("--check").arg(&place.data))?;
    transactions
}

/// Where a server is.
struct Place {
    programs: PathBuf,
    user: User,
    data: PathBuf,
    home: PathBuf,
}

impl Place {
    fn of(mounts: [&Path; 2], home: &Path) -> Result<Self> {
        let user = User::from_name(USER)?.context("no PostgreSQL: run 'make setup'")?;
        // Its sockets are made here.
        chown(home, None, Some(user.gid))?;
        fs::set_permissions(home, Permissions::from_mode(0o770))?;
        Ok(Self {
            programs: programs()?,
            user,
            data: mounts[0].join("data"),
            home: home.to_owned(),
        })
    }

    /// Makes its data and its log, which are found from each other wherever both filesystems are mounted side by side.
    fn make(&self, of_log: &Path) -> Result<()> {
        let log = of_log.join("log");
        for directory in [&self.data, &log] {
            fs::create_dir(directory)?;
            chown(directory, Some(self.user.uid), Some(self.user.gid))?;
        }
        let mut make = self.command("initdb")?;
        make.args([
            "--data-checksums",
            "--wal-segsize=1",
            "--locale=C",
            "--auth=trust",
            "-D",
        ]);
        run(make.arg(&self.data).arg("-X").arg(&log))?;
        let link = self.data.join("pg_wal");
        let name = of_log.file_name().context("a name")?;
        fs::remove_file(&link)?;
        symlink(Path::new("../..").join(name).join("log"), &link)?;
        let mut settings = File::options()
            .append(true)
            .open(self.data.join("postgresql.conf"))?;
        Ok(settings.write_all(SETTINGS.as_bytes())?)
    }

    /// One of its programs, as its user.
    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("setpriv");
        let user = format!("--reuid={}", self.user.uid);
        let group = format!("--regid={}", self.user.gid);
        command.args([user.as_str(), group.as_str(), "--clear-groups", "--"]);
        command.arg(self.programs.join(program)).current_dir("/");
        Ok(command)
    }

    /// A program that connects to the server.
    fn client(&self, program: &str) -> Result<Command> {
        let mut command = self.command(program)?;
        command.arg("-h").arg(&self.home).args(["-U", USER]);
        Ok(command)
    }

    fn ask(&self, question: &str) -> Result<String> {
        let mut client = self.client("psql")?;
        let output = client
            .args(["-X", "-A", "-t", "-d", USER, "-c", question])
            .output()?;
        ensure!(output.status.success(), "{question}: {}", crate::stderr(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn check_running(&self) -> Result<u64> {
        run(self
            .client("pg_amcheck")?
            .args(["--heapallindexed", "--rootdescend", "-d", USER]))?;
        let sums = self.ask(SUMS)?;
        let mut all = sums.trim().split('|');
        let first = all.next().filter(|first| !first.is_empty()).context("no sums")?;
        ensure!(all.all(|sum| sum == first), "half a transaction: {sums}");
        Ok(self.ask("SELECT count(*) FROM pgbench_history")?.trim().parse()?)
    }
}

/// The directory with the programs of the newest version that is installed.
///
/// # Errors
/// There is none.
pub fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL: run 'make setup'")?;
    let version =
        |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u32>().ok();
    let newest = versions.filter_map(version).max();
    let newest = newest.context("no PostgreSQL: run 'make setup'")?;
    Ok(format!("/usr/lib/postgresql/{newest}/bin").into())
}
