//! The list of what has gone wrong in programs that open images (docs/hostile.md), where no other file of tests
//! has it: layers cut off, forged headers, nodes that lead back to themselves, copies, JSON and names.

use super::hostile::{Forge, LAYER, MANIFEST, SIZE, full_text, pointer};
use super::model::Model;
use super::support::*;
use crate::format::digest::{header_check, seal_check};
use crate::format::layer::{HEADER_LEN, RawHeader};
use crate::format::node::NODE_STORED_MAX;
use crate::format::pointer::Place;
use crate::storage::memory::MemoryStorage;
use crate::{ClusterSize, Codec, Digest, ErrorKind, Result, Store};
use serde_json::{Value, json};
use std::thread;
use zerocopy::FromBytes;

fn file(storage: &MemoryStorage, path: &str) -> Vec<u8> {
    storage.files.lock().unwrap()[path].clone()
}

fn put(storage: &MemoryStorage, path: &str, bytes: Vec<u8>) {
    storage.files.lock().unwrap().insert(path.to_owned(), bytes);
}

/// One disk of two leaves and a root: a raw cluster, a compressed one and a short last one.
fn small() -> (MemoryStorage, Store, Model) {
    let (storage, store) = memory_store();
    let mut model = Model::new(256 * 16384 + 700, ClusterSize::K16);
    model.set(3, random_bytes(3, 16384));
    model.set(4, text_bytes(4, 16384));
    model.set(256, text_bytes(5, 700));
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    (storage, store, model)
}

/// Every cluster that holds something is right or an error; tells how many are errors.
fn check_clusters(store: &Store, model: &Model, told: &str) -> usize {
    let image = open_image(store, "job", 1).unwrap();
    let wrong = |&index: &u64| {
        let mut bytes = vec![0xaa; model.cluster_len(index)];
        let Err(error) = image.disks()[0].read_at(index * 16384, &mut bytes) else {
            assert!(
                bytes == model.get(index),
                "cluster {index} has wrong bytes, {told}"
            );
            return false;
        };
        assert_eq!(error.kind(), ErrorKind::Damaged, "{told}: {error:?}");
        assert!(error.to_string().contains("00000001"), "names no layer: {error}");
        true
    };
    model.data().filter(wrong).count()
}

#[test]
fn a_layer_cut_off_at_any_byte_is_found_and_never_misread() {
    let len = file(&small().0, LAYER).len();
    assert_eq!(len, 28672);
    const THREADS: usize = 4;
    thread::scope(|scope| {
        for first in 0..THREADS {
            scope.spawn(move || {
                let (storage, store, model) = small();
                let whole = file(&storage, LAYER);
                for len in (first..len).step_by(THREADS) {
                    put(&storage, LAYER, whole[..len].to_vec());
                    let told = format!("cut off at {len}");
                    assert_ne!(findings(&store, "job", 1), NOTHING, "{told}");
                    let lost = check_clusters(&store, &model, &told);
                    assert!(len > HEADER_LEN || lost == 3, "{told}: {lost} clusters lost");
                }
            });
        }
    });
}

/// Changes a layer's header, and its check with it.
fn forge_header(storage: &MemoryStorage, change: impl FnOnce(&mut RawHeader)) {
    let mut layer = file(storage, LAYER);
    let header = RawHeader::mut_from_bytes(&mut layer[..HEADER_LEN]).unwrap();
    change(header);
    let check = header_check(&layer[..HEADER_LEN - 32]);
    layer[HEADER_LEN - 32..HEADER_LEN].copy_from_slice(&check.0);
    put(storage, LAYER, layer);
}

fn read_error(store: &Store) -> crate::Error {
    let image = open_image(store, "job", 1).unwrap();
    read_all(&image.disks()[0]).unwrap_err()
}

