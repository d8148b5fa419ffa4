//! A tunnel between two tun devices: packets come late, no more of them in a second than it carries, and not all of them.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use testkit::Random;

/// How good a tunnel is, in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    /// Bits of packets in a second.
    pub bits_per_second: u64,
    /// From one end to the other and back.
    pub round_trip: Duration,
    /// Packets of a million that are lost, at random.
    pub loss_per_million: u64,
    /// Of what is lost.
    pub seed: u64,
}

/// A tunnel, until it is dropped.
#[derive(Debug)]
pub struct Tunnel {
    is_over: Arc<AtomicBool>,
    directions: Vec<JoinHandle<()>>,
}

/// Longer than any packet.
const PACKET_BYTES: usize = 1 << 16;
/// How often a direction on which nothing happens looks whether the tunnel is still there.
const IDLE: Duration = Duration::from_millis(100);

impl Tunnel {
    /// Joins two devices.
    pub(super) fn between(ends: [File; 2], quality: Quality) -> Result<Tunnel> {
        let [a, b] = ends.map(Arc::new);
        let mut tunnel = Tunnel {
            is_over: Arc::default(),
            directions: Vec::new(),
        };
        for (number, (from, to)) in [(a.clone(), b.clone()), (b, a)].into_iter().enumerate() {
            let mut direction = Direction::new(quality, number as u64);
            let is_over = tunnel.is_over.clone();
            let carry = move || {
                if let Err(error) = direction.carry(&from, &to, &is_over) {
                    eprintln!("a tunnel has ended: {error:#}");
                }
            };
            tunnel
                .directions
                .push(thread::Builder::new().name("tunnel".to_owned()).spawn(carry)?);
        }
        Ok(tunnel)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for direction in self.directions.drain(..) {
            let _ = direction.join();
        }
    }
}

/// One direction.
struct Direction {
    quality: Quality,
    random: Random,
    /// When the last packet that was taken has left.
    free_at: Instant,
    /// Packets, and when each of them arrives.
    under_way: VecDeque<(Instant, Vec<u8>)>,
}

impl Direction {
    fn new(quality: Quality, number: u64) -> Direction {
        Direction {
            quality,
            random: Random::new(quality.seed * 2 + number + 1),
            free_at: Instant::now(),
            under_way: VecDeque::new(),
        }
    }

    /// When a packet arrives that comes now; `None` if it is lost: by chance, or because a round trip of packets waits already.
    fn arrives(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let is_lost = self.random.below(1_000_000) < self.quality.loss_per_million;
        let leaves = self.free_at.max(now);
        if is_lost || leaves - now > self.quality.round_trip {
            return None;
        }
        let takes = bytes as f64 * 8.0 / self.quality.bits_per_second as f64;
        self.free_at = leaves + Duration::from_secs_f64(takes);
        Some(self.free_at + self.quality.round_trip / 2)
    }

    fn carry(&mut self, from: &File, to: &File, is_over: &AtomicBool) -> Result<()> {
        let mut buffer = vec![0; PACKET_BYTES];
        while !is_over.load(Ordering::Relaxed) {
            self.wait(from)?;
            self.take(from, &mut buffer).context("take a packet")?;
            self.hand_over(to).context("hand over a packet")?;
        }
        Ok(())
    }

    /// Waits until a packet has come, or has to go.
    fn wait(&self, from: &File) -> Result<()> {
        let next = self.under_way.front().map(|(arrives, _)| *arrives);
        let patience = next.map_or(IDLE, |next| {
            next.saturating_duration_since(Instant::now()).min(IDLE)
        });
        let mut polled = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut polled, Some(TimeSpec::from_duration(patience)), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("wait for a packet"),
        }
    }

    fn take(&mut self, mut from: &File, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let count = match from.read(buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if let Some(arrives) = self.arrives(count, Instant::now()) {
                self.under_way.push_back((arrives, buffer[..count].to_vec()));
            }
        }
    }

    fn hand_over(&mut self, mut to: &File) -> io::Result<()> {
        while let Some((arrives, packet)) = self.under_way.front() {
            if *arrives > Instant::now() {
                break;
            }
            match to.write(packet) {
                Ok(_) => {}
                // The kernel takes no more now: lost, as in any device whose queue is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            self.under_way.pop_front();
        }
        Ok(())
    }
}

/// A tun device of this name in the network that the calling thread is in. It is gone when it is closed.
pub(super) fn open(name: &str) -> Result<File> {
    let tun = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // SAFETY: all of an ifreq are integers and unions of integers and pointers, for which zeros are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).context("flags of a tun device")?;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq, which is ours and lives until the call returns.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(made).context("make a tun device")?;
    Ok(tun)
}
