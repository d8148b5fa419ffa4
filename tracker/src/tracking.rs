//! One sync's use of a watch.

use std::sync::atomic::Ordering;
use std::time::Duration;

use blockio::LockedFile;

use crate::layout::{self, Books, Evidence, LAYOUT, REASON_BYTES};
use crate::watch::Watch;
use crate::{Bitmap, Distrust, Error, ErrorKind, ImageMark, Result, evidence};

/// One sync's use of a watch, from before its first read until its image exists.
///
/// Dropped without [`commit`](Tracking::commit) or [`abandon`](Tracking::abandon), as by a kill, it leaves the mark of
/// a sync that was interrupted.
#[derive(Debug)]
pub struct Tracking {
    watch: Watch,
    /// Held until the sync has ended.
    _lock: LockedFile,
    dirty: Bitmap,
    /// Taken for a read that has not been made: the next sync reads them.
    unread: Bitmap,
    began: std::result::Result<Evidence, Distrust>,
    books: Books,
    /// A sync before this one was killed.
    was_interrupted: bool,
}

/// What the bits say after writes that were in flight have completed.
#[derive(Debug, Clone)]
pub struct Settled {
    bits: Bitmap,
    is_settled: bool,
}

impl Settled {
    /// The clusters that are known to have been written to: all of them if it is settled.
    pub fn written(&self) -> &Bitmap {
        &self.bits
    }

    /// Whether all writes that were in flight have completed.
    pub fn is_settled(&self) -> bool {
        self.is_settled
    }
}

impl Tracking {
    pub(crate) fn begin(watch: &Watch) -> Result<Tracking> {
        watch.shared.check_current()?;
        let lock = watch.lock()?;
        let header = watch.maps.header()?;
        let ledger = watch.ledger()?;
        // What does not hold any more is no help; the next sync would fail for it too.
        let held = ledger.check(&header.books).is_ok().then_some(header.books);
        let books = ledger.open(held)?;
        let began = watch
            .target
            .again(&watch.shared.root)
            .map_err(|error| Distrust::unreadable(&error))
            .and_then(|target| evidence::gather(&watch.shared, &watch.maps, &target));
        let was_interrupted = watch.maps.under_way()?.swap(1, Ordering::SeqCst) != 0;
        watch.maps.take(&mut []);
        Ok(Tracking {
            dirty: watch.maps.pending(header.clusters),
            unread: Bitmap::in_memory(header.clusters),
            watch: watch.clone(),
            _lock: lock,
            began,
            books,
            was_interrupted,
        })
    }

    /// The watch.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Whether the bits can be believed to hold everything that changed since the image `parent`.
    ///
    /// # Errors
    /// Why not.
    pub fn trust(&self, parent: &ImageMark) -> std::result::Result<(), Distrust> {
        let header = self
            .watch
            .maps
            .header()
            .map_err(|error| Distrust::unreadable(&error))?;
        if header.layout != LAYOUT {
            return Err(Distrust::OtherVersion);
        }
        if self.was_interrupted {
            return Err(Distrust::Interrupted);
        }
        if header.has_image == 1 && header.image != parent.0 {
            return Err(Distrust::OtherImage);
        }
        self.watch.distrust(&header)?;
        self.began.clone().map(drop)
    }

    /// The clusters to read: everything that was written since the image, as of the last take.
    pub fn dirty(&self) -> &Bitmap {
        &self.dirty
    }

    /// Takes again: what was written since the last take, for a further pass. It joins [`dirty`](Tracking::dirty), so it has to be
    /// read before [`commit`](Tracking::commit).
    pub fn take(&mut self) -> Bitmap {
        let mut taken = Bitmap::empty(self.dirty.clusters());
        self.watch.maps.take(&mut [&mut taken]);
        self.has_read(&taken);
        taken
    }

    /// As [`take`](Tracking::take), but adds what was taken to a set, and allocates nothing: for the time in which filesystems are
    /// frozen. Until [`has_read`](Tracking::has_read) is called, the clusters count as not read, and the next sync reads them.
    pub fn take_into(&mut self, taken: &mut Bitmap) {
        self.watch.maps.take(&mut [taken, &mut self.unread]);
    }

