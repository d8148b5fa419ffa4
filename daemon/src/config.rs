//! The configuration file, `/etc/smc/smcd.toml`: it is checked completely before anything starts.

use anyhow::{Context, Result, anyhow, bail};
use api::limits;
use hostdev::Root;
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// The default path of the configuration file. The file is optional.
pub const DEFAULT_PATH: &str = "/etc/smc/smcd.toml";

/// Slow enough for the disk of a store to serve others meanwhile: a TiB in six hours.
const VERIFY_RATE_BYTES: u64 = 50 << 20;

/// The settings of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that the settings were read from; none if there was no file.
    pub file: Option<PathBuf>,
    /// The store of jobs that name no other.
    pub store: PathBuf,
    /// Further stores that are searched for jobs when the state is lost.
    pub stores: Vec<PathBuf>,
    /// The directory of the state.
    pub state_dir: PathBuf,
    /// The socket of the control API, unless systemd passes one.
    pub socket: PathBuf,
    /// The directory of the programs that run before and after every sync.
    pub hooks_dir: PathBuf,
    /// How often a sync makes what it stored durable.
    pub checkpoint_every: Duration,
    /// How long a shutdown waits for running syncs to write their checkpoints.
    pub stop_timeout: Duration,
    /// Whether images are also checked while a sync runs.
    pub checks_beside_syncs: bool,
    /// How fast verifications that smcd makes by itself read a store, in bytes per second.
    pub verify_rate_bytes: u64,
    /// The log filter: `error`, `warn`, `info`, `debug`, or tracing's directives.
    pub log: String,
    /// The shortest allowed interval of a job.
    pub min_interval: Duration,
    /// Where in bpffs the tracker is pinned.
    pub tracker: PathBuf,
    /// A file that moves the clock, for tests.
    pub test_clock: Option<PathBuf>,
    /// Where the files that identify this machine are; tests have other machines.
    pub root: Root,
}

/// The file as written. Values keep their position, so that errors can name the line.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    store: Option<Spanned<PathBuf>>,
    stores: Vec<Spanned<PathBuf>>,
    state_dir: Option<Spanned<PathBuf>>,
    socket: Option<Spanned<PathBuf>>,
    hooks_dir: Option<Spanned<PathBuf>>,
    checkpoint_every: Option<Spanned<String>>,
    stop_timeout: Option<Spanned<String>>,
    checks_beside_syncs: bool,
    verify_rate: Option<Spanned<String>>,
    log: Option<Spanned<String>>,
    laboratory: RawLaboratory,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLaboratory {
    min_interval: Option<Spanned<String>>,
    tracker: Option<Spanned<PathBuf>>,
    clock: Option<Spanned<PathBuf>>,
}

impl Config {
    /// Reads and checks a configuration file. If no file is named, it reads the default one if that exists.
    ///
    /// # Errors
    /// The file cannot be read, or a value is wrong: the message names the file, the line, the key and the allowed
    /// values.
    pub fn load(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, Some(path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                Self::parse("", None)
            }
            Err(error) => Err(error).with_context(|| format!("read configuration {}", path.display())),
        }
    }

    /// Where the files of the targets are that this machine knows.
    pub fn targets(&self) -> PathBuf {
        self.state_dir.join("targets")
    }

    fn parse(text: &str, path: Option<&Path>) -> Result<Self> {
        let place = path.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            anyhow!("{place}:{line}: {}", error.message())
        })?;
        let reader = Reader { text, place };
        let lab = &raw.laboratory;
        let seconds = Duration::from_secs;
        Ok(Self {
            file: path.map(Path::to_owned),
            store: reader.path("store", raw.store, "/var/lib/smc/store")?,
            stores: reader.paths("stores", raw.stores)?,
            state_dir: reader.path("state_dir", raw.state_dir, "/var/lib/smc")?,
            socket: reader.path("socket", raw.socket, api::DEFAULT_SOCKET)?,
            hooks_dir: reader.path("hooks_dir", raw.hooks_dir, "/etc/smc/hooks.d")?,
            checkpoint_every: reader.time(
                "checkpoint_every",
                raw.checkpoint_every.as_ref(),
                seconds(5),
                seconds(0)..=seconds(3600),
            )?,
            stop_timeout: reader.time(
                "stop_timeout",
                raw.stop_timeout.as_ref(),
                seconds(60),
                seconds(1)..=seconds(600),
            )?,
            checks_beside_syncs: raw.checks_beside_syncs,
            verify_rate_bytes: reader.rate("verify_rate", raw.verify_rate.as_ref(), VERIFY_RATE_BYTES)?,
            log: reader.log(raw.log)?,
            min_interval: reader.time(
                "laboratory.min_interval",
                lab.min_interval.as_ref(),
                *limits::INTERVAL.start(),
                seconds(1)..=*limits::INTERVAL.start(),
            )?,
            tracker: reader.path(
                "laboratory.tracker",
                raw.laboratory.tracker,
                tracker::PIN_DIRECTORY,
            )?,
            test_clock: match raw.laboratory.clock {
                Some(clock) => Some(reader.path("laboratory.clock", Some(clock), "")?),
                None => None,
            },
            root: Root::system(),
        })
    }
}

/// Checks values and reports the line of a wrong one.
struct Reader<'a> {
    text: &'a str,
    place: String,
}

