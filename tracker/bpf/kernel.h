// The few fields of the kernel's structures that the programs read. Their places are found when the programs are
// loaded (CO-RE), so these need neither the kernel's order nor its other fields. No dump of vmlinux.h is needed.
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u64 sector_t;

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_ARRAY_OF_MAPS 12
#define BPF_NOEXIST 1
#define BPF_ANY 0
#define BPF_F_MMAPABLE (1U << 10)
#define BPF_F_INNER_MAP (1U << 12)

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct gendisk {
    int major;
    int first_minor;
};

struct request_queue {
    struct gendisk *disk; // from 5.16 on
};

struct block_device {
    struct gendisk *bd_disk;
};

struct bvec_iter {
    sector_t bi_sector;
    unsigned int bi_size;
};

typedef struct {
    int counter;
} atomic_t;

struct bio {
    atomic_t __bi_remaining;
    struct bio *bi_next;
    struct block_device *bi_bdev;
    unsigned int bi_opf;
    struct bvec_iter bi_iter;
};

struct request {
    struct request_queue *q;
    unsigned int cmd_flags;
    sector_t __sector;
    struct bio *bio;
};

// As it was up to 5.15: CO-RE leaves out what follows ___.
struct request___before_5_16 {
    struct gendisk *rq_disk;
};

#pragma clang attribute pop
