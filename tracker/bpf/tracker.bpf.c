// Marks what is written to disks: a bit for each cluster, in a map of its disk. docs/tracking.md explains how.
#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "layout.h"

char LICENSE[] SEC("license") = "GPL";

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct control);
} control SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct devices);
} devices SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, SLOTS + WINDOW);
    __type(key, __u32);
    __type(value, struct disk);
} disks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, SLOTS + WINDOW);
    __type(key, __u32);
    __type(value, struct stats);
} stats SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct processor);
} processors SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, BUCKETS);
    __type(key, __u32);
    __type(value, struct bucket);
} bios SEC(".maps");

// A word of 64 clusters each. The maps in it have as many words as their disk needs.
struct words {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
    __uint(max_entries, SLOTS + WINDOW);
    __type(key, __u32);
    __array(values, struct words);
} live SEC(".maps");

// The kernel's operations (enum req_op). Before 5.18, 7 was WRITE_SAME.
enum {
    OP_READ = 0,
    OP_WRITE = 1,
    OP_FLUSH = 2,
    OP_DISCARD = 3,
    OP_SECURE_ERASE = 5,
    OP_APPEND_OR_SAME = 7,
    OP_WRITE_ZEROES = 9,
    OP_SCSI_IN = 32,
    OP_SCSI_OUT = 33,
    OP_DRIVER_IN = 34,
    OP_DRIVER_OUT = 35,
};

enum effect { NOTHING, RANGE, ZONE, UNKNOWN };

// What an operation does to a disk. A command of a driver that brings data in reads; one that transfers nothing may
// be a format or a sanitize.
static __always_inline enum effect effect_of(__u32 op, __u32 bytes)
{
    switch (op) {
    case OP_READ:
    case OP_FLUSH:
        return NOTHING;
    case OP_WRITE:
    case OP_DISCARD:
    case OP_SECURE_ERASE:
    case OP_WRITE_ZEROES:
        return RANGE;
    case OP_SCSI_IN:
    case OP_DRIVER_IN:
        return bytes ? NOTHING : UNKNOWN;
    case OP_SCSI_OUT:
    case OP_DRIVER_OUT:
        return UNKNOWN;
    default:
        return ZONE;
    }
}

// Most words that one call marks, and how often it is called: an event covers at most 4 GiB.
#define WORDS_PER_CALL 256
#define CALLS 17

// Sets bits first to last, which lie in at most WORDS_PER_CALL words. Not static, so that the verifier looks at it once
// and not at every call. 1: could not.
__noinline int mark_words(__u32 slot, __u64 first, __u64 last)
{
    void *words = bpf_map_lookup_elem(&live, &slot);
    if (!words)
        return 1;
    __u32 word = first >> 6;
    __u32 last_word = last >> 6;
    __u64 mask = ~0ULL << (first & 63);
#pragma clang loop unroll(disable)
    for (int i = 0; i < WORDS_PER_CALL; i++) {
        __u64 *place = bpf_map_lookup_elem(words, &word);
        if (!place)
            return 1;
        if (word == last_word)
            mask &= ~0ULL >> (63 - (last & 63));
        // Unconditionally: the locked operation is a barrier too, and a bit seen set may just be taken.
        __sync_fetch_and_or(place, mask);
        if (word == last_word)
            return 0;
        mask = ~0ULL;
        word++;
    }
    return 1;
}

// Marks a range of the whole disk in one watch, whatever it is.
__noinline int mark_any(__u32 slot, __u64 sector, __u64 sectors)
{
    struct disk *disk = bpf_map_lookup_elem(&disks, &slot);
    if (!disk)
        return 0;
    __u64 end = sector + sectors;
    if (end < sector || end > disk->disk_sectors) {
        __sync_fetch_and_add(&disk->outside, 1);
        end = disk->disk_sectors;
    }
    if (sector < disk->start)
        sector = disk->start;
    if (end > disk->end)
        end = disk->end;
    if (sector >= end)
        return 0;
    __u32 shift = disk->cluster_shift & 63;
    __u64 first = (sector - disk->start) >> shift;
    __u64 last = (end - 1 - disk->start) >> shift;
#pragma clang loop unroll(disable)
    for (int i = 0; i < CALLS; i++) {
        __u64 until = (first | 63) + (WORDS_PER_CALL - 1) * 64;
        if (until > last)
            until = last;
        if (mark_words(slot, first, until))
            break;
        if (until == last)
            return 0;
        first = until + 1;
    }
    __sync_fetch_and_add(&disk->unmarked, 1);
    return 0;
}

