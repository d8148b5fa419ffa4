//! The power cut: which of the changes on their way made it to the media, and how much of each.

use super::fs::{Change, Fs};
use super::media::{FsModel, Media};
use super::random::Random;
use crate::storage::BLOCK_LEN;

/// What became of one change that was on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Applied,
    Dropped,
    /// The first sectors of this size made it.
    Prefix(usize),
    /// Some sectors of this size made it.
    Sectors(usize),
    /// The file is as long as it was to be, and some of its sectors hold anything.
    Garbage,
    /// The file is as long as it was to be, but what was to be there reads as before, or as zeros.
    Zeros,
}

const TORN: [Fate; 4] = [
    Fate::Prefix(512),
    Fate::Sectors(512),
    Fate::Prefix(4096),
    Fate::Sectors(4096),
];

impl Fate {
    /// Everything that can become of a write.
    fn all(model: FsModel) -> Vec<Self> {
        let mut all = vec![Self::Applied, Self::Dropped, Self::Garbage];
        all.extend(TORN);
        if model != FsModel::Ext4 {
            all.push(Self::Zeros);
        }
        all
    }
}

/// Which changes of names made it: one of the journal's prefixes, or any set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NamesFate(Vec<bool>);

/// The outcome of a power cut, chosen for every change on its way, in their order.
#[derive(Debug, Clone)]
pub struct Outcome {
    fates: Vec<Fate>,
    seed: u64,
}

/// Sets of up to this many independent changes are tried in every combination.
const EXHAUSTIVE: usize = 4;
/// Of longer lists, this many places are tried one by one.
const PLACES: usize = 12;

/// All corner cases of a power cut; each stands for itself, whatever the seed of a run.
pub fn corners(media: &Media) -> Vec<Outcome> {
    let (ordered, free) = split(media);
    let mut outcomes = Vec::new();
    for names in names_fates(media.model, ordered.len()) {
        for data in data_fates(media.model, free.len()) {
            let mut fates = vec![Fate::Dropped; media.pending.len()];
            for (&at, &made_it) in ordered.iter().zip(&names.0) {
                fates[at] = if made_it { Fate::Applied } else { Fate::Dropped };
            }
            for (&at, &fate) in free.iter().zip(&data) {
                fates[at] = fate;
            }
            let seed = outcomes.len() as u64;
            outcomes.push(Outcome { fates, seed });
        }
    }
    outcomes
}

/// Any outcome, by its seed.
pub fn random(media: &Media, seed: u64) -> Outcome {
    let mut random = Random::new(seed);
    let all = Fate::all(media.model);
    let journaled = media
        .pending
        .iter()
        .filter(|change| media.model.is_journaled(change));
    let mut left = random.below(journaled.count() as u64 + 1);
    let fates = media.pending.iter().map(|change| {
        if media.model.is_journaled(change) {
            let made_it = left > 0;
            left = left.saturating_sub(1);
            return if made_it { Fate::Applied } else { Fate::Dropped };
        }
        match change.dir() {
            Some(_) => all[random.below(2) as usize],
            None => all[random.below(all.len() as u64) as usize],
        }
    });
    Outcome {
        fates: fates.collect(),
        seed: random.next(),
    }
}

/// Indices of the changes that are about names or wait in the journal, and of all others.
fn split(media: &Media) -> (Vec<usize>, Vec<usize>) {
    (0..media.pending.len()).partition(|&at| {
        let change = &media.pending[at];
        media.model.is_journaled(change) || change.dir().is_some()
    })
}

fn names_fates(model: FsModel, count: usize) -> Vec<NamesFate> {
    let prefix = |len: usize| NamesFate((0..count).map(|at| at < len).collect());
    let prefixes = places(count + 1).into_iter().map(prefix);
    if model != FsModel::Posix {
        return prefixes.collect();
    }
    if count <= EXHAUSTIVE {
        let set = |bits: usize| NamesFate((0..count).map(|at| bits >> at & 1 == 1).collect());
        return (0..1 << count).map(set).collect();
    }
    let single =
        |only: usize, made_it: bool| NamesFate((0..count).map(|at| (at == only) == made_it).collect());
    let singles = places(count)
        .into_iter()
        .flat_map(|at| [single(at, true), single(at, false)]);
    let mut fates: Vec<NamesFate> = Vec::new();
    for fate in prefixes.chain(singles) {
        if !fates.contains(&fate) {
            fates.push(fate);
        }
    }
    fates
}

