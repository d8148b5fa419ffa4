//! Who may do what: the sources that were enrolled, and those that are invited. Kept in `sources.json` in the state directory.
//!
//! The service and `smc-store`'s commands both read and change it, one at a time, under a lock. A file that cannot be read lets
//! nobody in.

use anyhow::{Context, Result, bail};
use blockio::LockedFile;
use jiff::{SignedDuration, Timestamp};
use ring::digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How long an invitation can be used.
pub const INVITED_FOR: SignedDuration = SignedDuration::from_hours(1);

/// Keys of a source: the one that it shows, and newer ones that it may not have received.
const KEYS_MAX: usize = 4;

/// What a certificate gives the right to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Append images to its own jobs, and read what that needs.
    Push,
    /// Read the images of one source.
    Pull,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Push => "push",
            Role::Pull => "pull",
        })
    }
}

/// A machine that was enrolled: a source, or one that reads the images of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What it may do.
    pub role: Role,
    /// The source whose images it may read, with the role `pull`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// When it was enrolled.
    pub enrolled: Timestamp,
    /// SHA-256 of the keys that it may show, in hexadecimal digits: the one that it shows, and behind it newer ones until one of
    /// these has been shown.
    pub keys: Vec<String>,
    /// Why nothing of it is deleted until somebody has looked; absent where all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// When its first image came: since then there must be a store of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_image: Option<Timestamp>,
}

/// An image that differs far more than those before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// The image.
    pub image: String,
    /// What is strange about it.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// A source that may enrol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Invited {
    source: String,
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    until: Timestamp,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    sources: BTreeMap<String, Source>,
    /// By SHA-256 of the secret: who reads this file cannot enrol.
    invited: BTreeMap<String, Invited>,
}

/// The list of sources.
#[derive(Debug, Clone)]
pub struct Registry {
    path: PathBuf,
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// A new file in a directory, 0600. It belongs to the owner of the directory: root runs commands, and the service, which reads what
/// they write, is another user.
///
/// # Errors
/// A file that cannot be created.
pub fn private_file(directory: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new_in(directory)?;
    belong_to_owner_of(directory, file.as_file())?;
    Ok(file)
}

fn belong_to_owner_of(directory: &Path, file: &File) -> std::io::Result<()> {
    let (of_directory, of_file) = (fs::metadata(directory)?, file.metadata()?);
    if (of_directory.uid(), of_directory.gid()) == (of_file.uid(), of_file.gid()) {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, Some(of_directory.uid()), Some(of_directory.gid()))
}

impl Registry {
    /// The list in a state directory.
    pub fn in_directory(state_dir: &Path) -> Registry {
        Registry {
            path: state_dir.join("sources.json"),
        }
    }

