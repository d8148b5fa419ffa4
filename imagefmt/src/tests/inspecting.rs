//! What `verify` looks at beside the content of images, features that only writers need, and that what is freed is
//! decided by places alone.

use super::model::Model;
use super::support::*;
use crate::format::node::{Node, closing_check};
use crate::format::pointer::Pointer;
use crate::format::sealed;
use crate::storage::Storage;
use crate::storage::memory::MemoryStorage;
use crate::{ClusterSize, Disk, Error, ErrorKind, NodeId, Result, Store, Verdict, Verifier, VerifyPlan};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

const JOB: &str = "job";
/// A layer that nothing lists.
const ORPHAN: &str = "job/layers/00000077.layer";

/// Three images, with all that can lie beside them: pins, a verdict, a note, an unfinished sync and a stray layer.
fn store_with_everything() -> (MemoryStorage, Store) {
    let (storage, store) = memory_store();
    let mut model = Model::new(20 * 16384, ClusterSize::K16);
    for seed in 1..=3 {
        model.set(seed, random_bytes(seed, 16384));
        model.set(seed + 5, text_bytes(seed, 16384));
        write_image(&store, JOB, &[("vda", &model)]).unwrap();
    }
    store.pin(&store.image_id(JOB, 1), "audit").unwrap();
    let image = open_image(&store, JOB, 2).unwrap();
    store
        .keep_verdict(&image, &Verdict::new(image.manifest()))
        .unwrap();
    store.put_note(JOB, &json!({ "interval": 60 })).unwrap();
    let mut writer = store.begin(JOB, None, &["vda".to_owned()]).unwrap();
    pass_over::<Error>(&mut writer, meta("vda", model.size), |pass| {
        pass.push_plain(12, &random_bytes(12, 16384))?;
        pass.checkpoint()?;
        pass.push_plain(14, &text_bytes(14, 16384))?;
        pass.checkpoint().map(drop)
    })
    .unwrap();
    drop(writer);
    let mut files = storage.files.lock().unwrap();
    let stray = files["job/layers/00000001.layer"].clone();
    files.insert(ORPHAN.to_owned(), stray);
    drop(files);
    (storage, store)
}

/// All that a verification of the whole store says: what is wrong, and what is only remarked.
fn said(storage: &MemoryStorage) -> (Vec<String>, Vec<String>) {
    let store = match Store::open_on(Arc::new(storage.clone()), "memory") {
        Ok(store) => store,
        Err(error) => return (vec![error.full_message()], Vec::new()),
    };
    let whole = store.inspect().unwrap();
    let chain = store.inspect_chain(JOB);
    let errors = whole.errors.iter().chain(&chain.errors);
    let mut wrong: Vec<String> = errors.map(Error::full_message).collect();
    for sequence in 1..=3 {
        wrong.extend(findings(&store, JOB, sequence));
    }
    let unfinished = Verifier::new().verify_unfinished(&store, JOB, &VerifyPlan::default(), &mut |_| {
        ControlFlow::Continue(())
    });
    match unfinished {
        Ok(verified) => wrong.extend(
            verified
                .iter()
                .flat_map(|done| &done.findings)
                .map(ToString::to_string),
        ),
        Err(error) => wrong.push(error.full_message()),
    }
    (wrong, [whole.remarks, chain.remarks].concat())
}

/// Bytes of the unfinished sync's layers that nothing points to: what a later checkpoint has superseded.
fn superseded(store: &Store, path: &str) -> Vec<Range<usize>> {
    let manifest = store.unfinished_in(JOB).unwrap().unwrap();
    let of_images: Vec<u32> = (1..=3)
        .flat_map(|sequence| store.read_manifest(JOB, sequence).unwrap().layers.clone())
        .map(|layer| layer.id)
        .collect();
    let own = manifest
        .layers
        .iter()
        .filter(|layer| !of_images.contains(&layer.id));
    let mut free = Vec::new();
    let image = store.chain(JOB).unwrap();
    let image = image.open(manifest.clone().into(), crate::Lock::new(())).unwrap();
    for layer in own.filter(|layer| path == format!("job/layers/{:08x}.layer", layer.id)) {
        let mut pieces: Vec<_> = image.disks().iter().flat_map(places).collect();
        pieces.retain(|place| place.layer == layer.id);
        pieces.sort_by_key(|place| place.offset);
        let mut at = 4096;
        for place in pieces {
            free.push(at..place.offset as usize);
            at = place.end() as usize;
        }
        free.push(at..layer.length as usize);
    }
    free
}

