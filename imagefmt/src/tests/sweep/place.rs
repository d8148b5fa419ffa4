//! Where a power cut happened and what it left, as one line that can be passed to [`super::reproduce`].

use crate::tests::sim::{Failure, Fault, FsModel, Media, Outcome, corners, random};
use std::fmt;

/// One power cut: under which model, before which operation, with which outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cut {
    pub model: FsModel,
    pub op: usize,
    pub outcome: Code,
}

/// Which outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// That corner case.
    Corner(usize),
    /// The random one of this seed.
    Seed(u64),
}

impl Code {
    /// The outcome that is meant, as long as the operation still has it.
    pub fn outcome(self, media: &Media) -> Option<Outcome> {
        match self {
            Self::Corner(number) => corners(media).into_iter().nth(number),
            Self::Seed(seed) => Some(random(media, seed)),
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (model, op) = (self.model.name(), self.op);
        match self.outcome {
            Code::Corner(number) => write!(f, "{model}/{op}/{number}"),
            Code::Seed(seed) => write!(f, "{model}/{op}/{seed:#x}"),
        }
    }
}

/// A workload, with an operation that fails or without, and one power cut in it, one in the recovery from
/// that, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub workload: String,
    pub fault: Option<Fault>,
    pub cuts: Vec<Cut>,
}

impl Place {
    pub fn and_then(&self, cut: Cut) -> Self {
        let mut cuts = self.cuts.clone();
        cuts.push(cut);
        Self {
            workload: self.workload.clone(),
            fault: self.fault,
            cuts,
        }
    }

    /// What [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let first = parts.next()?;
        let (workload, fault) = match first.split_once('!') {
            None => (first, None),
            Some((workload, fault)) => (workload, Some(parse_fault(fault)?)),
        };
        let mut cuts = Vec::new();
        while let Some(model) = parts.next() {
            let model = FsModel::from_name(model)?;
            let op = parts.next()?.parse().ok()?;
            let outcome = parts.next()?;
            let outcome = match outcome.strip_prefix("0x") {
                Some(digits) => Code::Seed(u64::from_str_radix(digits, 16).ok()?),
                None => Code::Corner(outcome.parse().ok()?),
            };
            cuts.push(Cut { model, op, outcome });
        }
        let workload = workload.to_owned();
        (fault.is_some() || !cuts.is_empty()).then_some(Self {
            workload,
            fault,
            cuts,
        })
    }
}

/// As in `sticky-eio@17`.
fn parse_fault(text: &str) -> Option<Fault> {
    let (how, at) = text.split_once('@')?;
    let (sticky, name) = match how.strip_prefix("sticky-") {
        Some(name) => (true, name),
        None => (false, how),
    };
    let at = at.parse().ok()?;
    Failure::from_name(name).map(|failure| Fault { at, failure, sticky })
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.workload)?;
        if let Some(fault) = self.fault {
            let sticky = if fault.sticky { "sticky-" } else { "" };
            write!(f, "!{sticky}{}@{}", fault.failure.name(), fault.at)?;
        }
        self.cuts.iter().try_for_each(|cut| write!(f, "/{cut}"))
    }
}

#[test]
fn a_place_is_read_as_it_was_written() {
    for text in [
        "gc/posix/17/0x1234",
        "delete-oldest/ext4/3/0/xfs/40/12/posix/1/0xff",
        "gc!sticky-enospc@12",
        "gc!sync-lost@12/posix/13/0",
    ] {
        assert_eq!(Place::parse(text).unwrap().to_string(), text);
    }
    for text in ["gc", "gc/ntfs/1/2", "gc/posix/1", "gc/posix/1/0xzz", "gc!bad@1"] {
        assert_eq!(Place::parse(text), None, "{text}");
    }
}
