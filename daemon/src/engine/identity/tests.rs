//! Which disks are taken for the same, for others and for exchanged ones.

use super::*;
use crate::engine::ErrorKind;
use std::path::Path;

fn identity(change: impl FnOnce(&mut DiskIdentity)) -> DiskIdentity {
    let mut identity = DiskIdentity::default();
    change(&mut identity);
    identity
}

fn table(id: &str) -> DiskIdentity {
    identity(|disk| disk.table = Some(id.to_owned()))
}

fn filesystems(ids: &[&str]) -> DiskIdentity {
    identity(|disk| disk.filesystems = ids.iter().map(|id| (*id).to_owned()).collect())
}

fn serial(serial: &str, table: &str) -> DiskIdentity {
    identity(|disk| {
        disk.serial = Some(serial.to_owned());
        disk.table = Some(table.to_owned());
    })
}

fn file(path: &str, table: &str) -> DiskIdentity {
    identity(|disk| {
        disk.backing_file = Some(path.to_owned());
        disk.table = Some(table.to_owned());
    })
}

#[test]
fn hardware_counts_before_content_and_a_path_only_if_it_differs() {
    let nothing = DiskIdentity::default();
    let same = [
        (serial("1", "gpt:a"), serial("1", "gpt:b")),
        (table("gpt:a"), table("gpt:a")),
        (filesystems(&["1/ext:a", "2/xfs:b"]), filesystems(&["2/xfs:b"])),
        (file("/f", "gpt:a"), file("/f", "gpt:a")),
    ];
    for (known, now) in same {
        assert_eq!(compare(&known, &now), Likeness::Same, "{known:?}");
    }
    let different = [
        (
            serial("1", "gpt:a"),
            serial("2", "gpt:a"),
            "serial number was 1 and is now 2",
        ),
        (table("gpt:a"), table("gpt:b"), "partition table's id was gpt:a"),
        (
            filesystems(&["ext:a"]),
            filesystems(&["ext:b", "x:c"]),
            "now holds ext:b, x:c",
        ),
        (file("/f", "gpt:a"), file("/g", "gpt:a"), "backing file was /f"),
        (file("/f", "gpt:a"), file("/f", "gpt:b"), "partition table's id"),
        (
            identity(|disk| disk.partition = Some(1)),
            nothing.clone(),
            "partition 1 and is now the whole disk",
        ),
    ];
    for (known, now, words) in different {
        match compare(&known, &now) {
            Likeness::Different(found) => assert!(found.contains(words), "{found}"),
            other => panic!("{known:?}: {other:?}"),
        }
    }
    for now in [table("gpt:a"), filesystems(&["ext:a"]), nothing.clone()] {
        assert_eq!(compare(&nothing, &now), Likeness::Unknown);
        assert_eq!(compare(&now, &nothing), Likeness::Unknown);
    }
}

fn check(
    known: &[(&str, DiskIdentity)],
    given: &[(&str, DiskIdentity)],
    accept: bool,
) -> Result<Vec<String>> {
    let known: Vec<_> = known
        .iter()
        .map(|(name, identity)| Known {
            name,
            size_bytes: 100,
            identity,
        })
        .collect();
    let given: Vec<_> = given
        .iter()
        .map(|(name, identity)| Given {
            name,
            path: Path::new(if *name == "vda" { "/dev/vda" } else { "/dev/vdb" }),
            size_bytes: 100,
            identity,
        })
        .collect();
    check_known(&KnownFrom::Image("web01/5".to_owned()), &known, &given, accept)
}

#[test]
fn disks_that_changed_places_are_told_apart_and_never_accepted() {
    let known = [("vda", table("gpt:a")), ("vdb", filesystems(&["ext:b"]))];
    assert!(check(&known, &known, false).unwrap().is_empty());
    let exchanged = [("vda", filesystems(&["ext:b"])), ("vdb", table("gpt:a"))];
    for accept in [false, true] {
        let error = check(&known, &exchanged, accept).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let message = error.full_message();
        for words in [
            "/dev/vda, given as vda, is the disk that web01/5 has as vdb",
            "/dev/vdb, given as vdb, is the disk that web01/5 has as vda",
            "--disk vdb=/dev/vda --disk vda=/dev/vdb",
            "--take-up",
        ] {
            assert!(message.contains(words), "{message}");
        }
    }
    // One of them alone, in the place of one that is gone.
    let one = [("vda", filesystems(&["ext:b"])), ("vdb", table("gpt:new"))];
    assert!(
        check(&known, &one, true)
            .unwrap_err()
            .full_message()
            .contains("changed places")
    );
}

#[test]
fn a_copy_of_a_disk_is_not_the_disk() {
    // vdb was blank, and now holds what vda still holds too.
    let known = [("vda", table("gpt:a")), ("vdb", DiskIdentity::default())];
    let copied = [("vda", table("gpt:a")), ("vdb", table("gpt:a"))];
    assert!(check(&known, &copied, false).unwrap().is_empty());
}

#[test]
fn another_disk_and_a_smaller_one_are_refused_until_they_are_accepted() {
    let known = [("vda", table("gpt:a"))];
    let other = [("vda", table("gpt:b"))];
    let message = check(&known, &other, false).unwrap_err().full_message();
    assert!(
        message.contains("is not the disk that web01/5 has as vda"),
        "{message}"
    );
    assert!(check(&known, &other, true).unwrap().is_empty());
    let (identity, before) = (table("gpt:a"), DiskIdentity::default());
    let sized = |size_bytes, identity| Given {
        name: "vda",
        path: Path::new("/dev/vda"),
        size_bytes,
        identity,
    };
    let known = Known {
        name: "vda",
        size_bytes: 100,
        identity: &identity,
    };
    let from = KnownFrom::Job("web01".to_owned());
    let smaller = |accept| check_known(&from, &[known], &[sized(99, &identity)], accept);
    let message = smaller(false).unwrap_err().full_message();
    assert!(message.contains("it had 100 bytes and now has 99"), "{message}");
    assert!(smaller(true).unwrap().is_empty());
    // A larger one that nothing tells from others is worth a warning.
    let larger = check_known(&from, &[known], &[sized(200, &identity)], false).unwrap();
    assert!(larger.is_empty());
    let larger = check_known(&from, &[known], &[sized(200, &before)], false).unwrap();
    assert!(larger[0].contains("vda (/dev/vda) grew"), "{larger:?}");
}
