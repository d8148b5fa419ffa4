//! smcctl on a terminal: colours, the live view, and questions before something is lost.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod fake;

use api::{Event, JobView, Status};
use fake::views::{in_error, next, running, waiting};
use fake::{FakeSmcd, words};
use nix::pty::{Winsize, openpty};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use testkit::program::wait_for;

/// A program on a terminal of its own.
struct Terminal {
    keyboard: File,
    screen: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
    child: Child,
}

impl Terminal {
    fn start(command: &mut Command, columns: u16) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        // The command holds ends of its own, which keep the terminal open.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let keyboard = File::from(pty.master);
        let screen = Arc::new(Mutex::new(String::new()));
        let (source, shown) = (keyboard.try_clone().unwrap(), screen.clone());
        Self {
            keyboard,
            screen,
            reader: thread::spawn(move || copy(source, &shown)),
            child,
        }
    }

    /// Waits until something has been shown.
    fn wait_for(&self, text: &str) {
        wait_for(text, || self.screen.lock().unwrap().contains(text));
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// The exit code, and everything that was written to the terminal.
    fn finish(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        self.reader.join().unwrap();
        let screen = self.screen.lock().unwrap().replace("\r\n", "\n");
        (status.code(), screen)
    }
}

/// Copies what is written to the terminal until nobody has it open any more, which is an error (EIO).
fn copy(mut source: File, screen: &Mutex<String>) {
    let mut buffer = [0; 4096];
    while let Ok(length) = source.read(&mut buffer) {
        screen
            .lock()
            .unwrap()
            .push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}

fn on_terminal(smcd: &FakeSmcd, args: &str, columns: u16) -> Terminal {
    Terminal::start(smcd.command(&words(args)).env("TERM", "xterm"), columns)
}

/// Whether there are sequences that change colours.
fn has_colours(text: &str) -> bool {
    let end_of = |sequence: &str| sequence.find(|letter: char| !letter.is_ascii_digit() && letter != ';');
    text.split("\u{1b}[")
        .skip(1)
        .any(|sequence| end_of(sequence).is_some_and(|end| sequence[end..].starts_with('m')))
}

#[test]
fn states_are_coloured_where_a_terminal_shows_it_and_nobody_objects() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/jobs", 200, &[waiting("web01"), in_error("web02")]);
    let shown = |args: &str, variables: &[(&str, &str)]| {
        let mut command = smcd.command(&words(args));
        command.env("TERM", "xterm").envs(variables.iter().copied());
        let (code, screen) = Terminal::start(&mut command, 200).finish();
        assert_eq!(code, Some(0), "{screen}");
        screen
    };
    let coloured = shown("job ls", &[]);
    assert!(coloured.contains("\u{1b}[32mWaiting\u{1b}[0m"), "{coloured:?}");
    assert!(coloured.contains("\u{1b}[31mInError\u{1b}[0m"), "{coloured:?}");
    assert_eq!(
        console::strip_ansi_codes(&coloured),
        shown("job ls --color never", &[])
    );

    assert!(!has_colours(&shown("job ls", &[("NO_COLOR", "1")])));
    assert!(!has_colours(&shown("job ls", &[("TERM", "dumb")])));
    assert!(has_colours(&shown("job ls", &[("NO_COLOR", "")])));
    assert!(has_colours(&shown("job ls --color always", &[("NO_COLOR", "1")])));

    assert!(!has_colours(&smcd.say("job ls").ok()));
    assert!(has_colours(&smcd.say("--color always job ls").ok()));
    assert!(!has_colours(&shown("job ls --json --color always", &[])));
}

#[test]
fn the_live_view_is_drawn_in_place() {
    let smcd = FakeSmcd::new();
    smcd.on("GET /v1/jobs/web01", 200, &running("web01"));
    smcd.on("GET /v1/jobs/web01", 200, &waiting("web01"));
    let (code, screen) = on_terminal(&smcd, "--color never job watch web01 --until-idle", 100).finish();
    assert_eq!(code, Some(0), "{screen}");
    let first = "\
web01: Running, Comparing 50%
  web01/8, for 42 s, reading data
  compared [===============>              ] 70 GiB of 140 GiB, 2 GiB/s, 35 s left
  stored   [===============>              ] 1 GiB of about 2 GiB, 32 MiB/s, 32 s left
  next         the sync ends: 2026-11-24 10:01:00 (in 24 s)
";
    let second = "\
web01: Waiting
  next         incremental sync: 2026-11-24 16:00:00 (in 5 h 59 min)
";
    // Up by as many lines as there are, and away with them.
    assert_eq!(screen, format!("\r\u{1b}[0J{first}\u{1b}[5A\r\u{1b}[0J{second}"));
}

#[test]
fn the_live_view_fits_the_terminal() {
    let smcd = FakeSmcd::new();
    let jobs: Vec<JobView> = (0..30).map(|number| in_error(&format!("web{number}"))).collect();
    smcd.on("GET /v1/jobs", 200, &jobs);
    let (code, screen) = on_terminal(&smcd, "job watch --until-idle", 40).finish();
    assert_eq!(code, Some(1), "{screen}");
    let plain = console::strip_ansi_codes(&screen);
    let widest = plain.lines().map(console::measure_text_width).max();
    assert_eq!((plain.lines().count(), widest), (23, Some(40)), "{plain}");
}

#[test]
fn waiting_shows_the_sync_and_leaves_the_result() {
    let smcd = FakeSmcd::new();
    smcd.on("POST /v1/jobs/web01/sync", 200, &running("web01"));
    smcd.on("GET /v1/jobs/web01", 200, &waiting("web01"));
    let (code, screen) = on_terminal(&smcd, "--color never job sync web01 --wait", 100).finish();
    assert_eq!(code, Some(0), "{screen}");
    let (live, result) = screen.rsplit_once("\u{1b}[0J").unwrap();
    assert!(live.contains("  compared [===============>"), "{live}");
    assert!(
        result.starts_with("web01: Waiting\n") && result.contains("web01/7: incremental"),
        "{result}"
    );
}

#[test]
fn images_go_only_after_a_yes() {
    for (typed, code) in [("yes\n", Some(0)), ("y\n", Some(1)), ("\n", Some(1))] {
        let smcd = FakeSmcd::new();
        let mut job = waiting("web01");
        (job.status, job.next) = (Status::Stopped, next(Event::Nothing, "", None));
        smcd.on("GET /v1/jobs/web01", 200, &job);
        smcd.on_text("DELETE /v1/jobs/web01?purge=true", 204, "");
        let mut terminal = on_terminal(&smcd, "job delete web01 --purge", 100);
        terminal.wait_for("Type yes: ");
        terminal.type_in(typed);
        let (ended, screen) = terminal.finish();
        assert_eq!(ended, code, "{screen}");
        assert!(
            screen.contains("Job web01 and 3 images (web01/5, web01/6, web01/7)"),
            "{screen}"
        );
        assert_eq!(
            smcd.lines().len(),
            if code == Some(0) { 2 } else { 1 },
            "{screen}"
        );
    }
}
