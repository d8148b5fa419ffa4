//! Requests that change an export, and the flush that makes changes last.

use std::sync::Mutex;

use super::*;
use crate::Zeroing;
use crate::proto::ExtendedChunkHeader;
use ReplyStyle::Extended;

/// Notes what it is asked for; may fail.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
    fails: Option<ExportError>,
    flush_fails: bool,
}

impl Recorder {
    fn note(&self, call: String) -> Result<(), ExportError> {
        self.calls.lock().unwrap().push(call);
        self.fails.clone().map_or(Ok(()), Err)
    }
}

impl Export for Recorder {
    fn size_bytes(&self) -> u64 {
        1 << 40
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), ExportError> {
        unreachable!("nothing is read")
    }

    fn extents(&self, _: u64, _: u64) -> Result<Vec<Extent>, ExportError> {
        unreachable!("nothing is mapped")
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), ExportError> {
        self.note(format!("zero {offset}+{length} {} {}", how.no_hole, how.fast))
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.note(format!("trim {offset}+{length}"))
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.note(format!("cache {offset}+{length}"))
    }

    fn flush(&self) -> Result<(), ExportError> {
        self.calls.lock().unwrap().push("flush".into());
        if self.flush_fails {
            return Err(ExportError::io(77, "the disk is gone"));
        }
        Ok(())
    }
}

/// What an export was asked for, and the reply.
fn done(export: Recorder, style: ReplyStyle, kind: OperationKind, durable: bool) -> (Vec<String>, Vec<u8>) {
    let export = Arc::new(export);
    let (offset, length) = if kind == OperationKind::Flush {
        (0, 0)
    } else {
        (1000, 1 << 33)
    };
    let operation = Operation {
        cookie: COOKIE,
        offset,
        length,
        kind,
        durable,
    };
    let mut execution = Execution::new(Arc::<Recorder>::clone(&export), style, operation);
    let mut buffer = ReplyBuffer::default();
    execution.step(&mut buffer);
    assert!(execution.is_finished());
    let calls = std::mem::take(&mut *export.calls.lock().unwrap());
    (calls, buffer.filled().to_vec())
}

/// The error in a reply of any style, 0 for a success, and the offset if one is told.
fn verdict(style: ReplyStyle, reply: &[u8]) -> (u32, Option<u64>) {
    let (kind, payload) = match style {
        Simple => {
            assert_eq!(reply.len(), 16);
            return (be32(&reply[4..]), None);
        }
        Structured => {
            let (flags, kind, payload) = chunks(reply).remove(0);
            assert_eq!(flags, 1);
            (kind, payload)
        }
        Extended => {
            let (header, payload) = ExtendedChunkHeader::read_from_prefix(reply).unwrap();
            assert_eq!(header.flags.get(), 1);
            (header.kind.get(), payload.to_vec())
        }
    };
    match kind {
        0 => (0, None),
        0x8001 => (be32(&payload), None),
        0x8002 => (be32(&payload), Some(be64(&payload[payload.len() - 8..]))),
        other => panic!("chunk type {other}"),
    }
}

const STYLES: [ReplyStyle; 3] = [Simple, Structured, Extended];

fn zeroing(no_hole: bool, fast: bool) -> OperationKind {
    OperationKind::WriteZeroes(Zeroing { no_hole, fast })
}

#[test]
fn every_operation_reaches_its_export_with_what_was_asked() {
    let cases = [
        (OperationKind::Trim, "trim 1000+8589934592"),
        (OperationKind::Cache, "cache 1000+8589934592"),
        (OperationKind::Flush, "flush"),
        (zeroing(false, false), "zero 1000+8589934592 false false"),
        (zeroing(true, false), "zero 1000+8589934592 true false"),
        (zeroing(false, true), "zero 1000+8589934592 false true"),
    ];
    for style in STYLES {
        for (kind, call) in &cases {
            let (calls, reply) = done(Recorder::default(), style, kind.clone(), false);
            assert_eq!(calls, [*call]);
            assert_eq!(verdict(style, &reply), (0, None));
        }
    }
}

#[test]
fn t8_fua_flushes_after_the_change_and_only_if_that_succeeded() {
    for kind in [OperationKind::Trim, zeroing(false, false)] {
        let (calls, reply) = done(Recorder::default(), Structured, kind.clone(), true);
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[1], "flush");
        assert_eq!(verdict(Structured, &reply), (0, None));
        let failing = Recorder {
            fails: Some(ExportError::io(1000, "no")),
            ..Recorder::default()
        };
        let (calls, reply) = done(failing, Structured, kind, true);
        assert_eq!(calls.len(), 1);
        assert_eq!(verdict(Structured, &reply), (5, Some(1000)));
    }
    let (calls, _) = done(Recorder::default(), Structured, OperationKind::Flush, true);
    assert_eq!(calls, ["flush"]);
}

