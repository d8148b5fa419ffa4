//! What must not have changed for the bits to be believed.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use hostdev::BlockDevice;

use crate::layout::{ERRORS, Evidence, KERNEL_COUNTS, MAPS, PROGRAMS};
use crate::pins::{self, TRACEPOINTS};
use crate::shared::{Shared, kernel_number};
use crate::target::{SECTOR_BYTES, Target};
use crate::watch::WatchMaps;
use crate::{Distrust, sys};

/// A longer time in which the machine's clock ran and its monotonic clock did not is a suspend.
const SUSPENDED: Duration = Duration::from_millis(10);

/// What the counters of [`Evidence::errors`] count.
const ERROR_NAMES: [&str; ERRORS] = [
    "writes that its table had no room for",
    "writes whose end it did not see",
    "requests of more parts than it looks at",
    "writes behind the end of the disk",
    "commands whose effect it does not know",
    "zone operations",
    "writes that it could not mark",
];

/// Collects the evidence of this moment.
pub(crate) fn gather(shared: &Shared, maps: &WatchMaps, target: &Target) -> Result<Evidence, Distrust> {
    if !shared.is_current() {
        return Err(changed("it was replaced by another one"));
    }
    if shared.device(maps.slot) != kernel_number(target.disk) {
        return Err(changed("the disk is no longer tracked"));
    }
    let mut evidence = Evidence {
        boot_id: boot_id(shared)?,
        suspended_ns: suspended_ns(),
        diskseq: target.diskseq.unwrap_or(0),
        target_sectors: target.size_bytes / SECTOR_BYTES,
        start_sector: target.start_bytes / SECTOR_BYTES,
        disk_sectors: target.disk_bytes / SECTOR_BYTES,
        programs: [0; PROGRAMS],
        links: [0; PROGRAMS],
        maps: map_ids(shared, maps)?,
        misses: [0; PROGRAMS],
        errors: errors(shared, maps)?,
        kernel: kernel_counts(shared, target)?,
    };
    for (index, (name, _)) in TRACEPOINTS.into_iter().enumerate() {
        let program = opened(&shared.pins.program(name))?;
        let link = opened(&shared.pins.link(name))?;
        let (program_info, link_info) = (info(program.as_fd())?, info(link.as_fd())?);
        if link_info.third != program_info.id {
            return Err(changed(format!("{name} is attached to another program")));
        }
        evidence.programs[index] = program_info.id;
        evidence.links[index] = link_info.id;
        evidence.misses[index] =
            sys::recursion_misses(program.as_fd()).map_err(|error| unreadable(&error))?;
    }
    Ok(evidence)
}

/// Whether anything that matters has changed.
pub(crate) fn compare(before: &Evidence, now: &Evidence) -> Result<(), Distrust> {
    if before.boot_id != now.boot_id {
        return Err(Distrust::OtherBoot);
    }
    if now.suspended_ns.abs_diff(before.suspended_ns) > u64::try_from(SUSPENDED.as_nanos()).unwrap_or(0) {
        return Err(Distrust::Suspended);
    }
    if before.diskseq != now.diskseq {
        return Err(Distrust::ReplacedDisk);
    }
    let place = |of: &Evidence| (of.target_sectors, of.start_sector, of.disk_sectors);
    if place(before) != place(now) {
        return Err(Distrust::Resized);
    }
    if before
        .kernel
        .iter()
        .zip(now.kernel)
        .any(|(before, now)| now < *before)
    {
        return Err(Distrust::SetUpAgain);
    }
    if (before.programs, before.links) != (now.programs, now.links) {
        return Err(changed("its programs were attached anew"));
    }
    if before.maps != now.maps {
        return Err(changed("its maps were replaced"));
    }
    compare_counters(before, now)
}

fn compare_counters(before: &Evidence, now: &Evidence) -> Result<(), Distrust> {
    for ((before, now), what) in before.errors.iter().zip(now.errors).zip(ERROR_NAMES) {
        if *before != now {
            return Err(Distrust::Counters {
                what,
                times: now.abs_diff(*before),
            });
        }
    }
    let runs = |of: &Evidence| {
        of.misses
            .iter()
            .fold(0_u64, |sum, misses| sum.wrapping_add(*misses))
    };
    if before.misses != now.misses {
        return Err(Distrust::Missed {
            runs: runs(now).abs_diff(runs(before)),
        });
    }
    Ok(())
}

/// What of the kernel's counts never becomes smaller while a device is the same.
fn kernel_counts(shared: &Shared, target: &Target) -> Result<[u64; KERNEL_COUNTS], Distrust> {
    let unreadable = |error: hostdev::Error| Distrust::unreadable(&error);
    let disk = BlockDevice::find(&shared.root, target.disk).map_err(unreadable)?;
    let counters = disk
        .ok_or(Distrust::ReplacedDisk)?
        .counters()
        .map_err(unreadable)?;
    Ok([
        counters.reads,
        counters.read_sectors,
        counters.writes,
        counters.written_sectors,
    ])
}

fn errors(shared: &Shared, maps: &WatchMaps) -> Result<[u64; ERRORS], Distrust> {
    let control = shared.control.load(0);
    let disk = usize::try_from(maps.slot)
        .ok()
        .and_then(|slot| shared.disks.load(slot));
    let (Some(control), Some(disk)) = (control, disk) else {
        return Err(changed("a map is too small"));
    };
    Ok([
        control.bios_full,
        control.bios_stale,
        control.chain,
        disk.outside,
        disk.passthrough,
        disk.zone,
        disk.unmarked,
    ])
}