// Marks a range of the whole disk in one watch. Nearly every write lies in one word of its watch.
static __always_inline void mark(__u32 slot, __u64 sector, __u64 sectors)
{
    struct disk *disk = bpf_map_lookup_elem(&disks, &slot);
    if (!disk)
        return;
    __u64 end = sector + sectors;
    if (sector >= disk->start && end > sector && end <= disk->end) {
        __u32 shift = disk->cluster_shift & 63;
        __u64 first = (sector - disk->start) >> shift;
        __u64 last = (end - 1 - disk->start) >> shift;
        __u32 word = first >> 6;
        void *words = first >> 6 == last >> 6 ? bpf_map_lookup_elem(&live, &slot) : 0;
        __u64 *place = words ? bpf_map_lookup_elem(words, &word) : 0;
        if (place) {
            __sync_fetch_and_or(place, ~0ULL << (first & 63) & ~0ULL >> (63 - (last & 63)));
            return;
        }
    }
    mark_any(slot, sector, sectors);
}

// Where the slots of a device begin. src/shared.rs does the same.
static __always_inline __u32 first_slot(__u32 device)
{
    return (device * 2654435761U) >> 23 & (SLOTS - 1);
}

// Those of the slots that are taken from first on which are taken by this device.
__noinline int watches_among(__u32 first, __u32 taken, __u32 device)
{
    __u32 zero = 0;
    struct devices *table = bpf_map_lookup_elem(&devices, &zero);
    __u32 found = 0;
    if (!table)
        return 0;
    first &= SLOTS - 1;
#pragma clang loop unroll(disable)
    for (__u32 i = 0; i < WINDOW; i++)
        if (taken >> i & 1 && table->device[first + i] == device)
            found |= 1 << i;
    return found;
}

// The watches of a device among the WINDOW slots from first_slot on, a bit each.
static __always_inline __u32 watches_of(__u32 device)
{
    __u32 zero = 0;
    struct devices *table = bpf_map_lookup_elem(&devices, &zero);
    if (!table)
        return 0;
    __u32 first = first_slot(device);
    __u32 taken = table->taken[first];
    if (!taken)
        return 0;
    if (taken == 1)
        return table->device[first] == device;
    return watches_among(first, taken, device);
}

static __always_inline __u32 device_of(struct gendisk *disk)
{
    return disk ? (__u32)disk->major << 20 | (__u32)disk->first_minor : 0;
}

// Marks a range in all watches of a device, which are among the WINDOW slots from first on.
__noinline int mark_all(__u32 first, __u32 watches, __u64 sector, __u64 sectors)
{
#pragma clang loop unroll(disable)
    for (__u32 i = 0; i < WINDOW; i++)
        if (watches >> i & 1)
            mark_any(first + i, sector, sectors);
    return 0;
}

static __always_inline void count_unknown(__u32 slot, enum effect effect)
{
    struct disk *disk = bpf_map_lookup_elem(&disks, &slot);
    if (disk)
        __sync_fetch_and_add(effect == ZONE ? &disk->zone : &disk->passthrough, 1);
}

static __always_inline void count_completed(__u32 slot, __u32 counter, __u64 sectors)
{
    struct stats *count = bpf_map_lookup_elem(&stats, &slot);
    if (!count)
        return;
    count->completed[counter & COUNTER_MASK].sectors += sectors;
    count->completed[counter & COUNTER_MASK].events += 1;
}

// Counts a completion in all watches of a device.
__noinline int count_all(__u32 first, __u32 watches, __u32 counter, __u32 effect, __u64 sectors)
{
#pragma clang loop unroll(disable)
    for (__u32 i = 0; i < WINDOW; i++) {
        if (!(watches >> i & 1))
            continue;
        if (effect == RANGE)
            count_completed(first + i, counter, sectors);
        else
            count_unknown(first + i, effect);
    }
    return 0;
}

static __always_inline __u64 sectors_of(__u32 bytes)
{
    return ((__u64)bytes + 511) >> 9;
}

static __always_inline int are_bios_remembered(void)
{
    __u32 zero = 0;
    struct control *all = bpf_map_lookup_elem(&control, &zero);
    return all && all->bio_disks;
}

static __always_inline void count_chain(void)
{
    __u32 zero = 0;
    struct control *all = bpf_map_lookup_elem(&control, &zero);
    if (all)
        __sync_fetch_and_add(&all->chain, 1);
}