fn data_fates(model: FsModel, count: usize) -> Vec<Vec<Fate>> {
    let all = Fate::all(model);
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut fates: Vec<Vec<Fate>> = all.iter().map(|&fate| vec![fate; count]).collect();
    let mut put = |fate: Vec<Fate>| {
        if !fates.contains(&fate) {
            fates.push(fate);
        }
    };
    let only = |at: usize, fate: Fate, others: Fate| {
        let mut fates = vec![others; count];
        fates[at] = fate;
        fates
    };
    for end in [0, count - 1] {
        all.iter().for_each(|&fate| put(only(end, fate, Fate::Applied)));
        put(only(end, Fate::Applied, Fate::Dropped));
    }
    for at in places(count) {
        put(only(at, Fate::Dropped, Fate::Applied));
    }
    fates
}

/// All numbers below `count`, or some that lie evenly, the first and the last among them.
fn places(count: usize) -> Vec<usize> {
    if count <= PLACES {
        return (0..count).collect();
    }
    (0..PLACES).map(|i| i * (count - 1) / (PLACES - 1)).collect()
}

impl Outcome {
    /// What is found when the power is back.
    pub fn found(&self, media: &Media) -> Fs {
        let mut fs = media.durable.clone();
        let mut random = Random::new(self.seed);
        for (change, &fate) in media.pending.iter().zip(&self.fates) {
            match fate {
                Fate::Applied => fs.apply(change),
                Fate::Dropped => {}
                torn => tear(&mut fs, change, torn, media.model, &mut random),
            }
        }
        fs.forget_unreachable();
        fs
    }
}

/// A part of a change.
fn tear(fs: &mut Fs, change: &Change, fate: Fate, model: FsModel, random: &mut Random) {
    match change {
        Change::Write { ino, offset, bytes } => {
            if model != FsModel::Ext4 && random.below(2) == 0 || matches!(fate, Fate::Garbage | Fate::Zeros) {
                fs.content_mut(*ino).extend(offset + bytes.len());
            }
            tear_write(fs.content_mut(*ino), *offset, bytes, fate, random);
        }
        // Some of the blocks are freed.
        Change::Punch { ino, range } => {
            for start in range.clone().step_by(BLOCK_LEN as usize) {
                if random.below(2) == 0 {
                    let block = start..range.end.min(start + BLOCK_LEN);
                    fs.content_mut(*ino).punch(&block);
                }
            }
        }
        // What has no parts happens or does not.
        whole => {
            if random.below(2) == 0 {
                fs.apply(whole);
            }
        }
    }
}

fn tear_write(
    content: &mut super::fs::Content,
    offset: usize,
    bytes: &[u8],
    fate: Fate,
    random: &mut Random,
) {
    let sector = match fate {
        Fate::Prefix(len) | Fate::Sectors(len) => len,
        Fate::Zeros => return,
        _ => 512,
    };
    let end = offset + bytes.len();
    let count = end.div_ceil(sector) - offset / sector;
    let kept = random.below(count as u64 + 1) as usize;
    let mut at = offset;
    for number in 0..count {
        let next = ((at / sector + 1) * sector).min(end);
        let part = &bytes[at - offset..next - offset];
        match fate {
            Fate::Prefix(_) if number >= kept => {}
            Fate::Sectors(_) if random.below(2) == 0 => {}
            Fate::Garbage if random.below(2) == 0 => {
                let mut garbage = vec![0; part.len()];
                random.fill(&mut garbage);
                content.write(at, &garbage);
            }
            _ => content.write(at, part),
        }
        at = next;
    }
}
