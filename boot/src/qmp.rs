//! What QEMU is asked while a machine runs: the QEMU Machine Protocol, JSON objects a line each.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};

/// A busy QEMU answers late; one that has hung never does.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longer lines than QEMU writes.
const LINE_LEN_MAX: u64 = 1 << 20;
/// Events between a command and its answer.
const EVENTS_MAX: usize = 1000;

/// The connection.
#[derive(Debug)]
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    version: String,
}

impl Qmp {
    /// Waits until QEMU greets: the machine has been made then.
    pub(crate) fn connect(stream: UnixStream) -> Result<Self> {
        stream
            .set_read_timeout(Some(TIMEOUT))
            .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
            .map_err(lost)?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
            version: String::new(),
        };
        let greeting = qmp.receive()?;
        let number = |name: &str| greeting["QMP"]["version"]["qemu"][name].as_u64().unwrap_or(0);
        qmp.version = format!("{}.{}.{}", number("major"), number("minor"), number("micro"));
        qmp.ask("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// QEMU's version, as `7.2.0`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Sends a command and waits for its answer.
    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.reader.get_mut().write_all(line.as_bytes()).map_err(lost)?;
        for _ in 0..EVENTS_MAX {
            let mut said = self.receive()?;
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = said.get("error") {
                let why = error["desc"].as_str().unwrap_or("no reason given");
                let what = format!("QEMU refuses {command}: {why}");
                return Err(Error::new(ErrorKind::Qemu, what));
            }
        }
        Err(Error::new(
            ErrorKind::Qemu,
            format!("QEMU does not answer {command}"),
        ))
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        let mut limited = io::Read::take(&mut self.reader, LINE_LEN_MAX);
        match limited.read_until(b'\n', &mut line) {
            Ok(0) => Err(Error::new(ErrorKind::Qemu, "QEMU has ended")),
            Ok(_) => serde_json::from_slice(&line)
                .map_err(|error| Error::io("read what QEMU says", io::Error::from(error))),
            Err(error) => Err(lost(error)),
        }
    }
}

fn lost(source: io::Error) -> Error {
    Error::io("talk to QEMU", source)
}
