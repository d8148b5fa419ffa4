//! What a job would cost: disks and store are tried for a moment, and the rest is arithmetic.

use super::create::place_of;
use super::disks;
use super::parts::Parts;
use super::targets;
use super::written::written;
use crate::engine::{self, Place, SourceDisk};
use crate::job::{Refusal, Refused};
use crate::stores::{ACTION_PATIENCE, CREATE_PATIENCE};
use crate::units::{rate, seconds, share, times};
use anyhow::{Context, Result};
use api::{DiskEstimate, Estimate, EstimateRequest, StoreEstimate, TargetEstimate, limits};
use blockio::{AlignedBuf, ReadOptions, SequentialReader, SequentialWriter, WriteOptions, is_zero};
use imagefmt::ClusterEncoder;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use remote::{LinkOptions, TargetFiles};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECONDS_DEFAULT: u32 = 2;
const SECONDS_MAX: u32 = 30;

/// Each disk is read at this many places, evenly apart.
const PLACES: u64 = 8;
const CHUNK: usize = 1 << 20;
const CLUSTER: usize = 64 << 10;
/// So many clusters that hold something are compressed of each place.
const COMPRESSED_CLUSTERS: usize = 16;
/// So many single clusters are looked at, evenly apart: what lies between the places may be another thing.
const PROBES: u64 = 256;
/// What every sync takes beside reading, computing and writing, in seconds.
const FIXED_SECONDS: f64 = 0.5;
/// The most that is written to the store.
const WRITE_MAX: u64 = 1 << 30;

/// Reads from the disks and writes to the store for some seconds each, and says what syncs would take.
///
/// # Errors
/// When a value is out of range, or a disk or the store cannot be tried, or does not answer.
pub fn estimate(parts: &Arc<Parts>, request: &EstimateRequest) -> Refused<Estimate> {
    let tried = request.seconds.unwrap_or(SECONDS_DEFAULT);
    if !(1..=SECONDS_MAX).contains(&tried) {
        return Err(Refusal::invalid(format!(
            "seconds {tried} is out of range: 1 to {SECONDS_MAX}"
        )));
    }
    let level = request.compress_level.unwrap_or(changetrack::COMPRESS_LEVEL);
    if !limits::COMPRESS_LEVEL.contains(&level) {
        return Err(Refusal::invalid(format!(
            "compress_level {level} is out of range: 0 to 19"
        )));
    }
    let place = place_of(parts, request.store.as_deref(), request.target.as_deref())?;
    let what = format!("the {place} or a disk");
    let (named, all, at) = (request.disks.clone(), request.all_disks, place.clone());
    // A store or a disk that does not answer is told at once, and not after the time that trying them takes.
    let opened = parts.within(&place, ACTION_PATIENCE, &what, move |_| {
        disks::disks_below(&at)?;
        let chosen = disks::chosen(&named, all, &at)?;
        engine::open_all(&chosen, at.store()).map_err(|error| Refusal::invalid(error.full_message()))
    })?;
    let time = Duration::from_secs(tried.into());
    let devices = u32::try_from(opened.len() + 1).unwrap_or(u32::MAX);
    // What is compressed, and waiting for the store in the end, come on top.
    let patience = time.saturating_mul(devices).saturating_mul(3) + CREATE_PATIENCE;
    let at = place.clone();
    parts.within(&place, patience, &what, move |parts| {
        let measured = match &at {
            Place::Store(path) => measure(&opened, level, time, || Ok(Tried::Store(try_store(path, time)?))),
            Place::Target(name) => {
                let files = targets::open(parts, name).map_err(|error| targets::refusal(&error))?;
                measure(&opened, level, time, || {
                    Ok(Tried::Target(try_target(&files, time)?))
                })
            }
        };
        let measured = measured.map_err(|error| Refusal::failed(&error))?;
        Ok(conclude(&opened, &measured))
    })
}

struct Measured {
    disks: Vec<Sampled>,
    tried: Tried,
}

