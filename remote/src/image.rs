//! An image that a target writes, of clusters that this machine sends.

use crate::checked;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Remembered, TargetFiles};
use crate::http;
use crate::link::{Link, LinkOptions, LinkWait, Traffic};
use crate::tree::{NewTree, RemoteBase, as_base};
use imagefmt::{
    Audited, Base, ClusterSize, ClusterUpdate, Consistency, Digest, DiskDigest, DiskId, DiskMeta, Geometry,
    InstantRecord, Manifest, Method, Owner, Uuid, WriteImage,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use wire::message::{Ask, Asked, BaseOf, Begin, BeginPass, Begun, Commit, EndPass, Note, Nothing};
use wire::{Id128, Message, Piece, PutBuilder, Root};

/// What a sync asks a target for. The source and the target that are spoken of in `owner` are known from the certificate as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushRequest {
    /// The job.
    pub job: String,
    /// The finished job whose chain this one continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_up: Option<String>,
    /// Bytes of a cluster, for a new chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_bytes: Option<u64>,
    /// Who writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Whether a disk may be smaller than in the image before.
    #[serde(default)]
    pub may_shrink: bool,
}

/// What is noted in an image's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushNote {
    /// What was read of a disk to check the tracker.
    Audit(Audited),
    /// What was done to have all disks at one instant.
    Instant(InstantRecord),
}

/// An image being written by a target.
pub struct RemoteImage {
    link: Arc<Link>,
    wait: Arc<dyn LinkWait>,
    files: TargetFiles,
    run: Id128,
    begun: Begun,
    parent: Option<Manifest>,
    resumed: Option<Manifest>,
    warnings: Vec<String>,
    cluster_size: ClusterSize,
    job: String,
    disks: Vec<RemoteDisk>,
    clusters: PutBuilder,
    /// Whether clusters were sent.
    has_sent: bool,
}

struct RemoteDisk {
    meta: DiskMeta,
    geometry: Geometry,
    base: Option<Arc<RemoteBase>>,
    tracked_from: Option<Uuid>,
    tree: NewTree,
    passes: u32,
}

impl fmt::Debug for RemoteImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteImage")
            .field("label", &self.begun.label)
            .finish_non_exhaustive()
    }
}

/// Begins an image of these disks on a target.
///
/// # Errors
/// `Unreachable`; `Refused` by the target; `Untrue` where what the target says cannot be true.
pub fn begin(
    files: &TargetFiles,
    options: LinkOptions,
    wait: &Arc<dyn LinkWait>,
    request: &PushRequest,
    disks: &[DiskMeta],
) -> Result<RemoteImage> {
    let link = Arc::new(Link::begin(files, options)?);
    let run = Id128(random()?);
    let begin = Begin {
        run,
        request: to_value(request)?,
        disks: disks.iter().map(to_value).collect::<Result<_>>()?,
    };
    let Message::Begun(begun) = link.ask(Message::Begin(begin), &**wait)? else {
        return Err(Error::untrue("the target answers something else than was asked"));
    };
    checked::sequence(begun.sequence)?;
    let cluster_size = ClusterSize::from_bytes(begun.cluster_bytes.into());
    let cluster_size = cluster_size.map_err(|error| Error::untrue(error.to_string()))?;
    if begun.bases.len() != disks.len() {
        return Err(Error::untrue("the target has begun an image of other disks"));
    }
    let mut image = RemoteImage {
        parent: begun.parent.clone().map(record).transpose()?,
        resumed: begun.unfinished.clone().map(record).transpose()?,
        warnings: texts(&begun.warnings),
        link,
        wait: wait.clone(),
        files: files.clone(),
        run,
        cluster_size,
        job: request.job.clone(),
        disks: Vec::new(),
        clusters: PutBuilder::default(),
        has_sent: false,
        begun,
    };
    image.open_bases(disks)?;
    image.compare_with_memory()?;
    Ok(image)
}

