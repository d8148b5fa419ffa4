//! Whether images can go to a target: it answers, this machine's certificate is good, and the clocks do not differ.

use crate::service::parts::Parts;
use crate::service::targets;
use crate::targets::{how_to_enrol_again, show};
use api::{Check, Level, TargetStatus, TargetView};
use cli::targets::CLOCK_DIFFERS_S;
use cli::units::local_date;
use jiff::Timestamp;
use machine::TargetRoom;
use remote::RENEW_BEFORE;

/// What was found.
pub(super) struct Looked {
    pub(super) checks: Vec<Check>,
    /// How much room there is, if the target says so.
    pub(super) room: Option<TargetRoom>,
}

/// Looks at a target. One that does not answer is waited for, for some 20 seconds.
pub(super) fn look(parts: &Parts, name: &str) -> Looked {
    let files = match targets::open(parts, name) {
        Ok(files) => files,
        Err(error) => {
            let advice = "make the target known: `smcctl target add`";
            return Looked {
                checks: vec![check(
                    "target",
                    Level::Critical,
                    error.full_message(),
                    Some(advice),
                )],
                room: None,
            };
        }
    };
    let view = show(&files);
    let mut checks = vec![answers(&view), certificate(&view)];
    checks.extend(view.status.as_ref().map(|status| clock(name, status)));
    Looked {
        checks,
        room: view.status.map(|status| TargetRoom {
            name: name.to_owned(),
            free_bytes: status.free_bytes,
        }),
    }
}

fn answers(view: &TargetView) -> Check {
    let (name, address) = (&view.name, &view.address);
    match (&view.status, &view.problem) {
        (Some(status), _) => {
            let found = format!("target {name} answers at {address}: {}", status.software);
            check("target", Level::Ok, found, None)
        }
        (None, problem) => {
            let problem = problem.as_deref().unwrap_or("it does not answer");
            let found = format!("target {name} cannot be used: {problem}");
            let advice = "check that smc-store runs there (`systemctl status smc-store`), that no firewall is in between, and \
                          that it still knows this machine (`smc-store ls`)";
            check("target", Level::Critical, found, Some(advice))
        }
    }
}

fn certificate(view: &TargetView) -> Check {
    let (name, source) = (&view.name, &view.source);
    let Some(until) = view.valid_until else {
        let found = format!("this machine's certificate for target {name} cannot be read");
        let advice = how_to_enrol_again(name, source);
        return check("target_certificate", Level::Critical, found, Some(&advice));
    };
    let (left, date) = (until.duration_since(Timestamp::now()), local_date(until));
    let found = format!("this machine's certificate for target {name} is good until {date}");
    if left.is_negative() {
        let found =
            format!("this machine's certificate for target {name} has expired: it was good until {date}");
        let advice = how_to_enrol_again(name, source);
        return check("target_certificate", Level::Critical, found, Some(&advice));
    }
    match left < RENEW_BEFORE {
        true => {
            let advice = format!("the next sync renews it, and so does `smcctl target renew {name}`");
            check("target_certificate", Level::Warning, found, Some(&advice))
        }
        false => check("target_certificate", Level::Ok, found, None),
    }
}

fn clock(name: &str, status: &TargetStatus) -> Check {
    let differs = status.clock_differs_s;
    if differs.unsigned_abs() <= CLOCK_DIFFERS_S {
        let found = format!("the clock of target {name} shows the time of this machine's");
        return check("target_clock", Level::Ok, found, None);
    }
    let found = format!("the clock of target {name} differs by {differs} s from this machine's");
    let advice =
        "set the wrong one: how long images are kept goes by the target's clock, and certificates by both";
    check("target_clock", Level::Warning, found, Some(advice))
}

fn check(id: &str, level: Level, found: String, advice: Option<&str>) -> Check {
    Check {
        id: id.to_owned(),
        level,
        found,
        advice: advice.map(str::to_owned),
    }
}