static __always_inline struct processor *this_processor(void)
{
    __u32 zero = 0;
    return bpf_map_lookup_elem(&processors, &zero);
}

// The address of a structure as a number: functions that the verifier looks at once get no pointers, and what is read
// from a map is no pointer to it. Each counter has a place of its own, because others may interrupt it.
static __always_inline __u64 address_of(struct processor *here, __u32 counter, const void *pointer)
{
    volatile __u64 *place = &here->address[counter];
    *place = (__u64)pointer;
    return *place;
}

// Where a bio is, or would be. A table of our own: the kernel's hash maps take three times as long, and refuse an
// update that interrupts another.
static __always_inline struct bucket *bucket_of(__u64 bio)
{
    __u32 index = ((bio >> 6) * 0x9e3779b97f4a7c15ULL) >> 52;
    return bpf_map_lookup_elem(&bios, &index);
}

// The place of a bio in its bucket, or PLACES.
static __always_inline __u32 place_of(struct bucket *bucket, __u64 bio)
{
#pragma clang loop unroll(disable)
    for (__u32 i = 0; i < PLACES; i++)
        if (bucket->bio[i] == bio)
            return i;
    return PLACES;
}

// A bio that was remembered has completed: in part only where others that were split off from it have not. 1: it was
// remembered.
__noinline int forget(__u64 bio, __u32 counter, __u32 in_part)
{
    struct bucket *bucket = bucket_of(bio);
    __u32 place = bucket ? place_of(bucket, bio) : PLACES;
    if (!bucket || place >= PLACES)
        return 0;
    struct record record = bucket->record[place];
    __u32 first = first_slot(record.device);
    __u32 watches = watches_of(record.device);
    if (watches == 1)
        mark(first, record.sector, record.sectors);
    else if (watches)
        mark_all(first, watches, record.sector, record.sectors);
    // Nobody says when its other parts have completed: the books will not balance, and the disk is scanned.
    if (in_part)
        return 1;
    if (watches == 1)
        count_completed(first, counter, record.sectors);
    else if (watches)
        count_all(first, watches, counter, RANGE, record.sectors);
    __sync_lock_test_and_set(&bucket->bio[place], 0);
    return 1;
}

// Bios in one request that are looked at.
#define CHAIN 256

// Bios of a bio-based disk that complete as part of a request of a disk below: of an NVMe multipath head, and of md
// where it passes a bio on.
__noinline int forget_chain(__u64 bio, __u32 bytes, __u32 counter)
{
#pragma clang loop unroll(disable)
    for (int i = 0; i < CHAIN; i++) {
        if (!bio)
            return 0;
        struct bio *here = (void *)bio;
        __u32 size = BPF_CORE_READ(here, bi_iter.bi_size);
        if (size > bytes)
            return 0;
        bytes -= size;
        forget(bio, counter, BPF_CORE_READ(here, __bi_remaining.counter) > 1);
        bio = (__u64)BPF_CORE_READ(here, bi_next);
    }
    if (bio)
        count_chain();
    return 0;
}

// A discard may be made of several bios, anywhere on the disk.
__noinline int mark_chain(__u64 bio, __u32 first, __u32 watches)
{
#pragma clang loop unroll(disable)
    for (int i = 0; i < CHAIN; i++) {
        if (!bio)
            return 0;
        struct bio *here = (void *)bio;
        mark_all(first, watches, BPF_CORE_READ(here, bi_iter.bi_sector), sectors_of(BPF_CORE_READ(here, bi_iter.bi_size)));
        bio = (__u64)BPF_CORE_READ(here, bi_next);
    }
    if (bio)
        count_chain();
    return 0;
}

static __always_inline struct gendisk *disk_of(struct request *rq)
{
    struct request___before_5_16 *old = (void *)rq;
    if (bpf_core_field_exists(old->rq_disk))
        return old->rq_disk;
    return rq->q->disk;
}

// Whether a copy before this one has done the work for an event: it has not if it was skipped, because it was
// interrupted just then. The last copy leaves no note, so that there is none of an earlier event at the same address.
static __always_inline int is_done(__u64 *note, __u64 event, __u32 copy)
{
    if (copy == 0 || *note != event)
        return 0;
    if (copy == COPIES - 1)
        *note = 0;
    return 1;
}

static __always_inline void note_done(__u64 *note, __u64 event, __u32 copy)
{
    *note = copy < COPIES - 1 ? event : 0;
}