/// The places where a flipped bit is not found are those that docs/format.md names.
#[test]
fn every_flipped_byte_of_every_file_of_a_store_is_found() {
    let (storage, store) = store_with_everything();
    let (wrong, remarks) = said(&storage);
    assert_eq!(wrong, NOTHING);
    assert_eq!(
        remarks,
        [format!(
            "{ORPHAN} is listed by no image: the next sync or gc removes it"
        )]
    );
    let files: BTreeMap<String, Vec<u8>> = storage.files.lock().unwrap().clone();
    for sealed in [
        "store.json",
        ".notes/job.json",
        "job/chain.json",
        "job/checkpoint.json",
    ] {
        assert!(files.contains_key(sealed), "{sealed}");
    }
    let mut flips = 0;
    for (path, bytes) in files.iter().filter(|(path, _)| *path != ORPHAN) {
        let free = superseded(&store, path);
        for at in (flips % 7..bytes.len()).step_by(41) {
            if free.iter().any(|free| free.contains(&at)) {
                continue;
            }
            flips += 1;
            let flip = || storage.files.lock().unwrap().get_mut(path).unwrap()[at] ^= 1 << (at % 8);
            flip();
            assert!(!said(&storage).0.is_empty(), "byte {at} of {path}");
            flip();
        }
    }
    assert!(flips > 1000, "{flips}");
}

#[test]
fn what_is_missing_or_left_over_is_said() {
    let (storage, _) = store_with_everything();
    let remarks = |path: &str, content: Option<&[u8]>| {
        let before = storage.files.lock().unwrap().remove(path);
        if let Some(content) = content {
            storage
                .files
                .lock()
                .unwrap()
                .insert(path.to_owned(), content.to_vec());
        }
        let (wrong, remarks) = said(&storage);
        assert_eq!(wrong, NOTHING, "{path}");
        let mut files = storage.files.lock().unwrap();
        files.remove(path);
        files.extend(before.map(|before| (path.to_owned(), before)));
        remarks.join("; ")
    };
    assert!(remarks("job/chain.json", None).contains("chain.json is missing"));
    for (path, expected) in [
        ("README", "README is not known"),
        ("store.json.tmp", "never finished"),
        (".notes/job.json.tmp", "never finished"),
        (".notes/README", ".notes/README is not known"),
        ("job/chain.json.tmp", "never finished"),
        ("job/keys", "job/keys is not known"),
        ("job/images/000002.json.tmp", "never finished"),
        ("job/images/000002.fixup-kvm", "000002.fixup-kvm is not known"),
        ("job/images/000009.verified", "belongs to no image"),
        ("job/images/README", "README is not known"),
        ("job/layers/README", "README is not known"),
    ] {
        let said = remarks(path, Some(b"x"));
        assert!(said.contains(expected), "{path}: {said}");
    }
    let layer = storage.files.lock().unwrap()["job/layers/00000001.layer"].clone();
    let longer = [layer, vec![1; 4096]].concat();
    assert!(remarks("job/layers/00000001.layer", Some(&longer)).contains("is longer than"));
}

#[test]
fn records_of_other_images_and_chains_are_found() {
    let (storage, _) = store_with_everything();
    let (other, _) = store_with_everything();
    let copies = [
        ("job/images/000001.pins", "job/images/000002.pins"),
        ("job/images/000002.verified", "job/images/000001.verified"),
        ("job/chain.json", "job/chain.json"),
    ];
    for (from, to) in copies {
        let foreign = other.files.lock().unwrap()[from].clone();
        let before = storage.files.lock().unwrap().insert(to.to_owned(), foreign);
        let (wrong, _) = said(&storage);
        assert_eq!(wrong.len(), 1, "{to}: {wrong:?}");
        assert!(wrong[0].contains(to), "{wrong:?}");
        let mut files = storage.files.lock().unwrap();
        files.remove(to);
        files.extend(before.map(|before| (to.to_owned(), before)));
    }
}

