//! Layers: append-only files, each written by one run of a sync for one disk.

use crate::error::{Error, ErrorKind, Result};
use crate::format::digest::{DIGEST_LEN, header_check};
use crate::format::geometry::ClusterSize;
use crate::format::id::Uuid;
use crate::format::int::to_usize;
use crate::format::pointer::{Place, STORED_LEN_MAX};
use crate::storage::paths::layer_path;
use crate::storage::{BLOCK_LEN, LayerAppend, LayerRead, Storage};
use blockio::AlignedBuf;
use lru::LruCache;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"SMCLAYER";
const VERSION: u32 = 1;
/// Length of a layer's header in bytes; data starts behind it.
pub const HEADER_LEN: usize = 4096;
const HEADER_LEN_U32: u32 = 4096;
/// A layer is closed at this length and continued in a new one.
pub const LAYER_LEN_MAX: u64 = 16 << 30;
/// Longer than any layer: a group of the largest clusters and the nodes behind it take less than this on top.
pub const LAYER_LEN_LIMIT: u64 = LAYER_LEN_MAX + (256 << 20);

/// A layer's header as stored (docs/format.md, "Layer header").
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub magic: [u8; 8],
    pub version: U32,
    pub header_len: U32,
    pub incompatible: U64,
    pub compatible: U64,
    pub chain_uuid: [u8; 16],
    pub layer_uuid: [u8; 16],
    pub layer: U32,
    pub cluster_size: U32,
    pub reserved: [u8; 3992],
    pub check: [u8; DIGEST_LEN],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);
const _: () = assert!(std::mem::offset_of!(RawHeader, version) == 8);
const _: () = assert!(std::mem::offset_of!(RawHeader, header_len) == 12);
const _: () = assert!(std::mem::offset_of!(RawHeader, incompatible) == 16);
const _: () = assert!(std::mem::offset_of!(RawHeader, compatible) == 24);
const _: () = assert!(std::mem::offset_of!(RawHeader, chain_uuid) == 32);
const _: () = assert!(std::mem::offset_of!(RawHeader, layer_uuid) == 48);
const _: () = assert!(std::mem::offset_of!(RawHeader, layer) == 64);
const _: () = assert!(std::mem::offset_of!(RawHeader, cluster_size) == 68);
const _: () = assert!(std::mem::offset_of!(RawHeader, reserved) == 72);
const _: () = assert!(std::mem::offset_of!(RawHeader, check) == HEADER_LEN - DIGEST_LEN);

/// What a layer's header says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerIdentity {
    pub chain: Uuid,
    pub uuid: Uuid,
    pub layer: u32,
    pub cluster_size: ClusterSize,
}

impl LayerIdentity {
    pub(crate) fn to_raw(self) -> RawHeader {
        let mut raw = RawHeader {
            magic: MAGIC,
            version: U32::new(VERSION),
            header_len: U32::new(HEADER_LEN_U32),
            incompatible: U64::new(0),
            compatible: U64::new(0),
            chain_uuid: self.chain.bytes(),
            layer_uuid: self.uuid.bytes(),
            layer: U32::new(self.layer),
            cluster_size: U32::new(self.cluster_size.bytes()),
            reserved: [0; 3992],
            check: [0; DIGEST_LEN],
        };
        raw.check = header_check(&raw.as_bytes()[..HEADER_LEN - DIGEST_LEN]).0;
        raw
    }

    pub(crate) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Self> {
        let raw = RawHeader::ref_from_bytes(bytes).map_err(|_| Error::damaged("header has a wrong size"))?;
        if raw.magic != MAGIC {
            return Err(Error::damaged("header field magic is not that of a layer"));
        }
        if header_check(&bytes[..HEADER_LEN - DIGEST_LEN]).0 != raw.check {
            return Err(Error::damaged("header fails its checksum"));
        }
        if raw.version.get() != VERSION || raw.incompatible.get() != 0 {
            let (version, features) = (raw.version.get(), raw.incompatible.get());
            let what = format!("layer version {version} with features {features:#x} needs a newer smc");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        if raw.header_len.get() != HEADER_LEN_U32 {
            let len = raw.header_len.get();
            return Err(Error::damaged(format!("header field header_len is {len}")));
        }
        if raw.reserved.iter().any(|&byte| byte != 0) {
            return Err(Error::damaged("header field reserved is not zero"));
        }
        Ok(Self {
            chain: Uuid::from_bytes(raw.chain_uuid),
            uuid: Uuid::from_bytes(raw.layer_uuid),
            layer: raw.layer.get(),
            cluster_size: ClusterSize::from_bytes(raw.cluster_size.get().into())
                .map_err(Error::into_damage)?,
        })
    }
}

/// What an image knows of one layer that it points into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerEntry {
    /// The random id, also in the layer's header and in the check of each of its nodes.
    pub uuid: Uuid,
    /// Committed length in bytes: no pointer reaches beyond it.
    pub len: u64,
    /// Bytes that the image points to, nodes included, padding not.
    pub referenced: u64,
}

