//! What a guest is asked beside its console: a port, the guest agent, or what a script of the user's finds.
//!
//! A thread asks; the console is read meanwhile.

use anyhow::{Context as _, anyhow};
use boot::{Agent, Executed};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// How often a port is tried.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long a server may take to greet, or to answer what it is sent.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// What a server that greets nobody answers: an error, if it speaks another language.
const GREETING: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// How often is looked whether a script has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Debug)]
pub enum Question {
    /// Whether the guest's port, which a port of this machine leads to, answers.
    Port(u16),
    /// Whether the guest agent answers.
    Agent(Agent),
    /// Whether systemd says that it is running, through the guest agent.
    Systemd(Agent),
    /// Whether this program succeeds, with these variables in its environment.
    Script(PathBuf, Vec<(&'static str, String)>),
}

/// A thread that asks; it ends soon after this was dropped.
#[derive(Debug)]
pub struct Probe {
    /// What was asked for is there, or will not come, and why.
    answer: Receiver<Result<(), String>>,
    is_over: Arc<AtomicBool>,
}

impl Probe {
    /// Begins to ask.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn begin(question: Question) -> anyhow::Result<Self> {
        let (sender, answer) = channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let ask = move || {
            let is_over = || until.load(Ordering::Relaxed);
            if let Some(answer) = question.ask(&is_over) {
                // Nobody listens any more if the guest has ended.
                let _ = sender.send(answer.map_err(|error| format!("{error:#}")));
            }
        };
        thread::Builder::new()
            .name("probe".to_owned())
            .spawn(ask)
            .context("start a thread")?;
        Ok(Self { answer, is_over })
    }

    /// What was found out by now.
    pub fn answer(&self) -> Option<Result<(), String>> {
        self.answer.try_recv().ok()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl Question {
    /// `None` if it was over before there was an answer.
    fn ask(self, is_over: &dyn Fn() -> bool) -> Option<anyhow::Result<()>> {
        match self {
            Self::Port(port) => port_answers(port, is_over).then_some(Ok(())),
            Self::Agent(mut agent) => waited(agent.wait(is_over)).map(|done| done.map_err(Into::into)),
            Self::Systemd(agent) => systemd(agent, is_over).transpose(),
            Self::Script(program, variables) => script(&program, variables, is_over).transpose(),
        }
    }
}

/// Whether it answered before it was over.
fn waited(answered: boot::Result<bool>) -> Option<boot::Result<()>> {
    match answered {
        Ok(false) => None,
        Ok(true) => Some(Ok(())),
        Err(error) => Some(Err(error)),
    }
}

fn port_answers(port: u16, is_over: &dyn Fn() -> bool) -> bool {
    while !is_over() {
        if says_something(port).unwrap_or(false) {
            return true;
        }
        thread::sleep(RETRY_INTERVAL);
    }
    false
}

/// QEMU takes every connection, and closes those that the guest refuses: only bytes prove that a server is there.
fn says_something(port: u16) -> std::io::Result<bool> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_PATIENCE)?;
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(count) => return Ok(count > 0),
        Err(error)
            if !matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ) =>
        {
            return Err(error);
        }
        Err(_) => {}
    }
    stream.write_all(GREETING)?;
    Ok(stream.read(&mut byte)? > 0)
}

/// Waits until systemd has started everything. `None` if it was over before.
fn systemd(mut agent: Agent, is_over: &dyn Fn() -> bool) -> anyhow::Result<Option<()>> {
    if !agent.wait(is_over)? {
        return Ok(None);
    }
    let mut run = |program: &str, arguments: &[&str]| agent.execute(program, arguments, is_over);
    let Some(state) = run("systemctl", &["is-system-running", "--wait"])? else {
        return Ok(None);
    };
    match state.said.trim() {
        "running" => Ok(Some(())),
        "degraded" => {
            let failed = run("systemctl", &["--failed", "--plain", "--no-legend"])?;
            let failed = failed.map(|failed| failed.said).unwrap_or_default();
            let units = failed.lines().filter_map(|line| line.split_whitespace().next());
            let units: Vec<&str> = units.collect();
            let said = match units.first() {
                Some(unit) => last_words(unit, &mut run)?,
                None => String::new(),
            };
            let full = room(&mut run)?;
            let units = units.join(", ");
            Err(anyhow!(
                "systemd is degraded, because units have failed: {units}{said}{full}"
            ))
        }
        state => Err(anyhow!("systemd is {state}")),
    }
}

/// What the program of a unit wrote last, as the journal has it, behind a colon.
fn last_words(
    unit: &str,
    run: &mut impl FnMut(&str, &[&str]) -> boot::Result<Option<Executed>>,
) -> anyhow::Result<String> {
    let of_unit = format!("_SYSTEMD_UNIT={unit}");
    let said = run("journalctl", &["-b", "-q", "-o", "cat", "-n", "1", &of_unit])?;
    let said = said.map(|said| said.said).unwrap_or_default();
    Ok(match said.lines().last() {
        Some(line) if !line.trim().is_empty() => format!("; {unit} wrote: {}", line.trim()),
        _ => String::new(),
    })
}

/// Whether nothing more can be written to the root filesystem, behind a semicolon: programs write that in their own words.
fn room(
    run: &mut impl FnMut(&str, &[&str]) -> boot::Result<Option<Executed>>,
) -> anyhow::Result<&'static str> {
    let free = run("stat", &["-f", "-c", "%a", "/"])?;
    let is_full = free.is_some_and(|free| free.said.trim() == "0");
    Ok(if is_full {
        "; the root filesystem has no space left"
    } else {
        ""
    })
}

/// Waits for the end of a program, which is killed when it is over before.
fn script(
    program: &Path,
    variables: Vec<(&'static str, String)>,
    is_over: &dyn Fn() -> bool,
) -> anyhow::Result<Option<()>> {
    // The program ends with us, whatever ends us.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).envs(variables);
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let child = command
        .spawn()
        .with_context(|| format!("run {}", program.display()))?;
    let mut child = Killed(child);
    while !is_over() {
        match child.0.try_wait().context("wait for the script")? {
            None => thread::sleep(POLL_INTERVAL),
            Some(status) if status.success() => return Ok(Some(())),
            Some(status) => return Err(anyhow!("{} ended with {status}", program.display())),
        }
    }
    Ok(None)
}

/// A child that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
