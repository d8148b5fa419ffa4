//! Random sequences of requests against a flat array of bytes.

use proptest::prelude::*;

use super::*;
use crate::Zeroing;
use crate::overlay::cluster::SECTOR_LEN;

/// Requests; where they lie is cut to the export's size.
#[derive(Debug, Clone)]
enum Request {
    Write(u8),
    Zero(Zeroing),
    Trim,
    Read,
    Extents,
    /// Writes to what is said to have space.
    Fill(u8),
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        4 => any::<u8>().prop_map(Request::Write),
        2 => any::<(bool, bool)>().prop_map(|(no_hole, fast)| Request::Zero(Zeroing { no_hole, fast })),
        2 => Just(Request::Trim),
        2 => Just(Request::Read),
        1 => Just(Request::Extents),
        1 => any::<u8>().prop_map(Request::Fill),
    ]
}

/// Ranges that lie anyhow, at sectors, at clusters or near their borders.
fn place(size: u64) -> impl Strategy<Value = Range<u64>> {
    let unit = prop_oneof![3 => Just(1), 2 => Just(512), 1 => Just(CLUSTER)];
    let length = prop_oneof![3 => 1..2000u64, 1 => 1..3 * CLUSTER];
    (0..size, length, unit).prop_map(move |(start, length, unit)| {
        let start = start / unit * unit;
        start..(start + length.div_ceil(unit) * unit).min(size)
    })
}

#[derive(Debug)]
struct Script {
    base: Vec<u8>,
    damaged: Range<u64>,
    memory: u64,
    limit: u64,
    requests: Vec<(Request, Range<u64>)>,
}

fn script() -> impl Strategy<Value = Script> {
    let size = prop_oneof![
        Just(1),
        Just(511),
        Just(700),
        Just(CLUSTER),
        Just(4 * CLUSTER),
        Just(CLUSTER + 1),
        3 * CLUSTER..4 * CLUSTER
    ];
    size.prop_flat_map(|size| {
        let damaged = prop_oneof![
            Just(0..0),
            (0..size, 1..5000u64).prop_map(|(at, length)| at..at + length)
        ];
        let zeros = (0..size, 0..2 * CLUSTER);
        let requests = prop::collection::vec((request(), place(size)), 1..40);
        (
            Just(size),
            damaged,
            zeros,
            0..3u64,
            prop_oneof![0..4u64, Just(8)],
            requests,
        )
    })
    .prop_map(
        |(size, damaged, (zero, length), memory, limit, requests)| Script {
            base: (0..size)
                .map(|at| {
                    if (zero..zero + length).contains(&at) {
                        0
                    } else {
                        pattern(at)
                    }
                })
                .collect(),
            damaged,
            memory,
            limit,
            requests,
        },
    )
}

/// An overlay beside what it should look like: bytes, or `None` where they cannot be read.
struct Pair {
    overlay: Overlay,
    space: Arc<Space>,
    flat: Vec<Option<u8>>,
}

impl Pair {
    fn run(&mut self, request: &Request, range: &Range<u64>) {
        let (offset, length) = (range.start, range.end - range.start);
        match request {
            Request::Read => self.check(range),
            Request::Extents => drop(self.extents(range)),
            Request::Fill(seed) => self.fill(range, *seed),
            Request::Write(seed) => {
                let data: Vec<u8> = range.clone().map(|at| written(at, *seed)).collect();
                let result = self.overlay.write_at(offset, &data);
                self.change(range, result, &data);
            }
            Request::Zero(how) => {
                let result = self.overlay.write_zeroes(offset, length, *how);
                self.change(range, result, &vec![0; length as usize]);
            }
            Request::Trim => {
                self.overlay.trim(offset, length).unwrap();
                let whole = self.whole_sectors(range);
                self.flat[whole.start as usize..whole.end as usize].fill(Some(0));
            }
        }
    }

    /// Follows what a request should have done to the range.
    fn change(&mut self, range: &Range<u64>, result: Result<(), ExportError>, data: &[u8]) {
        let is_damaged = self
            .edge_sectors(range)
            .any(|sector| self.slice(&sector).contains(&None));
        match result.map_err(|error| error.kind) {
            Ok(()) => {
                assert!(!is_damaged, "a sector was made up");
                let place = &mut self.flat[range.start as usize..range.end as usize];
                place
                    .iter_mut()
                    .zip(data)
                    .for_each(|(place, &byte)| *place = Some(byte));
            }
            Err(FailureKind::Io) => assert!(is_damaged),
            Err(FailureKind::NoSpace) => self.adopt(range, data),
            Err(kind) => panic!("{kind:?}"),
        }
    }

    /// Takes over what a request left that ran out of space: each sector as before or as it was
    /// to become.
    fn adopt(&mut self, range: &Range<u64>, data: &[u8]) {
        let needed = range.end.div_ceil(CLUSTER) - range.start / CLUSTER;
        assert!(self.space.used_bytes() + needed * CLUSTER > self.space.limit_bytes());
        for sector in self.sectors(range) {
            let old = self.slice(&sector).to_vec();
            let new = sector.clone().zip(&old).map(|(at, old)| {
                let written = range.contains(&at).then(|| data[(at - range.start) as usize]);
                written.or(*old)
            });
            let new: Vec<_> = new.collect();
            let mut buf = vec![0; old.len()];
            let now: Vec<_> = match self.overlay.read_at(sector.start, &mut buf) {
                Ok(()) => buf.into_iter().map(Some).collect(),
                Err(_) => old.clone(),
            };
            assert!(now == old || now == new);
            self.flat[sector.start as usize..sector.end as usize].copy_from_slice(&now);
        }
    }