#[test]
fn a_forged_header_with_a_right_check_is_refused_by_field() {
    type Change = fn(&mut RawHeader);
    use ErrorKind::{Damaged, Unsupported};
    let changes: [(&str, ErrorKind, Change); 12] = [
        ("field magic", Damaged, |h| h.magic = *b"SMCLAYES"),
        ("field magic", Damaged, |h| h.magic = [0xff; 8]),
        ("version 0", Unsupported, |h| h.version = 0.into()),
        ("version 2", Unsupported, |h| h.version = 2.into()),
        ("version 4294967295", Unsupported, |h| h.version = u32::MAX.into()),
        ("features 0x1 ", Unsupported, |h| h.incompatible = 1.into()),
        ("features 0x8000000000000000 ", Unsupported, |h| {
            h.incompatible = (1 << 63).into()
        }),
        ("but the image was made with", Damaged, |h| h.layer_uuid[15] ^= 1),
        ("field layer is ffffffff", Damaged, |h| h.layer = u32::MAX.into()),
        ("field layer is 00000000", Damaged, |h| h.layer = 0.into()),
        ("cluster size 0 ", Damaged, |h| h.cluster_size = 0.into()),
        ("cluster size 4294967295 ", Damaged, |h| {
            h.cluster_size = u32::MAX.into()
        }),
    ];
    for (told, kind, change) in changes {
        let (storage, store, _) = small();
        forge_header(&storage, change);
        let error = read_error(&store);
        assert_eq!(error.kind(), kind, "{error}");
        for part in [told, "job/1:vda", "00000001"] {
            assert!(
                error.to_string().contains(part),
                "expected \"{part}\" in: {error}"
            );
        }
        assert_ne!(findings(&store, "job", 1), NOTHING);
    }
}

#[test]
fn unknown_compatible_features_of_a_layer_are_ignored() {
    let (storage, store, model) = small();
    forge_header(&storage, |header| header.compatible = u64::MAX.into());
    assert_eq!(findings(&store, "job", 1), NOTHING);
    assert_eq!(check_clusters(&store, &model, "compatible features"), 0);
}

#[test]
fn headers_and_nodes_of_all_ones_are_refused() {
    let (storage, store, _) = small();
    forge_header(&storage, |header| {
        *header = RawHeader::read_from_bytes(&[0xff; HEADER_LEN]).unwrap();
    });
    assert!(read_error(&store).to_string().contains("field magic"));
    let ones = vec![0xff; 12288];
    for (codec, payload) in [
        (Codec::Raw, ones.clone()),
        (Codec::Zstd, zstd::bulk::compress(&ones, 1).unwrap()),
    ] {
        let mut forge = Forge::new();
        forge.set_root(SIZE, codec, &payload, Digest([0xff; 32]));
        let error = read_all(&forge.open().unwrap().disks()[0]).unwrap_err();
        for part in [
            "job/1:vda",
            "node 0 of level 0",
            "layer 00000001",
            "child 0",
            "field codec is 255",
        ] {
            assert!(
                error.to_string().contains(part),
                "expected \"{part}\" in: {error}"
            );
        }
    }
}

/// A node cannot be its own descendant: its level is part of its check.
#[test]
fn a_node_that_points_to_itself_or_to_its_parent_is_refused() {
    let size = 257 * 16384;
    for (size, level) in [(size, 1), (size * 256, 2)] {
        let mut forge = Forge::new();
        let at = file(&forge.storage, LAYER).len() as u64;
        let itself = Place {
            layer: 1,
            offset: at,
            len: NODE_STORED_MAX as u32,
        };
        let child = pointer(itself, Codec::Raw, Digest([5; 32])).to_raw();
        forge.set_raw_root(size, &[(0, child), (1, child)]);
        let image = forge.open().unwrap();
        let error = image.disks()[0].read_at(0, &mut [0]).unwrap_err();
        assert!(
            error.to_string().contains("not the block of this place"),
            "level {level}: {error}"
        );
        assert_ne!(findings(&forge.store, "job", 1), NOTHING);
        assert!(image.disks()[0].extents(0, size, 10).is_err());
    }
}

