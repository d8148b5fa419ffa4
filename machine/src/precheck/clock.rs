//! The clock: what certificates, logs and the times of images go by.

use super::Context;
use super::findings::Findings;

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    match case.answers.clock_synchronized {
        Some(true) => out.ok("clock", "the clock is synchronized"),
        Some(false) => out.warning(
            "clock",
            "the clock is not synchronized: the times of images will be as wrong as it is",
            "run a time service: timedatectl set-ntp true, or install chrony",
        ),
        None => out.warning(
            "clock",
            "whether the clock is synchronized could not be determined",
            "compare it with another clock",
        ),
    }
    hardware_clock(case, out);
}

/// The third line of adjtime(5) says what the hardware clock shows. Cloud machines start with UTC.
pub(super) fn hardware_clock(case: &Context<'_>, out: &mut Findings) {
    let adjtime = case.files.text("/etc/adjtime");
    if adjtime.lines().nth(2).is_some_and(|line| line.trim() == "LOCAL") {
        out.warning(
            "hardware_clock",
            "the hardware clock shows local time (/etc/adjtime says LOCAL): elsewhere it mostly shows UTC, and the \
             machine would start hours off",
            "timedatectl set-local-rtc 0",
        );
    } else {
        out.ok("hardware_clock", "the hardware clock shows UTC");
    }
}