    /// Checks every byte of the range, in runs that can be read and ones that cannot.
    fn check(&self, range: &Range<u64>) {
        let mut at = range.start;
        for run in self.slice(range).chunk_by(|a, b| a.is_some() == b.is_some()) {
            let mut buf = vec![0xEE; run.len()];
            let result = self.overlay.read_at(at, &mut buf);
            match run.iter().copied().collect::<Option<Vec<u8>>>() {
                Some(bytes) => {
                    result.unwrap();
                    assert!(buf == bytes, "at {at}");
                    self.check_ready(at, &bytes);
                }
                None => assert_eq!(kind(result), Some(FailureKind::Io)),
            }
            at += run.len() as u64;
        }
    }

    fn check_ready(&self, at: u64, bytes: &[u8]) {
        let mut buf = vec![0xEE; bytes.len()];
        match self.overlay.try_read_at(at, &mut buf) {
            Ready::No => {}
            Ready::Data => assert!(buf == bytes, "at {at}"),
            Ready::Zeros => assert!(bytes.iter().all(|&byte| byte == 0), "at {at}"),
        }
    }

    /// All extents of the range, after checks that they hold.
    fn extents(&self, range: &Range<u64>) -> Vec<(Range<u64>, u32)> {
        let mut at = range.start;
        let mut all = Vec::new();
        while at < range.end {
            let reported = self.overlay.allocation(at, range.end - at).unwrap();
            assert!(!reported.is_empty());
            assert!(
                reported.windows(2).all(|pair| pair[0].flags != pair[1].flags),
                "not merged"
            );
            for Extent { length, flags } in reported {
                assert!(length > 0);
                let run = at..at + length;
                at = run.end;
                if flags & ZERO != 0 {
                    assert!(self.slice(&run).iter().all(|&byte| byte == Some(0)), "{run:?}");
                }
                all.push((run, flags));
            }
        }
        assert_eq!(at, range.end);
        all
    }

    /// What is said to have space can be written and zeroed, however little space there is.
    fn fill(&mut self, range: &Range<u64>, seed: u8) {
        for (run, _) in self
            .extents(range)
            .into_iter()
            .filter(|(_, flags)| flags & HOLE == 0)
        {
            let data: Vec<u8> = run.clone().map(|at| written(at, seed)).collect();
            let (offset, length) = (run.start, data.len() as u64);
            let no_hole = Zeroing {
                no_hole: true,
                fast: seed.is_multiple_of(2),
            };
            self.overlay.write_zeroes(offset, length, no_hole).unwrap();
            self.overlay.write_at(offset, &data).unwrap();
            self.change(&run, Ok(()), &data);
        }
    }

    fn slice(&self, range: &Range<u64>) -> &[Option<u8>] {
        &self.flat[range.start as usize..range.end as usize]
    }

    fn size(&self) -> u64 {
        self.flat.len() as u64
    }

    /// Every sector that the range touches.
    fn sectors(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let unit = SECTOR_LEN as u64;
        let numbers = range.start / unit..range.end.div_ceil(unit);
        numbers
            .map(|number| number * unit..((number + 1) * unit).min(self.size()))
            .collect()
    }

    /// Sectors that the range covers in part.
    fn edge_sectors(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let Range { start, end } = *range;
        self.sectors(range)
            .into_iter()
            .filter(move |sector| sector.start < start || sector.end > end)
    }

    fn whole_sectors(&self, range: &Range<u64>) -> Range<u64> {
        let edges: Vec<_> = self.edge_sectors(range).collect();
        let whole = self
            .sectors(range)
            .into_iter()
            .filter(|sector| !edges.contains(sector));
        whole.reduce(|a, b| a.start..b.end).unwrap_or(0..0)
    }
}

fn written(at: u64, seed: u8) -> u8 {
    (at % 199) as u8 ^ seed
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_overlay_is_a_flat_file(script in script()) {
        let base = Arc::new(Flat { bytes: script.base, damaged: script.damaged });
        let space = space(script.memory, script.limit);
        let flat = (0..base.size_bytes()).map(|at| base.byte(at)).collect();
        let overlay = over(base, &space);
        let mut pair = Pair { overlay, space, flat };
        for (request, range) in &script.requests {
            pair.run(request, range);
            pair.check(range);
            prop_assert!(pair.space.used_bytes() <= pair.space.limit_bytes());
        }
        let everything = 0..pair.size();
        pair.check(&everything);
        pair.extents(&everything);
        let Pair { overlay, space, .. } = pair;
        drop(overlay);
        prop_assert_eq!(space.used_bytes(), 0);
        prop_assert_eq!(allocated(&space), 0);
    }
}
