//! The manifest: the small JSON file that makes an image exist.

use crate::error::{Error, Result, Within};
use crate::format::clusters::ClusterSet;
use crate::format::digest::{Digest, DiskDigest};
use crate::format::geometry::{ClusterSize, Geometry};
use crate::format::id::Uuid;
use crate::format::instant::InstantRecord;
use crate::format::layer::{HEADER_LEN, LAYER_LEN_LIMIT, LayerEntry, LayerTable};
use crate::format::name::{SHOWN_MAX, printable};
use crate::format::owner::Owner;
use crate::format::pointer::{Codec, Place, Pointer, STORED_LEN_MAX};
use crate::format::sealed::{self, sealed_record};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

/// Whether an image was made from nothing or from the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Everything was read and stored.
    Full,
    /// Only what differs from the parent was stored.
    Incremental,
}

/// How the changes of a disk were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Nothing to compare with: the whole disk was taken.
    Full,
    /// The whole disk was read and compared by digest.
    Scan,
    /// The kernel's block layer was watched.
    Tracked,
}

/// What an image is as a point in time (design: "One point in time, without a snapshot module").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Read while writes may have gone on: a base for the next sync.
    Fuzzy,
    /// Like after a power cut.
    Crash,
    /// All filesystems were frozen together.
    Filesystem,
    /// Nothing was written from the first read to after the last.
    Offline,
}

macro_rules! lowercase_display {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&format!("{self:?}").to_lowercase())
            }
        }
    )*};
}
lowercase_display!(Kind, Method, Consistency);

/// An image's manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format: 1.
    pub format: u32,
    /// Features that a reader must know; of many, the first.
    #[serde(default, deserialize_with = "sealed::words")]
    pub incompatible: Vec<String>,
    /// Features that a reader may ignore; of many, the first.
    #[serde(default, deserialize_with = "sealed::words")]
    pub compatible: Vec<String>,
    /// Features that a writer of the chain must know, and a reader need not; of many, the first.
    #[serde(
        default,
        deserialize_with = "sealed::words",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub read_only_compatible: Vec<String>,
    /// Id of the chain.
    pub chain: Uuid,
    /// The job that made the image.
    pub job: String,
    /// Who the chain belonged to when the image was made; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The image's number: later images of a chain have higher ones.
    pub sequence: u64,
    /// Id of the image.
    pub id: Uuid,
    /// The image that this one was made from.
    pub parent: Option<ParentRef>,
    /// When the sync began.
    pub started: Timestamp,
    /// When its last disk had been read.
    pub finished: Timestamp,
    /// Full or incremental.
    pub kind: Kind,
    /// What it is as a point in time.
    pub consistency: Consistency,
    /// Why the class is no better.
    #[serde(default)]
    pub consistency_reason: String,
    /// What the sync did to have all disks at one instant; absent where that was not wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instant: Option<InstantRecord>,
    /// Cluster size of all disks in bytes.
    pub cluster_size: u32,
    /// The disks.
    pub disks: Vec<DiskRecord>,
    /// Every layer that a disk of this image points into.
    pub layers: Vec<LayerRecord>,
}

sealed_record!(Manifest);

/// The image that another was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentRef {
    /// Its number.
    pub sequence: u64,
    /// Its id.
    pub id: Uuid,
}

/// One disk of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Name within the job.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size at the source in bytes.
    pub logical_block_size: u32,
    /// What the source's disk could be known by.
    #[serde(default)]
    pub identity: DiskIdentity,
    /// Pointer to the root node; absent for a disk of zeros.
    pub root: Option<RootRecord>,
    /// Digest of the whole disk, 64 hexadecimal digits.
    pub digest: String,
    /// How its changes were found.
    pub method: Method,
    /// Why that way.
    #[serde(default)]
    pub method_reason: String,
    /// Bytes read and compared with the parent.
    pub compared_bytes: u64,
    /// Bytes in clusters that differ from the parent.
    pub dirty_bytes: u64,
    /// Bytes written to layers for them.
    pub stored_bytes: u64,
    /// Clusters that could not be read in the parent and were stored anew.
    #[serde(default, skip_serializing_if = "is_none")]
    pub repaired_clusters: u64,
    /// Bytes among those compared that the tracker had called unchanged, read to check it.
    #[serde(default, skip_serializing_if = "is_none")]
    pub audited_bytes: u64,
    /// Where the check of the tracker continues in the next sync. What it counts is the daemon's business.
    #[serde(default, skip_serializing_if = "is_none")]
    pub audit_position: u64,
    /// Clusters of which sectors could not be read at the source, in this sync or an earlier one.
    #[serde(default, skip_serializing_if = "is_none")]
    pub unreadable_clusters: u64,
    /// Which these are, as ascending ranges; absent where there are more ranges than a manifest has room for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Range<u64>>,
}