/// Where the images would go, tried.
enum Tried {
    Store(StoreEstimate),
    Target(TargetEstimate),
}

impl Tried {
    /// Bytes a second that it takes.
    fn rate_bytes(&self) -> u64 {
        match self {
            Tried::Store(store) => store.write_rate_bytes,
            Tried::Target(target) => target.send_rate_bytes,
        }
    }

    fn store(&self) -> Option<StoreEstimate> {
        match self {
            Tried::Store(store) => Some(store.clone()),
            Tried::Target(_) => None,
        }
    }

    fn target(&self) -> Option<TargetEstimate> {
        match self {
            Tried::Store(_) => None,
            Tried::Target(target) => Some(target.clone()),
        }
    }

    fn free_bytes(&self) -> u64 {
        match self {
            Tried::Store(store) => store.free_bytes,
            Tried::Target(target) => target.free_bytes,
        }
    }
}

/// One disk, tried.
#[derive(Debug, Default)]
struct Sampled {
    read_bytes: u64,
    /// Where that is.
    read: Vec<Range<u64>>,
    read_rate: u64,
    /// Of what was read, bytes in clusters of zeros.
    zero_bytes: u64,
    /// Of the rest, how many clusters were looked at, and how many of them are zeros.
    probed: u64,
    probed_zero: u64,
    tried_bytes: u64,
    compressed_bytes: u64,
    compress_time: Duration,
}

fn measure(
    disks: &[SourceDisk],
    level: i32,
    time: Duration,
    try_place: impl FnOnce() -> Result<Tried>,
) -> Result<Measured> {
    let sampled = disks.iter().map(|disk| sample(disk, level, time));
    Ok(Measured {
        disks: sampled.collect::<Result<_>>()?,
        tried: try_place()?,
    })
}

/// Sends noise to a target, which counts it and keeps none.
fn try_target(files: &TargetFiles, time: Duration) -> Result<TargetEstimate> {
    let status = remote::status(files)?;
    let speed = remote::measure_speed(files, LinkOptions::default().lanes, time)?;
    Ok(TargetEstimate {
        name: files.name.clone(),
        send_rate_bytes: rate(speed.sent_bytes, speed.took),
        free_bytes: status.free_bytes,
    })
}

/// Reads a disk at several places, each for its part of the time, and then looks at single clusters all over it.
fn sample(disk: &SourceDisk, level: i32, time: Duration) -> Result<Sampled> {
    let size = disk.meta.size_bytes;
    let mut sampled = Sampled::default();
    let mut took = Duration::ZERO;
    let granule = CHUNK as u64;
    let places = PLACES.min(size.div_ceil(granule));
    for place in 0..places {
        let start = size / places * place / granule * granule;
        let end = (size / places * (place + 1)).min(size).max(start);
        let end = if place + 1 == places {
            size
        } else {
            end / granule * granule
        };
        let part = time / u32::try_from(places).unwrap_or(1);
        took += read_part(disk, start..end, part, level, &mut sampled)
            .with_context(|| format!("read {}", disk.device.path().display()))?;
    }
    sampled.read_rate = rate(sampled.read_bytes, took);
    if sampled.read_bytes < size {
        probe(disk, level, time, &mut sampled)
            .with_context(|| format!("read {}", disk.device.path().display()))?;
    }
    Ok(sampled)
}

/// Reads for so long, or to the end; returns how long it read. What is compressed meanwhile does not count.
fn read_part(
    disk: &SourceDisk,
    range: Range<u64>,
    time: Duration,
    level: i32,
    sampled: &mut Sampled,
) -> Result<Duration> {
    if range.is_empty() {
        return Ok(Duration::ZERO);
    }
    let options = ReadOptions {
        chunk_bytes: CHUNK,
        depth: 16,
        buffers: 48,
        ranges: Some(range.clone().into()),
        pace: None,
    };
    let begun = Instant::now();
    let mut kept = Kept::new();
    let reader = SequentialReader::new(&disk.device, &options)?;
    let mut read = 0;
    for chunk in reader {
        let chunk = chunk?;
        read += chunk.len() as u64;
        for cluster in chunk.chunks(CLUSTER) {
            if is_zero(cluster) {
                sampled.zero_bytes += cluster.len() as u64;
            } else {
                kept.offer(cluster);
            }
        }
        if begun.elapsed() >= time {
            break;
        }
    }
    let took = begun.elapsed();
    sampled.read_bytes += read;
    sampled.read.push(range.start..range.start + read);
    compress(&kept.clusters, level, sampled);
    Ok(took)
}

