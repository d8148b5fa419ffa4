//! A store in memory, for tests of what is above the storage.

#![allow(
    clippy::cast_possible_truncation,
    reason = "what a test makes is small, and it runs on 64 bits"
)]

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{BLOCK_LEN, LayerAppend, LayerRead, Lock, LockMode, Storage};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// What of the medium fails.
#[derive(Debug, Default)]
pub(crate) struct Bad {
    /// Bytes of files that cannot be read, and how often that is so.
    pub places: Vec<(String, Range<u64>, u32)>,
    /// Whether nothing can be read or written any more.
    pub all: bool,
    /// Reads that failed.
    pub failed: u32,
}

impl Bad {
    fn check(&mut self, path: &str, read: Range<u64>) -> Result<()> {
        let mut hit = self.all;
        for (of, place, times) in &mut self.places {
            if of == path && place.start < read.end && read.start < place.end && *times > 0 {
                *times -= 1;
                hit = true;
            }
        }
        if !hit {
            return Ok(());
        }
        self.failed += 1;
        Err(Error::io(
            format!("read {path}"),
            std::io::Error::from_raw_os_error(libc::EIO),
        ))
    }
}

/// Files and directories as maps; locks are always free.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryStorage {
    pub files: Files,
    /// What it says of freeing only whole writes.
    pub whole_writes: bool,
    pub dirs: Arc<Mutex<BTreeSet<String>>>,
    pub bad: Arc<Mutex<Bad>>,
}

impl MemoryStorage {
    fn not_found(path: &str) -> Error {
        Error::new(ErrorKind::NotFound, format!("open {path}"))
    }

    fn exists(path: &str) -> Error {
        Error::new(ErrorKind::Exists, format!("create {path}"))
    }
}

impl Storage for MemoryStorage {
    fn read(&self, path: &str, _max_len: u64) -> Result<Vec<u8>> {
        self.bad.lock().unwrap().check(path, 0..u64::MAX)?;
        self.files
            .lock()
            .unwrap()
            .get(path)
            .cloned()
            .ok_or_else(|| Self::not_found(path))
    }
    fn list(&self, dir: &str) -> Result<Vec<String>> {
        if !dir.is_empty() && !self.dirs.lock().unwrap().contains(dir) {
            return Err(Self::not_found(dir));
        }
        let prefix = if dir.is_empty() {
            String::new()
        } else {
            format!("{dir}/")
        };
        let files = self.files.lock().unwrap();
        let dirs = self.dirs.lock().unwrap();
        let below = files
            .keys()
            .chain(dirs.iter())
            .filter_map(|path| path.strip_prefix(&prefix));
        Ok(below
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect())
    }
    fn create_dir(&self, dir: &str) -> Result<()> {
        let new = self.dirs.lock().unwrap().insert(dir.to_owned());
        if new { Ok(()) } else { Err(Self::exists(dir)) }
    }
    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.bad.lock().unwrap().check(path, 0..0)?;
        self.files.lock().unwrap().insert(path.to_owned(), bytes.to_vec());
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut files = self.files.lock().unwrap();
        let bytes = files.remove(from).ok_or_else(|| Self::not_found(from))?;
        files.insert(to.to_owned(), bytes);
        Ok(())
    }
    fn remove(&self, path: &str) -> Result<()> {
        self.files
            .lock()
            .unwrap()
            .remove(path)
            .map(drop)
            .ok_or_else(|| Self::not_found(path))
    }
    fn sync_dir(&self, _dir: &str) -> Result<()> {
        Ok(())
    }
    fn open_layer(&self, path: &str) -> Result<Box<dyn LayerRead>> {
        if !self.files.lock().unwrap().contains_key(path) {
            return Err(Self::not_found(path));
        }
        Ok(Box::new(MemoryLayer {
            files: self.files.clone(),
            bad: self.bad.clone(),
            path: path.to_owned(),
        }))
    }
    fn create_layer(&self, path: &str) -> Result<Box<dyn LayerAppend>> {
        if self.files.lock().unwrap().contains_key(path) {
            return Err(Self::exists(path));
        }
        self.write(path, &[])?;
        Ok(Box::new(MemoryLayer {
            files: self.files.clone(),
            bad: self.bad.clone(),
            path: path.to_owned(),
        }))
    }
    fn reclaim(&self, path: &str, dead: &[Range<u64>]) -> Result<()> {
        let mut files = self.files.lock().unwrap();
        let file = files.get_mut(path).ok_or_else(|| Self::not_found(path))?;
        for range in dead {
            let end = range.end.min(file.len() as u64) as usize;
            file[range.start.min(end as u64) as usize..end].fill(0);
        }
        Ok(())
    }
    fn frees_only_whole_writes(&self) -> bool {
        self.whole_writes
    }
    fn allocated(&self, path: &str) -> Result<u64> {
        let file = self.read(path, 0)?;
        let blocks = file.chunks(BLOCK_LEN as usize);
        let stored = blocks.filter(|block| block.iter().any(|&byte| byte != 0));
        Ok(stored.count() as u64 * BLOCK_LEN)
    }
    fn lock(&self, path: &str, mode: LockMode) -> Result<Lock> {
        if mode != LockMode::ExclusiveCreate {
            self.read(path, 0)?;
        }
        Ok(Lock::new(()))
    }
    fn holders(&self, _path: &str) -> Vec<String> {
        Vec::new()
    }
}

#[derive(Debug)]
struct MemoryLayer {
    files: Files,
    bad: Arc<Mutex<Bad>>,
    path: String,
}

impl LayerRead for MemoryLayer {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        let read = offset..offset + target.len() as u64;
        self.bad.lock().unwrap().check(&self.path, read)?;
        let files = self.files.lock().unwrap();
        let start = offset as usize;
        let bytes = files
            .get(&self.path)
            .and_then(|file| file.get(start..start + target.len()));
        target.copy_from_slice(bytes.ok_or_else(|| Error::damaged("layer ends early"))?);
        Ok(())
    }
    fn read_now(&self, offset: u64, target: &mut [u8]) -> bool {
        self.read_at(offset, target).is_ok()
    }
}

impl LayerAppend for MemoryLayer {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.files
            .lock()
            .unwrap()
            .get_mut(&self.path)
            .unwrap()
            .extend_from_slice(bytes);
        Ok(())
    }
    fn sync(&mut self) -> Result<()> {
        let mut files = self.files.lock().unwrap();
        let file = files.get_mut(&self.path).unwrap();
        file.resize(file.len().next_multiple_of(4096), 0);
        Ok(())
    }
}
