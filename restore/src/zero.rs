//! Zeroing ranges of a file or block device, so that a thin one needs no space for them.

use anyhow::Context;
use blockio::AlignedBuf;
use blockio::is_zero;
use hostdev::{BlockDevice, DeviceNumber, Root};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes written or looked at in one call.
const STEP_BYTES: u64 = 1 << 20;

mod ioctl {
    // BLKDISCARD and BLKZEROOUT of the kernel's include/uapi/linux/fs.h; the range is [start, length] in bytes.
    nix::ioctl_write_ptr_bad!(discard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// One way to zero a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// fallocate(2): frees the space of a file, and that of a device which promises zeros in its place.
    Punch,
    /// BLKDISCARD, which promises nothing: what it leaves is read, and zeroed where it is not zero.
    Discard,
    /// BLKZEROOUT: keeps the space; the device may have a shorter way than writing.
    ZeroOut,
    /// Writing zeros.
    Write,
}

/// Zeroes ranges of one file or device, from several threads.
#[derive(Debug)]
pub struct Zeroer<'a> {
    file: &'a File,
    /// The methods to try, the best first.
    methods: &'static [Method],
    /// The first of them that is not known to fail here.
    first: AtomicUsize,
}

impl<'a> Zeroer<'a> {
    /// For a file that is open for reading and writing, which may be with O_DIRECT.
    ///
    /// # Errors
    /// A file that cannot be examined.
    pub fn new(file: &'a File) -> anyhow::Result<Self> {
        let metadata = file.metadata().context("examine the target")?;
        let methods: &[Method] = if !metadata.file_type().is_block_device() {
            &[Method::Punch, Method::Write]
        } else if is_mapped(DeviceNumber::of_dev(metadata.rdev()))? {
            &[Method::Punch, Method::Discard, Method::ZeroOut, Method::Write]
        } else {
            &[Method::Punch, Method::ZeroOut, Method::Write]
        };
        Ok(Self {
            file,
            methods,
            first: AtomicUsize::new(0),
        })
    }

    /// Makes a range read as zeros; where O_DIRECT is on, the range is aligned for it.
    ///
    /// # Errors
    /// What the kernel says of the method that should always work, or of one that failed half-way.
    pub fn zero(&self, offset: u64, length: u64) -> anyhow::Result<()> {
        let mut at = self.first.load(Ordering::Relaxed);
        loop {
            let method = self.methods.get(at).copied().unwrap_or(Method::Write);
            match self.zero_by(method, offset, length) {
                Err(error) if is_unsupported(&error) && method != Method::Write => {
                    at += 1;
                    self.first.fetch_max(at, Ordering::Relaxed);
                }
                done => {
                    return done
                        .with_context(|| format!("zero {length} bytes of the target at byte {offset}"));
                }
            }
        }
    }

    fn zero_by(&self, method: Method, offset: u64, length: u64) -> io::Result<()> {
        let range = [offset, length];
        match method {
            Method::Punch => punch(self.file, offset, length),
            Method::Discard => {
                // SAFETY: the ioctl reads two u64 from the pointer, which outlives the call; the descriptor is open.
                unsafe { ioctl::discard(self.file.as_raw_fd(), &raw const range) }?;
                self.zero_what_is_left(offset, length)
            }
            Method::ZeroOut => {
                // SAFETY: as above.
                unsafe { ioctl::zero_out(self.file.as_raw_fd(), &raw const range) }?;
                Ok(())
            }
            Method::Write => {
                steps(offset, length).try_for_each(|(offset, len)| self.write_zeros(offset, len))
            }
        }
    }

    /// Writes zeros where the range is not zero: a discard may leave the ends of it, or do nothing at all.
    fn zero_what_is_left(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut found = AlignedBuf::new(len_of(length));
        steps(offset, length).try_for_each(|(offset, len)| {
            found.set_len(len);
            self.file.read_exact_at(&mut found, offset)?;
            if is_zero(&found) {
                return Ok(());
            }
            self.write_zeros(offset, len)
        })
    }

    fn write_zeros(&self, offset: u64, len: usize) -> io::Result<()> {
        self.file.write_all_at(&AlignedBuf::new(len), offset)
    }
}

