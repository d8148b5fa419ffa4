//! BLOCK_STATUS with several contexts and with extended headers.

use super::*;
use crate::proto::ExtendedChunkHeader;
use ReplyStyle::Extended;

/// Each context has extents of its own; `broken` fails.
struct Mapped;

const LARGE: u64 = 1 << 50;

impl Export for Mapped {
    fn size_bytes(&self) -> u64 {
        LARGE
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), ExportError> {
        unreachable!("nothing is read for a block status")
    }

    fn extents(&self, _: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::hole(length)])
    }

    fn status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        match context {
            "x:changed" => Ok([(3, 1), (length - 3, 0)]
                .map(|(length, flags)| Extent { length, flags })
                .into()),
            "x:flags" => Ok(vec![Extent {
                length: u64::MAX,
                flags: u32::MAX,
            }]),
            _ => Err(ExportError::new(FailureKind::Io, offset, "this map is lost")),
        }
    }
}

fn asked(style: ReplyStyle, names: &[&str], offset: u64, length: u64, one: bool) -> Vec<Vec<u8>> {
    let contexts = (5..).zip(names).map(|(id, name)| Context {
        id,
        name: (*name).to_owned(),
    });
    let operation = Operation {
        cookie: COOKIE,
        offset,
        length,
        kind: OperationKind::BlockStatus {
            one,
            contexts: contexts.collect(),
        },
        durable: false,
    };
    let mut execution = Execution::new(Arc::new(Mapped), style, operation);
    let mut steps = Vec::new();
    while !execution.is_finished() {
        let mut buffer = ReplyBuffer::default();
        execution.step(&mut buffer);
        assert!(buffer.len() <= execution.step_bytes());
        steps.push(buffer.filled().to_vec());
    }
    steps
}

/// The only chunk in some bytes: its flags, type and payload.
fn extended_chunk(bytes: &[u8], offset: u64) -> Chunk {
    let (header, payload) = ExtendedChunkHeader::read_from_prefix(bytes).unwrap();
    assert_eq!((header.magic.get(), header.cookie.get()), (0x6e8a_278c, COOKIE));
    assert_eq!(header.offset.get(), offset, "the request's offset is repeated");
    assert_eq!(header.length.get(), payload.len() as u64);
    (header.flags.get(), header.kind.get(), payload.to_vec())
}

/// The context and the descriptors of an extended block status chunk.
fn descriptors_in((_, kind, payload): &Chunk) -> (u32, Vec<(u64, u64)>) {
    assert_eq!(*kind, 6);
    let found: Vec<_> = payload[8..]
        .chunks(16)
        .map(|one| (be64(one), be64(&one[8..])))
        .collect();
    assert_eq!(be32(&payload[4..]) as usize, found.len());
    (be32(payload), found)
}

#[test]
fn t6_every_context_has_one_chunk_and_the_last_one_is_done() {
    let names = ["x:changed", BASE_ALLOCATION, "x:changed"];
    let found: Vec<Chunk> = asked(Structured, &names, 100, 4096, false)
        .iter()
        .flat_map(|step| chunks(step))
        .collect();
    let reported: Vec<(u16, u16, u32)> = found
        .iter()
        .map(|(flags, kind, payload)| (*flags, *kind, be32(payload)))
        .collect();
    assert_eq!(reported, [(0, 5, 5), (0, 5, 6), (1, 5, 7)]);
    assert_eq!(
        found[0].2[4..],
        [0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0x0f, 0xfd, 0, 0, 0, 0]
    );
    assert_eq!(found[1].2[4..], [0, 0, 0x10, 0, 0, 0, 0, 3]);
}

#[test]
fn t6_a_context_that_fails_ends_the_reply_with_its_error() {
    for names in [&["x:lost"][..], &[BASE_ALLOCATION, "x:lost", "x:changed"]] {
        let found: Vec<Chunk> = asked(Structured, names, 100, 4096, false)
            .iter()
            .flat_map(|step| chunks(step))
            .collect();
        assert_eq!(found.len(), names.len().min(2));
        let (flags, kind, payload) = found.last().unwrap();
        assert_eq!((*flags, *kind, be32(payload)), (1, 0x8002, 5));
        assert_eq!(&payload[6..payload.len() - 8], b"this map is lost");
    }
}

#[test]
fn n9_extended_descriptors_have_64_bits_and_nothing_is_cut() {
    let steps = asked(
        Extended,
        &[BASE_ALLOCATION, "x:changed", "x:flags"],
        4096,
        LARGE - 4096,
        false,
    );
    let found: Vec<Chunk> = steps.iter().map(|step| extended_chunk(step, 4096)).collect();
    assert_eq!(found.iter().map(|chunk| chunk.0).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!(descriptors_in(&found[0]), (5, vec![(LARGE - 4096, 3)]));
    assert_eq!(descriptors_in(&found[1]), (6, vec![(3, 1), (LARGE - 4099, 0)]));
    assert_eq!(
        descriptors_in(&found[2]),
        (7, vec![(LARGE - 4096, u32::MAX.into())])
    );
}

#[test]
fn t6_req_one_has_one_extended_descriptor_within_the_request() {
    for (name, first) in [(BASE_ALLOCATION, 1 << 40), ("x:changed", 3), ("x:flags", 1 << 40)] {
        let steps = asked(Extended, &[name], 7, 1 << 40, true);
        let (_, found) = descriptors_in(&extended_chunk(&steps[0], 7));
        assert_eq!(found.iter().map(|one| one.0).collect::<Vec<_>>(), [first]);
    }
}

#[test]
fn t2_t3_extended_reads_have_extended_chunks_only() {
    let layout = [(4096, DATA), (4096, ZEROS), (4096, DATA)];
    let model = Patterned::new(&layout);
    for whole in [false, true] {
        let export = Patterned {
            bad: Some(10_000),
            ..Patterned::new(&layout)
        };
        let mut execution = Execution::new(Arc::new(export), Extended, read(512, 8192, whole));
        let mut buffer = ReplyBuffer::default();
        while !execution.is_finished() {
            execution.step(&mut buffer);
        }
        let mut bytes = buffer.filled();
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (header, _) = ExtendedChunkHeader::read_from_prefix(bytes).unwrap();
            let (chunk, rest) = bytes.split_at(32 + usize::try_from(header.length.get()).unwrap());
            found.push(extended_chunk(chunk, 512));
            bytes = rest;
        }
        let (data, error) = assemble(&found, 512, 8192);
        assert_eq!(error, None);
        assert_eq!(data, expected(&model, 512, 8192));
        assert_eq!(found.len(), if whole { 1 } else { 3 });
    }
    let export = Patterned {
        bad: Some(600),
        ..Patterned::new(&layout)
    };
    let mut execution = Execution::new(Arc::new(export), Extended, read(512, 512, true));
    let mut buffer = ReplyBuffer::default();
    execution.step(&mut buffer);
    let failed = extended_chunk(buffer.filled(), 512);
    assert_eq!(assemble(&[failed], 512, 512), (vec![], Some(600)));
}
