//! One reply, or one chunk of one, against what was asked.

use super::Stream;
use super::requests::{Asked, Requests, Want};
use crate::fuzzing::model::errno;
use crate::proto::chunk;
use crate::reply::ReplyStyle;

struct Chunk<'a> {
    kind: u16,
    done: bool,
    payload: Stream<'a>,
}

/// Judges what the server says next.
pub(super) fn check_next(requests: &mut Requests<'_>, server: &mut Stream<'_>) {
    if requests.deal.style == ReplyStyle::Simple {
        return simple(requests, server);
    }
    let extended = requests.deal.style == ReplyStyle::Extended;
    let magic = if extended { 0x6e8a_278c } else { 0x668e_33ef };
    assert_eq!(server.u32(), Some(magic), "no chunk");
    let flags = server.u16().expect("a chunk's flags");
    assert_eq!(flags & !chunk::DONE, 0, "unknown chunk flags");
    let kind = server.u16().expect("a chunk's kind");
    let cookie = server.number(8).expect("a chunk's cookie");
    let offset = extended.then(|| server.number(8).expect("a chunk's offset"));
    let length = server
        .number(if extended { 8 } else { 4 })
        .expect("a chunk's length");
    let payload = server
        .take(usize::try_from(length).unwrap())
        .expect("a chunk's payload");
    let mut asked = requests.find(cookie);
    if let Some(offset) = offset {
        assert_eq!(
            offset, asked.offset,
            "an extended chunk repeats its request's offset"
        );
    }
    let found = Chunk {
        kind,
        done: flags & chunk::DONE != 0,
        payload: Stream::new(payload),
    };
    let done = found.done;
    check_chunk(requests, &mut asked, found);
    if !done {
        requests.put_back(cookie, asked);
    }
}

fn simple(requests: &mut Requests<'_>, server: &mut Stream<'_>) {
    assert_eq!(server.u32(), Some(0x6744_6698), "no simple reply");
    let error = server.u32().expect("a reply's error");
    let cookie = server.number(8).expect("a reply's cookie");
    let asked = requests.find(cookie);
    if error != 0 {
        return check_error(&asked, error, None);
    }
    match &asked.want {
        Want::Success => {}
        Want::Data { bad, .. } => {
            assert!(bad.is_none() || asked.may_fail, "damaged data was sent");
            let data = server.take(usize::try_from(asked.length).unwrap());
            check_data(requests, asked.offset, data.expect("a reply's data"));
        }
        want => panic!("a success instead of {want:?}"),
    }
}

fn check_chunk(requests: &Requests<'_>, asked: &mut Asked, found: Chunk<'_>) {
    let Chunk {
        kind,
        done,
        mut payload,
    } = found;
    match kind {
        chunk::NONE => {
            assert!(done, "nothing, and not the last");
            assert_eq!(asked.want, Want::Success, "no content");
        }
        chunk::OFFSET_DATA => {
            let offset = payload.number(8).expect("the data's offset");
            let data = &payload.bytes[payload.at..];
            take_piece(asked, offset, data.len() as u64, done);
            check_data(requests, offset, data);
            payload.at = payload.bytes.len();
        }
        chunk::OFFSET_HOLE => {
            let (offset, size) = (payload.number(8), payload.u32());
            let (offset, size) = (offset.expect("a hole's offset"), size.expect("a hole's size"));
            let whole = matches!(asked.want, Want::Data { whole: true, .. });
            assert!(!whole, "a hole for a client that wants one piece of data");
            take_piece(asked, offset, size.into(), done);
            check_data(requests, offset, &vec![0; usize::try_from(size).unwrap()]);
        }
        chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => {
            let extended = kind == chunk::BLOCK_STATUS_EXT;
            assert_eq!(extended, requests.deal.style == ReplyStyle::Extended);
            block_status(requests, asked, &mut payload, extended, done);
        }
        chunk::ERROR | chunk::ERROR_OFFSET => {
            assert!(done, "an error, and not the last");
            let error = payload.u32().expect("an error's number");
            let length = payload.u16().expect("an error's length");
            payload.text(length.into()).expect("an error's text");
            let at = (kind == chunk::ERROR_OFFSET).then(|| payload.number(8).expect("an error's offset"));
            check_error(asked, error, at);
        }
        _ => panic!("an unknown kind of chunk: {kind}"),
    }
    assert!(payload.is_empty(), "a chunk of kind {kind} is too long");
}

