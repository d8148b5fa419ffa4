//! What a job would cost: disks and store are tried for a moment, and the rest is arithmetic.

use super::disks;
use super::manager::Manager;
use super::written::written;
use crate::engine::{self, SourceDisk};
use crate::job::{Refusal, Refused};
use crate::stores::{ACTION_PATIENCE, CREATE_PATIENCE};
use crate::units::{rate, seconds, share, times};
use anyhow::{Context, Result};
use api::{DiskEstimate, Estimate, EstimateRequest, StoreEstimate, limits};
use blockio::{ReadOptions, SequentialReader, SequentialWriter, WriteOptions};
use imagefmt::{ClusterEncoder, is_zero};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECONDS_DEFAULT: u32 = 2;
const SECONDS_MAX: u32 = 30;

/// Each disk is read at this many places, evenly apart.
const PLACES: u64 = 8;
const CHUNK: usize = 1 << 20;
const CLUSTER: usize = 64 << 10;
/// One cluster in so many of a chunk is compressed, of a few chunks at every place.
const COMPRESS_EVERY: usize = 4;
const COMPRESSED_CHUNKS: usize = 4;
/// The most that is written to the store.
const WRITE_MAX: u64 = 1 << 30;

/// Reads from the disks and writes to the store for some seconds each, and says what syncs would take.
///
/// # Errors
/// When a value is out of range, or a disk or the store cannot be tried, or does not answer.
pub fn estimate(manager: &Arc<Manager>, request: &EstimateRequest) -> Refused<Estimate> {
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
    let store = request
        .store
        .as_ref()
        .map_or(manager.config.store.clone(), PathBuf::from);
    if !store.is_absolute() {
        return Err(Refusal::invalid(format!(
            "store must be an absolute path, but it is \"{}\"",
            store.display()
        )));
    }
    let what = format!("the store {} or a disk", store.display());
    let (named, all, path) = (request.disks.clone(), request.all_disks, store.clone());
    let chosen = manager.within(&store, ACTION_PATIENCE, &what, move |_| {
        disks::chosen(&named, all, &path)
    })?;
    let time = Duration::from_secs(tried.into());
    let devices = u32::try_from(chosen.len() + 1).unwrap_or(u32::MAX);
    // What is compressed, and waiting for the store in the end, come on top.
    let patience = time.saturating_mul(devices).saturating_mul(3) + CREATE_PATIENCE;
    let path = store.clone();
    manager.within(&store, patience, &what, move |_| {
        let opened =
            engine::open_all(&chosen, &path).map_err(|error| Refusal::invalid(format!("{error:#}")))?;
        let measured = measure(&opened, &path, level, time).map_err(|error| Refusal::failed(&error))?;
        Ok(conclude(&opened, &measured))
    })
}

struct Measured {
    disks: Vec<Sampled>,
    store: StoreEstimate,
}

/// One disk, tried.
#[derive(Debug, Default)]
struct Sampled {
    read_bytes: u64,
    read_rate: u64,
    seen_clusters: u64,
    zero_clusters: u64,
    tried_bytes: u64,
    compressed_bytes: u64,
    compress_time: Duration,
}

fn measure(disks: &[SourceDisk], store: &Path, level: i32, time: Duration) -> Result<Measured> {
    let sampled = disks.iter().map(|disk| sample(disk, level, time));
    Ok(Measured {
        disks: sampled.collect::<Result<_>>()?,
        store: try_store(store, time).with_context(|| format!("write test data to {}", store.display()))?,
    })
}

/// Reads a disk at several places, each for its part of the time.
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
    Ok(sampled)
}

/// Reads for so long, or to the end; returns how long it read. What is compressed meanwhile does not count.
fn read_part(
    disk: &SourceDisk,
    range: std::ops::Range<u64>,
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
        ranges: Some(range.into()),
        pace: None,
    };
    let begun = Instant::now();
    let mut kept = Vec::new();
    let reader = SequentialReader::new(&disk.device, &options)?;
    let mut read = 0;
    for chunk in reader {
        let chunk = chunk?;
        read += chunk.len() as u64;
        look(&chunk, sampled);
        // A few are compressed afterwards; each holds a buffer of the reader.
        if kept.len() < COMPRESSED_CHUNKS {
            kept.push(chunk);
        }
        if begun.elapsed() >= time {
            break;
        }
    }
    let took = begun.elapsed();
    sampled.read_bytes += read;
    kept.iter().for_each(|chunk| compress(chunk, level, sampled));
    Ok(took)
}

fn look(chunk: &[u8], sampled: &mut Sampled) {
    for cluster in chunk.chunks(CLUSTER) {
        sampled.seen_clusters += 1;
        sampled.zero_clusters += u64::from(is_zero(cluster));
    }
}

fn compress(chunk: &[u8], level: i32, sampled: &mut Sampled) {
    let begun = Instant::now();
    let mut encoder = ClusterEncoder::new(level);
    for cluster in chunk.chunks(CLUSTER).step_by(COMPRESS_EVERY) {
        let digest = encoder.digest(cluster);
        if digest.is_null() {
            continue;
        }
        sampled.tried_bytes += cluster.len() as u64;
        sampled.compressed_bytes += encoder.encode(0, digest, cluster).stored.len() as u64;
    }
    sampled.compress_time += begun.elapsed();
}

/// Writes to a file without a name, which is gone whatever happens.
fn try_store(store: &Path, time: Duration) -> Result<StoreEstimate> {
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

/// A MiB that no disk compresses or recognizes (xorshift64).
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(CHUNK);
    while bytes.len() < CHUNK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
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
    let writing = seconds(stored_bytes, measured.store.write_rate_bytes);
    let hourly = disks
        .iter()
        .map(|disk| hourly(disk.device.path()))
        .sum::<Option<u64>>();
    let stored_share = share(stored_bytes, total_bytes);
    let change = hourly.map_or(0.0, |bytes| {
        seconds(
            times(bytes.min(total_bytes), stored_share),
            measured.store.write_rate_bytes,
        )
    });
    Estimate {
        full_seconds: reading.max(writing).max(computing),
        incremental_seconds: reading.max(change),
        written_per_hour_bytes: hourly,
        // Nodes and tails of blocks take some beside the clusters.
        fits: stored_bytes.saturating_add(stored_bytes / 50) < measured.store.free_bytes,
        notes: notes(measured, hourly.is_some()),
        store: measured.store.clone(),
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
        zero_share: share(sampled.zero_clusters, sampled.seen_clusters),
        compressed_share: if sampled.tried_bytes == 0 { 1.0 } else { compressed },
    }
}

/// Compressing what is not zero, on all cores.
fn compute_seconds(disk: &SourceDisk, sampled: &Sampled) -> f64 {
    let data = times(
        disk.meta.size_bytes,
        1.0 - share(sampled.zero_clusters, sampled.seen_clusters),
    );
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
    let mut notes = vec![
        "reading and writing were measured one after the other: if disks and store share a device, a sync takes longer"
            .to_owned(),
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