    fn read(&self) -> Result<Content> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Content::default()),
            bytes => bytes.with_context(|| format!("read {}", self.path.display()))?,
        };
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", self.path.display()))
    }

    /// Changes the list: all of the change or nothing, also after a power cut.
    fn change<T>(&self, change: impl FnOnce(&mut Content) -> Result<T>) -> Result<T> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join("sources.lock"))
            .and_then(|file| belong_to_owner_of(directory, &file).map(|()| file))
            .and_then(|file| LockedFile::lock_while(file, || true).map_err(|(_, error)| error))
            .with_context(|| format!("lock the list of sources in {}", directory.display()))?;
        let mut content = self.read()?;
        let done = change(&mut content)?;
        let written = || -> Result<()> {
            let mut file = private_file(directory)?;
            file.write_all(&serde_json::to_vec_pretty(&content)?)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(File::open(directory)?.sync_all()?)
        };
        written().with_context(|| format!("write {}", self.path.display()))?;
        drop(lock);
        Ok(done)
    }

    /// All sources, by name.
    ///
    /// # Errors
    /// A list that cannot be read.
    pub fn sources(&self) -> Result<BTreeMap<String, Source>> {
        Ok(self.read()?.sources)
    }

    /// Invites a source, or a machine that is to read the images of the source `of`. Returns the secret.
    ///
    /// # Errors
    /// A name that is enrolled already, unless it is to enrol again with the same rights; a source that there is not; a list that
    /// cannot be read or written.
    pub fn invite(&self, source: &str, of: Option<&str>, again: bool, now: Timestamp) -> Result<[u8; 16]> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).context("get random numbers from the kernel")?;
        let role = if of.is_some() { Role::Pull } else { Role::Push };
        self.change(|content| {
            let known = content.sources.get(source);
            if known.is_some_and(|known| (known.role, known.of.as_deref()) != (role, of)) {
                bail!("{source} is enrolled with other rights: `smc-store revoke {source}` takes these, or use another name");
            }
            let is_source = |of: &str| content.sources.get(of).is_some_and(|source| source.role == Role::Push);
            if let Some(of) = of.filter(|of| !is_source(of)) {
                bail!("there is no source {of}: `smc-store ls` shows which there are");
            }
            if content.sources.contains_key(source) && !again {
                bail!(
                    "source {source} is enrolled already: with --again it can enrol once more, with a new key (its images stay, \
                     the old key is of no use from then on)"
                );
            }
            content.invited.retain(|_, invited| invited.until > now && invited.source != source);
            let invited = Invited {
                source: source.to_owned(),
                role,
                of: of.map(str::to_owned),
                until: now + INVITED_FOR,
            };
            content.invited.insert(hash(&secret), invited);
            Ok(())
        })?;
        Ok(secret)
    }

    /// Enrols the source that has a secret, with the key that it has made, if `sign` signs that. An invitation can be used once.
    /// `None` for a secret that nobody was invited with, or that is too old.
    ///
    /// # Errors
    /// Those of `sign`; a list that cannot be read or written. The invitation can then be used again.
    pub fn enrol<T>(
        &self,
        secret: &[u8],
        now: Timestamp,
        sign: impl FnOnce(&str, Role) -> Result<(T, [u8; 32])>,
    ) -> Result<Option<T>> {
        self.change(|content| {
            let Some(invited) = content
                .invited
                .remove(&hash(secret))
                .filter(|invited| invited.until > now)
            else {
                return Ok(None);
            };
            let (signed, key) = sign(&invited.source, invited.role)?;
            let before = content.sources.remove(&invited.source);
            let source = Source {
                role: invited.role,
                of: invited.of,
                enrolled: now,
                keys: vec![hex::encode(key)],
                first_image: before.as_ref().and_then(|before| before.first_image),
                frozen: before.and_then(|before| before.frozen),
            };
            content.sources.insert(invited.source, source);
            Ok(Some(signed))
        })
    }

    /// Takes another key of a source beside those that it has, which stay good until the new one, or one after it, has been shown.
    /// Returns the source's role; `None` where the key that it has shown is none of its keys (any more).
    ///
    /// # Errors
    /// A list that cannot be read or written.
    pub fn add_key(&self, source: &str, shown: &[u8; 32], new: &[u8; 32]) -> Result<Option<Role>> {
        let (shown, new) = (hex::encode(shown), hex::encode(new));
        self.change(|content| {
            let source = content.sources.get_mut(source);
            let Some(source) = source.filter(|source| source.keys.contains(&shown)) else {
                return Ok(None);
            };
            source.keys.retain(|known| *known != new);
            source.keys.push(new);
            // New ones that were never shown: their answers may have been lost. The last ones count.
            while source.keys.len() > KEYS_MAX {
                let oldest = source.keys.iter().position(|known| *known != shown);
                source.keys.remove(oldest.unwrap_or(0));
            }
            Ok(Some(source.role))
        })
    }

    /// The source that may show a key, and what it may do. The keys that were made before this one are of no use from now on.
    ///
    /// # Errors
    /// A list that cannot be read or written.
    pub fn with_key(&self, key: &[u8; 32]) -> Result<Option<(String, Source)>> {
        let key = hex::encode(key);
        let found = self
            .read()?
            .sources
            .into_iter()
            .find(|(_, source)| source.keys.contains(&key));
        let Some((name, source)) = found else {
            return Ok(None);
        };
        if source.keys.first() != Some(&key) {
            self.change(|content| {
                // Somebody may have changed the list since it was read.
                if let Some(source) = content.sources.get_mut(&name)
                    && let Some(place) = source.keys.iter().position(|known| *known == key)
                {
                    source.keys.drain(..place);
                }
                Ok(())
            })?;
        }
        Ok(Some((name, source)))
    }

    /// Takes all rights from a source. Its images stay.
    ///
    /// # Errors
    /// A source that is not enrolled; a list that cannot be read or written.
    pub fn revoke(&self, source: &str) -> Result<()> {
        self.change(|content| {
            content.invited.retain(|_, invited| invited.source != source);
            match content.sources.remove(source) {
                Some(_) => Ok(()),
                None => bail!("source {source} is not enrolled: `smc-store ls` shows which are"),
            }
        })
    }

    /// Deletes nothing of a source until somebody has looked; the first reason stays.
    ///
    /// # Errors
    /// A list that cannot be read or written.
    pub fn freeze(&self, source: &str, frozen: &Frozen) -> Result<()> {
        self.change(|content| {
            if let Some(source) = content.sources.get_mut(source) {
                source.frozen.get_or_insert_with(|| frozen.clone());
            }
            Ok(())
        })
    }

    /// Writes down that a source has an image, if that is not known.
    ///
    /// # Errors
    /// A list that cannot be read or written.
    pub fn has_image(&self, source: &str, now: Timestamp) -> Result<()> {
        let is_known = |source: &Source| source.first_image.is_some();
        if self.read()?.sources.get(source).is_none_or(is_known) {
            return Ok(());
        }
        self.change(|content| {
            if let Some(source) = content.sources.get_mut(source) {
                source.first_image.get_or_insert(now);
            }
            Ok(())
        })
    }

    /// Somebody has looked. Returns what was strange.
    ///
    /// # Errors
    /// A source that is not enrolled, or of which nothing is frozen; a list that cannot be read or written.
    pub fn accept(&self, source: &str) -> Result<Frozen> {
        self.change(|content| {
            let Some(known) = content.sources.get_mut(source) else {
                bail!("source {source} is not enrolled: `smc-store ls` shows which are");
            };
            match known.frozen.take() {
                Some(frozen) => Ok(frozen),
                None => bail!("there is nothing to accept: retention of source {source} is not frozen"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn enrolled(registry: &Registry, secret: &[u8], key: u8, now: Timestamp) -> Option<String> {
        registry
            .enrol(secret, now, |source, _| Ok((source.to_owned(), [key; 32])))
            .unwrap()
    }

    #[test]
    fn an_invitation_can_be_used_once_and_within_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path());
        let now = Timestamp::now();
        let secret = registry.invite("web01", None, false, now).unwrap();
        assert!(
            !fs::read_to_string(&registry.path)
                .unwrap()
                .contains(&hex::encode(secret))
        );
        assert_eq!(enrolled(&registry, &[1; 16], 1, now), None, "somebody guesses");
        assert_eq!(
            enrolled(&registry, &secret, 1, now + INVITED_FOR),
            None,
            "too late"
        );
        let secret = registry.invite("web01", None, false, now).unwrap();
        let failed = registry.enrol(&secret, now, |_, _| -> Result<((), [u8; 32])> { bail!("no") });
        assert!(failed.is_err());
        assert_eq!(enrolled(&registry, &secret, 1, now).as_deref(), Some("web01"));
        assert_eq!(enrolled(&registry, &secret, 2, now), None, "twice");
        assert_eq!(registry.with_key(&[1; 32]).unwrap().unwrap().0, "web01");
        assert_eq!(registry.with_key(&[2; 32]).unwrap(), None);
        assert!(registry.invite("web01", None, false, now).is_err());
    }

    #[test]
    fn a_new_key_replaces_the_old_one_once_it_has_been_shown() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path());
        let now = Timestamp::now();
        let secret = registry.invite("web01", None, false, now).unwrap();
        enrolled(&registry, &secret, 1, now).unwrap();
        registry.add_key("web01", &[1; 32], &[2; 32]).unwrap();
        assert!(
            registry.with_key(&[1; 32]).unwrap().is_some(),
            "the new one may not have arrived"
        );
        assert!(registry.with_key(&[2; 32]).unwrap().is_some());
        assert!(registry.with_key(&[1; 32]).unwrap().is_none());
        // Who has the old one gets no new one.
        assert_eq!(registry.add_key("web01", &[1; 32], &[9; 32]).unwrap(), None);
        assert!(registry.with_key(&[9; 32]).unwrap().is_none());
        assert!(registry.with_key(&[2; 32]).unwrap().is_some());
        registry.revoke("web01").unwrap();
        assert_eq!(registry.add_key("web01", &[2; 32], &[9; 32]).unwrap(), None);
        assert!(registry.with_key(&[2; 32]).unwrap().is_none());
        assert!(registry.revoke("web01").is_err());
    }

    #[test]
    fn new_keys_that_were_not_shown_take_nothing_from_the_one_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path());
        let now = Timestamp::now();
        let secret = registry.invite("web01", None, false, now).unwrap();
        enrolled(&registry, &secret, 1, now).unwrap();
        for new in 2..20 {
            let role = registry.add_key("web01", &[1; 32], &[new; 32]).unwrap();
            assert_eq!(role, Some(Role::Push));
            assert!(registry.with_key(&[1; 32]).unwrap().is_some());
        }
        assert_eq!(registry.sources().unwrap()["web01"].keys.len(), KEYS_MAX);
        // Of two that were made at the same time, the first one is shown before the last one.
        for shown in [18, 19] {
            assert!(registry.with_key(&[shown; 32]).unwrap().is_some());
        }
        for old in 1..19 {
            assert!(registry.with_key(&[old; 32]).unwrap().is_none());
        }
    }

    #[test]
    fn a_name_has_one_role_and_reads_one_source() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path());
        let now = Timestamp::now();
        let refused = |name: &str, of: Option<&str>| {
            let error = registry.invite(name, of, true, now).unwrap_err();
            error.to_string()
        };
        assert!(refused("dr01", Some("web01")).contains("no source web01"));
        let secret = registry.invite("web01", None, false, now).unwrap();
        enrolled(&registry, &secret, 1, now).unwrap();
        let secret = registry.invite("dr01", Some("web01"), false, now).unwrap();
        enrolled(&registry, &secret, 2, now).unwrap();
        let (name, known) = registry.with_key(&[2; 32]).unwrap().unwrap();
        assert_eq!(
            (name.as_str(), known.role, known.of.as_deref()),
            ("dr01", Role::Pull, Some("web01"))
        );
        assert!(refused("dr01", None).contains("other rights"));
        assert!(refused("web01", Some("web01")).contains("other rights"));
        assert!(refused("dr02", Some("dr01")).contains("no source dr01"));
        registry.revoke("dr01").unwrap();
        assert_eq!(registry.with_key(&[2; 32]).unwrap(), None);
    }

    #[test]
    fn a_list_that_cannot_be_read_lets_nobody_in_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path());
        fs::write(&registry.path, b"{").unwrap();
        assert!(registry.with_key(&[1; 32]).is_err());
        assert!(registry.invite("web01", None, false, Timestamp::now()).is_err());
        assert_eq!(fs::read(&registry.path).unwrap(), b"{");
    }

    #[test]
    fn what_is_frozen_stays_so_until_it_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path());
        let now = Timestamp::now();
        let secret = registry.invite("web01", None, false, now).unwrap();
        enrolled(&registry, &secret, 1, now).unwrap();
        let frozen = |image: &str| Frozen {
            image: image.to_owned(),
            reason: "nearly all differs".to_owned(),
            since: now,
        };
        registry.freeze("web01", &frozen("web01/4")).unwrap();
        registry.freeze("web01", &frozen("web01/5")).unwrap();
        let again = registry.invite("web01", None, true, now).unwrap();
        enrolled(&registry, &again, 3, now).unwrap();
        assert_eq!(registry.accept("web01").unwrap().image, "web01/4");
        assert!(registry.accept("web01").is_err());
    }
}
