//! The simulation itself: each model loses what it may lose and keeps what it promises.

use super::crash::{corners, random};
use super::disk::{Failure, Fault, SimDisk};
use super::media::FsModel;
use crate::ErrorKind;
use crate::storage::{LockMode, Storage};
use std::collections::BTreeSet;

/// What a file can be found to hold after a power cut now, in words.
fn found(disk: &SimDisk, model: FsModel, path: &str) -> BTreeSet<String> {
    let snapshot = disk.snapshot();
    let media = snapshot.media(model);
    let all = corners(media)
        .into_iter()
        .chain((0..200).map(|seed| random(media, seed)));
    all.map(|outcome| describe(&SimDisk::holding(outcome.found(media)), path))
        .collect()
}

fn describe(disk: &SimDisk, path: &str) -> String {
    match disk.read(path, 1 << 20) {
        Err(_) => "absent".to_owned(),
        Ok(bytes) if bytes.is_empty() => "empty".to_owned(),
        Ok(bytes) if bytes.iter().all(|&byte| byte == 0) => "zeros".to_owned(),
        Ok(bytes) if bytes.iter().all(|&byte| byte == bytes[0]) => {
            format!("{} x {}", bytes.len(), bytes[0])
        }
        Ok(_) => "torn".to_owned(),
    }
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// A disk with a directory `d` and a durable file in it of 8 KiB of ones.
fn disk_with_file() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir("d").unwrap();
    disk.sync_dir("").unwrap();
    disk.write("d/old", &[1; 8192]).unwrap();
    disk.sync_dir("d").unwrap();
    disk
}

#[test]
fn what_was_synced_is_always_found() {
    let disk = disk_with_file();
    for model in FsModel::ALL {
        assert_eq!(found(&disk, model, "d/old"), set(&["8192 x 1"]));
    }
}

#[test]
fn a_file_without_a_synced_name_may_be_gone() {
    let disk = disk_with_file();
    disk.write("d/new", &[2; 512]).unwrap();
    // The sync of a file takes its name along where one journal holds both.
    assert_eq!(found(&disk, FsModel::Ext4, "d/new"), set(&["512 x 2"]));
    assert_eq!(found(&disk, FsModel::Xfs, "d/new"), set(&["512 x 2"]));
    assert_eq!(found(&disk, FsModel::Posix, "d/new"), set(&["512 x 2", "absent"]));
}

#[test]
fn writes_without_a_sync_are_lost_torn_or_garbage() {
    let disk = disk_with_file();
    let mut layer = disk.create_layer("d/layer").unwrap();
    disk.sync_dir("d").unwrap();
    layer.append(&[7; 8192]).unwrap();
    let ext4 = found(&disk, FsModel::Ext4, "d/layer");
    assert!(
        ext4.is_superset(&set(&["empty", "8192 x 7", "4096 x 7", "torn"])),
        "{ext4:?}"
    );
    assert!(!ext4.contains("zeros"), "{ext4:?}");
    for model in [FsModel::Xfs, FsModel::Posix] {
        let all = found(&disk, model, "d/layer");
        assert!(
            all.is_superset(&set(&["empty", "zeros", "8192 x 7", "torn"])),
            "{all:?}"
        );
    }
    layer.sync().unwrap();
    for model in FsModel::ALL {
        assert_eq!(found(&disk, model, "d/layer"), set(&["8192 x 7"]));
    }
}

#[test]
fn a_rename_over_a_file_leaves_the_old_or_the_new_one() {
    let disk = disk_with_file();
    disk.write("d/new", &[2; 512]).unwrap();
    disk.sync_dir("d").unwrap();
    disk.rename("d/new", "d/old").unwrap();
    for model in FsModel::ALL {
        assert_eq!(found(&disk, model, "d/old"), set(&["512 x 2", "8192 x 1"]));
    }
    disk.sync_dir("d").unwrap();
    for model in FsModel::ALL {
        assert_eq!(found(&disk, model, "d/old"), set(&["512 x 2"]));
    }
}

