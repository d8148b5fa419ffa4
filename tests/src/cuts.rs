//! Syncs to a target over a line that is cut, and with either side killed, at random moments: after each, the image is what the disk
//! holds, and no more was sent twice than docs/targets.md says.

use crate::target::{Line, Source, Target};
use crate::{Bench, Disk, code};
use anyhow::{Context, Result, ensure};
use imagefmt::Store;
use std::process::{Child, Stdio};
use std::time::Duration;
use testkit::process::{check_interrupt, spawn, wait_until};
use testkit::{Random, noise};

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 64 << 10;
const DISK_BYTES: u64 = 128 * MIB;
/// What a sync of these tests sends at most.
const MOST_BYTES: u64 = 64 * MIB;

/// What a source has under way at most: the credit, and the message that used it up.
const WINDOW_BYTES: u64 = wire::CREDIT_BYTES + MIB;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// What happened.
#[derive(Debug, Default)]
pub struct Counts {
    /// Syncs that made an image.
    pub syncs: u64,
    /// Times that the line was cut.
    pub cuts: u64,
    /// Times that somebody was killed while the sync ran.
    pub kills: u64,
    /// Syncs that resumed another one.
    pub resumed: u64,
    /// Bytes of clusters that were to be sent.
    pub needed_bytes: u64,
    /// Bytes that were sent beyond those, handshakes included.
    pub twice_bytes: u64,
    /// The most of that for one cut, or kill.
    pub most_twice_bytes: u64,
}

impl Counts {
    /// One line for people.
    pub fn in_short(&self) -> String {
        format!(
            "{} syncs right, {} cuts, {} kills, {} resumed; {} MiB sent, {} MiB beyond that; at most {:.1} MiB for one cut or kill",
            self.syncs,
            self.cuts,
            self.kills,
            self.resumed,
            self.needed_bytes / MIB,
            self.twice_bytes / MIB,
            self.most_twice_bytes as f64 / MIB as f64
        )
    }

    fn sent(&mut self, needed: u64, sent: u64, times: u64) {
        let twice = sent.saturating_sub(needed);
        self.needed_bytes += needed;
        self.twice_bytes += twice;
        self.most_twice_bytes = self.most_twice_bytes.max(twice / times.max(1));
    }
}

/// A source whose line to its target can be cut, and a disk.
struct World {
    random: Random,
    target: Target,
    line: Line,
    source: Source,
    disk: Disk,
    counts: Counts,
    _bench: Bench,
}

/// What frames, digests and TLS add to clusters, and a connection's handshake to each cut.
fn overhead(bytes: u64, cuts: u64) -> u64 {
    bytes / 50 + 2 * MIB + cuts * 256 * 1024
}

impl World {
    fn new(name: &str, seed: u64, disk_bytes: u64) -> Result<World> {
        let target = Target::new(&format!("{name}-target"), "max_images = 2\nkeep_within = '0s'")?;
        let line = Line::to(target.address)?;
        let source = target.enrol("web01", line.address)?;
        let bench = Bench::new(name)?;
        Ok(World {
            random: Random::new(seed),
            disk: bench.disk("disk.img", disk_bytes)?,
            target,
            line,
            source,
            counts: Counts::default(),
            _bench: bench,
        })
    }

    /// Writes noise to whole clusters in a row; how many bytes.
    fn change(&mut self, most_bytes: u64) -> Result<u64> {
        let bytes = (1 + self.random.below(most_bytes / CLUSTER)) * CLUSTER;
        let clusters = (self.disk.size_bytes - bytes) / CLUSTER;
        let at = self.random.below(clusters + 1) * CLUSTER;
        let content = noise(usize::try_from(bytes)?, self.random.next_u64());
        self.disk.write_at(at, &content)?;
        Ok(bytes)
    }

    /// A sync that has begun.
    fn begin(&self, more: &[&str]) -> Result<Child> {
        let mut command = self.source.sync_command(self.disk.path(), more);
        Ok(spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?)
    }

    /// Waits until so many bytes have come from the source, or the sync has ended.
    fn wait_for_bytes(&self, child: &mut Child, bytes: u64) -> Result<()> {
        Ok(wait_until(PATIENCE, || {
            self.line.passed() >= bytes || !matches!(child.try_wait(), Ok(None))
        })?)
    }

    /// A sync that succeeds, over a line that is whole; the image is right.
    fn finish(&mut self) -> Result<()> {
        let report = self.source.sync(&self.disk, &[])?;
        self.counts.resumed += u64::from(report["resumed"] == true);
        self.is_right()
    }

    fn is_right(&mut self) -> Result<()> {
        check_interrupt()?;
        self.source.check("web/latest", self.disk.path())?;
        self.counts.syncs += 1;
        self.delete_earlier()
    }

    /// Deletes all images but the newest. The target would not: to it, disks that change so much look as if somebody encrypted them.
    fn delete_earlier(&self) -> Result<()> {
        let images = Store::open(&self.target.store("web01"))?.images_of("web")?;
        let sequences = images.map_or_else(Vec::new, |images| images.sequences().to_vec());
        let [earlier @ .., _] = &sequences[..] else {
            return Ok(());
        };
        for sequence in earlier {
            let deleted = self.source.image(&["rm", &format!("web/{sequence}")])?;
            ensure!(deleted.status.success(), "smc-image rm: {deleted:?}");
        }
        Ok(())
    }
}

