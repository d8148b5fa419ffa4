//! Loading and attaching the programs.

use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};

use crate::pins::{MAPS, Pins, TRACEPOINTS};
use crate::{Error, ErrorKind, Result};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracker.bpf.o"));

/// Tells apart programs that were compiled from different sources (FNV-1a).
pub(crate) fn object_hash() -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    OBJECT.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Loads all programs and attaches none.
pub(crate) fn load() -> Result<Ebpf> {
    // The verifier's log takes most of the time, and is only needed where it refuses something.
    load_with(VerifierLogLevel::DISABLE).or_else(|_| load_with(VerifierLogLevel::DEBUG))
}

fn load_with(log: VerifierLogLevel) -> Result<Ebpf> {
    let btf = Btf::from_sys_fs().map_err(|error| {
        unsupported(
            "the kernel has no description of its types (BTF, CONFIG_DEBUG_INFO_BTF)",
            error,
        )
    })?;
    let mut loader = EbpfLoader::new();
    let mut object = loader
        .btf(Some(&btf))
        .verifier_log_level(log)
        .load(OBJECT)
        .map_err(|error| unsupported("the kernel refused a map of the tracker", error))?;
    for (name, tracepoint) in TRACEPOINTS {
        program(&mut object, name)?
            .load(tracepoint, &btf)
            .map_err(|error| refused(name, error))?;
    }
    Ok(object)
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    let program = object.program_mut(name).map(TryInto::try_into);
    match program {
        Some(Ok(program)) => Ok(program),
        Some(Err(error)) => Err(unsupported(&format!("program {name} is of another kind"), error)),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            format!("there is no program {name}"),
        )),
    }
}

/// The verifier's log is long; its last lines say what it refused.
fn refused(name: &str, error: ProgramError) -> Error {
    let message = format!("the kernel refused the tracker's program {name}");
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log
                .lines()
                .rev()
                .filter(|line| !line.trim().is_empty())
                .take(4)
                .collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            Error::with_source(
                ErrorKind::Unsupported,
                format!("{message} ({})", lines.join("; ")),
                io_error,
            )
        }
        error => unsupported(&message, error),
    }
}

fn unsupported(message: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::with_source(ErrorKind::Unsupported, message, error)
}

/// Pins maps and programs, attaches the programs and pins their links.
pub(crate) fn install(object: &mut Ebpf, pins: &Pins) -> Result<()> {
    for name in MAPS {
        let map = object.map(name);
        let map = map.ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("there is no map {name}")))?;
        let path = pins.map(name);
        map.pin(&path).map_err(|error| cannot_pin(&path, error))?;
    }
    for (name, _) in TRACEPOINTS {
        let program = program(object, name)?;
        let path = pins.program(name);
        program.pin(&path).map_err(|error| cannot_pin(&path, error))?;
        attach(program, name, &pins.link(name))?;
    }
    Ok(())
}

fn attach(program: &mut BtfTracePoint, name: &str, path: &Path) -> Result<()> {
    let refused = |error| {
        unsupported(
            &format!("the kernel does not attach the tracker's program {name}"),
            error,
        )
    };
    let id = program.attach().map_err(refused)?;
    let link = program.take_link(id).map_err(refused)?;
    let link: FdLink = link.into();
    // Dropping what this returns closes our descriptor; the pin keeps the link.
    link.pin(path).map(drop).map_err(|error| cannot_pin(path, error))
}

fn cannot_pin(path: &Path, error: aya::pin::PinError) -> Error {
    Error::with_source(ErrorKind::Io, format!("cannot pin {}", path.display()), error)
}
