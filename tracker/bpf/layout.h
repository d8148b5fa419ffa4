// What the programs and the library share. src/layout.rs has the same in Rust; LAYOUT changes with every change here.
#pragma once

// Watches at the same time, and how many places behind its hash a disk's watches may take.
#define SLOTS 512
#define WINDOW 16
// Bios on their way, and how many places behind its hash one may take.
#define BIOS 65536
#define BIO_WINDOW 16
#define COPIES 3
// Places for counts of a copy: a power of two, so that a number can be masked to be one.
#define COPY_PLACES 4
#define COPY_MASK 3

// Of a disk: its requests complete as bios (device-mapper, md, zram), not as requests.
#define DISK_BIO_BASED 1

struct control {
    __u64 magic;
    __u64 layout;
    __u64 object; // hash of the compiled programs
    __u64 bio_disks; // watches of bio-based disks
    __u64 bios_full; // bios that the table had no room for
    __u64 bios_stale; // bios whose completion was not seen
    __u64 chain; // requests of more bios than are looked at
};

// Devices by slot, as the kernel numbers them: major << 20 | minor. 0: none.
struct devices {
    __u32 device[SLOTS + WINDOW];
};

// What is watched, in sectors of the whole disk.
struct disk {
    __u64 start;
    __u64 end;
    __u64 disk_sectors;
    __u32 cluster_shift; // a cluster has 1 << cluster_shift sectors
    __u32 flags;
    __u64 outside; // ranges outside of the disk
    __u64 passthrough; // commands whose effect is not known
    __u64 zone; // zone operations
    __u64 unmarked; // ranges that could not be marked
};

// Per processor, so that no counter is written by two at a time: a copy does not interrupt itself.
struct stats {
    __u64 queued[COPY_PLACES]; // sectors
    __u64 completed[COPY_PLACES];
    __u64 events[COPY_PLACES];
};

// Per processor, for all disks.
struct processor {
    __u64 request; // that a copy has marked, until the last copy has seen it
    __u64 bio; // the same of a bio that was queued
    __u64 ended; // the same of a bio that completed
    __u64 entered[COPY_PLACES]; // completions of writes of any disk that a copy saw
    __u64 found[COPY_PLACES]; // of these, of disks that are watched
};

// A bio on its way, by its address.
struct record {
    __u64 bio; // 0: the place is free
    __u64 sector;
    __u32 sectors;
    __u32 device;
};
