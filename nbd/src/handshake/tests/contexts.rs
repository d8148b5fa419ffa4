//! Meta contexts of an export beside `base:allocation`.

use super::*;

const OTHERS: [&str; 4] = [
    "qemu:dirty-bitmap:monday",
    "qemu:dirty-bitmap:tuesday",
    "qemu:allocation-depth",
    "x-ours:changed",
];

fn with_contexts(names: impl IntoIterator<Item = impl Into<String>>) -> Talk {
    let mut talk = Talk::structured();
    talk.shelf.contexts = names.into_iter().map(Into::into).collect();
    talk
}

/// The contexts in the replies to LIST or SET, as id and name.
fn named(replies: &[(u32, Vec<u8>)]) -> Vec<(u32, String)> {
    let (last, contexts) = replies.split_last().unwrap();
    assert_eq!(*last, DONE);
    let one = |(kind, payload): &(u32, Vec<u8>)| {
        assert_eq!(*kind, rep::META_CONTEXT);
        let (id, name) = payload.split_first_chunk().unwrap();
        (u32::from_be_bytes(*id), String::from_utf8(name.to_vec()).unwrap())
    };
    contexts.iter().map(one).collect()
}

fn listed(talk: &mut Talk, queries: &[&str]) -> Vec<String> {
    let found = named(&talk.option(opt::LIST_META_CONTEXT, &meta("disk", queries)));
    assert!(
        found.iter().all(|context| context.0 == 0),
        "LIST has ids: {found:?}"
    );
    found.into_iter().map(|context| context.1).collect()
}

#[test]
fn h11_list_takes_no_query_a_namespace_a_prefix_or_a_name() {
    let mut talk = with_contexts(OTHERS);
    let (bitmaps, qemu) = (&OTHERS[..2], &OTHERS[..3]);
    let all = [&["base:allocation"][..], &OTHERS].concat();
    assert_eq!(listed(&mut talk, &[]), all);
    assert_eq!(listed(&mut talk, &["qemu:"]), qemu);
    assert_eq!(listed(&mut talk, &["qemu:dirty-bitmap:"]), bitmaps);
    assert_eq!(listed(&mut talk, &[OTHERS[1]]), [OTHERS[1]]);
    assert_eq!(
        listed(&mut talk, &["x-ours:", "base:"]),
        ["base:allocation", OTHERS[3]]
    );
    assert_eq!(listed(&mut talk, &["qemu:", OTHERS[0], "qemu:"]), qemu);
    for unknown in [
        "qemu",
        "qemu:dirty",
        "qemu:dirty-bitmap",
        "qemu:dirty-bitmap:wednesday",
        "y:",
        ":",
        "",
    ] {
        assert!(listed(&mut talk, &[unknown]).is_empty(), "{unknown}");
    }
}

#[test]
fn h11_set_selects_names_only_with_unique_ids_and_keeps_them_to_transmission() {
    let mut talk = with_contexts(OTHERS);
    let queries = [
        OTHERS[3],
        "base:allocation",
        OTHERS[0],
        OTHERS[0],
        "qemu:",
        "base:",
        "no:such",
    ];
    let set = named(&talk.option(opt::SET_META_CONTEXT, &meta("disk", &queries)));
    let names: Vec<&str> = set.iter().map(|context| &*context.1).collect();
    assert_eq!(names, ["base:allocation", OTHERS[0], OTHERS[3]]);
    let mut ids: Vec<u32> = set.iter().map(|context| context.0).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "an id stands for two contexts");
    talk.option(opt::GO, &go("disk", &[]));
    let kept = talk.session.unwrap().contexts;
    let kept: Vec<(u32, String)> = kept.iter().map(|one| (one.id, one.name.clone())).collect();
    assert_eq!(kept, set);
}

#[test]
fn h11_a_later_set_replaces_the_earlier_one() {
    let mut talk = with_contexts(OTHERS);
    talk.option(
        opt::SET_META_CONTEXT,
        &meta("disk", &["base:allocation", OTHERS[0]]),
    );
    talk.option(opt::SET_META_CONTEXT, &meta("disk", &[OTHERS[2]]));
    talk.option(opt::GO, &go("disk", &[]));
    let kept = talk.session.unwrap().contexts;
    let names: Vec<&str> = kept.iter().map(|one| &*one.name).collect();
    assert_eq!(names, [OTHERS[2]]);
}

#[test]
fn h11_more_contexts_than_are_served_at_once_are_too_big_and_clear_the_set() {
    let many: Vec<String> = (0..=CONTEXTS_MAX).map(|number| format!("x:{number}")).collect();
    let names: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut talk = with_contexts(many.clone());
    let most = talk.option(opt::SET_META_CONTEXT, &meta("disk", &names[..CONTEXTS_MAX]));
    assert_eq!(named(&most).len(), CONTEXTS_MAX);
    assert_eq!(
        talk.verdict(opt::SET_META_CONTEXT, &meta("disk", &names)),
        rep::ERR_TOO_BIG
    );
    assert_eq!(
        listed(&mut talk, &[]).len(),
        CONTEXTS_MAX + 2,
        "LIST selects nothing"
    );
    talk.option(opt::GO, &go("disk", &[]));
    assert!(talk.session.unwrap().contexts.is_empty());
}

#[test]
fn h11_names_that_are_no_strings_of_the_protocol_are_left_out() {
    let long = format!("x:{}", "y".repeat(4095));
    let mut talk = with_contexts([long.as_str(), "x:nul\0", "x:good"]);
    assert_eq!(listed(&mut talk, &[]), ["base:allocation", "x:good"]);
    assert_eq!(listed(&mut talk, &["x:"]), ["x:good"]);
    let just_fits = format!("x:{}", "y".repeat(4094));
    let mut talk = with_contexts([just_fits.as_str()]);
    let set = named(&talk.option(opt::SET_META_CONTEXT, &meta("disk", &[&just_fits])));
    assert_eq!(set, [(1, just_fits)]);
}

#[test]
fn h11_the_server_is_told_of_another_export_even_if_it_is_the_same_disk() {
    let mut talk = with_contexts(OTHERS);
    talk.option(opt::SET_META_CONTEXT, &meta("", &[OTHERS[0]]));
    talk.option(opt::GO, &go("disk", &[]));
    assert!(talk.session.unwrap().contexts.is_empty());
}