/// Ranges of unreadable clusters that are listed of a disk. A disk with more of them is read completely by the next sync.
const UNREADABLE_RANGES_MAX: usize = 4096;

/// Whether a count is left out: as by an smc that did not know it yet.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// What a disk can be known by; whatever is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskIdentity {
    /// Serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// World wide name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// Id that device-mapper or md gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// File behind a loop device, or the file itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// Model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Number of the partition; none for a whole disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// The kernel's sequence number of the device, unique within a boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diskseq: Option<u64>,
    /// Id of the partition table on it: `gpt:` and the disk's GUID, or `dos:` and eight hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Ids of what lies on it: `xfs:UUID` for the whole disk, `1/xfs:UUID` for partition 1.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filesystems: Vec<String>,
}

/// Pointer to a root node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRecord {
    digest: String,
    codec: u8,
    layer: u32,
    offset: u64,
    length: u32,
}

/// One layer that an image points into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Its id within the chain.
    pub id: u32,
    /// Its random id.
    pub uuid: Uuid,
    /// The disk that it belongs to.
    pub disk: String,
    /// Committed length in bytes.
    pub length: u64,
    /// Bytes that this image points to.
    pub referenced: u64,
    /// This image's sync wrote it, and every byte of it is header, pointed to by this image, or zero.
    #[serde(default)]
    pub packed: bool,
}

impl RootRecord {
    pub(crate) fn new(root: &Pointer) -> Option<Self> {
        (!root.is_null()).then(|| Self {
            digest: root.digest.to_string(),
            codec: root.codec as u8,
            layer: root.place.layer,
            offset: root.place.offset,
            length: root.place.len,
        })
    }

    fn pointer(&self) -> Result<Pointer> {
        let digest =
            Digest::from_hex(&self.digest).ok_or_else(|| Error::damaged("field root.digest is no digest"))?;
        let codec = match self.codec {
            1 => Codec::Raw,
            2 => Codec::Zstd,
            other => return Err(Error::damaged(format!("field root.codec is {other}"))),
        };
        if self.length == 0 || self.length > STORED_LEN_MAX || self.offset > i64::MAX as u64 / 2 {
            return Err(Error::damaged("field root.length or root.offset is out of range"));
        }
        let place = Place {
            layer: self.layer,
            offset: self.offset,
            len: self.length,
        };
        Ok(Pointer { digest, codec, place })
    }
}

impl DiskRecord {
    /// Notes which clusters have sectors that could not be read at the source.
    pub(crate) fn note_unreadable(&mut self, clusters: &ClusterSet) {
        self.unreadable_clusters = clusters.runs().map(|run| run.end - run.start).sum();
        self.unreadable = clusters.runs().take(UNREADABLE_RANGES_MAX + 1).collect();
        if self.unreadable.len() > UNREADABLE_RANGES_MAX {
            self.unreadable.clear();
        }
    }

    /// The clusters of which sectors could not be read at the source; `None` where they are not listed.
    pub(crate) fn known_unreadable(&self) -> Option<ClusterSet> {
        let is_listed = self.unreadable_clusters == 0 || !self.unreadable.is_empty();
        is_listed.then(|| self.unreadable.iter().cloned().collect())
    }

    fn check_unreadable(&self, clusters: u64) -> Result<()> {
        let (mut listed, mut next) = (0, 0);
        for range in &self.unreadable {
            if range.is_empty() || range.start < next || range.end > clusters {
                return Err(Error::damaged("field unreadable is no list of ascending ranges"));
            }
            listed += range.end - range.start;
            next = range.end;
        }
        if !self.unreadable.is_empty() && listed != self.unreadable_clusters {
            return Err(Error::damaged(
                "fields unreadable and unreadable_clusters contradict each other",
            ));
        }
        Ok(())
    }

    /// Pointer to the root node.
    pub(crate) fn root(&self) -> Result<Pointer> {
        self.root.as_ref().map_or(Ok(Pointer::NULL), RootRecord::pointer)
    }

    /// The disk's digest as recorded.
    ///
    /// # Errors
    /// `Damaged` where the field holds no digest.
    pub fn disk_digest(&self, cluster_size: ClusterSize) -> Result<DiskDigest> {
        let digest =
            Digest::from_hex(&self.digest).ok_or_else(|| Error::damaged("field digest is no digest"))?;
        Ok(DiskDigest { cluster_size, digest })
    }
}

