//! What is done to a store: short lists of steps, small enough that every place in them can be crashed at.

use crate::ClusterSize;
use crate::tests::model::Model;
use crate::tests::sim::Random;
use crate::tests::support::{random_bytes, text_bytes};

/// A short list of steps, and how the store came to be where they begin.
#[derive(Debug, Clone)]
pub struct Workload {
    pub name: String,
    pub cluster_size: ClusterSize,
    /// Names and sizes in bytes.
    pub disks: Vec<(&'static str, u64)>,
    /// Done before the first place for a crash.
    pub before: Vec<Step>,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub enum Step {
    CreateStore,
    Sync(Run),
    Delete(&'static str, Pick),
    Gc(&'static str),
    /// Drops what an unfinished sync has stored.
    Cancel(&'static str),
}

/// One sync.
#[derive(Debug, Clone, Default)]
pub struct Run {
    pub job: &'static str,
    /// How the source's disks change before it.
    pub edits: Vec<Edit>,
    /// Checkpoints come after so many clusters that differ, counted over all disks.
    pub checkpoints: Vec<usize>,
    /// After so many of them it is given up; if never, it is committed.
    pub stop: Option<usize>,
    /// After so many of them it is killed, and leaves everything as it is.
    pub kill: Option<usize>,
    /// Deleted while the sync goes on.
    pub delete: Option<Pick>,
}

/// Which of the images that are known to be there.
#[derive(Debug, Clone, Copy)]
pub enum Pick {
    Oldest,
    Middle,
    Newest,
}

impl Pick {
    pub fn of(self, sequences: &[u64]) -> Option<u64> {
        match self {
            Self::Oldest => sequences.first().copied(),
            Self::Middle => sequences.get(sequences.len() / 2).copied(),
            Self::Newest => sequences.last().copied(),
        }
    }
}

/// A change of a source's disk.
#[derive(Debug, Clone, Copy)]
pub struct Edit {
    pub disk: usize,
    pub what: What,
}

#[derive(Debug, Clone, Copy)]
pub enum What {
    /// A cluster is filled with what does not compress.
    Noise(u64, u64),
    /// A cluster is filled with what compresses well.
    Text(u64, u64),
    Zero(u64),
    /// The disk gets this many bytes.
    Grow(u64),
}

impl Edit {
    pub fn apply(self, disks: &mut [(String, Model)]) {
        let model = &mut disks[self.disk].1;
        let mut set = |cluster: u64, fill: &dyn Fn(usize) -> Vec<u8>| {
            model.set(cluster, fill(model.cluster_len(cluster)));
        };
        match self.what {
            What::Noise(cluster, seed) => set(cluster, &|len| random_bytes(seed, len)),
            What::Text(cluster, seed) => set(cluster, &|len| text_bytes(seed, len)),
            What::Zero(cluster) => set(cluster, &|len| vec![0; len]),
            What::Grow(size) => model.grow(size),
        }
    }
}

fn noise(cluster: u64, seed: u64) -> Edit {
    Edit {
        disk: 0,
        what: What::Noise(cluster, seed),
    }
}

fn text(cluster: u64, seed: u64) -> Edit {
    Edit {
        disk: 0,
        what: What::Text(cluster, seed),
    }
}

fn zero(cluster: u64) -> Edit {
    Edit {
        disk: 0,
        what: What::Zero(cluster),
    }
}

fn grow(size: u64) -> Edit {
    Edit {
        disk: 0,
        what: What::Grow(size),
    }
}

fn on_second(edit: Edit) -> Edit {
    Edit { disk: 1, ..edit }
}

const JOB: &str = "web";
const K16: u64 = 16384;
/// Seven clusters, the last of them short.
const SMALL: u64 = 6 * K16 + 5000;
/// Some clusters more than one leaf holds.
const TWO_LEVELS: u64 = 258 * K16 + 100;

fn run(edits: Vec<Edit>) -> Run {
    Run {
        job: JOB,
        edits,
        ..Run::default()
    }
}

fn sync(edits: Vec<Edit>) -> Step {
    Step::Sync(run(edits))
}

fn first() -> Step {
    sync(vec![text(0, 1), noise(2, 2), text(3, 3), noise(6, 4)])
}

fn second() -> Step {
    sync(vec![text(0, 5), noise(2, 6), text(4, 7)])
}

fn third() -> Step {
    sync(vec![noise(2, 8), zero(3), text(4, 9), text(5, 10)])
}

fn unfinished() -> Step {
    Step::Sync(Run {
        checkpoints: vec![2],
        stop: Some(3),
        ..run(vec![noise(1, 11), text(2, 12), noise(3, 13), text(5, 14)])
    })
}

fn killed() -> Step {
    Step::Sync(Run {
        checkpoints: vec![2],
        kill: Some(4),
        ..run(vec![noise(1, 11), text(2, 12), noise(3, 13), text(5, 14)])
    })
}

fn small(name: &str, before: Vec<Step>, steps: Vec<Step>) -> Workload {
    Workload {
        name: name.to_owned(),
        cluster_size: ClusterSize::K16,
        disks: vec![("vda", SMALL)],
        before,
        steps,
    }
}

fn three_images() -> Vec<Step> {
    vec![Step::CreateStore, first(), second(), third()]
}

/// The workload of a name: one of [`all`], or `random-N`.
pub fn named(name: &str) -> Option<Workload> {
    let seed = name.strip_prefix("random-").and_then(|seed| seed.parse().ok());
    let listed = || all().into_iter().find(|workload| workload.name == name);
    seed.map(random).or_else(listed)
}

/// A longer list of any steps.
pub fn random(seed: u64) -> Workload {
    let mut random = Random::new(seed);
    let disks = match random.below(4) {
        0 => vec![("vda", SMALL), ("vdb", 3 * K16)],
        1 => vec![("vda", TWO_LEVELS)],
        _ => vec![("vda", SMALL)],
    };
    let count = disks.len() as u64;
    let mut any = |steps: u64| (0..steps).map(|_| any_step(&mut random, count)).collect();
    let before: Vec<Step> = any(3);
    let steps = any(8);
    let before = [vec![Step::CreateStore, first()], before].concat();
    Workload {
        disks,
        ..small(&format!("random-{seed}"), before, steps)
    }
}

fn any_step(random: &mut Random, disks: u64) -> Step {
    let pick = [Pick::Oldest, Pick::Middle, Pick::Newest][random.below(3) as usize];
    match random.below(10) {
        0..=1 => Step::Delete(JOB, pick),
        2 => Step::Gc(JOB),
        3 => Step::Cancel(JOB),
        _ => Step::Sync(any_run(random, disks, pick)),
    }
}

fn any_run(random: &mut Random, disks: u64, pick: Pick) -> Run {
    let edits = (0..=random.below(5)).map(|_| {
        let disk = random.below(disks) as usize;
        // What both disks have.
        let cluster = random.below(3) + if disk == 0 { random.below(4) } else { 0 };
        let seed = random.next();
        let what = match random.below(5) {
            0 => What::Zero(cluster),
            1..=2 => What::Text(cluster, seed),
            _ => What::Noise(cluster, seed),
        };
        Edit { disk, what }
    });
    let edits: Vec<Edit> = edits.collect();
    let mut often = |one_in: u64| {
        let place = 1 + random.below(4) as usize;
        (random.below(one_in) == 0).then_some(place)
    };
    Run {
        checkpoints: often(2).into_iter().chain(often(3)).collect(),
        stop: often(4),
        kill: often(6),
        delete: often(6).map(|_| pick),
        ..run(edits)
    }
}

/// All short ones.
pub fn all() -> Vec<Workload> {
    let mut all = syncs();
    all.extend(deletions());
    all.extend(unfinished_syncs());
    all
}

fn syncs() -> Vec<Workload> {
    vec![
        small("first-sync", vec![], vec![Step::CreateStore, first()]),
        small(
            "incremental",
            vec![Step::CreateStore, first()],
            vec![second(), third()],
        ),
        small(
            "grow",
            vec![Step::CreateStore, first()],
            vec![sync(vec![grow(9 * K16), text(8, 20)]), sync(vec![noise(6, 21)])],
        ),
        small(
            "empty-and-zeroed",
            vec![Step::CreateStore],
            vec![
                sync(vec![]),
                first(),
                sync(vec![zero(0), zero(2), zero(3), zero(6)]),
            ],
        ),
        small(
            "two-jobs",
            vec![Step::CreateStore, first()],
            vec![
                Step::Sync(Run {
                    job: "db",
                    ..run(vec![noise(1, 30)])
                }),
                second(),
                Step::Sync(Run {
                    job: "db",
                    ..run(vec![text(1, 31)])
                }),
            ],
        ),
        Workload {
            disks: vec![("vda", SMALL), ("vdb", 3 * K16)],
            ..small(
                "two-disks",
                vec![
                    Step::CreateStore,
                    sync(vec![text(0, 1), noise(2, 2), on_second(noise(1, 3))]),
                ],
                vec![
                    sync(vec![noise(0, 4), on_second(text(1, 5)), on_second(text(2, 6))]),
                    Step::Delete(JOB, Pick::Oldest),
                ],
            )
        },
        Workload {
            disks: vec![("vda", TWO_LEVELS)],
            ..small(
                "two-levels",
                vec![
                    Step::CreateStore,
                    sync(vec![text(0, 1), noise(1, 2), text(256, 3), noise(258, 4)]),
                ],
                vec![
                    sync(vec![noise(0, 5), text(257, 6)]),
                    Step::Delete(JOB, Pick::Oldest),
                ],
            )
        },
        small(
            "grow-a-level",
            vec![Step::CreateStore, first()],
            vec![
                sync(vec![grow(TWO_LEVELS), text(257, 40)]),
                Step::Delete(JOB, Pick::Oldest),
            ],
        ),
    ]
}

fn deletions() -> Vec<Workload> {
    let delete = |name: &str, pick| {
        let steps = vec![Step::Delete(JOB, pick), sync(vec![text(1, 50), noise(4, 51)])];
        small(name, three_images(), steps)
    };
    vec![
        delete("delete-oldest", Pick::Oldest),
        delete("delete-middle", Pick::Middle),
        delete("delete-newest", Pick::Newest),
        small(
            "delete-all",
            vec![Step::CreateStore, first(), second()],
            vec![
                Step::Delete(JOB, Pick::Newest),
                Step::Delete(JOB, Pick::Newest),
                third(),
            ],
        ),
        small(
            "delete-in-sync",
            three_images(),
            vec![Step::Sync(Run {
                delete: Some(Pick::Oldest),
                ..run(vec![text(1, 52), noise(2, 53)])
            })],
        ),
        small(
            "gc",
            three_images(),
            vec![Step::Delete(JOB, Pick::Middle), Step::Gc(JOB)],
        ),
    ]
}

fn unfinished_syncs() -> Vec<Workload> {
    let resumed = || vec![noise(1, 11), text(2, 12), noise(3, 60), text(4, 61)];
    vec![
        small(
            "give-up",
            vec![Step::CreateStore, first()],
            vec![
                Step::Sync(Run {
                    stop: Some(2),
                    ..run(vec![noise(0, 70), noise(1, 71), noise(2, 72)])
                }),
                second(),
            ],
        ),
        small(
            "checkpoints",
            vec![Step::CreateStore, first()],
            vec![Step::Sync(Run {
                checkpoints: vec![1, 3],
                ..run(vec![noise(1, 11), text(2, 12), noise(3, 13), text(5, 14)])
            })],
        ),
        small(
            "first-unfinished",
            vec![Step::CreateStore],
            vec![unfinished(), sync(resumed())],
        ),
        small(
            "cancel",
            vec![Step::CreateStore, first(), unfinished()],
            vec![Step::Cancel(JOB), second()],
        ),
        small(
            "resume",
            vec![Step::CreateStore, first(), unfinished()],
            vec![
                Step::Sync(Run {
                    checkpoints: vec![1],
                    ..run(resumed())
                }),
                Step::Delete(JOB, Pick::Oldest),
            ],
        ),
        small(
            "gc-after-kill",
            vec![Step::CreateStore, first(), second(), killed()],
            vec![Step::Gc(JOB)],
        ),
        small(
            "resume-after-kill",
            vec![Step::CreateStore, first(), killed()],
            vec![Step::Delete(JOB, Pick::Oldest), sync(resumed())],
        ),
        small(
            "resume-twice",
            vec![Step::CreateStore, first(), second(), unfinished()],
            vec![
                Step::Sync(Run {
                    checkpoints: vec![1],
                    stop: Some(2),
                    ..run(resumed())
                }),
                Step::Delete(JOB, Pick::Newest),
                third(),
            ],
        ),
        Workload {
            disks: vec![("vda", SMALL), ("vdb", 3 * K16)],
            ..small(
                "unfinished-second-disk",
                vec![Step::CreateStore, sync(vec![text(0, 1), on_second(noise(1, 3))])],
                vec![
                    Step::Sync(Run {
                        checkpoints: vec![1, 2],
                        stop: Some(3),
                        ..run(vec![
                            noise(3, 80),
                            on_second(noise(0, 81)),
                            on_second(text(1, 82)),
                        ])
                    }),
                    Step::Gc(JOB),
                    sync(vec![on_second(noise(0, 83))]),
                ],
            )
        },
    ]
}
