//! Why a server did not boot, read from its console: a table of lines that say so, and what to do about each.
//!
//! Each rule is about one line, as boot loaders, kernels, initramfs and systemd write it. What several of them say
//! together is put together here: which problem ended the boot, which device was waited for, which unit failed.

mod problem;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use regex::{Regex, RegexSet};

pub use problem::Problem;

use rules::{RULES, Says};

/// Why a server did not boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// What ended it.
    pub problem: Problem,
    /// The device that it waited for, as the console names it.
    pub device: Option<String>,
    /// The first unit that failed.
    pub unit: Option<String>,
    /// The line of the console that says it.
    pub line: Option<String>,
}

/// What was found on a console while it grew.
#[derive(Debug, Default)]
pub struct Findings {
    strong: Option<(Problem, String)>,
    weak: Option<(Problem, String)>,
    device: Option<String>,
    unit: Option<String>,
    any_text: bool,
    /// Whether nothing was written since a boot loader has started a kernel.
    kernel_is_silent: bool,
}

impl Findings {
    /// Looks at a line; whether the boot has ended with it.
    pub fn look_at(&mut self, line: &str) -> bool {
        let line = line.trim();
        self.kernel_is_silent &= line.is_empty();
        let (ended, is_of_firmware) = self.apply(line, true);
        self.any_text |= !line.is_empty() && !is_of_firmware;
        ended
    }

    /// The same of a line that is still being written, and may be a prompt. It says nothing of who writes it: of what the firmware
    /// writes, the beginning is not known.
    pub fn look_at_unfinished(&mut self, line: &str) -> bool {
        self.apply(line.trim(), false).0
    }

    /// Whether the boot has ended with this line, and whether the firmware writes it in any case.
    fn apply(&mut self, line: &str, is_finished: bool) -> (bool, bool) {
        let mut ended = false;
        for index in patterns().matches(line) {
            let rule = &RULES[index];
            match rule.says {
                Says::Ends(problem) => {
                    self.strong = Some((problem, line.to_owned()));
                    ended = true;
                }
                Says::EndsUnlessKnown(problem) => {
                    self.weak.get_or_insert((problem, line.to_owned()));
                    ended = true;
                }
                Says::Hints(problem) => {
                    self.weak.get_or_insert((problem, line.to_owned()));
                }
                Says::Device => self.device = captured(index, line).or(self.device.take()),
                // Of a name that is still being written, only the beginning is known.
                Says::Unit if !is_finished => {}
                Says::Unit => self.unit = self.unit.take().or_else(|| captured(index, line)),
                Says::StartsKernel => self.kernel_is_silent = true,
                Says::Firmware => return (false, true),
            }
        }
        (ended, false)
    }

    /// Whether anything was written beside what the firmware writes.
    pub fn any_text(&self) -> bool {
        self.any_text
    }

    /// Why it did not boot. `powered_off` says that the guest ended by itself.
    pub fn diagnosis(self, powered_off: bool) -> Diagnosis {
        let found = match (self.strong, self.weak) {
            // It has no root because the loader has not found its initramfs.
            (Some((Problem::NoRoot, _)), Some(weak)) if weak.0 == Problem::KernelNotLoaded => Some(weak),
            (strong, weak) => strong.or(weak),
        };
        let (problem, line) = match found {
            Some((problem, line)) => (problem, Some(line)),
            None if powered_off => (Problem::PoweredOff, None),
            None if !self.any_text => (Problem::Silent, None),
            None if self.kernel_is_silent => (Problem::KernelSilent, None),
            None => (Problem::NotReached, None),
        };
        let waits = matches!(
            problem,
            Problem::NoRoot
                | Problem::InitramfsShell
                | Problem::EmergencyMode
                | Problem::GrubRescue
                | Problem::RootDamaged
                | Problem::Passphrase
                | Problem::NotReached
        );
        Diagnosis {
            problem,
            device: self.device.filter(|_| waits),
            unit: self.unit.filter(|_| problem == Problem::EmergencyMode),
            line,
        }
    }
}

/// Whether a line is the prompt of a login, as getty writes it.
pub fn is_login_prompt(line: &str) -> bool {
    static PROMPT: OnceLock<Option<Regex>> = OnceLock::new();
    let prompt = PROMPT.get_or_init(|| Regex::new(r"^[[:alnum:]][[:alnum:]._-]* login:(\s|$)").ok());
    let line = line.trim_start();
    !line.starts_with("Last ") && prompt.as_ref().is_some_and(|prompt| prompt.is_match(line))
}

/// Whether a line is one that a kernel writes.
pub fn is_kernel_line(line: &str) -> bool {
    static KERNEL: OnceLock<Option<Regex>> = OnceLock::new();
    let kernel =
        KERNEL.get_or_init(|| Regex::new(r"^(\[ *[0-9]+\.[0-9]{6}\]|Linux version [0-9]|EFI stub: )").ok());
    kernel.as_ref().is_some_and(|kernel| kernel.is_match(line))
}

fn patterns() -> &'static RegexSet {
    static PATTERNS: OnceLock<RegexSet> = OnceLock::new();
    PATTERNS.get_or_init(|| {
        // A test says that every pattern of the table is one.
        RegexSet::new(RULES.iter().map(|rule| rule.line)).unwrap_or_else(|_| RegexSet::empty())
    })
}

/// The first group of the rule's pattern in a line.
fn captured(index: usize, line: &str) -> Option<String> {
    static COMPILED: OnceLock<Vec<Option<Regex>>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| RULES.iter().map(|rule| Regex::new(rule.line).ok()).collect());
    let found = compiled.get(index)?.as_ref()?.captures(line)?.get(1)?;
    Some(found.as_str().trim_end_matches(['.', '"', '\'']).to_owned())
}

impl Diagnosis {
    /// What happened, in one sentence without a full stop.
    pub fn what(&self) -> String {
        let mut what = self.problem.what().to_owned();
        if let Some(device) = &self.device {
            what += match self.problem {
                Problem::Passphrase => ": ",
                _ => "; it waited for ",
            };
            what += device;
        }
        if let Some(unit) = &self.unit {
            what += &format!("; the first unit that failed: {unit}");
        }
        what
    }
}
