//! Replies with content, checked by a client that knows the protocol's rules.

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::HOLE;
use crate::proto::{ChunkHeader, SimpleReply};

mod changes;
mod contexts;
mod try_read;

const COOKIE: u64 = 42;

/// Extents over bytes that tell their own offset; a range can be bad.
struct Patterned {
    extents: Vec<Extent>,
    bad: Option<u64>,
    map_fails: bool,
    panics: bool,
}

impl Patterned {
    fn new(extents: &[(u64, u32)]) -> Self {
        let extents = extents
            .iter()
            .map(|&(length, flags)| Extent { length, flags })
            .collect();
        Self {
            extents,
            bad: None,
            map_fails: false,
            panics: false,
        }
    }

    fn flags_at(&self, offset: u64) -> u32 {
        let mut end = 0;
        for extent in &self.extents {
            end += extent.length;
            if offset < end {
                return extent.flags;
            }
        }
        DATA
    }

    fn byte_at(&self, offset: u64) -> u8 {
        match self.flags_at(offset) {
            DATA => u8::try_from(offset % 251).unwrap() + 1,
            _ => 0,
        }
    }
}

impl Export for Patterned {
    fn size_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        assert!(!self.panics, "the test's export panics here");
        for (at, byte) in (offset..).zip(buf.iter_mut()) {
            if self.bad == Some(at) {
                return Err(ExportError::io(at, "damaged"));
            }
            *byte = self.byte_at(at);
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        if self.map_fails {
            return Err(ExportError::io(0, "no map"));
        }
        let (mut found, mut start) = (Vec::new(), 0);
        for extent in &self.extents {
            let end = start + extent.length;
            if end > offset && start < offset + length {
                found.push(Extent {
                    length: end - start.max(offset),
                    flags: extent.flags,
                });
            }
            start = end;
        }
        Ok(found)
    }
}

/// A chunk's flags, type and payload.
type Chunk = (u16, u16, Vec<u8>);

fn run(export: Patterned, structured: bool, operation: Operation) -> Vec<u8> {
    let style = if structured { Structured } else { Simple };
    let mut execution = Execution::new(Arc::new(export), style, operation);
    let mut out = Vec::new();
    while !execution.is_finished() {
        let bound = execution.step_bytes();
        let mut buffer = ReplyBuffer::default();
        execution.step(&mut buffer);
        let bytes = buffer.filled();
        assert!(!bytes.is_empty(), "a step without progress");
        let data: usize = if structured {
            chunks(bytes)
                .iter()
                .filter(|chunk| chunk.1 == 1)
                .map(|chunk| chunk.2.len() - 8)
                .sum()
        } else {
            bytes.len() - 16
        };
        assert!(data <= bound, "a step held more than it was granted");
        out.extend(bytes);
    }
    out
}

fn chunks(mut bytes: &[u8]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let (header, rest) = ChunkHeader::read_from_prefix(bytes).unwrap();
        assert_eq!((header.magic.get(), header.cookie.get()), (0x668e_33ef, COOKIE));
        let (payload, rest) = rest.split_at(header.length.get() as usize);
        chunks.push((header.flags.get(), header.kind.get(), payload.to_vec()));
        bytes = rest;
    }
    chunks
}

fn operation(offset: u64, length: u32, kind: OperationKind) -> Operation {
    Operation {
        cookie: COOKIE,
        offset,
        length: length.into(),
        kind,
        durable: false,
    }
}

fn read(offset: u64, length: u32, whole: bool) -> Operation {
    operation(offset, length, OperationKind::Read { whole })
}

