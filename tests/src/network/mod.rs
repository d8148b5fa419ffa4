//! Two machines on this one: network namespaces, joined by a cable, or by a tunnel that is long, slow, and loses packets.
//!
//! A namespace has no name: it lives as long as somebody holds it, so nothing stays behind of a program that is killed.

mod tunnel;

pub use tunnel::{Quality, Tunnel};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::thread;
use testkit::process::run;

/// A network of its own.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// A network in which there is nothing but a loopback device.
    ///
    /// # Errors
    /// What keeps it from being made: it takes root.
    pub fn new() -> Result<Namespace> {
        let opened = thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
                File::open("/proc/thread-self/ns/net").context("open a network namespace")
            });
            made.join()
                .map_err(|_| anyhow!("the thread of a namespace panicked"))?
        });
        let namespace = Namespace { handle: opened? };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its path while it is held here.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }

    /// The words that run another program in it.
    pub fn words(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net={}", self.path())]
    }

    /// A program that runs in it.
    pub fn command(&self, program: &str) -> Command {
        crate::started_by(&self.words(), Command::new(program))
    }

    /// Does something on a thread that is in it.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let done = scope.spawn(|| {
                setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
                work()
            });
            done.join()
                .map_err(|_| anyhow!("the thread in a namespace panicked"))?
        })
    }

    /// Whether somebody listens at an address, seen from in it.
    pub fn reaches(&self, address: SocketAddr) -> bool {
        self.within(|| Ok(TcpStream::connect(address)?)).is_ok()
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        run(self.command("ip").args(args))?;
        Ok(())
    }

    /// Gives a device its address and takes it up.
    fn take_up(&self, device: &str, address: IpAddr) -> Result<()> {
        self.ip(&["address", "add", &format!("{address}/24"), "dev", device])?;
        self.ip(&["link", "set", device, "txqueuelen", "10000", "up"])
    }
}

/// The networks of a source and of a target, which are joined.
#[derive(Debug)]
pub struct Pair {
    /// That of the source.
    pub source: Namespace,
    /// That of the target.
    pub target: Namespace,
    _tunnel: Option<Tunnel>,
}

/// Where the source and the target are in their networks.
const SOURCE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
const TARGET_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));

impl Pair {
    /// Joined by a cable: a pair of veth devices, as fast as this machine.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub fn by_cable() -> Result<Pair> {
        let (source, target) = (Namespace::new()?, Namespace::new()?);
        source.ip(&[
            "link",
            "add",
            "source",
            "type",
            "veth",
            "peer",
            "name",
            "target",
            "netns",
            &target.path(),
        ])?;
        source.take_up("source", SOURCE_ADDRESS)?;
        target.take_up("target", TARGET_ADDRESS)?;
        Ok(Pair {
            source,
            target,
            _tunnel: None,
        })
    }

    /// Joined by a tunnel that is no better than this.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub fn by_tunnel(quality: Quality) -> Result<Pair> {
        let (source, target) = (Namespace::new()?, Namespace::new()?);
        let ends = [
            source.within(|| tunnel::open("source"))?,
            target.within(|| tunnel::open("target"))?,
        ];
        source.take_up("source", SOURCE_ADDRESS)?;
        target.take_up("target", TARGET_ADDRESS)?;
        Ok(Pair {
            source,
            target,
            _tunnel: Some(Tunnel::between(ends, quality)?),
        })
    }

    /// An address of the target.
    pub fn target_at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(TARGET_ADDRESS, port)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    /// Sends so many bytes from the source to the target, and returns how long that took.
    fn send(pair: &Pair, bytes: usize) -> Duration {
        let address = pair.target_at(7000);
        let listener = pair.target.within(|| Ok(TcpListener::bind(address)?)).unwrap();
        let mut sender = pair.source.within(|| Ok(TcpStream::connect(address)?)).unwrap();
        let mut receiver = listener.accept().unwrap().0;
        let begun = Instant::now();
        let sent = thread::spawn(move || sender.write_all(&vec![7; bytes]).unwrap());
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).unwrap();
        sent.join().unwrap();
        assert_eq!(received.len(), bytes);
        assert!(received.iter().all(|byte| *byte == 7));
        begun.elapsed()
    }

    #[test]
    fn a_cable_joins_two_networks_and_nothing_else() {
        let pair = Pair::by_cable().unwrap();
        send(&pair, 1 << 20);
        assert!(!pair.source.reaches("127.0.0.1:7000".parse().unwrap()));
    }

    #[test]
    fn a_tunnel_carries_everything_and_is_no_faster_than_it_may_be() {
        let quality = Quality {
            bits_per_second: 80_000_000,
            round_trip: Duration::from_millis(40),
            loss_per_million: 500,
            seed: 1,
        };
        let pair = Pair::by_tunnel(quality).unwrap();
        let bytes = 4 << 20;
        let least = Duration::from_secs_f64(bytes as f64 * 8.0 / 80e6);
        assert!(send(&pair, bytes) >= least, "it is faster than its rate");
    }
}
