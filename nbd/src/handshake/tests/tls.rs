//! STARTTLS, and what a server that wants TLS says before and after it.

use super::*;

fn required() -> Talk {
    Talk::with_tls(Tls::Required, OFFERED)
}

fn encrypted() -> Talk {
    let mut talk = required();
    assert_eq!(talk.option(opt::STARTTLS, &[]), [DONE]);
    assert_eq!(talk.encrypted, 1);
    talk
}

#[test]
fn h12_everything_but_starttls_wants_tls_first_whatever_its_data() {
    let mut talk = required();
    let options = [
        0,
        opt::LIST,
        4,
        opt::INFO,
        opt::GO,
        opt::STRUCTURED_REPLY,
        opt::LIST_META_CONTEXT,
        opt::SET_META_CONTEXT,
        opt::EXTENDED_HEADERS,
        12,
        99,
        u32::MAX,
    ];
    for option in options {
        for length in [0, 1, 6, 8193, 100_000] {
            // `verdict` finds one reply, to this option: the data was read past.
            assert_eq!(
                talk.verdict(option, &vec![0; length]),
                rep::ERR_TLS_REQD,
                "{option}"
            );
        }
    }
    assert_eq!(talk.option(opt::STARTTLS, &[]), [DONE]);
    assert_eq!(talk.verdict(opt::GO, &[]), rep::ERR_INVALID);
}

#[test]
fn h12_4_gib_in_the_clear_are_read_past_and_never_held() {
    let mut talk = required();
    let mut header = encoded(opt::SET_META_CONTEXT, &[]);
    header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    talk.say(&header);
    let megabyte = vec![0x49; 1 << 20];
    for _ in 0..4095 {
        talk.say(&megabyte);
        assert!(talk.machine.held.is_empty() && talk.out.is_empty());
    }
    talk.say(&megabyte[1..]);
    assert_eq!(talk.replies(opt::SET_META_CONTEXT)[0].0, rep::ERR_TLS_REQD);
}

#[test]
fn h12_nothing_said_in_the_clear_changes_what_is_negotiated_afterwards() {
    let mut talk = required();
    talk.option(opt::STRUCTURED_REPLY, &[]);
    talk.option(opt::EXTENDED_HEADERS, &[]);
    talk.option(opt::SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
    assert_eq!(talk.option(opt::STARTTLS, &[]), [DONE]);
    talk.option(opt::GO, &go("disk", &[]));
    let session = talk.session.unwrap();
    assert_eq!(session.style, ReplyStyle::Simple);
    assert!(session.contexts.is_empty());
}

/// Before STARTTLS such a server negotiates nothing that could be wiped. So that the wiping does
/// not depend on that, the state is put there by hand.
#[test]
fn h12_starttls_wipes_structured_replies_extended_headers_and_contexts() {
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let mut talk = required();
        talk.machine.style = style;
        let allocation = Context {
            id: 1,
            name: "base:allocation".into(),
        };
        talk.machine.selected = Some(("disk".into(), [allocation].into()));
        assert_eq!(talk.option(opt::STARTTLS, &[]), [DONE]);
        assert!(talk.machine.selected.is_none());
        let wanted = meta("disk", &["base:allocation"]);
        assert_eq!(talk.verdict(opt::SET_META_CONTEXT, &wanted), rep::ERR_INVALID);
        talk.option(opt::STRUCTURED_REPLY, &[]);
        talk.option(opt::GO, &go("disk", &[]));
        let session = talk.session.unwrap();
        assert_eq!(session.style, ReplyStyle::Structured);
        assert!(session.contexts.is_empty());
    }
}

#[test]
fn h12_n7_bytes_behind_starttls_in_the_same_read_close_the_connection() {
    for behind in [&[0][..], &encoded(opt::STRUCTURED_REPLY, &[]), &[0x16, 3, 1]] {
        let mut talk = required();
        let starttls = encoded(opt::STARTTLS, &[]);
        let mut input = &[&starttls[..], behind].concat()[..];
        let step = talk.machine.advance(&mut input);
        assert!(matches!(step, Step::Close(bytes, "bytes in the clear behind STARTTLS") if bytes.is_empty()));
        // Nor does it go on if it is asked again.
        assert!(matches!(talk.machine.advance(&mut input), Step::Close(..)));
    }
}

#[test]
fn h12_a_starttls_that_comes_in_parts_is_one() {
    for at in 1..16 {
        let mut talk = required();
        let starttls = encoded(opt::STARTTLS, &[]);
        talk.say(&starttls[..at]);
        assert_eq!(talk.encrypted, 0);
        talk.say(&starttls[at..]);
        assert_eq!((talk.encrypted, talk.closed), (1, None));
    }
}

