//! What the kernel says of a process.

use crate::{Error, ErrorKind, Result, Root};

/// State and start of a process (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// Its state, for example `R` if it runs, `Z` if it has ended and was not waited for.
    pub state: char,
    /// When it started, in clock ticks since the boot: it tells a process from a later one with the same id.
    pub started: u64,
}

impl ProcessStat {
    /// Looks at a process; `None` if there is none with this id.
    ///
    /// # Errors
    /// As for [`Root::attribute`]; `Malformed` for what the kernel does not write.
    pub fn read(root: &Root, process: u32) -> Result<Option<ProcessStat>> {
        let path = format!("/proc/{process}/stat");
        let parsed = |text: String| {
            parse(&text).ok_or_else(|| Error::new(ErrorKind::Malformed, "read", root.join(&path)))
        };
        root.attribute(&path)?.map(parsed).transpose()
    }
}

fn parse(stat: &str) -> Option<ProcessStat> {
    // The command's name stands in parentheses and may hold anything; the state is the first field behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some(ProcessStat { state, started })
}