fn status(offset: u64, length: u32, one: bool) -> Operation {
    let contexts = [Context {
        id: 1,
        name: BASE_ALLOCATION.to_owned(),
    }]
    .into();
    operation(offset, length, OperationKind::BlockStatus { one, contexts })
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// Puts a read together and checks T3: bounds, order, no empty chunk, DONE once and last.
/// Returns the bytes up to the first error and the error's offset.
fn assemble(chunks: &[Chunk], offset: u64, length: u32) -> (Vec<u8>, Option<u64>) {
    let (mut bytes, mut error) = (Vec::new(), None);
    for (index, (flags, kind, payload)) in chunks.iter().enumerate() {
        assert_eq!(
            *flags == 1,
            index + 1 == chunks.len(),
            "DONE is on the last chunk only"
        );
        let next = offset + bytes.len() as u64;
        match kind {
            1 => {
                assert_eq!(be64(payload), next, "chunks follow each other");
                assert!(payload.len() > 8, "an empty data chunk");
                bytes.extend(&payload[8..]);
            }
            2 => {
                assert_eq!((be64(payload), payload.len()), (next, 12));
                assert_ne!(be32(&payload[8..]), 0, "an empty hole");
                bytes.resize(bytes.len() + be32(&payload[8..]) as usize, 0);
            }
            0x8002 => {
                assert_eq!(be32(payload), 5);
                let at = be64(&payload[payload.len() - 8..]);
                assert!(
                    (next..offset + u64::from(length)).contains(&at),
                    "an error out of bounds"
                );
                error = Some(at);
            }
            other => panic!("chunk type {other} in a read"),
        }
    }
    assert!(bytes.len() <= length as usize);
    (bytes, error)
}

fn expected(export: &Patterned, offset: u64, length: u32) -> Vec<u8> {
    (offset..offset + u64::from(length))
        .map(|at| export.byte_at(at))
        .collect()
}

const DATA: u32 = 0;
const ZEROS: u32 = HOLE | ZERO;
use ReplyStyle::{Simple, Structured};

#[test]
fn t3_holes_are_skipped_and_everything_is_covered() {
    let layout = [
        (5000, DATA),
        (4096, ZEROS),
        (10, DATA),
        (10, DATA),
        (3 << 20, ZEROS),
        (3 << 20, DATA),
    ];
    let all = Patterned::new(&layout).size_bytes();
    let length = u32::try_from(all).unwrap();
    let found = chunks(&run(Patterned::new(&layout), true, read(0, length, false)));
    let kinds: Vec<u16> = found.iter().map(|chunk| chunk.1).collect();
    assert_eq!(kinds[..4], [1, 2, 1, 2]);
    let holes: usize = found.iter().filter(|chunk| chunk.1 == 2).count();
    assert_eq!(holes, 2);
    let (bytes, error) = assemble(&found, 0, length);
    assert_eq!(
        (bytes, error),
        (expected(&Patterned::new(&layout), 0, length), None)
    );
}

#[test]
fn t4_a_simple_read_that_fails_has_an_error_and_no_data() {
    let export = Patterned {
        bad: Some(700),
        ..Patterned::new(&[(4096, DATA)])
    };
    let reply = run(export, false, read(512, 512, true));
    let simple = SimpleReply::read_from_bytes(&reply[..]).unwrap();
    assert_eq!((simple.error.get(), simple.cookie.get()), (5, COOKIE));
    let good = run(Patterned::new(&[(4096, DATA)]), false, read(512, 512, true));
    assert_eq!(good.len(), 16 + 512);
    assert_eq!(good[16..], expected(&Patterned::new(&[(4096, DATA)]), 512, 512));
}

#[test]
fn t5_df_gets_one_data_chunk_with_the_zeros_in_it() {
    let layout = [(4096, DATA), (3 << 20, ZEROS), (4096, DATA)];
    let length = (3 << 20) + 4096;
    let found = chunks(&run(Patterned::new(&layout), true, read(7, length, true)));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1, 1);
    assert_eq!(
        assemble(&found, 7, length).0,
        expected(&Patterned::new(&layout), 7, length)
    );
}

