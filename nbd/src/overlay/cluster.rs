//! Clusters: the unit in which an overlay takes space, and the state of each of their sectors.

use std::ops::Range;

/// The unit of state: what a sector is holds for all of its bytes.
pub(super) const SECTOR_LEN: usize = 512;
/// The unit of space.
pub(super) const CLUSTER_LEN: usize = 64 << 10;

const SECTORS: usize = CLUSTER_LEN / SECTOR_LEN;

/// What a sector is. Nothing ever becomes [`Base`](State::Base) again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// As in the base.
    Base,
    /// In the cluster's slot.
    Data,
    /// Zeros that have no space.
    Hole,
    /// Zeros that have space in the cluster's slot, whatever bytes are there.
    Room,
}

impl State {
    /// Whether it has space, and whether it is zeros.
    fn bits(self) -> (bool, bool) {
        match self {
            Self::Base => (false, false),
            Self::Data => (true, false),
            Self::Hole => (false, true),
            Self::Room => (true, true),
        }
    }

    pub fn is_zero(self) -> bool {
        self.bits().1
    }
}

/// The states of a cluster's sectors, one bit of each mask for a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sectors {
    space: u128,
    zero: u128,
}

impl Sectors {
    /// Those of a cluster without a slot: holes, and the base elsewhere.
    pub fn holes(zero: u128) -> Self {
        Self { space: 0, zero }
    }

    fn state(self, sector: usize) -> State {
        match (self.space >> sector & 1 == 1, self.zero >> sector & 1 == 1) {
            (false, false) => State::Base,
            (true, false) => State::Data,
            (false, true) => State::Hole,
            (true, true) => State::Room,
        }
    }

    /// The state of the first sector of `range`, and the end of the run within it that shares it.
    pub fn run(self, range: &Range<usize>) -> (State, usize) {
        let state = self.state(range.start);
        let (space, zero) = state.bits();
        let differing = (self.space ^ repeat(space)) | (self.zero ^ repeat(zero));
        let length = (differing >> range.start).trailing_zeros() as usize;
        (state, range.end.min(range.start + length))
    }

    /// The runs of one state in `range`.
    pub fn runs(self, mut range: Range<usize>) -> impl Iterator<Item = (State, Range<usize>)> {
        std::iter::from_fn(move || {
            let start = range.start;
            let (state, end) = (!range.is_empty()).then(|| self.run(&range))?;
            range.start = end;
            Some((state, start..end))
        })
    }

    /// Every run of one state in the cluster.
    pub fn all_runs(self) -> impl Iterator<Item = (State, Range<usize>)> {
        self.runs(0..SECTORS)
    }

    /// Whether no sector has space.
    pub fn is_spaceless(self) -> bool {
        self.space == 0
    }
}

fn repeat(bit: bool) -> u128 {
    if bit { u128::MAX } else { 0 }
}

/// The bits of a range of sectors.
pub(super) fn mask(range: &Range<usize>) -> u128 {
    match range.len() {
        0 => 0,
        length => (u128::MAX >> (SECTORS - length)) << range.start,
    }
}

/// A cluster that has a slot. There may be hundreds of thousands: the masks lie as bytes, so that
/// their alignment costs nothing.
#[derive(Debug)]
pub(super) struct Entry {
    space: [u8; 16],
    zero: [u8; 16],
    pub slot: u32,
}

impl Entry {
    pub fn new(slot: u32, sectors: Sectors) -> Self {
        Self {
            space: sectors.space.to_ne_bytes(),
            zero: sectors.zero.to_ne_bytes(),
            slot,
        }
    }

    pub fn sectors(&self) -> Sectors {
        Sectors {
            space: u128::from_ne_bytes(self.space),
            zero: u128::from_ne_bytes(self.zero),
        }
    }

    pub fn set(&mut self, range: &Range<usize>, state: State) {
        let (mask, (has_space, is_zero)) = (mask(range), state.bits());
        let Sectors { space, zero } = self.sectors();
        let space = space & !mask | repeat(has_space) & mask;
        let zero = zero & !mask | repeat(is_zero) & mask;
        *self = Self::new(self.slot, Sectors { space, zero });
    }
}

/// The part of a request that lies in one cluster.
#[derive(Debug)]
pub(super) struct Part {
    pub cluster: u64,
    /// Bytes of the cluster.
    pub within: Range<usize>,
    /// Bytes of the request's buffer.
    pub buffer: Range<usize>,
}

impl Part {
    /// Sectors of the cluster that the part touches.
    pub fn sectors(&self) -> Range<usize> {
        self.within.start / SECTOR_LEN..self.within.end.div_ceil(SECTOR_LEN)
    }

    /// The first byte in the export.
    pub fn offset(&self) -> u64 {
        self.cluster * CLUSTER_LEN as u64 + self.within.start as u64
    }
}

/// The parts of a request for `length` bytes at `offset`.
pub(super) fn parts(offset: u64, length: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = remainder(at, CLUSTER_LEN);
        let step = (length - done).min(CLUSTER_LEN - start);
        let part = Part {
            cluster: at / CLUSTER_LEN as u64,
            within: start..start + step,
            buffer: done..done + step,
        };
        done += step;
        (step > 0).then_some(part)
    })
}

/// `at` modulo `unit`, which is in range of a `usize`.
pub(super) fn remainder(at: u64, unit: usize) -> usize {
    usize::try_from(at % unit as u64).unwrap_or_default()
}

/// The clusters that a range of the export's sectors touches; `sectors` is not empty.
pub(super) fn clusters(sectors: &Range<u64>) -> Range<u64> {
    sectors.start / SECTORS as u64..sectors.end.div_ceil(SECTORS as u64)
}

/// The export's sectors in a cluster.
pub(super) fn sectors_of(cluster: u64) -> Range<u64> {
    cluster * SECTORS as u64..(cluster + 1) * SECTORS as u64
}

/// The sectors of `cluster` that lie in `sectors` of the export.
pub(super) fn within(cluster: u64, sectors: &Range<u64>) -> Range<usize> {
    let all = sectors_of(cluster);
    let clip = |at: u64| usize::try_from(at.clamp(all.start, all.end) - all.start).unwrap_or_default();
    clip(sectors.start)..clip(sectors.end)
}

/// A range of a cluster's sectors as the export's.
pub(super) fn outside(cluster: u64, range: &Range<usize>) -> Range<u64> {
    let first = sectors_of(cluster).start;
    first + range.start as u64..first + range.end as u64
}
