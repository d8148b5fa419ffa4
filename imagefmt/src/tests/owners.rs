//! Who may write to a chain, and what an unfinished first sync leaves for a writer that cannot resume it.

use super::model::Model;
use super::support::*;
use crate::storage::memory::MemoryStorage;
use crate::{
    ClusterSize, Consistency, ErrorKind, ImageWriter, Kind, Manifest, Owner, Result, Store, TakeOver, Uuid,
    WriteRequest,
};

fn owner(machine: u8, job: &str, job_id: Option<u8>) -> Owner {
    Owner {
        machine: Uuid::from_bytes([machine; 16]),
        host: format!("host{machine}"),
        job: job.to_owned(),
        job_id: job_id.map(|id| Uuid::from_bytes([id; 16])),
    }
}

fn request(owner: &Owner) -> WriteRequest {
    WriteRequest {
        job: owner.job.clone(),
        cluster_size: Some(ClusterSize::K16),
        disks: vec!["vda".to_owned()],
        owner: Some(owner.clone()),
        ..WriteRequest::default()
    }
}

/// A disk of 40 clusters with something in each.
fn disk(cluster_size: ClusterSize, seed: u64) -> Model {
    let step = u64::from(cluster_size.bytes());
    let mut model = Model::new(40 * step, cluster_size);
    for index in 0..40 {
        model.set(index, random_bytes(seed + index, cluster_size.bytes() as usize));
    }
    model
}

fn write(mut writer: ImageWriter, model: &Model) -> Manifest {
    write_disk(&mut writer, "vda", model, 0..model.cluster_count()).unwrap();
    writer.commit(Consistency::Crash, "test").unwrap()
}

fn sync(store: &Store, request: &WriteRequest, model: &Model) -> Result<Manifest> {
    Ok(write(store.begin_write(request)?, model))
}

/// A sync that ends behind a checkpoint of half of the disk.
fn leave_unfinished(store: &Store, request: &WriteRequest, model: &Model) {
    let mut writer = store.begin_write(request).unwrap();
    pass_over(&mut writer, meta("vda", model.size), |pass| {
        (0..20).try_for_each(|index| pass.push_plain(index, &model.get(index)))?;
        pass.checkpoint().map(drop)
    })
    .unwrap();
}

fn refused(store: &Store, request: &WriteRequest, words: &[&str]) {
    let found = store.begin_write(request).unwrap_err();
    let checked = store.check_write(request).unwrap_err();
    for error in [found, checked] {
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let message = error.full_message();
        for word in words {
            assert!(message.contains(word), "{message}: {word}");
        }
    }
}

fn layer_count(storage: &MemoryStorage) -> usize {
    let files = storage.files.lock().unwrap();
    files.keys().filter(|path| path.ends_with(".layer")).count()
}

#[test]
fn a_chain_is_its_owners_until_somebody_takes_it_over() {
    let (_, store) = memory_store();
    let model = disk(ClusterSize::K16, 1);
    let (first, second) = (owner(1, "web01", Some(7)), owner(2, "web01", Some(8)));
    let made = sync(&store, &request(&first), &model).unwrap();
    assert_eq!(made.owner, Some(first.clone()));
    assert_eq!(store.owner_of("web01").unwrap(), Some(first.clone()));
    let words = [
        "belongs to job web01 of machine 01010101",
        "(host1)",
        "this is job web01 of machine 02020202",
        "(host2)",
        "--take-over",
    ];
    refused(&store, &request(&second), &words);
    // Another job of the same name, and a sync without a service, on the same machine; a machine without an id.
    refused(&store, &request(&owner(1, "web01", Some(9))), &["host1"]);
    refused(&store, &request(&owner(1, "web01", None)), &["host1"]);
    let nobody = WriteRequest {
        owner: None,
        ..request(&first)
    };
    refused(&store, &nobody, &["host1", "machine without an id"]);
    // The name of a machine may change.
    let renamed = Owner {
        host: "renamed".to_owned(),
        ..first.clone()
    };
    sync(&store, &request(&renamed), &model).unwrap();

    let wrong = WriteRequest {
        take_over: TakeOver::From(owner(3, "web01", None)),
        ..request(&second)
    };
    refused(&store, &wrong, &["(renamed)"]);
    let taken = WriteRequest {
        take_over: TakeOver::From(first.clone()),
        ..request(&second)
    };
    sync(&store, &taken, &model).unwrap();
    refused(&store, &request(&first), &["(host2)"]);
    let back = WriteRequest {
        take_over: TakeOver::Always,
        ..request(&first)
    };
    assert_eq!(sync(&store, &back, &model).unwrap().sequence, 4);
}