#[test]
fn t3_an_error_is_placed_at_its_offset_and_ends_the_reply() {
    let layout = [(4096, ZEROS), (3 << 20, DATA)];
    let bad = 4096 + (2 << 20) + 5;
    for whole in [false, true] {
        let export = Patterned {
            bad: Some(bad),
            ..Patterned::new(&layout)
        };
        let found = chunks(&run(export, true, read(0, 3 << 20, whole)));
        let (bytes, error) = assemble(&found, 0, 3 << 20);
        assert_eq!(error, Some(bad));
        let good = u32::try_from(bytes.len()).unwrap();
        assert_eq!(bytes, expected(&Patterned::new(&layout), 0, good));
        let text = &found.last().unwrap().2;
        assert_eq!(&text[6..13], b"damaged");
    }
}

#[test]
fn a_panic_of_the_export_is_an_error_of_its_request() {
    for structured in [false, true] {
        let export = Patterned {
            panics: true,
            ..Patterned::new(&[(4096, DATA)])
        };
        let reply = run(export, structured, read(0, 4096, !structured));
        if structured {
            assert_eq!(assemble(&chunks(&reply), 0, 4096).1, Some(0));
        } else {
            assert_eq!(be32(&reply[4..]), 5);
        }
    }
}

#[test]
fn a_read_does_not_depend_on_the_map() {
    let export = Patterned {
        map_fails: true,
        ..Patterned::new(&[(3 << 20, DATA)])
    };
    let found = chunks(&run(export, true, read(0, 3 << 20, false)));
    assert_eq!(
        assemble(&found, 0, 3 << 20).0,
        expected(&Patterned::new(&[(3 << 20, DATA)]), 0, 3 << 20)
    );
}

#[test]
fn t10_a_read_of_nothing_succeeds_with_nothing() {
    let none = chunks(&run(Patterned::new(&[(10, DATA)]), true, read(10, 0, false)));
    assert_eq!(none, [(1, 0, vec![])]);
    assert_eq!(
        run(Patterned::new(&[(10, DATA)]), false, read(10, 0, true)).len(),
        16
    );
}

/// The descriptors of a status reply, checked for T6.
fn extents_in(reply: &[u8], length: u32, one: bool) -> Vec<(u32, u32)> {
    let found = chunks(reply);
    assert_eq!(found.len(), 1);
    let (flags, kind, payload) = &found[0];
    assert_eq!((*flags, *kind, be32(payload)), (1, 5, 1));
    let found: Vec<(u32, u32)> = payload[4..].chunks(8).map(|d| (be32(d), be32(&d[4..]))).collect();
    assert!(!found.is_empty() && found.iter().all(|extent| extent.0 > 0));
    let all_but_last: u64 = found[..found.len() - 1]
        .iter()
        .map(|extent| u64::from(extent.0))
        .sum();
    assert!(all_but_last < u64::from(length));
    assert!(!one || (found.len() == 1 && found[0].0 <= length));
    found
}

#[test]
fn t6_neighbours_of_one_kind_are_one_extent() {
    let layout = [(1000, DATA), (1000, DATA), (0, ZEROS), (2000, ZEROS), (1, DATA)];
    let reply = run(Patterned::new(&layout), true, status(500, 3501, false));
    assert_eq!(extents_in(&reply, 3501, false), [(1500, 0), (2000, 3), (1, 0)]);
}

#[test]
fn t6_the_last_extent_may_run_past_the_request_but_req_one_may_not() {
    let layout = [(1000, DATA), (9000, ZEROS)];
    let reply = run(Patterned::new(&layout), true, status(0, 1500, false));
    assert_eq!(extents_in(&reply, 1500, false), [(1000, 0), (9000, 3)]);
    let reply = run(Patterned::new(&layout), true, status(1000, 1500, true));
    assert_eq!(extents_in(&reply, 1500, true), [(1500, 3)]);
}