/// Looks at clusters evenly apart, wherever the disk was not read, for at most so long.
fn probe(disk: &SourceDisk, level: i32, time: Duration, sampled: &mut Sampled) -> Result<()> {
    let clusters = disk.meta.size_bytes / CLUSTER as u64;
    let step = (clusters / PROBES).max(1);
    let begun = Instant::now();
    let mut kept = Kept::new();
    // Those that come first are far apart too, should the time not suffice for all.
    let order = (0..PROBES).map(|probe| (probe * 89) % PROBES);
    for place in order.map(|probe| probe * step + step / 2) {
        let offset = place * CLUSTER as u64;
        if place >= clusters || sampled.read.iter().any(|read| read.contains(&offset)) {
            continue;
        }
        let mut cluster = AlignedBuf::new(CLUSTER);
        disk.device.read_at(offset, &mut cluster)?;
        sampled.probed += 1;
        if is_zero(&cluster) {
            sampled.probed_zero += 1;
        } else {
            kept.offer(&cluster);
        }
        if begun.elapsed() >= time {
            break;
        }
    }
    compress(&kept.clusters, level, sampled);
    Ok(())
}

/// A few of many clusters, each as likely to be kept as any other.
struct Kept {
    clusters: Vec<Vec<u8>>,
    offered: usize,
    state: u64,
}

impl Kept {
    fn new() -> Self {
        Self {
            clusters: Vec::new(),
            offered: 0,
            state: SEED,
        }
    }

    fn offer(&mut self, cluster: &[u8]) {
        self.offered += 1;
        if self.clusters.len() < COMPRESSED_CLUSTERS {
            return self.clusters.push(cluster.to_vec());
        }
        // Reservoir sampling (Vitter's algorithm R).
        let chance = usize::try_from(xorshift(&mut self.state) >> 32).unwrap_or(0);
        if let Some(slot) = self.clusters.get_mut(chance % self.offered) {
            *slot = cluster.to_vec();
        }
    }
}

fn compress(clusters: &[Vec<u8>], level: i32, sampled: &mut Sampled) {
    let begun = Instant::now();
    let mut encoder = ClusterEncoder::new(level);
    for cluster in clusters {
        let digest = encoder.digest(cluster);
        sampled.tried_bytes += cluster.len() as u64;
        sampled.compressed_bytes += encoder.encode(0, digest, cluster).stored.len() as u64;
    }
    sampled.compress_time += begun.elapsed();
}

impl Sampled {
    /// The share of a disk that is zeros: of what was read, and of the rest as far as it was looked at.
    fn zero_share(&self, size_bytes: u64) -> f64 {
        let rest = size_bytes.saturating_sub(self.read_bytes);
        let rest_zero = times(rest, share(self.probed_zero, self.probed));
        share(self.zero_bytes.saturating_add(rest_zero), size_bytes)
    }
}

/// Writes to a file without a name, which is gone whatever happens.
fn try_store(store: &Path, time: Duration) -> Result<StoreEstimate> {
    write_to(store, time).with_context(|| format!("write test data to {}", store.display()))
}