/// Reading never needs the parent, so none that a manifest can name does any harm.
#[test]
fn parents_are_never_followed() {
    let mut forge = Forge::new();
    let own = forge.manifest["id"].clone();
    let other = json!("00".repeat(16));
    for parent in [
        json!({"sequence": 1, "id": own}),
        json!({"sequence": 1, "id": other}),
        json!({"sequence": 2, "id": own}),
        json!({"sequence": u64::MAX, "id": other}),
        json!({"sequence": 0, "id": other}),
    ] {
        forge.manifest["parent"] = parent;
        forge.open().unwrap();
        assert_eq!(findings(&forge.store, "job", 1), NOTHING);
    }
    // Two that name each other, and a sync on top of them.
    forge.manifest["parent"] = json!({"sequence": 2, "id": own});
    forge.open().unwrap();
    let mut model = Model::new(SIZE, ClusterSize::K16);
    model.set(0, random_bytes(1, 16384));
    model.set(1, text_bytes(1, 16384));
    let second = write_image(&forge.store, "job", &[("vda", &model)]).unwrap();
    assert_eq!(second.parent.unwrap().sequence, 1);
    let third = write_image(&forge.store, "job", &[("vda", &model)]).unwrap();
    assert_eq!(third.parent.unwrap().sequence, 2);
    for sequence in 1..=3 {
        assert_eq!(findings(&forge.store, "job", sequence), NOTHING);
    }
}

