//! QEMU's guest agent, if one runs in the guest: JSON objects a line each, over a virtio port
//! (QEMU's documentation, "QEMU Guest Agent Protocol Reference").

use std::io::{self, BufRead, BufReader, ErrorKind as IoErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};

/// How long an answer is waited for before the question is asked again: nobody reads the port before the agent has started.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// How often is asked whether a program has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Longer lines than an agent writes to what it is asked here.
const LINE_LEN_MAX: u64 = 1 << 20;

/// The line to the agent of a guest, which may not run yet, or never.
#[derive(Debug)]
pub struct Agent {
    reader: BufReader<UnixStream>,
    /// The number of the last question, so that a late answer to an earlier one is known as such.
    asked: u64,
}

/// How a program in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i64>,
    /// What it wrote to its standard output.
    pub said: String,
}

impl Agent {
    pub(crate) fn new(line: UnixStream) -> Self {
        Self {
            reader: BufReader::new(line),
            asked: 0,
        }
    }

    /// The line itself, for a guest in which a program of ours answers in the agent's place.
    pub fn into_line(self) -> UnixStream {
        self.reader.into_inner()
    }

    /// Asks until the agent answers. Returns whether it did before `is_over`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when QEMU has ended.
    pub fn wait(&mut self, is_over: &dyn Fn() -> bool) -> Result<bool> {
        while !is_over() {
            self.asked += 1;
            let wanted = self.asked;
            self.send(&json!({ "execute": "guest-sync", "arguments": { "id": wanted } }))?;
            let answered = self.answer(is_over, ANSWER_PATIENCE, |answer| answer["return"] == wanted)?;
            if answered.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Runs a program in the guest and waits for its end; `None` if `is_over` says so before.
    ///
    /// # Errors
    /// [`ErrorKind::Guest`] when the agent refuses, [`ErrorKind::Io`] when QEMU has ended.
    pub fn execute(
        &mut self,
        program: &str,
        arguments: &[&str],
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Executed>> {
        let wanted = json!({ "path": program, "arg": arguments, "capture-output": true });
        let Some(started) = self.ask("guest-exec", &wanted, is_over)? else {
            return Ok(None);
        };
        loop {
            let wanted = json!({ "pid": started["pid"] });
            let Some(status) = self.ask("guest-exec-status", &wanted, is_over)? else {
                return Ok(None);
            };
            if status["exited"] == true {
                let said = BASE64_STANDARD.decode(status["out-data"].as_str().unwrap_or_default());
                return Ok(Some(Executed {
                    code: status["exitcode"].as_i64(),
                    said: String::from_utf8_lossy(&said.unwrap_or_default()).into_owned(),
                }));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The answer of an agent that has answered before.
    fn ask(&mut self, command: &str, arguments: &Value, is_over: &dyn Fn() -> bool) -> Result<Option<Value>> {
        self.send(&json!({ "execute": command, "arguments": arguments }))?;
        let answer = self.answer(is_over, Duration::MAX, |answer| {
            // What was asked before the agent had started is answered late: with the number of that question.
            answer.get("error").is_some() || !answer["return"].is_u64()
        })?;
        let Some(mut answer) = answer else { return Ok(None) };
        match answer.get("error") {
            None => Ok(Some(answer["return"].take())),
            Some(error) => {
                let why = error["desc"].as_str().unwrap_or("no reason given");
                let what = format!("the guest agent refuses {command}: {why}");
                Err(Error::new(ErrorKind::Guest, what))
            }
        }
    }

    fn send(&mut self, question: &Value) -> Result<()> {
        let stream = self.reader.get_mut();
        let written = stream
            .set_write_timeout(Some(ANSWER_PATIENCE))
            .and_then(|()| stream.write_all(format!("{question}\n").as_bytes()));
        match written {
            // Nobody reads the port, and it is full: then there is enough in it.
            Err(error) if is_timeout(&error) => Ok(()),
            done => done.map_err(lost),
        }
    }

    /// The next answer that is the wanted one; `None` if none came in time.
    fn answer(
        &mut self,
        is_over: &dyn Fn() -> bool,
        patience: Duration,
        is_wanted: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>> {
        let begun = Instant::now();
        let mut line = Vec::new();
        while begun.elapsed() < patience && !is_over() {
            self.reader
                .get_mut()
                .set_read_timeout(Some(POLL_INTERVAL))
                .map_err(lost)?;
            let mut limited = io::Read::take(&mut self.reader, LINE_LEN_MAX);
            match limited.read_until(b'\n', &mut line) {
                Ok(0) => {
                    return Err(Error::new(
                        ErrorKind::Guest,
                        "QEMU has closed the line to the guest agent",
                    ));
                }
                Ok(_) => {}
                Err(error) if is_timeout(&error) => continue,
                Err(error) => return Err(lost(error)),
            }
            // What cannot be understood is what an agent wrote before it was synchronized.
            let answer = serde_json::from_slice::<Value>(&line).ok();
            line.clear();
            if let Some(answer) = answer.filter(|answer| answer.is_object() && is_wanted(answer)) {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        IoErrorKind::WouldBlock | IoErrorKind::TimedOut | IoErrorKind::Interrupted
    )
}

fn lost(source: io::Error) -> Error {
    Error::io("talk to the guest agent", source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// An agent that answers each line as the closure says.
    fn agent(answers: impl Fn(&Value) -> Vec<String> + Send + 'static) -> Agent {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut writer = theirs.try_clone().unwrap();
            for line in BufReader::new(theirs).lines() {
                let asked: Value = serde_json::from_str(&line.unwrap()).unwrap();
                for answer in answers(&asked) {
                    writeln!(writer, "{answer}").unwrap();
                }
            }
        });
        Agent::new(ours)
    }

    fn never() -> bool {
        false
    }

    fn plain(asked: &Value) -> Vec<String> {
        let answer = match asked["execute"].as_str().unwrap() {
            "guest-sync" => json!({ "return": asked["arguments"]["id"] }),
            "guest-exec" => json!({ "return": { "pid": 7 } }),
            _ => json!({ "return": { "exited": true, "exitcode": 3, "out-data": "cnVubmluZwo=" } }),
        };
        vec![answer.to_string()]
    }

    #[test]
    fn a_program_is_run_and_its_output_is_there() {
        let mut agent = agent(plain);
        assert!(agent.wait(&never).unwrap());
        let ended = agent
            .execute("systemctl", &["is-system-running"], &never)
            .unwrap();
        let wanted = Executed {
            code: Some(3),
            said: "running\n".to_owned(),
        };
        assert_eq!(ended, Some(wanted));
    }

    #[test]
    fn nonsense_and_late_answers_are_skipped() {
        let mut agent = agent(|asked| {
            let mut answers = vec![
                "\u{fffd}{".to_owned(),
                "[1]".to_owned(),
                r#"{"return": 9999}"#.to_owned(),
            ];
            answers.extend(plain(asked));
            answers
        });
        assert!(agent.wait(&never).unwrap());
        assert!(agent.execute("true", &[], &never).unwrap().is_some());
    }

    #[test]
    fn a_refusal_is_an_error_and_an_agent_that_is_silent_is_waited_for_until_it_is_over() {
        let mut refusing = agent(|asked| match asked["execute"] == "guest-exec" {
            true => vec![r#"{"error": {"class": "CommandNotFound", "desc": "disabled"}}"#.to_owned()],
            false => plain(asked),
        });
        let error = refusing.execute("true", &[], &never).unwrap_err();
        assert!(
            error.to_string().contains("refuses guest-exec: disabled"),
            "{error}"
        );
        let mut silent = agent(|_| Vec::new());
        let until = Instant::now() + Duration::from_millis(700);
        assert!(!silent.wait(&|| Instant::now() > until).unwrap());
    }
}
