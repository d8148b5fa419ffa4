//! A stand-in for smcd: answers from a table, and remembers what it was asked.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

pub mod views;

use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use testkit::guard::ScratchDir;
use testkit::program::{Run, run};

/// The tool under test.
pub const SMCCTL: &str = env!("CARGO_BIN_EXE_smcctl");

/// What it was asked: `GET /v1/jobs`, the headers by their names in lower case, and the body.
#[derive(Debug, Clone)]
pub struct Asked {
    pub line: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Asked {
    /// The body as JSON; nothing is null.
    pub fn json(&self) -> Value {
        match self.body.as_str() {
            "" => Value::Null,
            body => serde_json::from_str(body).unwrap(),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// For each request line the answers in their order; the last one stays.
    answers: Mutex<HashMap<String, Vec<Vec<u8>>>>,
    asked: Mutex<Vec<Asked>>,
    is_over: AtomicBool,
}

/// The stand-in, on a socket of its own; it ends when dropped.
pub struct FakeSmcd {
    dir: ScratchDir,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

impl FakeSmcd {
    pub fn new() -> Self {
        let dir = ScratchDir::new("smcctl").unwrap();
        let listener = UnixListener::bind(dir.join("s")).unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        let acceptor = thread::spawn(move || accept(&listener, &shared));
        Self {
            dir,
            state,
            acceptor: Some(acceptor),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Answers a request with JSON. Several answers to one request are given in turn.
    pub fn on(&self, request: &str, status: u16, answer: &(impl Serialize + ?Sized)) {
        self.on_text(request, status, &serde_json::to_string(answer).unwrap());
    }

    /// Answers a request with this body.
    pub fn on_text(&self, request: &str, status: u16, body: &str) {
        let length = match status {
            204 => String::new(),
            _ => format!("content-length: {}\r\n", body.len()),
        };
        let head = format!("HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\n{length}\r\n");
        self.on_bytes(request, (head + body).into_bytes());
    }

    /// Sends these bytes after a request, and ends the connection.
    pub fn on_bytes(&self, request: &str, bytes: Vec<u8>) {
        let mut answers = self.state.answers.lock().unwrap();
        answers.entry(request.to_owned()).or_default().push(bytes);
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// The lines of the requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    /// The tool, talking to this.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(SMCCTL);
        for name in ["SMC_SOCKET", "NO_COLOR", "TERM"] {
            command.env_remove(name);
        }
        command
            .env("TZ", "UTC")
            .arg("--socket")
            .arg(self.socket())
            .args(args);
        command
    }

    /// Runs the tool with these words, between which stand single blanks.
    pub fn say(&self, args: &str) -> Run {
        self.run(&words(args))
    }

    /// Runs the tool.
    pub fn run(&self, args: &[&str]) -> Run {
        run(&mut self.command(args))
    }
}

/// Arguments of a command line without quotes.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

impl Drop for FakeSmcd {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        // The acceptor notices with the next connection.
        drop(UnixStream::connect(self.socket()));
        if let Some(acceptor) = self.acceptor.take() {
            let ended = acceptor.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the stand-in for smcd panicked"
            );
        }
    }
}

fn accept(listener: &UnixListener, state: &Arc<State>) {
    let mut served = Vec::new();
    for stream in listener.incoming() {
        if state.is_over.load(Ordering::SeqCst) {
            break;
        }
        let (stream, state) = (stream.unwrap(), state.clone());
        served.push(thread::spawn(move || serve(&stream, &state)));
    }
    for connection in served {
        connection.join().unwrap();
    }
}

/// Answers one request. What the client does meanwhile, like leaving, is its own business.
fn serve(stream: &UnixStream, state: &State) {
    let Some(asked) = read_request(&mut BufReader::new(stream)) else {
        return;
    };
    let answer = answer(&asked, state);
    state.asked.lock().unwrap().push(asked);
    let mut writing = stream;
    drop(writing.write_all(&answer));
}

fn read_request(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let line = line.strip_suffix(" HTTP/1.1\r\n")?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).unwrap();
    Some(Asked { line, headers, body })
}

fn answer(asked: &Asked, state: &State) -> Vec<u8> {
    let mut answers = state.answers.lock().unwrap();
    match answers.get_mut(&asked.line) {
        Some(answers) if answers.len() > 1 => answers.remove(0),
        Some(answers) => answers[0].clone(),
        None => {
            let body = r#"{"error":"failed","message":"the test has no answer to this"}"#;
            format!("HTTP/1.1 500 No\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
        }
    }
}
