//! Executes one request against its export, in steps that block and hold bounded memory.
//!
//! Each step returns bytes that are complete chunks, so that replies of different requests can be
//! mixed at step boundaries. Data is read before its header is made: what has been announced can
//! no longer fail (T3, T4).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use zerocopy::IntoBytes;

use crate::proto::{BlockDescriptor, DataChunk, Errno, base_allocation};
use crate::reply::{self, ReplyStyle};
use crate::transmission::{Operation, OperationKind};
use crate::{Export, Extent, ExtentKind, ReadError};

/// Data bytes of one step of a read that may be split.
const STEP_BYTES: usize = 1 << 20;
/// Descriptors in one BLOCK_STATUS reply; the protocol advises at most 2^20.
const MAX_DESCRIPTORS: usize = 1 << 17;
/// The longest length in a descriptor: the largest 32-bit one that keeps 64 KiB alignment.
const MAX_DESCRIPTOR_LENGTH: u64 = 0xffff_0000;

/// A request under way.
pub(crate) struct Execution {
    export: Arc<dyn Export>,
    style: ReplyStyle,
    operation: Operation,
    position: u64,
    end: u64,
    /// What is known of the bytes from `position` on.
    extents: VecDeque<Extent>,
    finished: bool,
}

impl Execution {
    pub(crate) fn new(export: Arc<dyn Export>, style: ReplyStyle, operation: Operation) -> Self {
        let end = operation.offset.saturating_add(u64::from(operation.length));
        let extents = VecDeque::new();
        Self {
            export,
            style,
            operation,
            position: operation.offset,
            end,
            extents,
            finished: false,
        }
    }

    pub(crate) fn cookie(&self) -> u64 {
        self.operation.cookie
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// About how many bytes the next step will hold.
    pub(crate) fn step_bytes(&self) -> usize {
        match self.operation.kind {
            OperationKind::Read { whole: true } => self.operation.length as usize,
            OperationKind::Read { whole: false } => self.remaining().min(STEP_BYTES),
            OperationKind::BlockStatus { .. } => MAX_DESCRIPTORS * size_of::<BlockDescriptor>(),
        }
    }

    /// Does the next step; blocks. Returns the bytes to send.
    pub(crate) fn step(&mut self) -> Vec<u8> {
        match self.operation.kind {
            OperationKind::Read { .. } if self.operation.length == 0 => {
                self.finished = true;
                self.style.success(self.cookie())
            }
            OperationKind::Read { whole: true } => self.read_whole(),
            OperationKind::Read { whole: false } => self.read_step(),
            OperationKind::BlockStatus { one } => self.block_status(one),
        }
    }

    fn remaining(&self) -> usize {
        usize::try_from(self.end - self.position).unwrap_or(usize::MAX)
    }

    /// Reads everything, then makes the header: simple, or one chunk for a client that set DF.
    fn read_whole(&mut self) -> Vec<u8> {
        self.finished = true;
        let (cookie, offset, length) = (self.cookie(), self.position, self.remaining());
        let mut out = Vec::with_capacity(size_of::<DataChunk>() + length);
        if self.style.structured {
            out.extend_from_slice(reply::data_chunk(cookie, offset, length, true).as_bytes());
        } else {
            out.extend_from_slice(reply::simple_data(cookie).as_bytes());
        }
        match self.append_data(&mut out, length) {
            Ok(()) => out,
            Err(error) => self.read_failure(&error, length),
        }
    }

    /// Appends chunks until the step is full or the request answered.
    fn read_step(&mut self) -> Vec<u8> {
        let mut budget = self.step_bytes();
        let mut out = Vec::with_capacity(budget + 4 * size_of::<DataChunk>());
        while budget > 0 && !self.finished {
            let extent = self.next_extent();
            if extent.kind == ExtentKind::Zero {
                self.append_hole(&mut out, extent.length);
                continue;
            }
            let length = usize::try_from(extent.length).map_or(budget, |length| length.min(budget));
            budget -= length;
            self.append_data_chunk(&mut out, length);
        }
        out
    }

    fn append_hole(&mut self, out: &mut Vec<u8>, length: u64) {
        let offset = self.position;
        self.pass(length);
        let size = u32::try_from(length).unwrap_or(u32::MAX);
        out.extend_from_slice(reply::hole_chunk(self.cookie(), offset, size, self.finished).as_bytes());
    }

    fn append_data_chunk(&mut self, out: &mut Vec<u8>, length: usize) {
        let start = out.len();
        let done = length == self.remaining();
        let head = reply::data_chunk(self.cookie(), self.position, length, done);
        out.extend_from_slice(head.as_bytes());
        match self.append_data(out, length) {
            Ok(()) => self.pass(length as u64),
            Err(error) => {
                self.finished = true;
                out.truncate(start);
                out.extend_from_slice(&self.read_failure(&error, length));
            }
        }
    }

    /// Reads `length` bytes from the position on to the end of `out`.
    fn append_data(&self, out: &mut Vec<u8>, length: usize) -> Result<(), ReadError> {
        let start = out.len();
        out.resize(start + length, 0);
        let tail = out.get_mut(start..).unwrap_or_default();
        guarded(self.position, || self.export.read_at(self.position, tail))
    }

    /// The error chunk for a failed read of `length` bytes at the position; its offset must lie
    /// among them whatever the export says.
    fn read_failure(&self, error: &ReadError, length: usize) -> Vec<u8> {
        let last = self.position.saturating_add((length as u64).saturating_sub(1));
        let offset = error.offset.clamp(self.position, last);
        tracing::debug!(offset = error.offset, error = %error.message, "a read failed");
        self.style
            .error_at(self.cookie(), Errno::Io, &error.message, offset)
    }

    /// Moves the position, and the known extents with it.
    fn pass(&mut self, length: u64) {
        self.position += length;
        self.finished = self.position >= self.end;
        if let Some(first) = self.extents.front_mut() {
            first.length = first.length.saturating_sub(length);
            if first.length == 0 {
                self.extents.pop_front();
            }
        }
    }

    /// The extent at the position, within the request. What is not known is read as data: the
    /// read is what decides whether the bytes are good.
    fn next_extent(&mut self) -> Extent {
        let wanted = self.end - self.position;
        if self.extents.is_empty() {
            let found = guarded(self.position, || self.export.extents(self.position, wanted));
            self.extents = merged(found.unwrap_or_default(), wanted).into();
        }
        let unknown = Extent {
            length: wanted,
            kind: ExtentKind::Data,
        };
        self.extents.front().copied().unwrap_or(unknown)
    }

    fn block_status(&mut self, one: bool) -> Vec<u8> {
        self.finished = true;
        let (offset, length) = (self.position, self.end - self.position);
        match guarded(offset, || self.export.extents(offset, length)) {
            Ok(extents) => {
                // An extent may run past the request, but not past the export.
                let within = if one {
                    length
                } else {
                    self.export.size_bytes().saturating_sub(offset)
                };
                let extents = merged(extents, within.max(length));
                reply::block_status(self.cookie(), &descriptors(&extents, length, one))
            }
            Err(error) => self.status_failure(&error),
        }
    }

    fn status_failure(&self, error: &ReadError) -> Vec<u8> {
        let offset = error.offset.clamp(self.position, self.end.saturating_sub(1));
        tracing::debug!(offset = error.offset, error = %error.message, "a block status query failed");
        self.style
            .error_at(self.cookie(), Errno::Io, &error.message, offset)
    }
}

/// Calls an export; a panic in it becomes an error of this one request.
fn guarded<T>(offset: u64, call: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(ReadError {
            offset,
            message: "the server failed on this request; see its log".to_owned(),
        })
    })
}