fn write_to(store: &Path, time: Duration) -> Result<StoreEstimate> {
    let place = &hostdev::Root::system().existing_ancestor(store)?;
    let free = free_bytes(place)?;
    let limit = WRITE_MAX.min(free / 10);
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_DIRECT;
    let file = File::from(open(place, flags, Mode::from_bits_truncate(0o600))?);
    let options = WriteOptions {
        buffer_bytes: CHUNK,
        depth: 16,
        start_offset: 0,
        pad_tail: false,
        extend_bytes: 256 << 20,
    };
    let noise = noise();
    let begun = Instant::now();
    let mut writer = SequentialWriter::new(file, &options)?;
    let mut written = 0;
    while written + CHUNK as u64 <= limit && begun.elapsed() < time {
        writer.append(&noise)?;
        written += CHUNK as u64;
    }
    writer.finish()?.sync_data()?;
    Ok(StoreEstimate {
        path: store.display().to_string(),
        write_rate_bytes: rate(written, begun.elapsed()),
        free_bytes: free,
    })
}

fn free_bytes(place: &Path) -> Result<u64> {
    let found = nix::sys::statvfs::statvfs(place)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// Where [`xorshift`] begins.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The next of numbers that look random (Marsaglia's xorshift64).
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A MiB that no disk compresses or recognizes.
fn noise() -> Vec<u8> {
    let mut state = SEED;
    let mut bytes = Vec::with_capacity(CHUNK);
    while bytes.len() < CHUNK {
        bytes.extend_from_slice(&xorshift(&mut state).to_le_bytes());
    }
    bytes
}

fn conclude(disks: &[SourceDisk], measured: &Measured) -> Estimate {
    let pairs = || disks.iter().zip(&measured.disks);
    let estimates: Vec<DiskEstimate> = pairs()
        .map(|(disk, sampled)| disk_estimate(disk, sampled))
        .collect();
    let total_bytes = estimates.iter().map(|disk| disk.size_bytes).sum();
    let stored_of = |disk: &DiskEstimate| {
        times(
            times(disk.size_bytes, 1.0 - disk.zero_share),
            disk.compressed_share,
        )
    };
    let stored_bytes: u64 = estimates.iter().map(stored_of).sum();
    let reading: f64 = estimates
        .iter()
        .map(|disk| seconds(disk.size_bytes, disk.read_rate_bytes))
        .sum();
    let computing: f64 = pairs()
        .map(|(disk, sampled)| compute_seconds(disk, sampled))
        .sum();
    let taken_rate = measured.tried.rate_bytes();
    let writing = seconds(stored_bytes, taken_rate);
    let hourly = disks
        .iter()
        .map(|disk| hourly(disk.device.path()))
        .sum::<Option<u64>>();
    let stored_share = share(stored_bytes, total_bytes);
    let change = hourly.map_or(0.0, |bytes| {
        seconds(times(bytes.min(total_bytes), stored_share), taken_rate)
    });
    Estimate {
        full_seconds: FIXED_SECONDS + reading.max(writing).max(computing),
        incremental_seconds: FIXED_SECONDS + reading.max(change),
        written_per_hour_bytes: hourly,
        // Nodes and tails of blocks take some beside the clusters.
        fits: stored_bytes.saturating_add(stored_bytes / 50) < measured.tried.free_bytes(),
        notes: notes(measured, hourly.is_some()),
        store: measured.tried.store(),
        target: measured.tried.target(),
        disks: estimates,
        total_bytes,
        stored_bytes,
    }
}

fn disk_estimate(disk: &SourceDisk, sampled: &Sampled) -> DiskEstimate {
    let compressed = share(sampled.compressed_bytes, sampled.tried_bytes);
    DiskEstimate {
        name: disk.meta.name.clone(),
        path: disk.device.path().display().to_string(),
        size_bytes: disk.meta.size_bytes,
        read_rate_bytes: sampled.read_rate,
        sampled_bytes: sampled.read_bytes,
        zero_share: sampled.zero_share(disk.meta.size_bytes),
        compressed_share: if sampled.tried_bytes == 0 { 1.0 } else { compressed },
    }
}

/// Compressing what is not zero, on all cores.
fn compute_seconds(disk: &SourceDisk, sampled: &Sampled) -> f64 {
    let size_bytes = disk.meta.size_bytes;
    let data = times(size_bytes, 1.0 - sampled.zero_share(size_bytes));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let one = rate(sampled.tried_bytes, sampled.compress_time);
    if one == 0 {
        return 0.0;
    }
    seconds(data, one.saturating_mul(cores as u64))
}

/// Bytes written to a device in an hour, on average since boot.
fn hourly(path: &Path) -> Option<u64> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let up = Duration::try_from_secs_f64(seconds).ok()?;
    Some(rate(written(path)?, up).saturating_mul(3600))
}