fn check_error(asked: &Asked, error: u32, at: Option<u64>) {
    if let Some(at) = at {
        let end = u128::from(asked.offset) + u128::from(asked.length);
        let inside = at >= asked.offset && u128::from(at) < end;
        assert!(inside, "an error at {at}, outside of the request");
    }
    match &asked.want {
        _ if asked.may_fail && error == errno::EIO => {}
        Want::Error(expected) => assert_eq!(error, *expected, "of {asked:?}"),
        Want::Data { bad: Some(bad), .. } => {
            assert_eq!(error, errno::EIO);
            assert!(at.is_none_or(|at| at == *bad), "an error at {at:?}, not {bad}");
        }
        Want::Status { contexts, .. } => {
            assert_eq!(error, errno::EIO);
            let broken = contexts.iter().any(|(_, name)| Requests::is_broken(name));
            assert!(broken, "these contexts can be answered: {contexts:?}");
        }
        want => panic!("error {error} instead of {want:?}"),
    }
}

/// Notes a piece of a READ's content, which must be new and within the request.
fn take_piece(asked: &mut Asked, offset: u64, length: u64, done: bool) {
    let Want::Data { whole, bad } = asked.want else {
        panic!("data instead of {:?}", asked.want);
    };
    assert!(length > 0, "an empty piece");
    let end = offset.checked_add(length).expect("a piece beyond everything");
    assert!(
        offset >= asked.offset && end <= asked.offset + asked.length,
        "a piece outside"
    );
    let before = asked.pieces.range(..end).next_back();
    assert!(
        before.is_none_or(|(_, before)| *before <= offset),
        "pieces overlap"
    );
    assert!(!whole || done, "a part for a client that wants one piece");
    if let Some(bad) = bad.filter(|_| !asked.may_fail) {
        assert!(!(offset..end).contains(&bad), "damaged data was sent");
    }
    asked.pieces.insert(offset, end);
    if done {
        let sum: u64 = asked.pieces.iter().map(|(start, end)| end - start).sum();
        assert_eq!(sum, asked.length, "a reply with gaps: {:?}", asked.pieces);
    }
}

fn check_data(requests: &Requests<'_>, offset: u64, data: &[u8]) {
    if !requests.ordered && !requests.model.is_still() {
        return;
    }
    let expected = requests.model.read(offset, data.len());
    if let Some(at) = expected
        .iter()
        .zip(data)
        .position(|(expected, found)| expected != found)
    {
        panic!(
            "byte {} reads {}, not {}",
            offset + at as u64,
            data[at],
            expected[at]
        );
    }
}

fn block_status(
    requests: &Requests<'_>,
    asked: &mut Asked,
    payload: &mut Stream<'_>,
    extended: bool,
    done: bool,
) {
    let Want::Status { one, contexts } = &asked.want else {
        panic!("a block status instead of {:?}", asked.want);
    };
    let id = payload.u32().expect("a context's id");
    let (_, name) = contexts
        .iter()
        .find(|(known, _)| *known == id)
        .unwrap_or_else(|| panic!("context {id} was not asked for"));
    assert!(asked.contexts.insert(id), "context {id} twice");
    assert!(!Requests::is_broken(name), "an answer where there is none");
    assert_eq!(
        done,
        asked.contexts.len() == contexts.len(),
        "the last is the last"
    );
    let width = if extended { 8 } else { 4 };
    let count = extended.then(|| payload.u32().expect("a number of extents"));
    let left = payload.bytes.len() - payload.at;
    assert!(count.is_none_or(|count| count as usize == left / (2 * width)));
    let size = requests.deal.kind.still().size();
    let mut covered = 0;
    let mut seen = 0;
    while !payload.is_empty() {
        assert!(covered < asked.length, "an extent behind the request");
        let length = payload.number(width).expect("an extent's length");
        let flags = payload.number(width).expect("an extent's flags");
        let start = asked.offset + covered;
        assert!(
            length > 0 && length <= size - start,
            "an extent of {length} bytes at {start}"
        );
        if requests.ordered || requests.model.is_still() || name != "base:allocation" {
            requests.model.check_flags(name, start, length, flags);
        }
        covered += length;
        seen += 1;
    }
    assert!(seen >= 1, "no extents");
    assert!(
        !one || (seen == 1 && covered <= asked.length),
        "more than one extent"
    );
}