impl RemoteImage {
    fn open_bases(&mut self, disks: &[DiskMeta]) -> Result<()> {
        for (number, (meta, base)) in disks.iter().zip(&self.begun.bases).enumerate() {
            let geometry = Geometry::new(meta.size_bytes, self.cluster_size);
            let geometry = geometry.map_err(|error| Error::invalid(error.to_string()))?;
            let number = u32::try_from(number).map_err(|_| Error::invalid("there are too many disks"))?;
            checked::base(&meta.name, geometry, base)?;
            let opened = RemoteBase::open(&self.link, &self.wait, number, self.cluster_size, base)?;
            self.disks.push(RemoteDisk {
                meta: meta.clone(),
                geometry,
                tree: NewTree::new(geometry, opened.as_ref()),
                base: opened.map(Arc::new),
                tracked_from: base.tracked_from.map(|id| Uuid::from_bytes(id.0)),
                passes: 0,
            });
        }
        Ok(())
    }

    /// Compares what the target calls its newest image with what this machine has committed last.
    fn compare_with_memory(&mut self) -> Result<()> {
        let Some(remembered) = self.files.remembered(&self.job)? else {
            return Ok(());
        };
        let name = &self.files.name;
        let differs = match &self.parent {
            None => Some("has no image of it".to_owned()),
            Some(parent) if parent.chain != remembered.chain => Some("has another chain".to_owned()),
            Some(parent) if parent.sequence < remembered.sequence => {
                Some(format!("has image {} as its newest", parent.sequence))
            }
            Some(parent) if parent.id == remembered.image => {
                let own =
                    |disk: &imagefmt::DiskRecord| remembered.disks.get(&disk.name) == Some(&disk.digest);
                (!parent.disks.iter().all(own))
                    .then(|| format!("names other digests for image {}", parent.sequence))
            }
            Some(_) => None,
        };
        if let Some(differs) = differs {
            self.warnings.push(format!(
                "this machine has committed image {} of job {} to target {name} last, and the target {differs}: it may have been \
                 set back to an earlier state. This sync compares with what the target has now",
                remembered.sequence, self.job
            ));
        }
        Ok(())
    }

    /// How much was sent.
    pub fn traffic(&self) -> Traffic {
        self.link.traffic()
    }

    fn send(&self, message: Message) -> Result<u64> {
        self.link.send(message, &*self.wait)
    }

    fn ask(&self, message: Message) -> Result<Message> {
        self.link.ask(message, &*self.wait)
    }

    /// Sends the clusters that have been collected: before anything that comes behind them.
    fn flush(&mut self) -> Result<()> {
        if let Some(put) = self.clusters.take()? {
            self.has_sent = true;
            self.send(Message::Put(put))?;
        }
        Ok(())
    }

    fn told(&self, disk: DiskId, what: Asked) -> Result<Option<Vec<Range<u64>>>> {
        let ask = Ask {
            disk: number(disk),
            what,
        };
        match self.ask(Message::Ask(ask))? {
            Message::Told(told) => told
                .clusters
                .map(|told| checked::clusters(disk.geometry(), told))
                .transpose(),
            _ => Err(Error::untrue("the target answers something else than was asked")),
        }
    }

    fn remember(&self, manifest: &Manifest) -> Result<()> {
        let disks = manifest
            .disks
            .iter()
            .map(|disk| (disk.name.clone(), disk.digest.clone()));
        let remembered = Remembered {
            chain: manifest.chain,
            sequence: manifest.sequence,
            image: manifest.id,
            disks: disks.collect::<BTreeMap<_, _>>(),
        };
        self.files.remember(&self.job, &remembered)
    }

    fn committed(&mut self, consistency: Consistency, reason: &str) -> Result<Manifest> {
        self.flush()?;
        let mut digests = Vec::new();
        for disk in &self.disks {
            let digest = DiskDigest::new(disk.geometry, disk.tree.root()).digest;
            digests.push(Root(digest.0));
        }
        let commit = Commit {
            run: self.run,
            consistency: to_value(&consistency)?,
            reason: reason.to_owned(),
            disks: digests.clone(),
        };
        let manifest = match self.ask(Message::Commit(commit)) {
            Ok(Message::Committed(committed)) => {
                for warning in texts(&committed.warnings) {
                    self.wait.warn(&format!("target {}: {warning}", self.files.name));
                }
                record(committed.image)?
            }
            Ok(_) => return Err(Error::untrue("the target answers something else than was asked")),
            Err(error) if is_lost(&error) => self.committed_after_all(&digests).ok_or(error)?,
            Err(error) => return Err(error),
        };
        if !has_digests(&manifest, &digests) {
            return Err(Error::untrue(
                "the target has committed an image with other digests than this machine computed",
            ));
        }
        // The image is there, whether it can be remembered or not.
        if let Err(error) = self.remember(&manifest) {
            tracing::warn!(
                "image {} is committed, but not remembered here: {}",
                self.begun.label,
                error.full_message()
            );
        }
        Ok(manifest)
    }

