//! What is on a disk: inodes, and the changes that are made to them.

use crate::storage::BLOCK_LEN;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

pub type Ino = u32;

pub const ROOT: Ino = 0;

/// Names in a directory.
pub type Names = BTreeMap<String, Ino>;

/// The content of a file, and which of its blocks take space.
#[derive(Debug, Clone, Default)]
pub struct Content {
    bytes: Vec<u8>,
    allocated: Vec<bool>,
    /// Made when first asked for: states of a disk are compared often, and most files are the same in all.
    digest: OnceLock<[u8; 32]>,
}

impl Content {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Numbers of the blocks that take space.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        (0u64..)
            .zip(&self.allocated)
            .filter_map(|(block, &taken)| taken.then_some(block))
    }

    fn digest(&self) -> [u8; 32] {
        *self.digest.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.bytes);
            self.blocks().for_each(|block| {
                hasher.update(&block.to_le_bytes());
            });
            *hasher.finalize().as_bytes()
        })
    }

    fn changed(&mut self) -> &mut Self {
        self.digest = OnceLock::new();
        self
    }

    /// Makes the file at least this long; what is new is a hole.
    pub fn extend(&mut self, len: usize) {
        if len > self.bytes.len() {
            self.bytes.resize(len, 0);
            self.allocated.resize(len.div_ceil(BLOCK_LEN as usize), false);
            self.changed();
        }
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        self.extend(end);
        self.bytes[offset..end].copy_from_slice(bytes);
        let block = BLOCK_LEN as usize;
        self.allocated[offset / block..end.div_ceil(block)].fill(true);
        self.changed();
    }

    pub fn punch(&mut self, range: &Range<u64>) {
        let end = range.end.min(self.bytes.len() as u64) as usize;
        let start = (range.start as usize).min(end);
        self.bytes[start..end].fill(0);
        let block = BLOCK_LEN as usize;
        self.allocated[start / block..end.div_ceil(block)].fill(false);
        self.changed();
    }
}

#[derive(Debug, Clone)]
pub enum Node {
    Dir(Arc<Names>),
    File(Arc<Content>),
}

/// One change, as the filesystem keeps it until it is on the media.
#[derive(Debug, Clone)]
pub enum Change {
    Link {
        dir: Ino,
        name: String,
        ino: Ino,
    },
    Unlink {
        dir: Ino,
        name: String,
        ino: Ino,
    },
    Rename {
        dir: Ino,
        from: String,
        to: String,
        ino: Ino,
    },
    Truncate {
        ino: Ino,
    },
    Punch {
        ino: Ino,
        range: Range<u64>,
    },
    Write {
        ino: Ino,
        offset: usize,
        bytes: Arc<[u8]>,
    },
}

impl Change {
    /// The directory whose names it changes.
    pub fn dir(&self) -> Option<Ino> {
        match self {
            Self::Link { dir, .. } | Self::Unlink { dir, .. } | Self::Rename { dir, .. } => Some(*dir),
            _ => None,
        }
    }

    /// The file whose content or space it changes.
    pub fn file(&self) -> Option<Ino> {
        match self {
            Self::Truncate { ino } | Self::Punch { ino, .. } | Self::Write { ino, .. } => Some(*ino),
            _ => None,
        }
    }

    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}

/// A filesystem's inodes. Cloning one is cheap: contents are shared until they change.
#[derive(Debug, Clone)]
pub struct Fs {
    nodes: BTreeMap<Ino, Node>,
}

impl Fs {
    pub fn new() -> Self {
        let root = Node::Dir(Arc::default());
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
        }
    }

    /// Adds an inode that no name leads to yet.
    pub fn add(&mut self, ino: Ino, node: Node) {
        self.nodes.insert(ino, node);
    }

    pub fn names(&self, dir: Ino) -> Option<&Names> {
        match self.nodes.get(&dir) {
            Some(Node::Dir(names)) => Some(names),
            _ => None,
        }
    }

    pub fn content(&self, ino: Ino) -> Option<&Content> {
        match self.nodes.get(&ino) {
            Some(Node::File(content)) => Some(content),
            _ => None,
        }
    }

    pub fn content_mut(&mut self, ino: Ino) -> &mut Content {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(content)) => Arc::make_mut(content),
            _ => panic!("inode {ino} is no file"),
        }
    }

    pub fn set_content(&mut self, ino: Ino, content: Content) {
        self.nodes.insert(ino, Node::File(Arc::new(content)));
    }

    fn names_mut(&mut self, dir: Ino) -> &mut Names {
        match self.nodes.get_mut(&dir) {
            Some(Node::Dir(names)) => Arc::make_mut(names),
            _ => panic!("inode {dir} is no directory"),
        }
    }

    /// The inode that a path leads to; the empty path is the root.
    pub fn find(&self, path: &str) -> Option<Ino> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        parts.try_fold(ROOT, |dir, part| self.names(dir)?.get(part).copied())
    }

    /// Applies a change in full. Names that do not lead where they did when it was made stay as they are.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Link { dir, name, ino } => {
                self.names_mut(*dir).insert(name.clone(), *ino);
            }
            Change::Unlink { dir, name, ino } => self.unlink(*dir, name, *ino),
            Change::Rename { dir, from, to, ino } => {
                self.unlink(*dir, from, *ino);
                self.names_mut(*dir).insert(to.clone(), *ino);
            }
            Change::Truncate { ino } => *self.content_mut(*ino) = Content::default(),
            Change::Punch { ino, range } => self.content_mut(*ino).punch(range),
            Change::Write { ino, offset, bytes } => self.content_mut(*ino).write(*offset, bytes),
        }
    }

    fn unlink(&mut self, dir: Ino, name: &str, ino: Ino) {
        let names = self.names_mut(dir);
        if names.get(name) == Some(&ino) {
            names.remove(name);
        }
    }

    /// What can be reached from the root, as one digest.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        self.hash(ROOT, &mut hasher);
        *hasher.finalize().as_bytes()
    }

    fn hash(&self, ino: Ino, hasher: &mut blake3::Hasher) {
        match &self.nodes[&ino] {
            Node::File(content) => {
                hasher.update(b"file").update(&content.digest());
            }
            Node::Dir(names) => {
                hasher.update(b"dir").update(&names.len().to_le_bytes());
                for (name, &ino) in names.iter() {
                    hasher.update(name.as_bytes()).update(b"/");
                    self.hash(ino, hasher);
                }
            }
        }
    }

    /// The first number that no inode has.
    pub fn inodes_end(&self) -> Ino {
        self.nodes.last_key_value().map_or(ROOT, |(&ino, _)| ino + 1)
    }

    /// Forgets the inodes that nothing leads to, as a check of the filesystem at mount does.
    pub fn forget_unreachable(&mut self) {
        let mut reached = BTreeMap::new();
        let mut todo = vec![ROOT];
        while let Some(ino) = todo.pop() {
            let node = self.nodes[&ino].clone();
            if let Node::Dir(names) = &node {
                todo.extend(names.values());
            }
            reached.insert(ino, node);
        }
        self.nodes = reached;
    }
}
