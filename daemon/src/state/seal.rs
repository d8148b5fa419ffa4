//! The key by which this machine recognizes its own notes.
//!
//! Whoever can write to a store (an NFS server, the owner of a USB disk) can write notes into it. What a note says would be
//! done by root: hooks are run, disks are read. So a note carries a keyed hash (BLAKE3) of its job's record. The key is
//! random, lies beside the database and is never written to a store. A note without a valid seal is shown, and nothing is
//! done for its job before root has confirmed it.

use super::known::replace;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// What is sealed, so that the key is good for nothing else.
const CONTEXT: &str = "smc 2026-11 note";

/// The key. Its bytes are never shown.
#[derive(Clone)]
pub struct NoteKey([u8; 32]);

impl NoteKey {
    /// Reads the key in `dir`, or makes one; says whether it is new.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn open(dir: &Path) -> Result<(Self, bool)> {
        let path = dir.join("notes.key");
        let shown = path.display();
        match fs::read(&path) {
            Ok(bytes) => match <[u8; 32]>::try_from(&*bytes) {
                Ok(key) => return Ok((Self(key), false)),
                Err(_) => tracing::warn!("{shown} is damaged: a new key is made"),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {shown}")),
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).context("get random numbers from the kernel")?;
        replace(&path, &key)?;
        Ok((Self(key), true))
    }

    /// The seal of a job's record.
    pub fn seal(&self, host: &str, job: &Value) -> String {
        self.hash(host, job).to_hex().to_string()
    }

    /// Whether `seal` is this machine's, of this record of a job of this host.
    pub fn made(&self, seal: &str, host: &str, job: &Value) -> bool {
        let seal = blake3::Hash::from_hex(seal);
        // In constant time.
        seal.is_ok_and(|seal| seal == self.hash(host, job))
    }

    fn hash(&self, host: &str, job: &Value) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in [CONTEXT, host, &job.to_string()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize()
    }
}

impl fmt::Debug for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoteKey")
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::StoredNote;
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_key_of_this_machine_seals_and_only_what_it_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let (key, is_new) = NoteKey::open(dir.path()).unwrap();
        assert!(is_new);
        let path = dir.path().join("notes.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (same, is_new) = NoteKey::open(dir.path()).unwrap();
        assert!(!is_new);
        let job = json!({ "name": "web01", "hooks": { "pre": "/a" } });
        let note = StoredNote::new("h".to_owned(), job.clone(), Vec::new());
        assert!(!note.is_sealed_by(&key));
        let sealed = note.sealed_by(&key);
        assert!(sealed.is_sealed_by(&same));
        for change in [
            |note: &mut StoredNote| note.job["hooks"]["pre"] = json!("/b"),
            |note: &mut StoredNote| note.host.push('x'),
            |note: &mut StoredNote| note.seal = Some("no seal".to_owned()),
        ] {
            let mut changed = sealed.clone();
            change(&mut changed);
            assert!(!changed.is_sealed_by(&key), "{changed:?}");
        }
        fs::write(&path, "cut off").unwrap();
        let (other, is_new) = NoteKey::open(dir.path()).unwrap();
        assert!(is_new && !sealed.is_sealed_by(&other));
    }
}