impl Manifest {
    /// How the changes of the image were found: by a scan, where one disk was scanned.
    pub fn method(&self) -> Method {
        let any = |method| self.disks.iter().any(|disk| disk.method == method);
        [Method::Scan, Method::Tracked]
            .into_iter()
            .find(|&method| any(method))
            .unwrap_or(Method::Full)
    }

    /// Bytes of all disks that were read to check the tracker.
    pub fn audited_bytes(&self) -> u64 {
        let counts = self.disks.iter().map(|disk| disk.audited_bytes);
        counts.fold(0, u64::saturating_add)
    }

    /// Clusters of all disks of which sectors could not be read at the source.
    pub fn unreadable_clusters(&self) -> u64 {
        let counts = self.disks.iter().map(|disk| disk.unreadable_clusters);
        counts.fold(0, u64::saturating_add)
    }

    /// Clusters of all disks that could not be read in the parent and were stored anew.
    pub fn repaired_clusters(&self) -> u64 {
        let counts = self.disks.iter().map(|disk| disk.repaired_clusters);
        counts.fold(0, u64::saturating_add)
    }

    /// Checks all that can be checked without opening a layer.
    pub(crate) fn check(&self, sequence: u64) -> Result<()> {
        self.check_fields(sequence).map_err(Error::into_damage)
    }

    fn check_fields(&self, sequence: u64) -> Result<()> {
        if self.sequence != sequence {
            return Err(Error::damaged(format!(
                "field sequence is {}: this is another image's",
                self.sequence
            )));
        }
        if self.disks.is_empty() {
            return Err(Error::damaged("field disks is empty"));
        }
        crate::format::name::check_name("job", &self.job).within(|| "field job".to_owned())?;
        let cluster_size = self.cluster_size()?;
        let mut disks = HashSet::new();
        for disk in &self.disks {
            if !disks.insert(disk.name.as_str()) {
                return Err(Error::damaged(format!("field disks names {} twice", disk.name)));
            }
            self.check_disk(disk, cluster_size)
                .within(|| format!("disk {}", printable(&disk.name, SHOWN_MAX)))?;
        }
        let mut layers = HashSet::new();
        self.layers
            .iter()
            .try_for_each(|layer| check_layer(layer, &disks, layers.insert(layer.id)))
    }

    fn check_disk(&self, disk: &DiskRecord, cluster_size: ClusterSize) -> Result<()> {
        crate::format::name::check_name("disk", &disk.name)?;
        let geometry = Geometry::new(disk.size_bytes, cluster_size)?;
        let root = disk.root()?;
        if disk.disk_digest(cluster_size)? != DiskDigest::new(geometry, root.digest) {
            return Err(Error::damaged("field digest does not follow from size and root"));
        }
        disk.check_unreadable(geometry.cluster_count())
    }

    /// Cluster size of all disks.
    ///
    /// # Errors
    /// `Invalid` where the field holds no cluster size; a checked manifest has one.
    pub fn cluster_size(&self) -> Result<ClusterSize> {
        ClusterSize::from_bytes(self.cluster_size.into()).within(|| "field cluster_size".to_owned())
    }

    /// The layers of each disk: its tree points into no others. One pass, however many there are of both.
    pub(crate) fn layer_tables(&self) -> HashMap<&str, LayerTable> {
        let mut tables: HashMap<&str, Vec<(u32, LayerEntry)>> = HashMap::new();
        for layer in &self.layers {
            let entry = LayerEntry {
                uuid: layer.uuid,
                len: layer.length,
                referenced: layer.referenced,
            };
            tables.entry(&layer.disk).or_default().push((layer.id, entry));
        }
        let table = |(disk, layers): (_, Vec<_>)| (disk, layers.into_iter().collect());
        tables.into_iter().map(table).collect()
    }

    /// The record of a disk.
    pub fn disk(&self, name: &str) -> Option<&DiskRecord> {
        self.disks.iter().find(|disk| disk.name == name)
    }
}

fn check_layer(layer: &LayerRecord, disks: &HashSet<&str>, is_new: bool) -> Result<()> {
    let what = if !disks.contains(layer.disk.as_str()) {
        "belongs to a disk that the image does not have"
    } else if !is_new {
        "is listed twice"
    } else if layer.length < HEADER_LEN as u64 || layer.length > LAYER_LEN_LIMIT {
        "has an impossible length"
    } else if layer.referenced > layer.length {
        "is referenced by more bytes than it has"
    } else {
        return Ok(());
    };
    Err(Error::damaged(format!(
        "field layers: layer {:08x} {what}",
        layer.id
    )))
}