fn notes(measured: &Measured, counted: bool) -> Vec<String> {
    let one_by_one = match measured.tried {
        Tried::Store(_) => {
            "reading and writing were measured one after the other: if disks and store share a device, a sync takes longer"
        }
        Tried::Target(_) => {
            "the line was measured now: other traffic makes a sync slower, and so may a slow disk of the target"
        }
    };
    let mut notes = vec![
        one_by_one.to_owned(),
        "services that use the disks during a sync make it slower".to_owned(),
    ];
    if !counted {
        notes.push(
            "writes to a file are not counted, so it is unknown how much changes in an hour".to_owned(),
        );
    }
    let small = measured.disks.iter().any(|disk| disk.read_bytes < 64 << 20);
    if small {
        notes.push("a disk is so small that its measured rate is unreliable".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::DiskArg;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;
    use testkit::guard::ScratchDir;

    const MIB: u64 = 1 << 20;

    fn opened(scratch: &ScratchDir, path: PathBuf) -> Vec<SourceDisk> {
        let arg = DiskArg { name: None, path };
        engine::open_all(&[arg], Some(scratch.path())).unwrap()
    }

    fn estimated(scratch: &ScratchDir, path: PathBuf) -> Estimate {
        let disks = opened(scratch, path);
        let time = Duration::from_millis(200);
        let try_place = || Ok(Tried::Store(try_store(scratch.path(), time)?));
        let measured = measure(&disks, 4, time, try_place).unwrap();
        conclude(&disks, &measured)
    }

    #[test]
    fn what_lies_behind_zeros_is_seen_and_compressed() {
        let scratch = ScratchDir::new("estimate").unwrap();
        let path = scratch.sparse_file("disk", 512 * MIB).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let text: Vec<u8> = b"a line of a log\n"
            .iter()
            .copied()
            .cycle()
            .take(16 << 20)
            .collect();
        // A quarter of each of the eight places, and never its beginning.
        for place in 0..8 {
            file.write_all_at(&text, place * 64 * MIB + 32 * MIB).unwrap();
        }
        let disks = opened(&scratch, path);
        // Time enough to read all of it, and to look at every place that is probed, on a busy machine too.
        let time = Duration::from_secs(120);
        let read = sample(&disks[0], 4, time).unwrap();
        let mut probed = Sampled::default();
        probe(&disks[0], 4, time, &mut probed).unwrap();
        assert_eq!((read.read_bytes, probed.probed), (512 * MIB, PROBES));
        for sampled in [read, probed] {
            let disk = disk_estimate(&disks[0], &sampled);
            assert!(disk.compressed_share < 0.3, "{disk:?}");
            assert!((0.7..0.8).contains(&disk.zero_share), "{disk:?}");
        }
    }

    #[test]
    fn a_tiny_disk_takes_a_moment() {
        let scratch = ScratchDir::new("estimate").unwrap();
        let path = scratch.file("disk", &[7; 512]).unwrap();
        let estimate = estimated(&scratch, path);
        assert!(
            (FIXED_SECONDS..2.0).contains(&estimate.full_seconds),
            "{estimate:?}"
        );
        assert!(estimate.fits);
    }

    #[test]
    fn what_is_kept_of_many_comes_from_everywhere() {
        let mut kept = Kept::new();
        (0..=255).for_each(|byte| kept.offer(&[byte]));
        assert_eq!(kept.clusters.len(), COMPRESSED_CLUSTERS);
        let late = kept.clusters.iter().filter(|cluster| cluster[0] >= 128).count();
        assert!(
            (3..=13).contains(&late),
            "{late} of them are from the second half"
        );
    }
}