/// A range in pieces of [`STEP_BYTES`], each an offset and a length.
fn steps(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize)> {
    let starts = (0..length).step_by(len_of(STEP_BYTES));
    starts.map(move |start| (offset + start, len_of(length - start)))
}

/// So many bytes, but one step at most.
fn len_of(bytes: u64) -> usize {
    usize::try_from(bytes.min(STEP_BYTES)).unwrap_or(usize::MAX)
}

/// Whether the device is one of device-mapper's. Of these, thin ones discard without knowing how to write zeros; a
/// physical disk that does is not to be believed, even if it reads as zeros for now.
fn is_mapped(number: DeviceNumber) -> anyhow::Result<bool> {
    let device = BlockDevice::find(&Root::system(), number).context("look for the target in sysfs")?;
    let mapped = device.map(|device| device.mapped()).transpose();
    Ok(mapped.context("look at the target in sysfs")?.flatten().is_some())
}

fn is_unsupported(error: &io::Error) -> bool {
    const CODES: [Errno; 4] = [Errno::EOPNOTSUPP, Errno::ENOTTY, Errno::EINVAL, Errno::ENOSYS];
    CODES
        .iter()
        .any(|&code| error.raw_os_error() == Some(code as i32))
}

/// Makes a range of a file a hole, which reads as zeros. On a block device this is a request to write zeros that may
/// free the space, and fails where the device itself cannot do that.
fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Err(Errno::EINVAL.into());
    };
    Ok(fallocate(file, flags, offset, length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use testkit::guard::{LoopDevice, ScratchDir};

    const MIB: u64 = 1 << 20;

    /// Every method, and that a method which fails is not the last word.
    #[test]
    fn a_range_is_zero_by_every_method_and_its_surroundings_are_not() {
        let scratch = ScratchDir::new("smc-zero").unwrap();
        let methods: [&'static [Method]; 5] = [
            &[Method::Punch],
            &[Method::Discard],
            &[Method::ZeroOut],
            &[Method::Write],
            &[Method::Discard, Method::ZeroOut, Method::Write],
        ];
        for (number, methods) in methods.into_iter().enumerate() {
            let path = scratch.join(format!("disk{number}"));
            std::fs::write(&path, vec![0xaa; 8 << 20]).unwrap();
            let device = LoopDevice::attach(&path).unwrap();
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(device.path())
                .unwrap();
            let zeroer = Zeroer {
                file: &file,
                methods,
                first: AtomicUsize::new(0),
            };
            let (start, length) = (MIB + 4096, 3 * MIB);
            zeroer.zero(start, length).unwrap();
            file.sync_all().unwrap();
            drop(file);
            device.detach().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let zeros = usize::try_from(start).unwrap()..usize::try_from(start + length).unwrap();
            assert!(bytes[zeros.clone()].iter().all(|&byte| byte == 0), "{methods:?}");
            assert!(
                bytes[..zeros.start].iter().all(|&byte| byte == 0xaa),
                "{methods:?}"
            );
            assert!(bytes[zeros.end..].iter().all(|&byte| byte == 0xaa), "{methods:?}");
        }
    }

    #[test]
    fn what_a_discard_leaves_is_zeroed() {
        let scratch = ScratchDir::new("smc-zero").unwrap();
        let path = scratch.join("file");
        let mut content = vec![0; 4 << 20];
        content[2 << 20] = 1;
        std::fs::write(&path, &content).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let zeroer = Zeroer::new(&file).unwrap();
        zeroer.zero_what_is_left(0, 4 * MIB - 4096).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_method_that_is_not_there_is_tried_once() {
        let scratch = ScratchDir::new("smc-zero").unwrap();
        let path = scratch.join("file");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let zeroer = Zeroer {
            file: &file,
            // A file knows no ioctl of devices.
            methods: &[Method::Discard, Method::ZeroOut, Method::Write],
            first: AtomicUsize::new(0),
        };
        zeroer.zero(0, MIB).unwrap();
        assert_eq!(zeroer.first.load(Ordering::Relaxed), 2);
        assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 0));
    }
}