// Marks and counts what a request did to a disk that is watched.
static __always_inline void request_ended(struct request *rq, struct processor *here, __u32 device, __u32 watches,
                                          enum effect effect, __u32 bytes, __u32 copy)
{
    __u32 first = first_slot(device);
    __u64 sectors = sectors_of(bytes);
    struct bio *bio = rq->bio;
    int is_chain = (rq->cmd_flags & 0xff) == OP_DISCARD && bio && bio->bi_next;
    if (watches == 1 && effect == RANGE && !is_chain) {
        if (sectors)
            mark(first, rq->__sector, sectors);
        count_completed(first, copy, sectors);
        return;
    }
    if (is_chain)
        mark_chain(address_of(here, copy, bio), first, watches);
    else if (effect == RANGE && sectors)
        mark_all(first, watches, rq->__sector, sectors);
    count_all(first, watches, copy, effect, sectors);
}

static __always_inline int request_completed(struct request *rq, __u32 bytes, __u32 copy)
{
    struct processor *here = this_processor();
    if (!here || is_done(&here->request, (__u64)rq, copy))
        return 0;
    enum effect effect = effect_of(rq->cmd_flags & 0xff, bytes);
    if (effect == NOTHING)
        return 0;
    here->request = 0;
    here->worked[copy] += 1;
    if (are_bios_remembered())
        forget_chain(address_of(here, copy, rq->bio), bytes, copy);
    __u32 device = device_of(disk_of(rq));
    __u32 watches = watches_of(device);
    if (watches)
        request_ended(rq, here, device, watches, effect, bytes, copy);
    note_done(&here->request, (__u64)rq, copy);
    return 0;
}

static __always_inline void count_queued(__u32 slot, __u64 sectors)
{
    struct stats *count = bpf_map_lookup_elem(&stats, &slot);
    if (count)
        count->queued += sectors;
}

static __always_inline void count_bio(int full)
{
    __u32 zero = 0;
    struct control *all = bpf_map_lookup_elem(&control, &zero);
    if (all)
        __sync_fetch_and_add(full ? &all->bios_full : &all->bios_stale, 1);
}

static __always_inline int is_empty(struct bucket *bucket)
{
    __u64 all = 0;
#pragma unroll
    for (int i = 0; i < PLACES; i++)
        all |= bucket->bio[i];
    return !all;
}

// Whether a bio is remembered with just this range. One at the same address with another was completed, and nobody
// said so.
static __always_inline int is_known(struct bucket *bucket, __u64 bio, __u64 sector, __u32 sectors, __u32 device)
{
    __u32 place = place_of(bucket, bio);
    if (place >= PLACES)
        return 0;
    struct record *record = &bucket->record[place];
    if (record->sector == sector && record->sectors == sectors && record->device == device)
        return 1;
    count_bio(0);
    forget(bio, QUEUE_COUNTER, 0);
    return 0;
}

// Remembers a bio, before its driver gets it: it cannot complete meanwhile. 1: it was not known before.
__noinline int remember(__u64 bio, __u64 sector, __u32 sectors, __u32 device)
{
    struct bucket *bucket = bucket_of(bio);
    if (!bucket || (!is_empty(bucket) && is_known(bucket, bio, sector, sectors, device)))
        return 0;
#pragma clang loop unroll(disable)
    for (int i = 0; i < PLACES; i++) {
        // An interrupt or another processor may be faster.
        if (bucket->bio[i] || __sync_val_compare_and_swap(&bucket->bio[i], 0, bio) != 0)
            continue;
        bucket->record[i].sector = sector;
        bucket->record[i].sectors = sectors;
        bucket->record[i].device = device;
        return 1;
    }
    count_bio(1);
    return 1;
}

// A bio was queued to a device with several watches.
__noinline int queued_in_all(__u64 bio, __u64 sector, __u32 sectors, __u32 device, __u32 watches)
{
    __u32 first = first_slot(device);
    __u32 is_remembered = 0;
    __u32 is_new = 1;
#pragma clang loop unroll(disable)
    for (__u32 i = 0; i < WINDOW; i++) {
        __u32 slot = first + i;
        struct disk *disk = watches >> i & 1 ? bpf_map_lookup_elem(&disks, &slot) : 0;
        if (!disk)
            continue;
        if (disk->flags & DISK_BIO_BASED && !is_remembered) {
            is_remembered = 1;
            is_new = remember(bio, sector, sectors, device);
        }
        if (is_new)
            count_queued(slot, sectors);
    }
    return 0;
}