#[test]
fn n9_extents_beyond_32_bits_are_cut() {
    let layout = [(1 << 40, ZEROS), (1 << 33, DATA)];
    let reply = run(Patterned::new(&layout), true, status(3, u32::MAX, false));
    assert_eq!(extents_in(&reply, u32::MAX, false), [(0xffff_0000, 3)]);
    let reply = run(Patterned::new(&layout), true, status(3, u32::MAX, true));
    assert_eq!(extents_in(&reply, u32::MAX, true), [(0xffff_0000, 3)]);
    let reply = run(Patterned::new(&layout), true, status((1 << 40) - 7, 512, false));
    assert_eq!(extents_in(&reply, 512, false), [(7, 3), (0xffff_0000, 0)]);
}

#[test]
fn t6_an_exports_lies_about_its_extents_make_no_bad_reply() {
    for layout in [&[][..], &[(0, DATA)], &[(u64::MAX, ZEROS), (u64::MAX, DATA)]] {
        struct Liar(Vec<Extent>);
        impl Export for Liar {
            fn size_bytes(&self) -> u64 {
                10_000
            }
            fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ExportError> {
                buf.fill(1);
                Ok(())
            }
            fn extents(&self, _: u64, _: u64) -> Result<Vec<Extent>, ExportError> {
                Ok(self.0.clone())
            }
        }
        let answer = |operation| {
            let reported = layout
                .iter()
                .map(|&(length, flags)| Extent { length, flags })
                .collect();
            let mut buffer = ReplyBuffer::default();
            Execution::new(Arc::new(Liar(reported)), Structured, operation).step(&mut buffer);
            buffer.filled().to_vec()
        };
        let reply = answer(read(100, 1000, false));
        assert_eq!(assemble(&chunks(&reply), 100, 1000).0.len(), 1000);
        let reply = answer(status(100, 1000, false));
        let total: u32 = extents_in(&reply, 1000, false)
            .iter()
            .map(|extent| extent.0)
            .sum();
        assert!(total <= 9900, "past the end of the export");
    }
}

#[test]
fn t6_a_reply_has_a_bounded_number_of_extents() {
    let mut layout = Vec::new();
    for _ in 0..MAX_DESCRIPTORS {
        layout.extend([(1, DATA), (1, ZEROS)]);
    }
    let length = u32::try_from(2 * MAX_DESCRIPTORS).unwrap();
    let reply = run(Patterned::new(&layout), true, status(0, length, false));
    assert_eq!(extents_in(&reply, length, false).len(), MAX_DESCRIPTORS);
}

#[test]
fn a_map_that_fails_is_an_error_at_an_offset_of_the_request() {
    let export = Patterned {
        map_fails: true,
        ..Patterned::new(&[(4096, DATA)])
    };
    let found = chunks(&run(export, true, status(100, 100, false)));
    assert_eq!(assemble(&found, 100, 100).1, Some(100));
}

proptest! {
    #[test]
    fn reads_and_maps_of_any_layout_hold_the_rules(
        layout in prop::collection::vec((1_u64..300_000, any::<bool>()), 1..20),
        at in any::<prop::sample::Index>(),
        span in any::<prop::sample::Index>(),
        bad in prop::option::of(any::<prop::sample::Index>()),
        flag: bool,
    ) {
        let layout: Vec<_> = layout.iter().map(|&(n, zero)| (n, if zero { ZEROS } else { DATA })).collect();
        let model = Patterned::new(&layout);
        let size = usize::try_from(model.size_bytes()).unwrap();
        let offset = at.index(size);
        let length = u32::try_from(1 + span.index(size - offset)).unwrap();
        let offset = offset as u64;
        let bad = bad.map(|bad| bad.index(size) as u64);
        let export = Patterned { bad, ..Patterned::new(&layout) };
        let (bytes, error) = assemble(&chunks(&run(export, true, read(offset, length, flag))), offset, length);
        let good = u32::try_from(bytes.len()).unwrap();
        prop_assert_eq!(&bytes, &expected(&model, offset, good));
        prop_assert_eq!(good < length, error.is_some());
        prop_assert!(error.is_none() || error == bad);
        extents_in(&run(Patterned::new(&layout), true, status(offset, length, flag)), length, flag);
    }
}
