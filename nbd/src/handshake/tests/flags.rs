//! What an export is said to be able to do.

use super::*;

const HAS_FLAGS: u16 = 1;
const READ_ONLY: u16 = 1 << 1;
const FLUSH_FUA: u16 = 1 << 2 | 1 << 3;
const TRIM_ZEROES_FAST: u16 = 1 << 5 | 1 << 6 | 1 << 11;
const DF: u16 = 1 << 7;
const MULTI_CONN: u16 = 1 << 8;
const CACHE: u16 = 1 << 10;
const STATUS_PAYLOAD: u16 = 1 << 12;

fn flags_in(replies: &[(u32, Vec<u8>)]) -> u16 {
    let (kind, export) = &replies[0];
    assert_eq!((*kind, export.len(), &export[..2]), (rep::INFO, 12, &[0, 0][..]));
    u16::from_be_bytes([export[10], export[11]])
}

/// The flags that INFO and GO tell after some options, which must agree.
fn advertised(access: Access, options: &[(u32, Vec<u8>)]) -> u16 {
    let mut talk = Talk::start(OFFERED);
    talk.shelf.access = access;
    for (option, data) in options {
        assert_eq!(talk.option(*option, data).last(), Some(&DONE));
    }
    let flags = flags_in(&talk.option(opt::INFO, &go("disk", &[])));
    assert_eq!(flags_in(&talk.option(opt::GO, &go("disk", &[]))), flags);
    assert_eq!(talk.session.unwrap().writable, access != Access::ReadOnly);
    flags
}

#[test]
fn what_an_export_may_be_used_for_is_told_by_its_flags() {
    let common = HAS_FLAGS | FLUSH_FUA | CACHE;
    let cases = [
        (Access::ReadOnly, READ_ONLY | MULTI_CONN),
        (Access::Writable { shared: false }, TRIM_ZEROES_FAST),
        (Access::Writable { shared: true }, TRIM_ZEROES_FAST | MULTI_CONN),
    ];
    for (access, own) in cases {
        assert_eq!(advertised(access, &[]), common | own);
        for option in [opt::STRUCTURED_REPLY, opt::EXTENDED_HEADERS] {
            assert_eq!(advertised(access, &[(option, vec![])]), common | own | DF);
        }
        let mut talk = Talk::start(OFFERED);
        talk.shelf.access = access;
        talk.say(&encoded(opt::EXPORT_NAME, b"disk"));
        assert_eq!(talk.out[8..10], (common | own).to_be_bytes());
    }
}

#[test]
fn block_status_payloads_are_offered_only_with_extended_headers_and_contexts_of_this_export() {
    let set = |name| (opt::SET_META_CONTEXT, meta(name, &["base:allocation"]));
    let has = |options: &[(u32, Vec<u8>)]| advertised(Access::ReadOnly, options) & STATUS_PAYLOAD != 0;
    let (extended, structured) = ((opt::EXTENDED_HEADERS, vec![]), (opt::STRUCTURED_REPLY, vec![]));
    assert!(has(&[extended.clone(), set("disk")]));
    assert!(!has(std::slice::from_ref(&extended)));
    assert!(!has(&[structured, set("disk")]));
    assert!(!has(&[extended.clone(), set("")]), "contexts of another name");
    let none = (opt::SET_META_CONTEXT, meta("disk", &["x:y"]));
    assert!(!has(&[extended, none]), "nothing was selected");
}