/// Files of a later version beside an image go with it.
#[test]
fn files_that_are_not_known_go_with_their_image() {
    let (storage, store) = store_with_everything();
    let path = "job/images/000002.fixup-kvm";
    let plant = || {
        storage
            .files
            .lock()
            .unwrap()
            .insert(path.to_owned(), b"x".to_vec())
    };
    plant();
    store.gc(JOB).unwrap();
    assert!(storage.files.lock().unwrap().contains_key(path));
    store.delete(&store.image_id(JOB, 2)).unwrap();
    assert!(!storage.files.lock().unwrap().contains_key(path));
    plant();
    store.gc(JOB).unwrap();
    assert!(!storage.files.lock().unwrap().contains_key(path));
}

/// Sets a field of a sealed file.
fn set(storage: &MemoryStorage, path: &str, field: &str, value: Value) {
    let mut files = storage.files.lock().unwrap();
    let text = files.get_mut(path).unwrap();
    let mut record: Value = serde_json::from_slice(&text[..text.len() - 72]).unwrap();
    record[field] = value;
    *text = sealed::seal(&record).unwrap();
}

#[test]
fn features_of_writers_keep_every_writer_off_and_no_reader() {
    let words = || json!(["sparse-layers"]);
    let manifests: &[&str] = &[
        "job/images/000001.json",
        "job/images/000002.json",
        "job/images/000003.json",
    ];
    let cases: [(&[&str], bool); 4] = [
        (&["store.json"], false),
        (&["job/chain.json"], false),
        // chain.json is an old copy, or lost: every manifest repeats them.
        (manifests, false),
        (manifests, true),
    ];
    for (paths, is_lost) in cases {
        let (storage, store) = store_with_everything();
        drop(store);
        for path in paths {
            set(&storage, path, "read_only_compatible", words());
        }
        if is_lost {
            storage.files.lock().unwrap().remove("job/chain.json");
        }
        let before = storage.files.lock().unwrap().clone();
        let store = Store::open_on(Arc::new(storage.clone()), "memory").unwrap();
        let image = store.image_id(JOB, 1);
        let refusals: [(&str, Result<()>); 6] = [
            ("rm", store.delete(&store.image_id(JOB, 2)).map(drop)),
            ("gc", store.gc(JOB).map(drop)),
            ("pin", store.pin(&image, "other")),
            ("unpin", store.unpin(&image, None).map(drop)),
            ("rm unfinished", store.discard_unfinished(JOB).map(drop)),
            ("sync", store.begin(JOB, None, &["vda".to_owned()]).map(drop)),
        ];
        for (what, refused) in refusals {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{what}: {error:?}");
            assert!(
                error.full_message().contains("sparse-layers"),
                "{what}: {error:?}"
            );
        }
        assert!(*storage.files.lock().unwrap() == before, "nothing was changed");
        assert_eq!(findings(&store, JOB, 1), NOTHING);
    }
}

/// Changes every digest in the nodes of a disk, each block staying as long as it is.
fn scramble(storage: &MemoryStorage, disk: &Disk) {
    let tree = disk.tree();
    let mut todo: Vec<(NodeId, Pointer)> = vec![(tree.root_id(), tree.root())];
    while let Some((id, pointer)) = todo.pop() {
        if pointer.is_null() {
            continue;
        }
        let node = tree.load_uncached(id, &pointer).unwrap();
        if let Some(level) = id.level.checked_sub(1) {
            let children = (0u64..).zip(node.children());
            todo.extend(children.map(|(slot, child)| {
                (
                    NodeId {
                        level,
                        index: id.index * 256 + slot,
                    },
                    *child,
                )
            }));
        }
        let uuid = tree.layers().entry(pointer.place.layer).unwrap().uuid.bytes();
        let block = scrambled(&node, pointer.place.len as usize, |payload| {
            closing_check(payload, &uuid, pointer.place.offset, id).0
        });
        let path = format!("job/layers/{:08x}.layer", pointer.place.layer);
        let at = pointer.place.offset as usize;
        storage.files.lock().unwrap().get_mut(&path).unwrap()[at..at + block.len()].copy_from_slice(&block);
    }
}

