//! The configuration file, `/etc/smc/smc-store.toml`.

use anyhow::{Context, Result, bail};
use imagefmt::{ErrorKind, Store};
use serde::{Deserialize, Deserializer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The default path of the configuration file. The file is optional.
pub const DEFAULT_PATH: &str = "/etc/smc/smc-store.toml";

/// The port that sources find a target at, unless they are told another one.
pub const PORT: u16 = 7310;

/// The settings of a target.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory with a store for each source.
    pub stores: PathBuf,
    /// Directory of keys, certificates and the list of sources.
    pub state_dir: PathBuf,
    /// Address and port to listen at.
    pub listen: String,
    /// Loopback address and port, or path of a Unix socket, at which health and metrics are asked for; nowhere if absent.
    pub metrics: Option<String>,
    /// Images that are kept of each job.
    pub max_images: usize,
    /// An image younger than this is never deleted.
    #[serde(deserialize_with = "duration")]
    pub keep_within: Duration,
    /// Bytes that the images of one source may take; no limit if absent.
    #[serde(deserialize_with = "size")]
    pub quota: Option<u64>,
    /// Syncs at the same time.
    pub max_syncs: usize,
    /// How long a session is kept whose source cannot be heard.
    #[serde(deserialize_with = "duration")]
    pub session_timeout: Duration,
    /// Whether stores may lie on network filesystems.
    pub allow_network_fs: bool,
    /// The log filter.
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            stores: PathBuf::from("/srv/smc"),
            state_dir: PathBuf::from("/var/lib/smc-store"),
            listen: format!("[::]:{PORT}"),
            metrics: None,
            max_images: 7,
            keep_within: Duration::from_secs(7 * 24 * 3600),
            quota: None,
            max_syncs: 16,
            session_timeout: Duration::from_secs(600),
            allow_network_fs: false,
            log: "info".to_owned(),
        }
    }
}

impl Config {
    /// Reads the file; without one, all settings have their defaults.
    ///
    /// # Errors
    /// A file that cannot be read, or that says what cannot be; the message names the line.
    pub fn load(path: Option<&Path>) -> Result<Config> {
        let (path, is_wanted) = (path.unwrap_or(Path::new(DEFAULT_PATH)), path.is_some());
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_wanted => {
                return Ok(Config::default());
            }
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        let config: Config = toml::from_str(&text).with_context(|| format!("{} is wrong", path.display()))?;
        config
            .check()
            .with_context(|| format!("{} is wrong", path.display()))?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if !(1..=1000).contains(&self.max_images) {
            bail!("max_images must be 1 to 1000");
        }
        if !(1..=256).contains(&self.max_syncs) {
            bail!("max_syncs must be 1 to 256");
        }
        if !self.stores.is_absolute() || !self.state_dir.is_absolute() {
            bail!("stores and state_dir must be absolute paths");
        }
        self.metrics.as_deref().map_or(Ok(()), check_metrics)
    }

    /// Directory of the store of a source.
    pub fn store_of(&self, source: &str) -> PathBuf {
        self.stores.join(source)
    }

    /// The store of a source; `None` where nothing was received yet.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub fn open_store(&self, source: &str) -> imagefmt::Result<Option<Store>> {
        match Store::open(&self.store_of(source)) {
            Err(error) if error.kind() == ErrorKind::NotAStore => Ok(None),
            opened => opened.map(Some),
        }
    }
}

/// Metrics are not encrypted and need no password: only programs of this machine can ask.
fn check_metrics(place: &str) -> Result<()> {
    if place.starts_with('/') {
        return Ok(());
    }
    match place.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(()),
        _ => bail!(
            "metrics must be a loopback address with a port, as in \"127.0.0.1:7311\", or the path of a socket: \
             what is sent there is neither encrypted nor for everybody"
        ),
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = cli::units::parse_size(&text);
    parsed.map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_file_changes_the_defaults_and_wrong_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smc-store.toml");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::load(Some(&path))
        };
        let config = load("stores = '/data'\nquota = '10GiB'\nkeep_within = '3days'\n").unwrap();
        assert_eq!(config.store_of("web01"), Path::new("/data/web01"));
        assert_eq!(config.quota, Some(10 << 30));
        assert_eq!(config.keep_within, Duration::from_secs(3 * 86400));
        for wrong in [
            "max_images = 0",
            "stores = 'data'",
            "quota = 'much'",
            "colour = 'blue'",
            "max_syncs = 0",
            "metrics = '0.0.0.0:7311'",
            "metrics = '127.0.0.1'",
        ] {
            let error = format!("{:#}", load(wrong).unwrap_err());
            assert!(error.contains("smc-store.toml is wrong"), "{error}");
        }
        assert!(Config::load(Some(&dir.path().join("none"))).is_err());
    }
}
