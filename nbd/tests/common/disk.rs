//! A disk in memory that can be written to, with a file as what lasts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbd::{
    Access, Catalog, Client, Export, ExportError, ExportInfo, Extent, FailureKind, ServeError, Zeroing,
};

/// What is written lies in memory; a flush brings it to the file, if there is one.
#[derive(Default)]
pub struct WritableDisk {
    pub bytes: Mutex<Vec<u8>>,
    pub lasting: Option<File>,
    /// Every change, in the order in which they were done.
    pub log: Mutex<Vec<String>>,
    /// From this byte on there is no space.
    pub full_from: Option<u64>,
    /// Writing this byte panics.
    pub panics: Option<u64>,
    /// How many writes have begun.
    pub begun: AtomicUsize,
    /// How long a write takes.
    pub slow: Duration,
    pub flush_fails: bool,
}

impl WritableDisk {
    pub fn of(length: u64) -> Self {
        let bytes = vec![0; usize::try_from(length).unwrap()];
        Self {
            bytes: bytes.into(),
            ..Self::default()
        }
    }

    /// With a file at `path` that holds what was flushed.
    pub fn lasting(length: u64, path: &Path) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        file.set_len(length).unwrap();
        Self {
            lasting: Some(file),
            ..Self::of(length)
        }
    }

    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let start = usize::try_from(offset).unwrap();
        self.bytes.lock().unwrap()[start..start + length].to_vec()
    }

    pub fn logged(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The range, if it can be written to.
    fn check(&self, offset: u64, length: u64) -> Result<std::ops::Range<usize>, ExportError> {
        let range = offset..offset + length;
        assert!(
            !self.panics.is_some_and(|at| range.contains(&at)),
            "the test's export panics here"
        );
        if let Some(full) = self.full_from.filter(|&full| range.end > full) {
            return Err(ExportError::new(
                FailureKind::NoSpace,
                full.max(offset),
                "the pool is full",
            ));
        }
        Ok(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
    }

    fn note(&self, done: String) {
        self.log.lock().unwrap().push(done);
    }
}

impl Export for WritableDisk {
    fn size_bytes(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        let start = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.bytes.lock().unwrap()[start..start + buf.len()]);
        Ok(())
    }

    fn extents(&self, _: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::data(length)])
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        let range = self.check(offset, data.len() as u64)?;
        self.begun.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.slow);
        self.bytes.lock().unwrap()[range].copy_from_slice(data);
        self.note(format!("write {offset}+{}", data.len()));
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), ExportError> {
        if how.fast {
            return Err(ExportError::new(FailureKind::NotFast, offset, "not fast here"));
        }
        self.bytes.lock().unwrap()[self.check(offset, length)?].fill(0);
        self.note(format!("zero {offset}+{length}"));
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.note(format!("trim {offset}+{length}"));
        Ok(())
    }

    fn flush(&self) -> Result<(), ExportError> {
        if self.flush_fails {
            return Err(ExportError::io(0, "the disk is gone"));
        }
        if let Some(file) = &self.lasting {
            file.write_all_at(&self.bytes.lock().unwrap(), 0).unwrap();
        }
        self.note("flush".into());
        Ok(())
    }
}

/// A catalog of one export, whatever its name.
pub struct Only {
    pub export: Arc<dyn Export>,
    pub access: Access,
}

impl Only {
    pub fn writable(disk: &Arc<WritableDisk>) -> Arc<Self> {
        let export = Arc::<WritableDisk>::clone(disk);
        let access = Access::Writable { shared: true };
        Arc::new(Self { export, access })
    }
}

impl Catalog for Only {
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError> {
        Ok(vec![self.info("", &Client::Process(0))?])
    }

    fn info(&self, name: &str, _: &Client) -> Result<ExportInfo, ServeError> {
        Ok(ExportInfo {
            name: name.to_owned(),
            description: None,
            size_bytes: self.export.size_bytes(),
            preferred_block_bytes: 4096,
            access: self.access,
        })
    }

    fn open(&self, _: &str, _: &Client) -> Result<Arc<dyn Export>, ServeError> {
        Ok(Arc::clone(&self.export))
    }
}