#[test]
fn a_manifest_under_another_number_is_refused() {
    let (storage, store, _) = small();
    for number in ["000000", "000002", "18446744073709551615"] {
        let path = format!("job/images/{number}.json");
        put(&storage, &path, file(&storage, MANIFEST));
        let error = open_image(&store, "job", number.parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        for part in [path.as_str(), "field sequence is 1"] {
            assert!(
                error.to_string().contains(part),
                "expected \"{part}\" in: {error}"
            );
        }
    }
    assert_eq!(findings(&store, "job", 1), NOTHING);
}

/// The number after the last one is none: a writer says so instead of starting again.
#[test]
fn numbers_at_their_end_are_never_used_again() {
    let (storage, store, model) = small();
    put(
        &storage,
        "job/images/18446744073709551615.json",
        file(&storage, MANIFEST),
    );
    let error = write_image(&store, "job", &[("vda", &model)]).unwrap_err();
    assert!(error.to_string().contains("out of image numbers"), "{error}");
    let (storage, store, mut model) = small();
    put(&storage, "job/layers/ffffffff.layer", Vec::new());
    model.set(9, random_bytes(9, 16384));
    let error = write_image(&store, "job", &[("vda", &model)]).unwrap_err();
    assert!(error.to_string().contains("out of layer ids"), "{error}");
    assert_eq!(findings(&store, "job", 1), NOTHING);
}

/// The same file twice, or its random id: the header says which layer it is.
#[test]
fn a_layer_copied_under_another_id_is_refused_as_that_layer() {
    let mut forge = Forge::new();
    let copy = file(&forge.storage, LAYER);
    put(&forge.storage, "job/layers/00000002.layer", copy);
    let mut second = forge.manifest["layers"][0].clone();
    second["id"] = 2.into();
    forge.manifest["layers"].as_array_mut().unwrap().push(second);
    // Unused, the copy hurts nobody who reads, and verify finds it.
    assert!(read_all(&forge.open().unwrap().disks()[0]).is_ok());
    assert!(told_of(&forge.store, "header field layer is 00000001"));
    forge.manifest["disks"][0]["root"]["layer"] = 2.into();
    let error = read_all(&forge.open().unwrap().disks()[0]).unwrap_err();
    for part in ["job/layers/00000002.layer", "header field layer is 00000001"] {
        assert!(
            error.to_string().contains(part),
            "expected \"{part}\" in: {error}"
        );
    }
}

fn told_of(store: &Store, part: &str) -> bool {
    findings(store, "job", 1).iter().any(|line| line.contains(part))
}

/// Nothing in a chain leads out of its directory, so a copy of it reads as well as the first; but only one counts.
#[test]
fn a_chain_copied_under_another_name_reads_alike_and_is_ignored() {
    let (storage, store, mut model) = small();
    for dir in ["copy", "copy/images", "copy/layers"] {
        crate::Storage::create_dir(&storage, dir).unwrap();
    }
    let files = storage.files.lock().unwrap().clone();
    for (path, bytes) in files {
        if let Some(rest) = path.strip_prefix("job/") {
            put(&storage, &format!("copy/{rest}"), bytes);
        }
    }
    let jobs = store.jobs().unwrap();
    assert_eq!(jobs.keys().collect::<Vec<_>>(), ["job"]);
    assert_eq!((jobs["job"].chain(), jobs["job"].sequences()), ("job", &[1][..]));
    let found = store.resolve(&"job/latest".parse().unwrap()).unwrap();
    assert_eq!((found.chain(), found.sequence()), ("job", 1));
    assert!(store.resolve(&"copy/1".parse().unwrap()).is_err());
    let bytes = |chain: &str, sequence| read_all(&open_image(&store, chain, sequence).unwrap().disks()[0]);
    assert!(bytes("copy", 1).unwrap() == model.read(0, model.size as usize));
    assert_eq!(findings(&store, "copy", 1), NOTHING);
    // It is no place for a job of its name, and the other job continues in its own chain.
    model.set(8, random_bytes(8, 16384));
    let error = write_image(&store, "copy", &[("vda", &model)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(
        error.to_string().contains("copy is a copy of chain job"),
        "{error}"
    );
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    assert_eq!(store.sequences("job").unwrap(), [1, 2]);
    assert_eq!(store.sequences("copy").unwrap(), [1]);
    assert_eq!(findings(&store, "job", 2), NOTHING);
    // What is lost in the one is not taken from the other.
    storage.files.lock().unwrap().remove("copy/layers/00000001.layer");
    assert!(bytes("copy", 1).is_err());
    assert_eq!(findings(&store, "job", 1), NOTHING);
}

#[test]
fn garbage_behind_a_sealed_file_is_refused_by_name() {
    for path in ["store.json", "job/chain.json", MANIFEST] {
        for garbage in [&b"\n"[..], b" ", b"\0", b"blake3:", &[0; 4096]] {
            let (storage, store, model) = small();
            let whole = file(&storage, path);
            put(&storage, path, [&whole, garbage].concat());
            let error = Store::open_on(std::sync::Arc::new(storage.clone()), "store")
                .and_then(|_| open_image(&store, "job", 1))
                .and_then(|_| write_image(&store, "job", &[("vda", &model)]))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
            assert!(error.to_string().contains(path), "{error}");
            assert!(error.to_string().contains("checksum"), "{error}");
        }
    }
}

/// Seals a text that nobody's JSON library would write.
fn seal_text(text: &str) -> Vec<u8> {
    format!("{text}blake3:{}\n", seal_check(text.as_bytes())).into_bytes()
}

fn open_text(forge: &Forge, text: &str) -> Result<()> {
    put(&forge.storage, MANIFEST, seal_text(text));
    open_image(&forge.store, "job", 1).map(drop)
}

/// Each line of a manifest that holds a number, with the field's name.
fn numeric_lines(text: &str) -> Vec<(usize, &str)> {
    let number = |line: &str| {
        line.trim_end_matches(',')
            .ends_with(|last: char| last.is_ascii_digit())
    };
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(": ") && number(line));
    lines
        .map(|(at, line)| (at, line.split('"').nth(1).unwrap()))
        .collect()
}

fn with_value(text: &str, at: usize, value: &str) -> String {
    let replace = |(number, line): (usize, &str)| match line.split_once(": ") {
        Some((name, old)) if number == at => {
            format!("{name}: {value}{}\n", if old.ends_with(',') { "," } else { "" })
        }
        _ => format!("{line}\n"),
    };
    text.lines().enumerate().map(replace).collect()
}

#[test]
fn json_numbers_out_of_range_are_refused_by_file_and_field() {
    let forge = Forge::new();
    let text = serde_json::to_string_pretty(&forge.manifest).unwrap() + "\n";
    let fields = numeric_lines(&text);
    assert!(fields.len() >= 15, "{fields:?}");
    let values = [
        "-1",
        "1.5",
        "1e400",
        "-1e400",
        "18446744073709551616",
        "99999999999999999999999999999999999999",
        "\"1\"",
        "null",
        "true",
        "[]",
        "{}",
        "01",
        "NaN",
        "0x10",
    ];
    for (at, field) in fields {
        for value in values {
            let error = open_text(&forge, &with_value(&text, at, value)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{field} = {value}: {error:?}");
            for part in [MANIFEST, &format!("\"{field}\"")] {
                assert!(
                    full_text(&error).contains(part),
                    "{field} = {value}: expected {part} in: {error:?}"
                );
            }
        }
    }
}

/// `a.b.0.c` of a JSON value, for every field of every object in it.
fn field_paths(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                found.push(format!("{path}/{name}"));
                field_paths(inner, &format!("{path}/{name}"), found);
            }
        }
        Value::Array(list) => {
            for (at, inner) in list.iter().enumerate() {
                field_paths(inner, &format!("{path}/{at}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn a_field_that_is_missing_or_there_twice_is_refused_by_name() {
    let optional = [
        "incompatible",
        "compatible",
        "consistency_reason",
        "method_reason",
        "identity",
        "packed",
        "parent",
    ];
    let forge = Forge::new();
    let mut paths = Vec::new();
    field_paths(&forge.manifest, "", &mut paths);
    assert!(paths.len() > 30, "{paths:?}");
    for path in paths {
        let (outer, name) = path.rsplit_once('/').unwrap();
        let mut value = forge.manifest.clone();
        let removed = value
            .pointer_mut(outer)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(name)
            .unwrap();
        let text = serde_json::to_string(&value).unwrap();
        if !optional.contains(&name) && name != "root" {
            let error = open_text(&forge, &(text.clone() + "\n")).unwrap_err();
            assert!(
                full_text(&error).contains(&format!("missing field `{name}`")),
                "{error:?}"
            );
        }
        // The first one wins in some readers and the last in others: a text that says both is refused.
        let twice = serde_json::to_string(&forge.manifest).unwrap();
        let entry = format!("\"{name}\":{removed}");
        let twice = twice.replacen(&entry, &format!("{entry},{entry}"), 1);
        let error = open_text(&forge, &(twice + "\n")).unwrap_err();
        assert!(
            full_text(&error).contains(&format!("duplicate field `{name}`")),
            "{error:?}"
        );
    }
}

#[test]
fn text_that_is_not_one_json_object_is_refused() {
    let forge = Forge::new();
    let good = serde_json::to_string(&forge.manifest).unwrap();
    open_text(&forge, &format!("{good}\n")).unwrap();
    let bad = [
        String::new(),
        "\n".to_owned(),
        "null\n".to_owned(),
        format!("\u{feff}{good}\n"),
        format!("{good}{good}\n"),
        format!("{good}\0\n"),
        format!("[{good}]\n"),
        format!("{}\n", &good[..good.len() - 1]),
        format!("{},}}\n", &good[..good.len() - 1]),
        format!("// comment\n{good}\n"),
    ];
    for text in bad {
        let error = open_text(&forge, &text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{text}");
        assert!(full_text(&error).contains(MANIFEST), "{error:?}");
    }
}

/// Depth costs neither stack nor time, in fields that are known and in fields that are not.
#[test]
fn json_of_absurd_depth_is_refused_or_ignored() {
    let forge = Forge::new();
    let good = serde_json::to_string(&forge.manifest).unwrap();
    let open = &good[..good.len() - 1];
    let depth = 8 << 20;
    let (left, right) = ("[".repeat(depth), "]".repeat(depth));
    open_text(&forge, &format!("{open},\"later\":{left}{right}}}\n")).unwrap();
    let objects = "{\"a\":".repeat(depth / 5);
    for text in [
        format!("{open},\"later\":{left}}}\n"),
        format!("{open},\"later\":{objects}\n"),
        left.clone(),
        objects.clone(),
        format!("{{\"format\":1,\"disks\":{left}{right}}}\n"),
        format!("{{\"format\":{left}{right}}}\n"),
        format!("{{\"format\":1,\"id\":1,\"parent\":{objects}"),
    ] {
        let error = open_text(&forge, &text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(full_text(&error).len() < 2000);
    }
}

const BAD_NAMES: [&str; 26] = [
    "",
    ".",
    "..",
    "../job",
    "a/b",
    "a/../b",
    "/etc",
    "a/",
    "a\\b",
    ".hidden",
    "-flag",
    "_a",
    "a b",
    " a",
    "a\0b",
    "a\nb",
    "a\r",
    "\u{1b}[2J",
    "a\u{7f}",
    "ä",
    "a\u{202e}b",
    "a\u{0}",
    "日本",
    "a.json",
    "a.tmp",
    "a:b",
];

#[test]
fn names_that_leave_the_store_or_steer_a_terminal_are_refused_and_escaped() {
    let long = "a".repeat(65);
    let huge = "\u{1b}".repeat(1 << 20);
    type Rename = fn(&mut Value, &str);
    let renames: [(&str, Rename); 3] = [
        ("field job", |m, name| m["job"] = name.into()),
        ("disk name", |m, name| {
            m["disks"][0]["name"] = name.into();
            m["layers"][0]["disk"] = name.into();
        }),
        ("field layers", |m, name| m["layers"][0]["disk"] = name.into()),
    ];
    for (told, rename) in renames {
        for name in BAD_NAMES.into_iter().chain([long.as_str(), huge.as_str()]) {
            let mut forge = Forge::new();
            rename(&mut forge.manifest, name);
            let error = forge.open().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged);
            let text = full_text(&error);
            for part in [told, MANIFEST] {
                assert!(text.contains(part), "expected \"{part}\" in: {text}");
            }
            assert!(!text.contains(|letter: char| letter.is_control() || letter == '\u{202e}'));
            assert!(text.len() < 2000, "{} bytes", text.len());
        }
        let mut forge = Forge::new();
        rename(&mut forge.manifest, &"a".repeat(64));
        assert_eq!(forge.open().is_ok(), told != "field layers");
    }
}

#[test]
fn directories_of_other_names_are_no_chains() {
    let (storage, store, _) = small();
    for name in BAD_NAMES.into_iter().filter(|name| !name.is_empty()) {
        crate::Storage::create_dir(&storage, name).unwrap();
        crate::Storage::create_dir(&storage, &format!("{name}/images")).unwrap();
        assert_eq!(store.sequences(name).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(store.chain(name).unwrap_err().kind(), ErrorKind::Invalid);
        let begun = store.begin(name, None, &["vda".to_owned()]);
        assert_eq!(begun.unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(store.chains().unwrap().names, ["job"]);
}

#[test]
fn a_disk_of_any_other_size_than_its_tree_is_refused() {
    let sizes = [
        1,
        16383,
        SIZE - 1,
        SIZE + 1,
        1 << 20,
        257 * 16384,
        1 << 40,
        i64::MAX as u64,
        i64::MAX as u64 + 1,
        u64::MAX,
        0,
    ];
    for size in sizes {
        let mut forge = Forge::new();
        forge.manifest["disks"][0]["size_bytes"] = size.into();
        let error = forge.open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        // Even with a digest that follows from the claim, the tree below is that of another size.
        let Ok(geometry) = crate::Geometry::new(size, ClusterSize::K16) else {
            continue;
        };
        let root = Digest::from_hex(forge.manifest["disks"][0]["root"]["digest"].as_str().unwrap()).unwrap();
        forge.manifest["disks"][0]["digest"] =
            crate::DiskDigest::new(geometry, root).digest.to_string().into();
        let image = forge.open().unwrap();
        let disk = &image.disks()[0];
        // One full cluster is all it holds: a disk that keeps its first cluster whole may be of this content.
        let same_shape = geometry.height() == 1 && size >= 16384;
        let mut bytes = vec![0; 16384.min(size as usize)];
        assert_eq!(disk.read_at(0, &mut bytes).is_ok(), same_shape, "{size}");
        assert_eq!(disk.read_at(size - 1, &mut [0]).is_ok(), same_shape, "{size}");
        assert!(disk.read_at(size, &mut [0]).is_err());
        assert!(disk.read_at(u64::MAX, &mut [0, 0]).is_err());
    }
}

/// Layer ids are any number, and the file's name is made from it alone.
#[test]
fn layers_of_the_largest_id_are_looked_for_in_the_store_only() {
    for id in [0, u32::MAX] {
        let mut forge = Forge::new();
        forge.manifest["layers"][0]["id"] = id.into();
        forge.manifest["disks"][0]["root"]["layer"] = id.into();
        let error = read_all(&forge.open().unwrap().disks()[0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let path = format!("job/layers/{id:08x}.layer");
        assert!(error.to_string().contains(&path), "{error}");
    }
}
