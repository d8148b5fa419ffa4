//! Archives as distributions and careless programs make them.

use std::time::{Duration, Instant};

use api::Level::{Critical, Ok, Warning};

use crate::precheck::scan;

use super::fake::{RELEASE, Tree, archive, drivers, entry, packed, ready};

const IMAGE: &str = "/boot/initrd.img-6.1.0-18-amd64";

fn with_image(image: &[u8]) -> Tree {
    let mut tree = ready();
    tree.file(IMAGE, image);
    tree
}

fn early() -> Vec<u8> {
    archive(&["kernel/x86/microcode/GenuineIntel.bin"])
}

#[test]
fn every_packing_that_the_kernel_knows_is_looked_into() {
    let plain = archive(&drivers(RELEASE));
    let without = archive(&["init", "lib/modules/6.1.0-18-amd64/kernel/e1000.ko"]);
    let packings: [(&str, &[&str]); 8] = [
        ("cat", &[]),
        ("gzip", &["-c"]),
        ("zstd", &["-qc"]),
        ("xz", &["-c", "--check=crc32"]),
        ("xz", &["-c", "--format=lzma"]),
        ("lz4", &["-qlc"]),
        ("lz4", &["-qc"]),
        ("bzip2", &["-c"]),
    ];
    for (program, args) in packings {
        with_image(&packed(program, args, &plain)).expect("initramfs_virtio", Ok, "has the drivers");
        with_image(&packed(program, args, &without)).expect("initramfs_virtio", Critical, "lacks virtio_blk");
        let behind = [early(), early(), packed(program, args, &plain)].concat();
        with_image(&behind).expect("initramfs_virtio", Ok, "has the drivers");
    }
}

#[test]
fn several_archives_are_one_initramfs() {
    let all = drivers(RELEASE);
    let (first, second) = all.split_at(3);
    let in_the_clear = [archive(first), vec![0; 4096], archive(second)].concat();
    with_image(&in_the_clear).expect("initramfs_virtio", Ok, "has the drivers");
    let packed_together = packed("gzip", &["-c"], &in_the_clear);
    with_image(&packed_together).expect("initramfs_virtio", Ok, "has the drivers");
    let packed_apart = [
        packed("gzip", &["-c"], &archive(first)),
        packed("gzip", &["-c"], &archive(second)),
    ]
    .concat();
    with_image(&packed_apart).expect("initramfs_virtio", Ok, "has the drivers");
}

#[test]
fn drivers_of_another_release_do_not_count() {
    let image = archive(&drivers("6.1.0-17-amd64"));
    with_image(&image).expect("initramfs_virtio", Critical, "lacks virtio_blk");
}

#[test]
fn an_image_within_is_told_and_not_taken_for_lacking() {
    let image = archive(&["init", "squashfs-root.img"]);
    with_image(&image).expect("initramfs_virtio", Warning, "a packed root that was not checked");
}

#[test]
fn damage_is_told_unless_everything_was_found_before_it() {
    let lacking = archive(&["init", "etc/passwd", "lib/modules/6.1.0-18-amd64/kernel/e1000.ko"]);
    let whole = packed("gzip", &["-c"], &lacking);
    let endless_name = [b"070701".as_slice(), &[b'f'; 104]].concat();
    let mut no_trailer = Vec::new();
    entry(&mut no_trailer, b"init", b"x");
    let damaged: [&[u8]; 10] = [
        b"",
        b"0",
        b"070701",
        &[0; 5000],
        &lacking[..lacking.len() / 2],
        &whole[..whole.len() / 2],
        &endless_name,
        &no_trailer,
        b"\x1f\x8bno gzip at all",
        &[early().as_slice(), b"garbage"].concat(),
    ];
    for image in damaged {
        with_image(image).expect("initramfs_virtio", Warning, "could not be determined");
    }
    let found_before = [archive(&drivers(RELEASE)), b"garbage".to_vec()].concat();
    with_image(&found_before).expect("initramfs_virtio", Ok, "has the drivers");
    let garbage_behind = [
        packed("gzip", &["-c"], &archive(&drivers(RELEASE))),
        b"garbage".to_vec(),
    ]
    .concat();
    with_image(&garbage_behind).expect("initramfs_virtio", Ok, "has the drivers");
}

#[test]
fn what_unpacks_to_more_than_can_be_looked_through_ends_at_the_deadline() {
    let mut files = Vec::new();
    for number in 0..2048 {
        entry(&mut files, format!("file{number}").as_bytes(), &[0; 64 << 10]);
    }
    let tree = with_image(&packed("gzip", &["-1c"], &files));
    for left in [Duration::ZERO, Duration::from_millis(10)] {
        let deadline = Instant::now() + left;
        let listing = scan(
            &tree.root(),
            &[IMAGE.to_owned()],
            RELEASE,
            &["virtio_blk"],
            deadline,
        );
        assert!(listing.problem.expect("it is told").contains("a few seconds"));
    }
}