#[test]
fn a_chain_record_that_is_made_anew_keeps_its_owner() {
    let model = disk(ClusterSize::K16, 1);
    let (first, second) = (owner(1, "web01", None), owner(2, "web01", None));
    for finished in [false, true] {
        let (storage, store) = memory_store();
        if finished {
            sync(&store, &request(&first), &model).unwrap();
        } else {
            leave_unfinished(&store, &request(&first), &model);
        }
        storage.files.lock().unwrap().remove("web01/chain.json").unwrap();
        assert_eq!(store.owner_of("web01").unwrap(), Some(first.clone()));
        refused(&store, &request(&second), &["host1"]);
        sync(&store, &request(&first), &model).unwrap();
    }
}

#[test]
fn damage_in_a_chain_hides_neither_its_owner_nor_keeps_it_from_writing() {
    let model = disk(ClusterSize::K16, 1);
    let first = owner(1, "web01", None);
    for damaged in ["web01/checkpoint.json", "web01/images/000001.json"] {
        let (storage, store) = memory_store();
        sync(&store, &request(&first), &model).unwrap();
        sync(&store, &request(&first), &model).unwrap();
        leave_unfinished(&store, &request(&first), &disk(ClusterSize::K16, 300));
        storage.files.lock().unwrap().get_mut(damaged).unwrap()[20] ^= 1;
        assert_eq!(store.owner_of("web01").unwrap(), Some(first.clone()), "{damaged}");
        refused(&store, &request(&owner(2, "web01", None)), &["host1"]);
        sync(&store, &request(&first), &model).unwrap();
    }
    // Of a first sync too, and where chain.json is lost or damaged as well.
    let (storage, store) = memory_store();
    leave_unfinished(&store, &request(&first), &model);
    storage
        .files
        .lock()
        .unwrap()
        .get_mut("web01/checkpoint.json")
        .unwrap()[20] ^= 1;
    assert_eq!(store.owner_of("web01").unwrap(), Some(first.clone()));
    storage.files.lock().unwrap().remove("web01/chain.json").unwrap();
    assert_eq!(store.owner_of("web01").unwrap(), None);
}

#[test]
fn a_chain_without_an_owner_is_that_of_its_next_writer() {
    let (_, store) = memory_store();
    let model = disk(ClusterSize::K16, 1);
    let unowned = write_image(&store, "web01", &[("vda", &model)]).unwrap();
    assert_eq!(unowned.owner, None);
    assert_eq!(store.owner_of("web01").unwrap(), None);
    let first = owner(1, "web01", None);
    sync(&store, &request(&first), &model).unwrap();
    refused(&store, &request(&owner(2, "web01", None)), &["host1"]);
}

#[test]
fn a_first_sync_that_stored_nothing_binds_nobody() {
    let (_, store) = memory_store();
    let model = disk(ClusterSize::K16, 1);
    let mut writer = store.begin_write(&request(&owner(1, "web01", None))).unwrap();
    writer.disk(meta("vda", model.size)).unwrap();
    drop(writer);
    assert_eq!(store.owner_of("web01").unwrap(), None);
    sync(&store, &request(&owner(2, "web01", None)), &model).unwrap();
}