/// The layers that an image points into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerTable {
    entries: BTreeMap<u32, LayerEntry>,
}

impl FromIterator<(u32, LayerEntry)> for LayerTable {
    fn from_iter<I: IntoIterator<Item = (u32, LayerEntry)>>(layers: I) -> Self {
        Self {
            entries: layers.into_iter().collect(),
        }
    }
}

impl LayerTable {
    /// The layer `id`; pointing to one that is not listed is damage.
    ///
    /// # Errors
    /// `Damaged` where the manifest does not list it.
    pub fn entry(&self, id: u32) -> Result<&LayerEntry> {
        self.entries.get(&id).ok_or_else(|| {
            Error::damaged(format!(
                "points into layer {id:08x}, which the manifest does not list"
            ))
        })
    }

    /// All layers by ascending id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &LayerEntry)> {
        self.entries.iter().map(|(&id, entry)| (id, entry))
    }

    pub(crate) fn insert(&mut self, id: u32, entry: LayerEntry) -> Option<LayerEntry> {
        self.entries.insert(id, entry)
    }

    pub(crate) fn entry_mut(&mut self, id: u32) -> Result<&mut LayerEntry> {
        self.entries
            .get_mut(&id)
            .ok_or_else(|| Error::damaged(format!("layer {id:08x} is not listed")))
    }

    /// Takes `counts` for what is pointed to in each layer.
    pub(crate) fn set_referenced(&mut self, counts: &BTreeMap<u32, u64>) {
        for (id, entry) in &mut self.entries {
            entry.referenced = counts.get(id).copied().unwrap_or(0);
        }
    }

    pub(crate) fn drop_unreferenced(&mut self) {
        self.entries.retain(|_, entry| entry.referenced > 0);
    }

    /// Checks that stored bytes lie behind the header and inside the committed length.
    pub(crate) fn check(&self, place: &Place) -> Result<()> {
        let entry = self.entry(place.layer)?;
        if place.offset < HEADER_LEN as u64 || place.end() > entry.len {
            let (layer, len) = (place.layer, entry.len);
            return Err(Error::damaged(format!(
                "points to bytes {}..{} of layer {layer:08x}, whose data is at {HEADER_LEN}..{len}",
                place.offset,
                place.end()
            )));
        }
        Ok(())
    }
}

/// The layer files of one chain, opened on demand and bounded in number.
#[derive(Debug)]
pub(crate) struct LayerFiles {
    storage: Arc<dyn Storage>,
    chain: String,
    open: Mutex<LruCache<u32, Arc<OpenLayer>>>,
}

#[derive(Debug)]
struct OpenLayer {
    uuid: Uuid,
    file: Box<dyn LayerRead>,
}

/// A year of hourly syncs leaves thousands of layers; this many are open at a time.
const OPEN_LAYERS_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

impl LayerFiles {
    pub fn new(storage: Arc<dyn Storage>, chain: &str) -> Self {
        Self {
            storage,
            chain: chain.to_owned(),
            open: Mutex::new(LruCache::new(OPEN_LAYERS_MAX)),
        }
    }

    /// The chain's name.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// Reads the stored bytes at `place`.
    ///
    /// # Errors
    /// `Damaged` for a layer that is not listed, is another one, or is too short; `Io` from the storage. The layer is
    /// named.
    pub fn read(&self, place: &Place, layers: &LayerTable) -> Result<Vec<u8>> {
        let mut stored = vec![0; place.len as usize];
        self.read_into(place.layer, place.offset, &mut stored, layers)?;
        Ok(stored)
    }