#[test]
fn t8_a_flush_that_fails_fails_the_change_that_asked_for_it() {
    for style in STYLES {
        let export = Recorder {
            flush_fails: true,
            ..Recorder::default()
        };
        let (_, reply) = done(export, style, OperationKind::Trim, true);
        let (error, offset) = verdict(style, &reply);
        assert_eq!(error, 5);
        let within = 1000..1000 + (1 << 33);
        assert!(offset.is_none_or(|offset| within.contains(&offset)), "{offset:?}");
    }
}

/// An offset in the reply would have to lie within a request that has no bytes; the protocol does
/// not allow one for FLUSH.
#[test]
fn t7_a_failed_flush_is_an_error_without_an_offset() {
    for style in STYLES {
        let export = Recorder {
            flush_fails: true,
            ..Recorder::default()
        };
        let (_, reply) = done(export, style, OperationKind::Flush, false);
        assert_eq!(verdict(style, &reply), (5, None), "{style:?}");
    }
}

#[test]
fn every_kind_of_failure_has_its_error_and_its_text() {
    let kinds = [
        (FailureKind::Io, 5),
        (FailureKind::NoSpace, 28),
        (FailureKind::NotFast, 95),
        (FailureKind::ReadOnly, 1),
        (FailureKind::Invalid, 22),
    ];
    for (kind, errno) in kinds {
        for style in STYLES {
            let fails = Some(ExportError::new(kind, 5000, "no luck today"));
            let export = Recorder {
                fails,
                ..Recorder::default()
            };
            let (_, reply) = done(export, style, zeroing(false, true), false);
            let offset = style.has_chunks().then_some(5000);
            assert_eq!(verdict(style, &reply), (errno, offset));
            let text = reply.windows(13).any(|window| window == b"no luck today");
            assert_eq!(text, style.has_chunks());
        }
    }
}

#[test]
fn an_error_is_placed_within_its_request_whatever_the_export_says() {
    for (reported, placed) in [(0, 1000), (999, 1000), (1000, 1000), (u64::MAX, 999 + (1 << 33))] {
        let export = Recorder {
            fails: Some(ExportError::io(reported, "somewhere")),
            ..Recorder::default()
        };
        let (_, reply) = done(export, Extended, OperationKind::Trim, false);
        assert_eq!(verdict(Extended, &reply), (5, Some(placed)));
    }
}

#[test]
fn a_cache_hint_that_fails_is_no_error() {
    for style in STYLES {
        let export = Recorder {
            fails: Some(ExportError::io(0, "not now")),
            ..Recorder::default()
        };
        let (calls, reply) = done(export, style, OperationKind::Cache, false);
        assert_eq!((calls.len(), verdict(style, &reply)), (1, (0, None)));
    }
}

/// An export that does nothing but write, for what the trait does by itself.
struct OnlyWrites(Mutex<Vec<u8>>);

impl Export for OnlyWrites {
    fn size_bytes(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), ExportError> {
        unreachable!("nothing is read")
    }

    fn extents(&self, _: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::data(length)])
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        let start = usize::try_from(offset).unwrap();
        self.0.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn t14_zeroing_by_writing_is_complete_and_never_fast() {
    let full = vec![0xff; 600_000];
    for (offset, length) in [(0, 600_000), (1, 1), (3, 262_144), (5, 262_145), (99, 524_288)] {
        let export = OnlyWrites(Mutex::new(full.clone()));
        export
            .write_zeroes(offset as u64, length as u64, Zeroing::default())
            .unwrap();
        let mut expected = full.clone();
        expected[offset..offset + length].fill(0);
        assert!(*export.0.lock().unwrap() == expected, "{offset}+{length}");
    }
    let export = OnlyWrites(Mutex::new(full.clone()));
    let fast = Zeroing {
        fast: true,
        no_hole: false,
    };
    assert_eq!(
        export.write_zeroes(0, 512, fast).unwrap_err().kind,
        FailureKind::NotFast
    );
    assert!(
        *export.0.lock().unwrap() == full,
        "a refused zeroing changed something"
    );
}