#[test]
fn an_unfinished_first_sync_that_does_not_fit_is_discarded() {
    let own = owner(1, "web01", None);
    let wide = disk(ClusterSize::K64, 50);
    let mut short = Model::new(16 * 16384, ClusterSize::K16);
    short.set(3, random_bytes(99, 16384));
    for (model, resumed) in [(&wide, false), (&short, true)] {
        let (storage, store) = memory_store();
        leave_unfinished(&store, &request(&own), &disk(ClusterSize::K16, 1));
        let wanted = WriteRequest {
            cluster_size: Some(model.cluster_size),
            ..request(&own)
        };
        assert_eq!(store.check_write(&wanted).unwrap(), None);
        let writer = store.begin_write(&wanted).unwrap();
        assert_eq!(writer.resumed().is_some(), resumed);
        let made = write(writer, model);
        assert_eq!((made.kind, made.sequence), (Kind::Full, 2));
        let image = open_image(&store, "web01", 2).unwrap();
        assert_eq!(
            read_all(&image.disks()[0]).unwrap(),
            model.read(0, model.size as usize)
        );
        assert_eq!(findings(&store, "web01", 2), NOTHING);
        assert_eq!(
            layer_count(&storage),
            1,
            "what the unfinished sync stored is gone"
        );
    }
}

#[test]
fn an_unfinished_first_sync_keeps_its_cluster_size() {
    let (_, store) = memory_store();
    let own = owner(1, "web01", None);
    let model = disk(ClusterSize::K16, 1);
    leave_unfinished(&store, &request(&own), &model);
    let unsaid = WriteRequest {
        cluster_size: None,
        ..request(&own)
    };
    let writer = store.begin_write(&unsaid).unwrap();
    assert_eq!(writer.cluster_size(), ClusterSize::K16);
    assert!(writer.resumed().is_some());
    assert_eq!(
        write(writer, &model).disks[0].dirty_bytes,
        model.size,
        "no cluster was stored twice"
    );
}

#[test]
fn a_job_that_took_up_another_one_and_made_no_image_gives_way() {
    let (_, store) = memory_store();
    let model = disk(ClusterSize::K16, 1);
    let (old, canceled, next) = (
        owner(1, "web01", Some(1)),
        owner(1, "web02", Some(2)),
        owner(1, "web03", Some(3)),
    );
    sync(&store, &request(&old), &model).unwrap();
    let taking_up = |owner: &Owner, take_over| WriteRequest {
        take_up: Some("web01".to_owned()),
        take_over,
        ..request(owner)
    };
    let changed = disk(ClusterSize::K16, 100);
    leave_unfinished(
        &store,
        &taking_up(&canceled, TakeOver::From(old.clone())),
        &changed,
    );
    refused(&store, &taking_up(&next, TakeOver::Never), &["web02"]);
    let writer = store.begin_write(&taking_up(&next, TakeOver::From(canceled.clone())));
    let made = write(writer.unwrap(), &changed);
    assert_eq!((made.job.as_str(), made.kind), ("web03", Kind::Incremental));
    assert_eq!(findings(&store, "web01", made.sequence), NOTHING);
    // A job that made an image does not.
    refused(&store, &taking_up(&canceled, TakeOver::Always), &["web03"]);
}

#[test]
fn a_disk_that_shrank_is_stored_anew_where_that_is_allowed() {
    let (_, store) = memory_store();
    let own = owner(1, "web01", None);
    let large = disk(ClusterSize::K16, 1);
    sync(&store, &request(&own), &large).unwrap();
    let mut small = Model::new(30 * 16384 + 100, ClusterSize::K16);
    small.set(0, large.get(0));
    small.set(29, random_bytes(77, 16384));
    let mut writer = store.begin_write(&request(&own)).unwrap();
    let error = writer.disk(meta("vda", small.size)).unwrap_err();
    assert!(error.to_string().contains("smaller"), "{error}");
    drop(writer);
    let allowed = WriteRequest {
        may_shrink: true,
        ..request(&own)
    };
    let made = sync(&store, &allowed, &small).unwrap();
    assert_eq!(made.disks[0].dirty_bytes, 2 * 16384, "all of it is new");
    for (sequence, model) in [(1, &large), (made.sequence, &small)] {
        let image = open_image(&store, "web01", sequence).unwrap();
        let disk = &image.disks()[0];
        assert_eq!(read_all(disk).unwrap(), model.read(0, model.size as usize));
        assert_eq!(findings(&store, "web01", sequence), NOTHING);
    }
    // It is compared with the parent again from now on.
    assert_eq!(sync(&store, &allowed, &small).unwrap().disks[0].dirty_bytes, 0);
}