/// The ids of the maps, as far as they are still pinned and used by the programs.
fn map_ids(shared: &Shared, maps: &WatchMaps) -> Result<[u32; MAPS], Distrust> {
    let mut ids = [0; MAPS];
    let (of_all, of_watch) = ids.split_at_mut(pins::MAPS.len());
    for (id, name) in of_all.iter_mut().zip(pins::MAPS) {
        *id = info(opened(&shared.pins.map(name))?.as_fd())?.id;
    }
    if *of_all != shared.map_ids().map_err(|error| unreadable(&error))? {
        return Err(changed("its maps were replaced"));
    }
    for (id, (name, open)) in of_watch.iter_mut().zip(maps.ids()) {
        *id = info(opened(&shared.pins.watch(maps.slot).join(name))?.as_fd())?.id;
        if *id != open {
            return Err(changed(format!("the map {name} was replaced")));
        }
    }
    let used = sys::inner_id(shared.live(), maps.slot).map_err(|error| unreadable(&error))?;
    if used != Some(maps.live.id()) {
        return Err(changed("the programs mark another map"));
    }
    Ok(ids)
}

fn opened(path: &std::path::Path) -> Result<std::os::fd::OwnedFd, Distrust> {
    sys::open_pin(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => changed(format!("{} is missing", path.display())),
        _ => Distrust::Unreadable {
            reason: format!("cannot open {}: {error}", path.display()),
        },
    })
}

fn info(fd: std::os::fd::BorrowedFd<'_>) -> Result<sys::Info, Distrust> {
    sys::info(fd).map_err(|error| unreadable(&error))
}

fn boot_id(shared: &Shared) -> Result<[u8; 16], Distrust> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = shared
        .root
        .attribute(path)
        .map_err(|error| Distrust::unreadable(&error))?;
    let digits = text.unwrap_or_default().replace('-', "");
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|_| Distrust::Unreadable {
            reason: format!("{path} holds no id"),
        })
}

/// How long the machine has been suspended since it was started: what the clock that goes on then is ahead of the one
/// that does not. The best of a few readings, as a reading may be interrupted between the two.
fn suspended_ns() -> u64 {
    let reading = || {
        let monotonic = clock_ns(libc::CLOCK_MONOTONIC);
        clock_ns(libc::CLOCK_BOOTTIME).saturating_sub(monotonic)
    };
    (0..8).map(|_| reading()).min().unwrap_or(0)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills the structure; both clocks exist on every Linux that is supported.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000) + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn changed(what: impl Into<String>) -> Distrust {
    Distrust::LinksChanged { what: what.into() }
}

fn unreadable(error: &io::Error) -> Distrust {
    Distrust::unreadable(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Evidence {
        Evidence {
            boot_id: [7; 16],
            suspended_ns: 1_000,
            diskseq: 9,
            target_sectors: 100,
            start_sector: 8,
            disk_sectors: 200,
            programs: [1; PROGRAMS],
            links: [2; PROGRAMS],
            maps: [3; MAPS],
            misses: [4; PROGRAMS],
            errors: [5; ERRORS],
            kernel: [6; KERNEL_COUNTS],
        }
    }

    fn found(change: impl FnOnce(&mut Evidence)) -> Result<(), Distrust> {
        let mut now = some();
        change(&mut now);
        compare(&some(), &now)
    }

    #[test]
    fn what_did_not_change_is_believed() {
        assert_eq!(found(|_| ()), Ok(()));
        assert_eq!(
            found(|now| now.suspended_ns += 50_000),
            Ok(()),
            "clocks are read one after the other"
        );
    }

    #[test]
    fn every_change_has_its_reason() {
        assert_eq!(found(|now| now.boot_id[3] = 0), Err(Distrust::OtherBoot));
        assert_eq!(
            found(|now| now.suspended_ns += 1_000_000_000),
            Err(Distrust::Suspended)
        );
        assert_eq!(found(|now| now.diskseq += 1), Err(Distrust::ReplacedDisk));
        assert_eq!(found(|now| now.target_sectors += 1), Err(Distrust::Resized));
        assert_eq!(found(|now| now.start_sector += 1), Err(Distrust::Resized));
        assert_eq!(found(|now| now.disk_sectors += 1), Err(Distrust::Resized));
        assert!(matches!(
            found(|now| now.programs[6] = 0),
            Err(Distrust::LinksChanged { .. })
        ));
        assert!(matches!(
            found(|now| now.links[0] = 0),
            Err(Distrust::LinksChanged { .. })
        ));
        assert!(matches!(
            found(|now| now.maps[9] = 0),
            Err(Distrust::LinksChanged { .. })
        ));
        assert_eq!(found(|now| now.misses[5] += 2), Err(Distrust::Missed { runs: 2 }));
        for index in 0..KERNEL_COUNTS {
            assert_eq!(found(|now| now.kernel[index] -= 1), Err(Distrust::SetUpAgain));
            assert_eq!(found(|now| now.kernel[index] += 1), Ok(()));
        }
        for (index, what) in ERROR_NAMES.into_iter().enumerate() {
            let moved = found(|now| now.errors[index] += 3);
            assert_eq!(moved, Err(Distrust::Counters { what, times: 3 }));
        }
    }
}
