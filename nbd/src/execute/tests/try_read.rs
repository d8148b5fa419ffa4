//! Reads that are answered without a thread.

use super::*;
use crate::proto::ExtendedChunkHeader;
use ReplyStyle::Extended;

/// Has the bytes at hand, or knows that they are zeros, or neither.
struct AtHand(Ready);

impl Export for AtHand {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), ExportError> {
        unreachable!("nothing is read with waiting")
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Ready {
        // Whatever is not data leaves dirt behind.
        let base = if self.0 == Ready::Data { offset } else { 0x5a };
        for (at, byte) in (base..).zip(buf) {
            *byte = u8::try_from(at % 251).unwrap();
        }
        self.0
    }

    fn extents(&self, _: u64, _: u64) -> Result<Vec<Extent>, ExportError> {
        unreachable!("nothing is mapped")
    }
}

/// What is appended to a batch that has something in it, if the read is done.
fn answered(ready: Ready, style: ReplyStyle, whole: bool) -> Option<Vec<u8>> {
    let mut batch = ReplyBuffer::default();
    batch.push(b"before");
    let done = try_read(&AtHand(ready), style, &read(512, 100, whole), &mut batch);
    let (before, reply) = batch.filled().split_at(6);
    assert_eq!(before, b"before");
    assert_eq!(done, !reply.is_empty());
    done.then(|| reply.to_vec())
}

#[test]
fn what_is_at_hand_is_one_data_chunk() {
    let data: Vec<u8> = (512..612_u64).map(|at| u8::try_from(at % 251).unwrap()).collect();
    for whole in [false, true] {
        let found = chunks(&answered(Ready::Data, Structured, whole).unwrap());
        assert_eq!((found.len(), found[0].1), (1, 1));
        assert_eq!(assemble(&found, 512, 100), (data.clone(), None));
    }
    let simple = answered(Ready::Data, Simple, true).unwrap();
    assert_eq!((be32(&simple[4..]), &simple[16..]), (0, &data[..]));
    let extended = answered(Ready::Data, Extended, false).unwrap();
    let (header, payload) = ExtendedChunkHeader::read_from_prefix(&extended).unwrap();
    assert_eq!(
        (header.flags.get(), header.kind.get(), header.offset.get()),
        (1, 1, 512)
    );
    assert_eq!(
        (header.length.get(), be64(payload), &payload[8..]),
        (108, 512, &data[..])
    );
}

#[test]
fn zeros_are_a_hole_unless_they_must_come_as_bytes() {
    let found = chunks(&answered(Ready::Zeros, Structured, false).unwrap());
    assert_eq!((found.len(), found[0].1), (1, 2));
    assert_eq!(assemble(&found, 512, 100), (vec![0; 100], None));
    // T5: DF has zeros in its one data chunk, and so has a simple reply.
    let found = chunks(&answered(Ready::Zeros, Structured, true).unwrap());
    assert_eq!((found.len(), found[0].1), (1, 1));
    assert_eq!(assemble(&found, 512, 100), (vec![0; 100], None));
    let simple = answered(Ready::Zeros, Simple, true).unwrap();
    assert_eq!((be32(&simple[4..]), &simple[16..]), (0, &[0; 100][..]));
}

#[test]
fn what_is_not_at_hand_leaves_no_trace() {
    for style in [Simple, Structured, Extended] {
        assert_eq!(answered(Ready::No, style, true), None);
    }
}