impl Reader<'_> {
    fn path(&self, key: &str, value: Option<Spanned<PathBuf>>, default: &str) -> Result<PathBuf> {
        let Some(value) = value else {
            return Ok(default.into());
        };
        if !value.get_ref().is_absolute() {
            let shown = value.get_ref().display();
            bail!(self.wrong(
                &value,
                &format!("{key} must be an absolute path, but it is \"{shown}\"")
            ));
        }
        Ok(value.into_inner())
    }

    fn paths(&self, key: &str, values: Vec<Spanned<PathBuf>>) -> Result<Vec<PathBuf>> {
        values
            .into_iter()
            .map(|value| self.path(key, Some(value), ""))
            .collect()
    }

    fn time(
        &self,
        key: &str,
        value: Option<&Spanned<String>>,
        default: Duration,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Result<Duration> {
        let Some(value) = value else {
            return Ok(default);
        };
        let text = value.get_ref();
        let parsed = humantime::parse_duration(text);
        let parsed = parsed.map_err(|_| {
            self.wrong(
                value,
                &format!("{key} must be a time such as 30s or 2h, but it is \"{text}\""),
            )
        })?;
        if !range.contains(&parsed) {
            let shown = |time: &Duration| humantime::format_duration(*time).to_string();
            let (low, high) = (shown(range.start()), shown(range.end()));
            bail!(self.wrong(
                value,
                &format!("{key} = \"{text}\" is out of range: {low} to {high}")
            ));
        }
        Ok(parsed)
    }

    fn rate(&self, key: &str, value: Option<&Spanned<String>>, default: u64) -> Result<u64> {
        let Some(value) = value else {
            return Ok(default);
        };
        let text = value.get_ref();
        let parsed = cli::units::parse_rate(text).ok();
        parsed
            .filter(|bytes| *bytes >= limits::BANDWIDTH_MIN_BYTES)
            .ok_or_else(|| {
                self.wrong(
                    value,
                    &format!("{key} must be at least 64KiB, such as \"50MiB\", but it is \"{text}\""),
                )
            })
    }

    fn log(&self, value: Option<Spanned<String>>) -> Result<String> {
        let Some(value) = value else {
            return Ok("info".to_owned());
        };
        if let Err(error) = value.get_ref().parse::<tracing_subscriber::EnvFilter>() {
            bail!(self.wrong(
                &value,
                &format!("log = \"{}\" is not a valid filter: {error}", value.get_ref())
            ));
        }
        Ok(value.into_inner())
    }

    fn wrong<T>(&self, value: &Spanned<T>, what: &str) -> anyhow::Error {
        let line = line_of(self.text, value.span().start);
        anyhow!("{}:{line}: {what}", self.place)
    }
}

/// The line of a byte, counted from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.split(|&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Some(Path::new("/etc/smc/smcd.toml")))
    }

    fn refusal(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn nothing_is_needed() {
        let config = parse("").unwrap();
        assert_eq!(config.store, Path::new("/var/lib/smc/store"));
        assert_eq!(config.min_interval, Duration::from_secs(3600));
        assert_eq!(config.log, "info");
    }

    #[test]
    fn everything_can_be_said() {
        let config = parse(
            "store = '/srv/smc'\nstores = ['/mnt/a']\nstate_dir = '/x'\nsocket = '/run/x.sock'\n\
             hooks_dir = '/h'\ncheckpoint_every = '10s'\nstop_timeout = '1m'\nlog = 'debug'\n\
             [laboratory]\nmin_interval = '1s'\nclock = '/tmp/clock'\n",
        )
        .unwrap();
        assert_eq!(config.stores, [PathBuf::from("/mnt/a")]);
        assert_eq!(config.stop_timeout, Duration::from_secs(60));
        assert_eq!(config.min_interval, Duration::from_secs(1));
        assert_eq!(config.test_clock, Some("/tmp/clock".into()));
    }

    #[test]
    fn errors_name_file_line_key_and_what_would_be_right() {
        let text = refusal("# one\n# two\nstore = 'relative'\n");
        assert!(text.starts_with("/etc/smc/smcd.toml:3: store"), "{text}");
        let text = refusal("\nstop_timeout = '2 weeks'\n");
        assert!(text.starts_with("/etc/smc/smcd.toml:2: stop_timeout"), "{text}");
        assert!(text.contains("1s to 10m"), "{text}");
        let text = refusal("[laboratory]\nmin_interval = 'soon'\n");
        assert!(
            text.starts_with("/etc/smc/smcd.toml:2: laboratory.min_interval"),
            "{text}"
        );
        let text = refusal("log = 'a=b=c'\n");
        assert!(text.starts_with("/etc/smc/smcd.toml:1: log"), "{text}");
    }

    #[test]
    fn unknown_keys_and_broken_syntax_have_their_line() {
        let text = refusal("log = 'info'\nstroe = '/x'\n");
        assert!(
            text.starts_with("/etc/smc/smcd.toml:2: ") && text.contains("stroe"),
            "{text}"
        );
        let text = refusal("log = 'info'\n\nstore = \n");
        assert!(text.starts_with("/etc/smc/smcd.toml:3: "), "{text}");
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        assert!(Config::load(Some(Path::new("/nonexistent/smcd.toml"))).is_err());
    }
}
