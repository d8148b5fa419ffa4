//! Loading and attaching the programs.

use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};
use blockio::LockedFile;

use crate::pins::{MAPS, Pins, TRACEPOINTS};
use crate::{Error, ErrorKind, Result, refusal};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracker.bpf.o"));

/// Tells apart programs that were compiled from different sources.
pub(crate) fn object_hash() -> u64 {
    hash(OBJECT)
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Loads all programs and attaches none. What the verifier refused is not tried again in this boot.
pub(crate) fn load(pins: &Pins) -> Result<Ebpf> {
    load_object(OBJECT, pins, || {
        pins.create()?;
        pins.lock().map(Some)
    })
}

/// As [`load`], where the directory exists and its lock is held.
pub(crate) fn load_locked(pins: &Pins) -> Result<Ebpf> {
    load_object(OBJECT, pins, || Ok(None))
}

fn load_object(
    object: &[u8],
    pins: &Pins,
    lock: impl FnOnce() -> Result<Option<LockedFile>>,
) -> Result<Ebpf> {
    let hash = hash(object);
    refusal::check(pins, hash)?;
    // The verifier's log takes most of the time, and is only needed where it refuses something.
    let failed = match load_with(object, VerifierLogLevel::DISABLE) {
        Err(Failure::Refused(_)) => load_with(object, VerifierLogLevel::DEBUG),
        other => other,
    };
    failed.map_err(|failure| match failure {
        Failure::Other(error) => error,
        Failure::Refused(error) => {
            let noted = lock().and_then(|_lock| refusal::remember(pins, hash, &error.to_string()));
            if let Err(error) = noted {
                tracing::debug!("{}", error.full_message());
            }
            error
        }
    })
}

/// Why programs could not be loaded.
enum Failure {
    /// The verifier does not accept one, and will not do so later.
    Refused(Error),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Other(error)
    }
}

fn load_with(object: &[u8], log: VerifierLogLevel) -> std::result::Result<Ebpf, Failure> {
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
        .load(object)
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

/// Why a program could not be loaded. The verifier's log is long, and says nothing to those who did not write the program.
fn refused(name: &str, error: ProgramError) -> Failure {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return unsupported(
            &format!("the kernel does not load the tracker's program {name}"),
            error,
        )
        .into();
    };
    if may_pass(&io_error) {
        let message = format!("the kernel does not load the tracker's program {name}");
        return unsupported(&message, io_error).into();
    }
    tracing::debug!("the verifier refused {name}: {io_error}\n{verifier_log}");
    let kernel = hostdev::Root::system().attribute("/proc/sys/kernel/osrelease");
    let kernel = kernel.ok().flatten().unwrap_or_default();
    Failure::Refused(Error::new(
        ErrorKind::Unsupported,
        format!("the kernel's verifier refused the tracker's program {name} (Linux {kernel})"),
    ))
}

/// Whether another process, or this one at another time, may have more luck: rights and memory.
fn may_pass(error: &std::io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::EPERM, libc::ENOMEM, libc::EAGAIN, libc::EINTR].contains(&code.unwrap_or(0))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tracker;
    use crate::tests::common::Ground;

    /// The programs under a license with which they may not call what they call.
    fn refused_object() -> Vec<u8> {
        let mut object = OBJECT.to_vec();
        let at = object.windows(4).position(|bytes| bytes == b"GPL\0").unwrap();
        object[at..at + 3].copy_from_slice(b"BSD");
        object
    }

    #[test]
    fn a_refused_program_is_named_and_not_tried_again() {
        let ground = Ground::new("tracker-refused");
        let pins = Pins::new(&ground.pins());
        pins.create().unwrap();
        let object = refused_object();
        let load = || load_object(&object, &pins, || Ok(None)).map(drop).unwrap_err();
        let first = load().full_message();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let release = release.trim();
        assert!(
            first.starts_with("the kernel's verifier refused the tracker's program "),
            "{first}"
        );
        assert!(first.ends_with(&format!(" (Linux {release})")), "{first}");
        // Were it tried again, another text would be found here.
        let other = first.replace("refused", "once refused");
        refusal::remember(&pins, hash(&object), &other).unwrap();
        assert_eq!(load().full_message(), other);
        // Other programs are not the ones that were refused.
        assert!(Tracker::find(&ground.pins()).unwrap().is_none());
        drop(ground.start());
        Tracker::remove(&ground.pins()).unwrap();
        assert!(!ground.pins().exists());
    }
}