    /// These clusters have been read, and nothing has been taken since. Allocates nothing.
    pub fn has_read(&mut self, clusters: &Bitmap) {
        self.unread.remove(clusters);
        self.dirty.union(clusters);
    }

    /// Waits until every write that is in flight has completed, at most for `deadline`, and says which bits are set
    /// then, live or pending. For the audit.
    ///
    /// # Errors
    /// `NotFound` when the disk is gone; `Io`.
    pub fn settle(&self, deadline: Duration) -> Result<Settled> {
        let is_settled = self.watch.ledger()?.settle(&self.books, deadline)?;
        Ok(Settled {
            bits: self.watch.maps.dirty(self.dirty.clusters()),
            is_settled,
        })
    }

    /// As [`settle`](Tracking::settle), but says which clusters were written to since they were last taken to be read. The next sync
    /// reads them. For a comparison with what this sync has read.
    ///
    /// # Errors
    /// `NotFound` when the disk is gone; `Io`.
    pub fn settle_since_read(&mut self, deadline: Duration) -> Result<Settled> {
        let is_settled = self.watch.ledger()?.settle(&self.books, deadline)?;
        self.watch.maps.take(&mut [&mut self.unread]);
        Ok(Settled {
            bits: self.unread.clone(),
            is_settled,
        })
    }

    /// The checks of [`trust`](Tracking::trust) once more, after the last read: nothing moved since the beginning.
    ///
    /// # Errors
    /// What did.
    pub fn still_trusted(&self) -> std::result::Result<(), Distrust> {
        let header = self
            .watch
            .maps
            .header()
            .map_err(|error| Distrust::unreadable(&error))?;
        if header.reason_bytes != 0 {
            return self.watch.distrust(&header);
        }
        let began = self.began.as_ref().map_err(Clone::clone)?;
        self.watch.compare(began, &self.books)
    }

    /// Records that the tracker missed a write: it is not trusted until a scan has been committed.
    ///
    /// # Errors
    /// `Incomplete` when the header is gone.
    pub fn fail(&self, reason: &str) -> Result<()> {
        let mut header = self.watch.maps.header()?;
        header.reason = [0; REASON_BYTES];
        // Without any text, it would look as if nothing had failed.
        let text = match layout::cut(reason, REASON_BYTES) {
            "" => "?",
            text => text,
        };
        header.reason[..text.len()].copy_from_slice(text.as_bytes());
        header.reason_bytes = u64::try_from(text.len()).unwrap_or(1);
        self.watch.maps.header.store(0, header);
        Ok(())
    }

    /// The image exists: from now on the bits are relative to it. What was taken and read is cleared, and what
    /// [`begin`](Watch::begin) noted is what is compared with from now on. After a scan too.
    ///
    /// # Errors
    /// `Incomplete` when the header is gone, or when the tracker was replaced while the sync ran: then the next sync
    /// is a scan.
    pub fn commit(self, image: &ImageMark) -> Result<()> {
        let mut header = self.watch.maps.header()?;
        let baseline = self.began.clone().map_err(|distrust| {
            Error::new(
                ErrorKind::Incomplete,
                format!("the tracker cannot be used for the next sync: {distrust}"),
            )
        })?;
        header.has_image = 1;
        header.image = image.0;
        header.baseline = baseline;
        header.books = self.books;
        header.reason_bytes = 0;
        header.anew = 0;
        header.under_way = 1;
        // A kill before the last of these three leaves the mark of an interrupted sync.
        self.watch.maps.header.store(0, header);
        let mut read = self.dirty;
        read.remove(&self.unread);
        self.watch.maps.clear_pending(&read);
        self.watch.maps.under_way()?.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// The sync failed in an orderly way: the bits stay, relative to the same image as before.
    ///
    /// # Errors
    /// `Incomplete` when the header is gone.
    pub fn abandon(self) -> Result<()> {
        // What an earlier sync left undone stays to be found.
        if !self.was_interrupted {
            self.watch.maps.under_way()?.store(0, Ordering::SeqCst);
        }
        Ok(())
    }
}