    /// Fills `target` from `offset` of layer `id`, after a check that it is the layer that is meant.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_into(&self, id: u32, offset: u64, target: &mut [u8], layers: &LayerTable) -> Result<()> {
        let layer = self.checked(id, layers)?;
        let read = layer.file.read_at(offset, target);
        read.map_err(|error| error.in_file(&self.name(id)))
    }

    /// The same for whole blocks that are read once.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_once(
        &self,
        id: u32,
        offset: u64,
        target: &mut AlignedBuf,
        layers: &LayerTable,
    ) -> Result<()> {
        let layer = self.checked(id, layers)?;
        let read = layer.file.read_once(offset, target);
        read.map_err(|error| error.in_file(&self.name(id)))
    }

    /// Layer `id`, opened if need be, if it is the one that is meant.
    fn checked(&self, id: u32, layers: &LayerTable) -> Result<Arc<OpenLayer>> {
        let expected = layers.entry(id)?.uuid;
        let layer = self.layer(id)?;
        if layer.uuid != expected {
            let (chain, found) = (&self.chain, layer.uuid);
            return Err(Error::damaged(format!(
                "layer {id:08x} of chain {chain} has id {found}, but the image was made with {expected}"
            )));
        }
        Ok(layer)
    }

    /// Fills `target` from `offset` of layer `id` if that layer is open and its bytes are in memory.
    pub fn read_now(&self, id: u32, offset: u64, target: &mut [u8], layers: &LayerTable) -> bool {
        self.opened(id, layers)
            .is_some_and(|layer| layer.file.read_now(offset, target))
    }

    /// Says that the stored bytes at `place` will be read soon.
    pub fn will_read(&self, place: &Place, layers: &LayerTable) {
        if let Some(layer) = self.opened(place.layer, layers) {
            layer.file.will_read(place.offset, place.len.into());
        }
    }

    /// Layer `id`, if it is open and the one that is meant.
    fn opened(&self, id: u32, layers: &LayerTable) -> Option<Arc<OpenLayer>> {
        let expected = layers.entry(id).ok()?.uuid;
        let layer = self.already_open(id)?;
        (layer.uuid == expected).then_some(layer)
    }

    /// Checks the header of a layer that an image lists.
    ///
    /// # Errors
    /// `Damaged` where it is another layer's; `Io` from the storage.
    pub fn check_header(&self, id: u32, layers: &LayerTable) -> Result<()> {
        self.read_into(id, 0, &mut [], layers)
    }

    fn name(&self, id: u32) -> String {
        layer_path(&self.chain, id)
    }

    fn already_open(&self, id: u32) -> Option<Arc<OpenLayer>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).cloned()
    }

    fn layer(&self, id: u32) -> Result<Arc<OpenLayer>> {
        if let Some(layer) = self.already_open(id) {
            return Ok(layer);
        }
        // Opened without the lock: a slow disk must not hold up readers of other layers.
        let layer = Arc::new(
            self.open_layer(id)
                .map_err(|error| error.in_file(&self.name(id)))?,
        );
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .put(id, layer.clone());
        Ok(layer)
    }

    fn open_layer(&self, id: u32) -> Result<OpenLayer> {
        let file = self.storage.open_layer(&self.name(id)).map_err(|error| {
            // Something points here, so that the file is gone is damage.
            match error.kind() {
                ErrorKind::NotFound => Error::damaged("the file is missing").caused_by(error),
                _ => error,
            }
        })?;
        let mut header = [0; HEADER_LEN];
        file.read_at(0, &mut header)?;
        let identity = LayerIdentity::from_bytes(&header)?;
        if identity.layer != id {
            return Err(Error::damaged(format!(
                "header field layer is {:08x}",
                identity.layer
            )));
        }
        Ok(OpenLayer {
            uuid: identity.uuid,
            file,
        })
    }
}

/// A layer being written.
#[derive(Debug)]
pub(crate) struct LayerWriter {
    file: Box<dyn LayerAppend>,
    id: u32,
    uuid: Uuid,
    position: u64,
    /// Whether each piece is a write of its own.
    apart: bool,
}

const ZEROS: [u8; to_usize(BLOCK_LEN)] = [0; to_usize(BLOCK_LEN)];

impl LayerWriter {
    /// Creates layer `identity.layer` of `chain`, with its header.
    ///
    /// # Errors
    /// `Exists` where there is a layer of its number; `NoSpace` and `Io` from the storage.
    pub fn create(storage: &dyn Storage, chain: &str, identity: LayerIdentity) -> Result<Self> {
        let path = layer_path(chain, identity.layer);
        let mut file = storage.create_layer(&path)?;
        let begun = file.append(identity.to_raw().as_bytes());
        begun.map_err(|error| error.in_file(&path))?;
        Ok(Self {
            file,
            id: identity.layer,
            uuid: identity.uuid,
            position: HEADER_LEN as u64,
            apart: storage.frees_only_whole_writes(),
        })
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Length so far in bytes.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Pads with zeros to the next block: where groups and raw clusters start.
    ///
    /// # Errors
    /// `NoSpace` and `Io` from the storage.
    pub fn align(&mut self) -> Result<()> {
        let gap = self.position.next_multiple_of(BLOCK_LEN) - self.position;
        self.position += gap;
        self.file.append(&ZEROS[..to_usize(gap)])
    }

    /// Comes before each piece: where only whole writes can be freed, it starts a block and a write.
    ///
    /// # Errors
    /// `NoSpace` and `Io` from the storage.
    pub fn begin_piece(&mut self) -> Result<()> {
        if !self.apart {
            return Ok(());
        }
        self.align()?;
        self.file.cut()
    }

    /// Appends stored bytes and says where they lie.
    ///
    /// # Errors
    /// `Invalid` for more bytes than a pointer can describe; `NoSpace` and `Io` from the storage.
    pub fn append(&mut self, bytes: &[u8]) -> Result<Place> {
        let len = u32::try_from(bytes.len())
            .ok()
            .filter(|&len| len <= STORED_LEN_MAX)
            .ok_or_else(|| Error::invalid(format!("{} bytes are too many for a pointer", bytes.len())))?;
        let place = Place {
            layer: self.id,
            offset: self.position,
            len,
        };
        self.file.append(bytes)?;
        self.position += u64::from(len);
        Ok(place)
    }

    /// Makes everything appended so far durable; the next append starts on a new block.
    ///
    /// # Errors
    /// `NoSpace` and `Io` from the storage: nothing that was appended since the last time may be relied upon.
    pub fn sync(&mut self) -> Result<()> {
        self.align()?;
        self.file.sync()
    }
}
