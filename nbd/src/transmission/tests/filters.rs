//! The payload of BLOCK_STATUS, which names the contexts that are wanted.

use super::extended::{LARGE, PAYLOAD_LEN, extended, refused, request};
use super::*;

fn filter(length: u64, ids: &[u32]) -> Vec<u8> {
    let ids = ids.iter().flat_map(|id| id.to_be_bytes());
    length.to_be_bytes().into_iter().chain(ids).collect()
}

fn status(flags: u16, offset: u64, payload: &[u8]) -> Vec<u8> {
    let header = request(
        cmd::BLOCK_STATUS,
        flags | PAYLOAD_LEN,
        offset,
        payload.len() as u64,
    );
    [&header[..], payload].concat()
}

#[test]
fn a_filter_selects_its_contexts_and_carries_the_length() {
    for (flags, wanted) in [(0, &[9, 3][..]), (REQ_ONE, &[7]), (FUA, &[3, 7, 9])] {
        let bytes = status(flags, 5, &filter(LARGE - 5, wanted));
        let found = events(&mut extended(false), &bytes);
        let [Event::Execute(operation)] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((operation.offset, operation.length), (5, LARGE - 5));
        let OperationKind::BlockStatus { one, contexts } = &operation.kind else {
            panic!("{operation:?}")
        };
        assert_eq!(*one, flags == REQ_ONE);
        assert_eq!(contexts.iter().map(|one| one.id).collect::<Vec<_>>(), wanted);
        assert!(contexts.iter().all(|one| one.name == format!("x:{}", one.id)));
    }
}

#[test]
fn t6_filters_that_name_unknown_or_doubled_contexts_or_none_are_read_past_and_invalid() {
    let mut machine = extended(false);
    for ids in [&[1][..], &[3, 0], &[u32::MAX], &[3, 7, 3], &[7, 7], &[]] {
        let bytes = status(0, 5, &filter(512, ids));
        assert_eq!(refused(&mut machine, &bytes, 5), EINVAL, "{ids:?}");
    }
}

#[test]
fn t6_filters_of_a_length_that_cannot_be_are_read_past_and_invalid() {
    let most = FILTER_MAX;
    let mut machine = extended(false);
    for length in [
        0,
        1,
        4,
        7,
        8,
        9,
        10,
        11,
        13,
        15,
        most - 1,
        most + 1,
        most + 4,
        100_000,
    ] {
        let bytes = status(0, 0, &vec![0; length]);
        assert_eq!(refused(&mut machine, &bytes, 0), EINVAL, "{length}");
    }
}

#[test]
fn t6_a_filters_range_is_checked_as_any_other() {
    let mut machine = extended(false);
    for (offset, length) in [(0, 0), (5, LARGE), (LARGE, 1), (5, u64::MAX), (u64::MAX, 1)] {
        let bytes = status(0, offset, &filter(length, &[3]));
        assert_eq!(refused(&mut machine, &bytes, offset), EINVAL, "{offset} {length}");
    }
}

#[test]
fn t6_a_filter_without_negotiated_contexts_is_read_past_and_invalid() {
    let session = Session {
        style: Extended,
        ..session(true, false)
    };
    let mut machine = start(&session);
    assert_eq!(
        refused(&mut machine, &status(0, 0, &filter(512, &[1])), 0),
        EINVAL
    );
}

#[test]
fn a_filter_split_at_every_byte_is_the_same_filter() {
    let bytes = [
        status(0, 3, &filter(512, &[9, 7])),
        status(0, 4, &filter(512, &[9, 9])),
    ]
    .concat();
    let whole = events(&mut extended(false), &bytes);
    assert_eq!(whole.len(), 2);
    for at in 0..=bytes.len() {
        let (head, tail) = bytes.split_at(at);
        let mut machine = extended(false);
        let mut found = events(&mut machine, head);
        assert!(machine.held.len() <= FILTER_MAX);
        found.extend(events(&mut machine, tail));
        assert_eq!(found, whole, "split at {at}");
    }
}

#[test]
fn t17_while_draining_a_filter_is_read_past_too() {
    let mut machine = extended(false);
    machine.drain();
    let bytes = status(0, 3, &filter(512, &[9, 7]));
    assert_eq!(refused(&mut machine, &bytes, 3), ESHUTDOWN);
}

proptest! {
    /// Whatever a payload holds, it is eaten to its end and no further.
    #[test]
    fn any_payload_leaves_the_two_sides_in_step(flags in 0_u16..64, payload in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = status(flags, 0, &payload);
        bytes.extend(request(cmd::DISC, 0, 0, 0));
        let found = events(&mut extended(true), &bytes);
        prop_assert_eq!((found.len(), found.last()), (2, Some(&Event::Disconnect)));
    }
}