/// Joins neighbours of one kind, drops empty extents, and cuts at `within` bytes.
fn merged(extents: Vec<Extent>, within: u64) -> Vec<Extent> {
    let mut left = within;
    let mut joined: Vec<Extent> = Vec::new();
    for extent in extents {
        let length = extent.length.min(left);
        left -= length;
        match joined.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.kind == extent.kind => last.length += length,
            _ => joined.push(Extent { length, ..extent }),
        }
    }
    joined
}

/// Block descriptors for a request of `length` bytes (T6): at least one, none empty, all but the
/// last together shorter than the request.
fn descriptors(extents: &[Extent], length: u64, one: bool) -> Vec<BlockDescriptor> {
    let mut found = Vec::new();
    let mut covered = 0;
    for extent in extents.iter().take(if one { 1 } else { MAX_DESCRIPTORS }) {
        let described = extent.length.min(MAX_DESCRIPTOR_LENGTH);
        found.push(descriptor(described, extent.kind));
        covered += described;
        // A longer extent than a descriptor can say ends the reply early; the client asks on.
        if covered >= length || described < extent.length {
            break;
        }
    }
    if found.is_empty() {
        found.push(descriptor(length.min(MAX_DESCRIPTOR_LENGTH), ExtentKind::Data));
    }
    found
}

fn descriptor(length: u64, kind: ExtentKind) -> BlockDescriptor {
    let flags = match kind {
        ExtentKind::Data => 0,
        ExtentKind::Zero => base_allocation::HOLE | base_allocation::ZERO,
    };
    BlockDescriptor {
        length: u32::try_from(length).unwrap_or(u32::MAX).into(),
        flags: flags.into(),
    }
}

#[cfg(test)]
mod tests;