    /// The image, if the target made it before it was lost: nobody else can have made one with its number.
    fn committed_after_all(&self, digests: &[Root]) -> Option<Manifest> {
        for _ in 0..COMMIT_LOOKS {
            if !self.wait.is_wanted() {
                return None;
            }
            match http::newest(&self.files, &self.job) {
                Ok(newest) => {
                    return newest.filter(|newest| {
                        newest.sequence == self.begun.sequence && has_digests(newest, digests)
                    });
                }
                Err(error) => tracing::debug!("whether the image is committed: {}", error.full_message()),
            }
            std::thread::sleep(COMMIT_PAUSE);
        }
        None
    }

    fn begin_pass_of(&mut self, disk: DiskId, method: Method, reason: &str) -> Result<()> {
        self.flush()?;
        let begin = BeginPass {
            disk: number(disk),
            method: to_value(&method)?,
            reason: reason.to_owned(),
        };
        let Message::PassBegun(pass) = self.ask(Message::BeginPass(begin))? else {
            return Err(Error::untrue("the target answers something else than was asked"));
        };
        let own = self.disks.get_mut(disk.index()).ok_or_else(no_disk)?;
        own.passes += 1;
        if own.passes > 1 {
            // What the disk is compared with now is what was sent.
            check_sent(own, &pass.base)?;
            let base = RemoteBase::sent(&self.link, &self.wait, number(disk), &own.tree);
            own.base = Some(Arc::new(base));
        }
        Ok(())
    }
}

/// How often, and after which pauses, a target that was lost while it committed is asked whether it did.
const COMMIT_LOOKS: u32 = 30;
const COMMIT_PAUSE: Duration = Duration::from_secs(1);

/// Whether nobody has heard what became of a question.
fn is_lost(error: &Error) -> bool {
    use wire::message::Refusal::{Closing, NoSession};
    matches!(
        error.kind(),
        ErrorKind::Unreachable | ErrorKind::Refused(NoSession | Closing)
    )
}

/// Whether the disks of an image have these digests.
fn has_digests(manifest: &Manifest, digests: &[Root]) -> bool {
    let found = manifest.disks.iter().map(|disk| Digest::from_hex(&disk.digest));
    found.eq(digests.iter().map(|digest| Some(Digest(digest.0))))
}

/// Checks that the target has what was sent.
fn check_sent(disk: &RemoteDisk, base: &BaseOf) -> Result<()> {
    let sent = disk.tree.root();
    let has = base.root.map_or(Digest::NULL, |root| Digest(root.0));
    if sent == has {
        return Ok(());
    }
    Err(Error::untrue(format!(
        "the target has something else of disk {} than was sent",
        disk.meta.name
    )))
}

fn no_disk() -> Error {
    Error::invalid("the disk is one of another image")
}

/// A disk's number in messages.
fn number(disk: DiskId) -> u32 {
    u32::try_from(disk.index()).unwrap_or(u32::MAX)
}

fn to_value<T: Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::invalid("a record cannot be written").caused_by(error))
}

/// The record of an image.
fn record(value: Value) -> Result<Manifest> {
    let manifest = serde_json::from_value(value);
    manifest
        .map_err(|error| Error::untrue("a record of the target cannot be read").caused_by(error))
        .and_then(checked::manifest)
}

/// Sentences of the target for people: some, and not for ever.
fn texts(texts: &[String]) -> Vec<String> {
    texts
        .iter()
        .take(TEXTS_MAX)
        .map(|text| checked::text(text))
        .collect()
}

/// Sentences of a target that are shown.
const TEXTS_MAX: usize = 20;

/// Random bytes.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::invalid("get random numbers from the kernel").caused_by(error))?;
    Ok(bytes)
}

impl WriteImage for RemoteImage {
    fn parent(&self) -> Option<&Manifest> {
        self.parent.as_ref()
    }

    fn resumed(&self) -> Option<&Manifest> {
        self.resumed.as_ref()
    }