// Operations without a range are counted where they complete, as a request; on a disk without requests, here.
__noinline int queued_unknown(__u32 device, __u32 watches, __u32 effect)
{
    __u32 first = first_slot(device);
#pragma clang loop unroll(disable)
    for (__u32 i = 0; i < WINDOW; i++) {
        __u32 slot = first + i;
        struct disk *disk = watches >> i & 1 ? bpf_map_lookup_elem(&disks, &slot) : 0;
        if (disk && disk->flags & DISK_BIO_BASED)
            count_unknown(slot, effect);
    }
    return 0;
}

static __always_inline int bio_queued(struct bio *bio)
{
    __u32 size = bio->bi_iter.bi_size;
    enum effect effect = effect_of(bio->bi_opf & 0xff, size);
    if (effect == NOTHING || (effect == RANGE && !size))
        return 0;
    __u32 device = device_of(bio->bi_bdev->bd_disk);
    __u32 watches = watches_of(device);
    struct processor *here = watches ? this_processor() : 0;
    if (!here)
        return 0;
    if (effect != RANGE)
        return queued_unknown(device, watches, effect);
    __u64 address = address_of(here, QUEUE_COUNTER, bio);
    __u64 sector = bio->bi_iter.bi_sector;
    __u32 sectors = sectors_of(size);
    if (watches != 1)
        return queued_in_all(address, sector, sectors, device, watches);
    __u32 slot = first_slot(device);
    struct disk *disk = bpf_map_lookup_elem(&disks, &slot);
    if (disk && (!(disk->flags & DISK_BIO_BASED) || remember(address, sector, sectors, device)))
        count_queued(slot, sectors);
    return 0;
}

// Counts bios of disks that get requests.
__noinline int count_refused(__u32 first, __u32 watches, __u64 sectors)
{
#pragma clang loop unroll(disable)
    for (__u32 i = 0; i < WINDOW; i++) {
        __u32 slot = first + i;
        struct disk *disk = bpf_map_lookup_elem(&disks, &slot);
        if (watches >> i & 1 && disk && !(disk->flags & DISK_BIO_BASED))
            count_completed(slot, BIO_COUNTER, sectors);
    }
    return 0;
}

// A bio has completed that was no part of a request. On a disk that gets requests it never became one: it did not want
// to wait for a free place, and is tried again. Nothing was written, but it was counted as queued.
static __always_inline int bio_completed(struct bio *bio, __u32 copy)
{
    struct processor *here = this_processor();
    if (!here || is_done(&here->ended, (__u64)bio, copy) || effect_of(bio->bi_opf & 0xff, 1) != RANGE)
        return 0;
    if (are_bios_remembered()) {
        here->ended = 0;
        int found = forget(address_of(here, BIO_COUNTER + copy, bio), BIO_COUNTER + copy, 0);
        note_done(&here->ended, (__u64)bio, copy);
        if (found)
            return 0;
    }
    // Drivers use up the size, so that it may be 0 by now.
    __u32 size = bio->bi_iter.bi_size;
    if (copy > 0 || !size || !bio->bi_bdev)
        return 0;
    __u32 device = device_of(bio->bi_bdev->bd_disk);
    __u32 watches = watches_of(device);
    return watches ? count_refused(first_slot(device), watches, sectors_of(size)) : 0;
}

// Three copies of what sees completions: the kernel skips a program that interrupts itself, and not its copies.
// Completions come from tasks, soft and hard interrupts, so that at most two copies can be running when an event
// arrives. Bios are queued by tasks alone, which do not interrupt each other here: one program is enough.
#define COPY(n)                                                                                                        \
    SEC("tp_btf/block_rq_complete")                                                                                    \
    int BPF_PROG(request_##n, struct request *rq, int error, unsigned int bytes)                                       \
    {                                                                                                                  \
        return request_completed(rq, bytes, n);                                                                        \
    }                                                                                                                  \
    SEC("tp_btf/block_bio_complete")                                                                                   \
    int BPF_PROG(bio_##n, struct request_queue *queue, struct bio *bio)                                                \
    {                                                                                                                  \
        return bio_completed(bio, n);                                                                                  \
    }

COPY(0)
COPY(1)
COPY(2)

SEC("tp_btf/block_bio_queue")
int BPF_PROG(queue, struct bio *bio)
{
    return bio_queued(bio);
}