#[test]
fn h12_a_second_starttls_is_invalid_with_and_without_data() {
    let mut talk = encrypted();
    for length in [0, 1, 100_000] {
        assert_eq!(talk.verdict(opt::STARTTLS, &vec![0; length]), rep::ERR_INVALID);
    }
    assert_eq!(talk.encrypted, 1);
    talk.option(opt::GO, &go("disk", &[]));
    assert!(talk.session.is_some());
}

#[test]
fn h7_starttls_with_data_is_read_past_and_invalid() {
    let mut talk = required();
    for length in [1, 16, 100_000] {
        assert_eq!(talk.verdict(opt::STARTTLS, &vec![0; length]), rep::ERR_INVALID);
    }
    assert_eq!(talk.encrypted, 0);
    assert_eq!(talk.verdict(opt::LIST, &[]), rep::ERR_TLS_REQD);
}

#[test]
fn h8_abort_is_acknowledged_before_and_after_starttls() {
    for mut talk in [required(), encrypted()] {
        assert_eq!(talk.option(opt::ABORT, &[9; 100]), [DONE]);
        assert!(talk.closed.is_some());
    }
}

#[test]
fn h12_export_name_in_the_clear_closes_without_a_word() {
    // H2: a client without fixed newstyle cannot begin TLS, and is not served either.
    for flags in [0, FIXED_ONLY, OFFERED] {
        for name in [&b""[..], b"disk", &[b'x'; 4097]] {
            let mut talk = Talk::with_tls(Tls::Required, flags);
            talk.say(&encoded(opt::EXPORT_NAME, name));
            assert!(talk.closed.is_some() && talk.session.is_none());
            assert!(talk.out.is_empty());
        }
    }
    let mut talk = Talk::with_tls(Tls::Required, 0);
    talk.say(&encoded(opt::STARTTLS, &[]));
    assert!(talk.closed.is_some() && talk.encrypted == 0);
}

#[test]
fn h12_export_name_through_tls_is_served() {
    let mut talk = encrypted();
    talk.say(&encoded(opt::EXPORT_NAME, b"disk"));
    assert!(talk.session.is_some());
}

#[test]
fn h12_tls_reqd_is_said_neither_after_tls_nor_without_tls() {
    // EXPORT_NAME is answered by nothing that looks like a reply.
    for option in (0..14).filter(|option| *option != opt::EXPORT_NAME) {
        for mut talk in [encrypted(), Talk::start(OFFERED)] {
            for data in [vec![], vec![0; 6], vec![0; 100_000], go("other", &[])] {
                if talk.closed.is_none() && talk.session.is_none() {
                    let replies = talk.option(option, &data);
                    assert!(!replies.is_empty());
                    assert!(
                        replies.iter().all(|reply| reply.0 != rep::ERR_TLS_REQD),
                        "{option}"
                    );
                }
            }
        }
    }
}

#[test]
fn h13_while_draining_starttls_is_refused_as_well() {
    let mut talk = required();
    talk.machine.drain();
    assert_eq!(talk.verdict(opt::STARTTLS, &[]), rep::ERR_SHUTDOWN);
    assert_eq!(talk.verdict(opt::LIST, &[]), rep::ERR_TLS_REQD);
    assert_eq!(talk.encrypted, 0);
    assert_eq!(talk.option(opt::ABORT, &[]), [DONE]);
}

/// What was said before STARTTLS is forgotten, what comes after it counts, and nobody gets out of
/// step; the second one, if there is one, changes nothing.
#[test]
fn n6_starttls_anywhere_among_options_stays_in_step() {
    const STARTTLS: usize = 8;
    let all = repertoire();
    let count = all.len();
    for code in 0..count.pow(3) {
        let others = [code % count, code / count % count, code / count.pow(2)];
        for place in 0..=3 {
            let (before, after) = others.split_at(place);
            let said = [before, &[STARTTLS], after].concat();
            let mut talk = required();
            said.iter().for_each(|&index| talk.say(&all[index]));
            assert_eq!((talk.closed, talk.encrypted), (None, 1));
            talk.out.clear();
            talk.option(opt::GO, &go("disk", &[]));
            let session = talk.session.unwrap();
            let counts: Vec<usize> = said.into_iter().skip_while(|&index| index != STARTTLS).collect();
            assert_eq!(session.style == ReplyStyle::Extended, counts.contains(&9));
            assert_eq!(
                session.style.has_chunks(),
                counts.contains(&9) || counts.contains(&5)
            );
            let mut after_chunks = counts.iter().skip_while(|index| ![5, 9].contains(*index));
            assert_eq!(
                !session.contexts.is_empty(),
                after_chunks.any(|&index| index == 7)
            );
        }
    }
}
