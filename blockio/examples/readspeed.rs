//! How fast a device can be read, with consumers that do nothing: to be compared with fio.
//!
//! `fio --name=r --filename=DEVICE --rw=read --bs=1M --iodepth=8 --ioengine=io_uring --direct=1` is the same load.

use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use blockio::{Chunk, Device, ReadOptions, Receiver, SequentialReader};
use clap::Parser;

/// Reads a device once and prints MiB/s.
#[derive(Parser)]
struct Arguments {
    /// Block device or regular file.
    device: PathBuf,
    /// Reads in flight.
    #[arg(long, default_value_t = 8)]
    depth: usize,
    /// Bytes per read.
    #[arg(long, default_value_t = 1 << 20)]
    chunk: usize,
    /// Chunks in existence at a time.
    #[arg(long, default_value_t = 32)]
    buffers: usize,
    /// Consuming threads.
    #[arg(long, default_value_t = 1)]
    consumers: usize,
    /// Read as on a kernel that refuses io_uring.
    #[arg(long)]
    without_io_uring: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.without_io_uring && !testkit::sandbox::is_without_io_uring() {
        return Ok(testkit::sandbox::repeat_program_without_io_uring()?);
    }
    let device = Device::open(&arguments.device)?;
    let options = ReadOptions {
        chunk_bytes: arguments.chunk,
        depth: arguments.depth,
        buffers: arguments.buffers,
        ..ReadOptions::default()
    };
    let started = Instant::now();
    let reader = SequentialReader::new(&device, &options)?;
    let bytes = thread::scope(|scope| {
        let consumers: Vec<_> = (0..arguments.consumers.max(1))
            .map(|_| scope.spawn(|| drain(reader.receiver())))
            .collect();
        consumers
            .into_iter()
            .map(|consumer| consumer.join().expect("a consumer panicked"))
            .sum::<Result<u64>>()
    })?;
    let seconds = started.elapsed().as_secs_f64();
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate is printed with no digit after the point"
    )]
    let rate = bytes as f64 / f64::from(1 << 20) / seconds;
    println!(
        "{bytes} bytes in {seconds:.2} s: {rate:.0} MiB/s, direct: {}, by {}",
        device.is_direct(),
        blockio::io_method()
    );
    device
        .check_unchanged()
        .context("the device changed while it was read")
}

fn drain(chunks: &Receiver<blockio::Result<Chunk>>) -> Result<u64> {
    let mut bytes = 0;
    for chunk in chunks {
        bytes += chunk?.len() as u64;
    }
    Ok(bytes)
}