    fn known_disk(&self, name: &str) -> Option<Base> {
        let disk = self.disks.iter().find(|disk| disk.meta.name == name)?;
        disk.base.as_ref().map(as_base)
    }

    fn has_checkpoint(&self) -> bool {
        // Where a session ends, the target keeps what came.
        self.resumed.is_some() || self.has_sent
    }

    fn skipped_images(&self) -> Vec<(u64, String)> {
        Vec::new()
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn cluster_size(&self) -> ClusterSize {
        self.cluster_size
    }

    fn sequence(&self) -> u64 {
        self.begun.sequence
    }

    fn label(&self) -> String {
        self.begun.label.clone()
    }

    fn chain_id(&self) -> Uuid {
        Uuid::from_bytes(self.begun.chain.0)
    }

    fn disk(&mut self, meta: DiskMeta) -> imagefmt::Result<DiskId> {
        let place = self
            .disks
            .iter()
            .position(|disk| disk.meta == meta)
            .ok_or_else(no_disk)?;
        Ok(DiskId::new(place, self.disks[place].geometry))
    }

    fn base(&self, disk: DiskId) -> Option<Base> {
        self.disks.get(disk.index())?.base.as_ref().map(as_base)
    }

    fn tracked_from(&self, disk: DiskId) -> Option<Uuid> {
        self.disks.get(disk.index())?.tracked_from
    }

    fn to_store_anew(&self, disk: DiskId, leaves: Range<u64>) -> imagefmt::Result<Vec<Range<u64>>> {
        let anew = Asked::Anew {
            first: leaves.start,
            end: leaves.end,
        };
        Ok(self.told(disk, anew)?.unwrap_or_default())
    }

    fn unreadable(&self, disk: DiskId) -> imagefmt::Result<Option<Vec<Range<u64>>>> {
        Ok(self.told(disk, Asked::Unreadable)?)
    }

    fn note_audit(&mut self, disk: DiskId, audited: Audited) -> imagefmt::Result<()> {
        let note = Note {
            disk: Some(number(disk)),
            note: to_value(&PushNote::Audit(audited))?,
        };
        self.send(Message::Note(note))?;
        Ok(())
    }

    fn note_instant(&mut self, instant: InstantRecord) -> imagefmt::Result<()> {
        let note = Note {
            disk: None,
            note: to_value(&PushNote::Instant(instant))?,
        };
        self.send(Message::Note(note))?;
        Ok(())
    }

    fn begin_pass(&mut self, disk: DiskId, method: Method, reason: &str) -> imagefmt::Result<()> {
        Ok(self.begin_pass_of(disk, method, reason)?)
    }

    fn push(&mut self, disk: DiskId, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        let own = self.disks.get_mut(disk.index()).ok_or_else(no_disk)?;
        own.tree.set(own.base.as_deref(), update.index, update.digest)?;
        if self.clusters.is_full_for(number(disk), update.stored.len()) {
            self.flush()?;
        }
        let piece = Piece {
            cluster: update.index,
            codec: update.codec as u8,
            digest: update.digest.0,
            stored: update.stored,
        };
        self.clusters.push(number(disk), &piece);
        Ok(())
    }

    fn end_pass(&mut self, disk: DiskId, compared_bytes: u64) -> imagefmt::Result<()> {
        self.flush()?;
        let own = self.disks.get_mut(disk.index()).ok_or_else(no_disk)?;
        own.tree.close();
        let end = EndPass {
            disk: number(disk),
            compared_bytes,
        };
        self.send(Message::EndPass(end))?;
        Ok(())
    }

    fn checkpoint(&mut self) -> imagefmt::Result<bool> {
        self.flush()?;
        let seq = self.send(Message::Checkpoint(Nothing {}))?;
        self.link.wait_durable(seq, &*self.wait)?;
        Ok(true)
    }

    fn try_checkpoint(&mut self) -> imagefmt::Result<Option<String>> {
        self.flush()?;
        self.send(Message::Checkpoint(Nothing {}))?;
        Ok(None)
    }

    fn commit(
        mut self: Box<Self>,
        consistency: Consistency,
        consistency_reason: &str,
    ) -> imagefmt::Result<Manifest> {
        Ok(self.committed(consistency, consistency_reason)?)
    }
}
