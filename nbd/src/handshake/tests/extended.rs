//! EXTENDED_HEADERS among the other options.

use super::*;

fn extended() -> Talk {
    let mut talk = Talk::start(OFFERED);
    assert_eq!(talk.option(opt::EXTENDED_HEADERS, &[]), [DONE]);
    talk
}

fn style_after(mut talk: Talk) -> ReplyStyle {
    talk.option(opt::GO, &go("disk", &[]));
    talk.session.unwrap().style
}

#[test]
fn extended_headers_take_precedence_over_structured_replies_in_either_order() {
    assert_eq!(style_after(extended()), ReplyStyle::Extended);
    let mut talk = Talk::structured();
    assert_eq!(talk.option(opt::EXTENDED_HEADERS, &[]), [DONE]);
    assert_eq!(style_after(talk), ReplyStyle::Extended);
    let mut talk = extended();
    assert_eq!(talk.verdict(opt::STRUCTURED_REPLY, &[]), rep::ERR_EXT_HEADER_REQD);
    assert_eq!(style_after(talk), ReplyStyle::Extended);
}

#[test]
fn extended_headers_may_be_asked_for_again() {
    let mut talk = extended();
    assert_eq!(talk.option(opt::EXTENDED_HEADERS, &[]), [DONE]);
    assert_eq!(style_after(talk), ReplyStyle::Extended);
}

#[test]
fn h7_extended_headers_with_data_are_invalid_and_negotiate_nothing() {
    let mut talk = Talk::structured();
    for length in [1, 4, 100_000] {
        assert_eq!(
            talk.verdict(opt::EXTENDED_HEADERS, &vec![0; length]),
            rep::ERR_INVALID
        );
    }
    assert_eq!(talk.option(opt::STRUCTURED_REPLY, &[]), [DONE]);
    assert_eq!(style_after(talk), ReplyStyle::Structured);
}

#[test]
fn h5_export_name_after_extended_headers_closes_without_a_word() {
    for name in [&b"disk"[..], b"", b"other"] {
        let mut talk = extended();
        talk.say(&encoded(opt::EXPORT_NAME, name));
        assert!(talk.closed.is_some() && talk.session.is_none());
        assert!(talk.out.is_empty());
    }
}

#[test]
fn h11_extended_headers_alone_allow_contexts_and_keep_those_that_were_set() {
    let wanted = meta("disk", &["base:allocation"]);
    let mut talk = extended();
    assert_eq!(talk.option(opt::SET_META_CONTEXT, &wanted), [context(1), DONE]);
    talk.option(opt::GO, &go("disk", &[]));
    assert_eq!(talk.session.unwrap().contexts.len(), 1);

    let mut talk = Talk::structured();
    talk.option(opt::SET_META_CONTEXT, &wanted);
    talk.option(opt::EXTENDED_HEADERS, &[]);
    talk.option(opt::GO, &go("disk", &[]));
    assert_eq!(talk.session.unwrap().contexts.len(), 1);
}
