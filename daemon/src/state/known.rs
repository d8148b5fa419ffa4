//! Which stores jobs ever had: a text file beside the database, so that both are not lost at once.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The list of stores.
#[derive(Debug)]
pub struct KnownStores {
    file: PathBuf,
    stores: Vec<PathBuf>,
}

impl KnownStores {
    /// Reads the list in `dir`; one that is not there is empty.
    pub fn open(dir: &Path) -> Self {
        let file = dir.join("stores");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let stores = text
            .lines()
            .filter(|line| line.starts_with('/'))
            .map(PathBuf::from);
        Self {
            stores: stores.collect(),
            file,
        }
    }

    /// The stores.
    pub fn all(&self) -> &[PathBuf] {
        &self.stores
    }

    /// Remembers a store; durable when it returns.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add(&mut self, store: &Path) -> Result<()> {
        if self.stores.iter().any(|known| known == store) {
            return Ok(());
        }
        self.stores.push(store.to_owned());
        let lines: Vec<String> = self
            .stores
            .iter()
            .map(|store| format!("{}\n", store.display()))
            .collect();
        replace(&self.file, lines.concat().as_bytes())
    }
}

/// Puts a file for root alone in another one's place, whole, whatever happens meanwhile.
///
/// # Errors
/// When it cannot be written.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let created = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary);
    let written = created.and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all())
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_remembered_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = KnownStores::open(dir.path());
        for store in ["/a", "/b c", "/a"] {
            known.add(Path::new(store)).unwrap();
        }
        assert_eq!(
            KnownStores::open(dir.path()).all(),
            [PathBuf::from("/a"), "/b c".into()]
        );
    }
}