fn scrambled(node: &Node, len: usize, check: impl Fn(&[u8]) -> [u8; 32]) -> Vec<u8> {
    for mask in 1..=u8::MAX {
        let mut other = node.clone();
        for slot in (0..256).filter(|&slot| !node.children()[slot].is_null()) {
            other
                .child_mut(slot)
                .digest
                .0
                .iter_mut()
                .for_each(|byte| *byte ^= mask);
        }
        let (_, mut block) = other.encode();
        block.extend(check(&block));
        if block.len() == len {
            return block;
        }
    }
    panic!("no other digests make a block of {len} bytes");
}

/// So a program that cannot compute digests, as it has no key, can free space.
#[test]
fn what_is_freed_is_decided_by_places_and_not_by_digests() {
    let frees = |with_scrambled: bool| {
        let (storage, store) = memory_store();
        let mut model = Model::new(300 * 16384, ClusterSize::K16);
        for seed in 1..=4 {
            for index in [seed, 3 * seed, 255 + seed, 7] {
                model.set(index, random_bytes(seed * 1000 + index, 16384));
            }
            write_image(&store, JOB, &[("vda", &model)]).unwrap();
        }
        if with_scrambled {
            let disks: Vec<Disk> = (1..=4)
                .map(|sequence| open_image(&store, JOB, sequence).unwrap().disks()[0].clone())
                .collect();
            // A node that several images have is scrambled once.
            let mut all = storage.clone();
            all.files = Arc::new(storage.files.lock().unwrap().clone().into());
            for disk in &disks {
                scramble(&all, disk);
            }
            *storage.files.lock().unwrap() = all.files.lock().unwrap().clone();
            let store = Store::open_on(Arc::new(storage.clone()), "memory").unwrap();
            assert!(
                !findings(&store, JOB, 4).is_empty(),
                "readers see that digests are wrong"
            );
        }
        let store = Store::open_on(Arc::new(storage.clone()), "memory").unwrap();
        let mut found = Vec::new();
        for sequence in [2, 1] {
            let reclaimed = store.delete(&store.image_id(JOB, sequence)).unwrap();
            assert!(
                reclaimed.kept.is_empty() && reclaimed.freed_bytes > 0,
                "{reclaimed:?}"
            );
            found.push(reclaimed);
        }
        storage.remove("job/images/000003.json").unwrap();
        found.push(store.gc(JOB).unwrap());
        let layers: BTreeMap<String, u64> = storage
            .files
            .lock()
            .unwrap()
            .keys()
            .filter(|path| path.ends_with(".layer"))
            .map(|path| (path.clone(), 0))
            .collect();
        let allocated: Vec<u64> = layers
            .keys()
            .map(|path| storage.allocated(path).unwrap())
            .collect();
        (found, layers, allocated)
    };
    assert_eq!(frees(false), frees(true));
}

/// A length that no layer has is refused before memory is taken for it.
#[test]
fn a_layer_that_claims_to_be_longer_than_any_is_refused() {
    let (storage, store) = store_with_everything();
    drop(store);
    let path = "job/images/000001.json";
    let text = storage.files.lock().unwrap()[path].clone();
    let record: Value = serde_json::from_slice(&text[..text.len() - 72]).unwrap();
    let mut layers = record["layers"].clone();
    layers[0]["length"] = (1u64 << 62).into();
    set(&storage, path, "layers", layers);
    let store = Store::open_on(Arc::new(storage.clone()), "memory").unwrap();
    let error = open_image(&store, JOB, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.full_message().contains("impossible length"), "{error:?}");
    let collected = store.gc(JOB).unwrap();
    assert_eq!(collected.freed_bytes, 0);
    assert!(!collected.kept.is_empty());
}
