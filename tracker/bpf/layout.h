// What the programs and the library share. src/layout.rs has the same in Rust; LAYOUT changes with every change here.
#pragma once

// Watches at the same time, and how many places behind its hash a disk's watches may take.
#define SLOTS 512
#define WINDOW 16
// Bios on their way: buckets, and places in each.
#define BUCKETS 4096
#define PLACES 16
// Of the programs that see completions.
#define COPIES 3
// Who counts: the copies of request, the copies of bio, queue. Each has numbers of its own, because it may be
// interrupted by any other, and never by itself. A power of two, so that a number can be masked to be one.
#define COUNTERS 8
#define COUNTER_MASK 7
#define BIO_COUNTER COPIES
#define QUEUE_COUNTER (2 * COPIES)

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

// Which slots are in use. Devices are as the kernel numbers them: major << 20 | minor.
struct devices {
    // By the first slot that a device may take: a bit for each of the WINDOW slots from there on that is in use by a
    // device with this first slot. 0 for nearly every device that is not watched; 1 for nearly every one that is.
    __u32 taken[SLOTS];
    __u32 device[SLOTS + WINDOW]; // by slot
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

struct count {
    __u64 sectors;
    __u64 events;
};

// Per processor and counter, so that no number is written by two at a time.
struct stats {
    __u64 queued; // sectors
    struct count completed[COUNTERS];
};

// Per processor, for all disks.
struct processor {
    __u64 request; // that a copy has marked, until the last copy has seen it
    __u64 ended; // the same of a bio that completed
    __u64 address[COUNTERS]; // see address_of in tracker.bpf.c
    __u64 worked[COPIES]; // completions of requests that write, of any disk, that a copy dealt with
};

// What is remembered of a bio on its way.
struct record {
    __u64 sector;
    __u32 sectors;
    __u32 device;
};

// Bios on their way whose addresses have the same hash.
struct bucket {
    __u64 bio[PLACES]; // addresses; 0: the place is free
    struct record record[PLACES];
};