/// Syncs over a line that is cut up to eight times in each. Every third line is slow, so that as much as may be is under way.
///
/// # Errors
/// An image that is wrong, a sync that fails, or more that was sent twice than may be.
pub fn cut(seed: u64, sessions: u64) -> Result<Counts> {
    let mut world = World::new("cuts-line", seed, DISK_BYTES)?;
    for session in 0..sessions {
        let needed = world.change(MOST_BYTES)?;
        let (times, before) = (1 + world.random.below(8), world.line.cuts());
        let random = Random::new(world.random.next_u64());
        world.line.cut_at_random(random, times, needed);
        let pause = if session % 3 == 0 { 300 } else { 0 };
        world.line.set_pause(Duration::from_micros(pause));
        let report = world.source.sync(&world.disk, &[])?;
        ensure!(report["resumed"] == false, "it was begun anew: {report}");
        world.is_right()?;
        let (sent, cuts) = (world.line.passed(), world.line.cuts() - before);
        let most = needed + overhead(sent, cuts) + cuts * WINDOW_BYTES;
        ensure!(
            sent <= most,
            "session {session}: {sent} bytes were sent for {needed}, after {cuts} cuts"
        );
        world.counts.cuts += cuts;
        world.counts.sent(needed, sent, cuts);
    }
    Ok(world.counts)
}

/// Syncs of one cluster over a line that is cut once: after each byte of the whole session in turn, with a byte left out up to `step` times.
///
/// # Errors
/// An image that is wrong, or a sync that fails.
pub fn cut_after_each_byte(seed: u64, step: usize) -> Result<Counts> {
    let mut world = World::new("cuts-byte", seed, 4 * MIB)?;
    world.line.count();
    world.finish()?;
    world.change(CLUSTER)?;
    world.line.count();
    world.finish()?;
    // The last cuts come when all has been said.
    let whole = world.line.passed() + 50;
    for at in (1..whole).step_by(step.max(1)) {
        let needed = world.change(CLUSTER)?;
        let before = world.line.cuts();
        world.line.cut_once_after(at);
        let report = world.source.sync(&world.disk, &[])?;
        let dirty = &report["disks"][0]["dirty_bytes"];
        ensure!(*dirty == needed, "cut after byte {at} of {whole}: {report}");
        world
            .is_right()
            .with_context(|| format!("cut after byte {at} of {whole}"))?;
        let cuts = world.line.cuts() - before;
        world.counts.cuts += cuts;
        world.counts.sent(needed, world.line.passed(), cuts);
    }
    Ok(world.counts)
}

/// Kills the source's program while it syncs, by SIGKILL; the next sync resumes. Nothing that the target has got is sent again.
///
/// # Errors
/// An image that is wrong, a sync that fails, or more that was sent twice than may be.
pub fn kill_sources(seed: u64, kills: u64) -> Result<Counts> {
    let mut world = World::new("cuts-source", seed, DISK_BYTES)?;
    while world.counts.kills < kills {
        let needed = world.change(MOST_BYTES)?;
        world.line.count();
        let mut child = world.begin(&[])?;
        let at = world.random.below(needed + needed / 20);
        world.wait_for_bytes(&mut child, at)?;
        let is_running = matches!(child.try_wait(), Ok(None));
        child.kill()?;
        child.wait()?;
        world.finish()?;
        if !is_running {
            continue;
        }
        let sent = world.line.passed();
        let most = needed + overhead(sent, 1) + WINDOW_BYTES;
        ensure!(
            sent <= most,
            "{sent} bytes were sent for {needed}, with a kill after {at}"
        );
        world.counts.kills += 1;
        world.counts.sent(needed, sent, 1);
    }
    Ok(world.counts)
}

/// Kills the target's service while a source syncs, by SIGKILL, and starts it again; what goes on then, by itself or by the next sync, sends
/// nothing that the target has made durable.
///
/// # Errors
/// An image that is wrong, a sync that fails, or more that was sent twice than may be.
pub fn kill_targets(seed: u64, kills: u64) -> Result<Counts> {
    let mut world = World::new("cuts-target", seed, DISK_BYTES)?;
    world.finish()?;
    while world.counts.kills < kills {
        let needed = world.change(MOST_BYTES)?;
        world.line.count();
        // As often as there is something: otherwise hardly anything would be durable within a second.
        let mut child = world.begin(&["--checkpoint-every", "0"])?;
        let at = world.random.below(needed + needed / 20);
        world.wait_for_bytes(&mut child, at)?;
        world.target.kill();
        let is_running = matches!(child.try_wait(), Ok(None));
        let before = world.line.passed();
        let durable = world.durable_bytes()?;
        world.target.start()?;
        let ended = child.wait_with_output()?;
        ensure!(matches!(code(&ended), 0 | 1), "{ended:?}");
        if code(&ended) == 0 {
            world.is_right()?;
        } else {
            world.finish()?;
        }
        if !is_running {
            continue;
        }
        let after = world.line.passed() - before;
        let left = needed.saturating_sub(durable);
        let most = left + overhead(after, 1);
        ensure!(
            after <= most,
            "{after} bytes were sent after a kill at {at} of {needed}, of which {durable} were durable"
        );
        world.counts.kills += 1;
        world.counts.sent(needed, world.line.passed(), 1);
    }
    Ok(world.counts)
}

impl World {
    /// What an unfinished sync has stored at the target, durably; nothing if there is no unfinished sync.
    fn durable_bytes(&self) -> Result<u64> {
        let store = Store::open(&self.target.store("web01"))?;
        let unfinished = store.unfinished("web")?;
        Ok(unfinished.map_or(0, |unfinished| {
            unfinished.disks.iter().map(|disk| disk.stored_bytes).sum()
        }))
    }
}