#[test]
fn only_posix_lets_later_names_overtake_earlier_ones() {
    let disk = disk_with_file();
    disk.write("d/first", &[2; 512]).unwrap();
    disk.sync_dir("d").unwrap();
    disk.remove("d/old").unwrap();
    disk.rename("d/first", "d/second").unwrap();
    let both = |model| {
        let snapshot = disk.snapshot();
        let media = snapshot.media(model);
        let all = corners(media).into_iter().map(|outcome| {
            let disk = SimDisk::holding(outcome.found(media));
            (describe(&disk, "d/old"), describe(&disk, "d/second"))
        });
        all.collect::<BTreeSet<_>>()
    };
    let overtaken = ("8192 x 1".to_owned(), "512 x 2".to_owned());
    assert!(!both(FsModel::Ext4).contains(&overtaken));
    assert!(!both(FsModel::Xfs).contains(&overtaken));
    assert!(both(FsModel::Posix).contains(&overtaken));
}

#[test]
fn punches_may_come_early_or_not_at_all_until_they_are_synced() {
    let disk = disk_with_file();
    let late = Fault {
        at: disk.ops().len() + 2,
        failure: Failure::Eio,
        sticky: false,
    };
    disk.fail(Some(late));
    disk.reclaim("d/old", &[0..4096, 4096..8192]).unwrap_err();
    for model in FsModel::ALL {
        let all = found(&disk, model, "d/old");
        assert!(
            all.is_superset(&set(&["8192 x 1", "zeros"])),
            "{model:?}: {all:?}"
        );
    }
    disk.fail(None);
    disk.reclaim("d/old", &[0..4096, 4096..8192]).unwrap();
    assert_eq!(disk.allocated("d/old").unwrap(), 0);
    for model in FsModel::ALL {
        assert_eq!(found(&disk, model, "d/old"), set(&["zeros"]));
    }
}

#[test]
fn a_failed_sync_loses_data_and_a_later_one_succeeds_all_the_same() {
    for (failure, reads) in [(Failure::SyncLost, "4096 x 7"), (Failure::SyncEvicted, "zeros")] {
        let disk = disk_with_file();
        let mut layer = disk.create_layer("d/layer").unwrap();
        disk.sync_dir("d").unwrap();
        layer.append(&[7; 4096]).unwrap();
        disk.fail(Some(Fault {
            at: disk.ops().len(),
            failure,
            sticky: false,
        }));
        layer.sync().unwrap_err();
        layer.sync().unwrap();
        assert_eq!(describe(&disk, "d/layer"), reads);
        for model in FsModel::ALL {
            assert_eq!(found(&disk, model, "d/layer"), set(&["empty"]));
        }
    }
}

#[test]
fn a_full_disk_takes_a_part_and_nothing_more() {
    let disk = disk_with_file();
    let mut layer = disk.create_layer("d/layer").unwrap();
    disk.fail(Some(Fault {
        at: disk.ops().len(),
        failure: Failure::Short,
        sticky: true,
    }));
    assert_eq!(layer.append(&[7; 4096]).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(describe(&disk, "d/layer"), "2048 x 7");
    assert!(disk.write("d/more", &[1]).is_err());
    disk.remove("d/old").unwrap();
}

#[test]
fn nothing_works_without_power() {
    let disk = disk_with_file();
    disk.fail(Some(Fault {
        at: disk.ops().len() + 1,
        failure: Failure::PowerOff,
        sticky: true,
    }));
    disk.read("d/old", 1 << 20).unwrap();
    disk.remove("d/old").unwrap_err();
    disk.read("d/old", 1 << 20).unwrap_err();
    for model in FsModel::ALL {
        assert_eq!(found(&disk, model, "d/old"), set(&["8192 x 1"]));
    }
}

#[test]
fn locks_exclude_each_other_and_go_when_dropped() {
    let disk = disk_with_file();
    let busy = |mode| disk.lock("d/old", mode).unwrap_err().kind() == ErrorKind::Busy;
    let first = disk.lock("d/old", LockMode::Shared).unwrap();
    let second = disk.lock("d/old", LockMode::Shared).unwrap();
    assert!(busy(LockMode::Exclusive));
    drop(first);
    assert!(busy(LockMode::Exclusive));
    drop(second);
    let alone = disk.lock("d/old", LockMode::ExclusiveCreate).unwrap();
    assert!(busy(LockMode::Shared) && busy(LockMode::Exclusive));
    drop(alone);
    for mode in [LockMode::Shared, LockMode::Exclusive] {
        assert_eq!(disk.lock("d/none", mode).unwrap_err().kind(), ErrorKind::NotFound);
    }
    drop(disk.lock("d/none", LockMode::ExclusiveCreate).unwrap());
    assert_eq!(describe(&disk, "d/none"), "empty");
}
