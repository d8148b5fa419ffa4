//! Executes one request against its export, in steps that block and hold bounded memory.
//!
//! Each step appends bytes that are complete chunks, so that replies of different requests can be
//! mixed at step boundaries. Data is read before its header can leave: what has been announced can
//! no longer fail (T3, T4).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::buffer::ReplyBuffer;
use crate::context::Context;
use crate::proto::{BASE_ALLOCATION, BlockDescriptorExt, Errno};
use crate::reply::{ReplyStyle, Tag};
use crate::transmission::{Operation, OperationKind};
use crate::{Export, ExportError, Extent, FailureKind, Ready, ZERO};

/// Data bytes of one step of a read that may be split: the client receives one while the next is
/// being read.
pub(crate) const STEP_BYTES: usize = 256 << 10;
/// Descriptors of one context in a BLOCK_STATUS reply; the protocol advises at most 2^20.
const MAX_DESCRIPTORS: usize = 1 << 17;
/// The longest length in a 32-bit descriptor: the largest one that keeps 64 KiB alignment.
const MAX_DESCRIPTOR_LENGTH: u64 = 0xffff_0000;
/// What is tried at once is tried in pieces that begin at multiples of this: clusters are mostly
/// this long, and what lies in several is seldom at hand as a whole.
const PIECE_BYTES: u64 = 64 << 10;
/// Room for headers beside a step's data.
pub(crate) const HEADER_ROOM: usize = 4 << 10;

/// A request under way.
pub(crate) struct Execution {
    export: Arc<dyn Export>,
    style: ReplyStyle,
    operation: Operation,
    position: u64,
    end: u64,
    /// What is known of the bytes from `position` on.
    extents: VecDeque<Extent>,
    /// Contexts of a BLOCK_STATUS that have been answered.
    answered: usize,
    /// How many descriptors the next step may have.
    descriptors: usize,
    finished: bool,
}

impl Execution {
    pub(crate) fn new(export: Arc<dyn Export>, style: ReplyStyle, operation: Operation) -> Self {
        Self {
            export,
            style,
            position: operation.offset,
            end: operation.offset.saturating_add(operation.length),
            operation,
            extents: VecDeque::new(),
            answered: 0,
            descriptors: MAX_DESCRIPTORS,
            finished: false,
        }
    }

    pub(crate) fn tag(&self) -> Tag {
        self.operation.tag()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// About how many bytes the next step will hold.
    pub(crate) fn step_bytes(&self) -> usize {
        match &self.operation.kind {
            OperationKind::Read { whole: true } => self.remaining() + HEADER_ROOM,
            OperationKind::Read { whole: false } => self.remaining().min(STEP_BYTES) + HEADER_ROOM,
            OperationKind::BlockStatus { one: true, .. } => HEADER_ROOM,
            OperationKind::BlockStatus { .. } => MAX_DESCRIPTORS * size_of::<BlockDescriptorExt>(),
            _ => HEADER_ROOM,
        }
    }

    /// With how many bytes the next step can do, where memory is short.
    pub(crate) fn least_bytes(&self) -> usize {
        match &self.operation.kind {
            OperationKind::BlockStatus { .. } => self.step_bytes().min(STEP_BYTES),
            _ => self.step_bytes(),
        }
    }

    /// What the next step may hold: at least [`least_bytes`](Self::least_bytes).
    pub(crate) fn set_room(&mut self, bytes: usize) {
        self.descriptors = (bytes / size_of::<BlockDescriptorExt>()).min(MAX_DESCRIPTORS);
    }

    /// Does the next step; blocks. Appends the bytes to send, if any.
    pub(crate) fn step(&mut self, out: &mut ReplyBuffer) {
        match &self.operation.kind {
            OperationKind::Read { .. } if self.operation.length == 0 => {
                self.finished = true;
                out.push(&self.style.success(self.tag()));
            }
            OperationKind::Read { whole: true } => self.read_whole(out),
            OperationKind::Read { whole: false } => self.read_step(out),
            OperationKind::BlockStatus { one, contexts } => {
                let (one, contexts) = (*one, Arc::clone(contexts));
                self.block_status(out, one, &contexts);
            }
            _ => {
                self.finished = true;
                let done = guarded(self.position, || self.change());
                out.push(&conclusion(self.style, self.tag(), self.operation.length, done));
            }
        }
    }

    /// The operations that have no content in their reply.
    fn change(&self) -> Result<(), ExportError> {
        let (offset, length) = (self.operation.offset, self.operation.length);
        match &self.operation.kind {
            OperationKind::WriteZeroes(how) => self.export.write_zeroes(offset, length, *how)?,
            OperationKind::Trim => self.export.trim(offset, length)?,
            OperationKind::Flush => return self.export.flush(),
            // A hint that could not be taken is not the client's trouble: its reads will tell.
            OperationKind::Cache => {
                let _ = self.export.cache(offset, length);
                return Ok(());
            }
            OperationKind::Read { .. } | OperationKind::Write | OperationKind::BlockStatus { .. } => {}
        }
        if self.operation.durable {
            self.export.flush()?;
        }
        Ok(())
    }

    fn remaining(&self) -> usize {
        usize::try_from(self.end - self.position).unwrap_or(usize::MAX)
    }

    /// Reads everything, then makes the header: simple, or one chunk for a client that set DF.
    fn read_whole(&mut self, out: &mut ReplyBuffer) {
        self.finished = true;
        let (start, length) = (out.len(), self.remaining());
        self.style
            .push_data_head(out, self.tag(), self.position, length, true);
        if let Err(error) = self.append_data(out, length) {
            out.cut(start);
            out.push(&self.read_failure(&error, length));
        }
    }

    /// Appends chunks until the step is full or the request answered.
    fn read_step(&mut self, out: &mut ReplyBuffer) {
        let mut budget = self.remaining().min(STEP_BYTES);
        while budget > 0 && !self.finished {
            let extent = self.next_extent();
            if extent.flags & ZERO != 0 {
                self.append_hole(out, extent.length);
                continue;
            }
            let length = usize::try_from(extent.length).map_or(budget, |length| length.min(budget));
            budget -= length;
            self.append_data_chunk(out, length);
        }
    }

    fn append_hole(&mut self, out: &mut ReplyBuffer, length: u64) {
        let offset = self.position;
        self.pass(length);
        let size = u32::try_from(length).unwrap_or(u32::MAX);
        self.style.push_hole(out, self.tag(), offset, size, self.finished);
    }

    fn append_data_chunk(&mut self, out: &mut ReplyBuffer, length: usize) {
        let start = out.len();
        let done = length == self.remaining();
        self.style
            .push_data_head(out, self.tag(), self.position, length, done);
        match self.append_data(out, length) {
            Ok(()) => self.pass(length as u64),
            Err(error) => {
                self.finished = true;
                out.cut(start);
                out.push(&self.read_failure(&error, length));
            }
        }
    }

    /// Reads `length` bytes from the position on to the end of `out`.
    fn append_data(&self, out: &mut ReplyBuffer, length: usize) -> Result<(), ExportError> {
        let tail = out.grow(length);
        guarded(self.position, || self.export.read_at(self.position, tail))
    }

    /// The error chunk for a failed read of `length` bytes at the position.
    fn read_failure(&self, error: &ExportError, length: usize) -> Vec<u8> {
        tracing::debug!(offset = error.offset, error = %error.message, "a read failed");
        failure(self.style, self.tag(), error, self.position, length as u64)
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
            let zero_or_not = |extent: Extent| Extent {
                flags: extent.flags & ZERO,
                ..extent
            };
            let found = found.unwrap_or_default().into_iter().map(zero_or_not);
            self.extents = merged(found, wanted).into();
        }
        let unknown = Extent::data(wanted);
        self.extents.front().copied().unwrap_or(unknown)
    }

    /// Answers for the next context: one chunk each.
    fn block_status(&mut self, out: &mut ReplyBuffer, one: bool, contexts: &[Context]) {
        let Some(context) = contexts.get(self.answered) else {
            self.finished = true;
            return;
        };
        self.answered += 1;
        self.finished = self.answered == contexts.len();
        let (offset, length) = (self.position, self.end - self.position);
        match guarded(offset, || self.ask(&context.name, offset, length)) {
            Ok(found) => {
                // An extent may run past the request, but not past the export.
                let rest = self.export.size_bytes().saturating_sub(offset);
                let within = if one { length } else { rest.max(length) };
                let longest = if self.style == ReplyStyle::Extended {
                    u64::MAX
                } else {
                    MAX_DESCRIPTOR_LENGTH
                };
                let most = if one { 1 } else { self.descriptors };
                let found = descriptors(&merged(found, within), length, most, longest);
                self.style
                    .push_block_status(out, self.tag(), context.id, &found, self.finished);
            }
            Err(error) => {
                self.finished = true;
                tracing::debug!(offset = error.offset, error = %error.message, "a block status query failed");
                out.push(&failure(self.style, self.tag(), &error, offset, length));
            }
        }
    }

    fn ask(&self, context: &str, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        if context == BASE_ALLOCATION {
            self.export.extents(offset, length)
        } else {
            self.export.status(context, offset, length)
        }
    }
}

/// Answers a read at once, if the export has the bytes at hand; false if it has not, and then
/// nothing was appended. A longer read is for this only if it is all data: zeros among it are
/// better reported as holes.
pub(crate) fn try_read(
    export: &dyn Export,
    style: ReplyStyle,
    operation: &Operation,
    out: &mut ReplyBuffer,
) -> bool {
    let start = out.len();
    let Ok(length) = usize::try_from(operation.length) else {
        return false;
    };
    let (tag, offset) = (operation.tag(), operation.offset);
    style.push_data_head(out, tag, offset, length, true);
    // A panic here ends this connection, as anywhere in its driver.
    let found = try_pieces(export, offset, out.grow(length));
    match found {
        Ready::Data => return true,
        Ready::Zeros => {
            out.cut(start);
            if operation.kind == (OperationKind::Read { whole: true }) {
                style.push_data_head(out, tag, offset, length, true);
                out.grow(length).fill(0);
            } else {
                let size = u32::try_from(length).unwrap_or(u32::MAX);
                style.push_hole(out, tag, offset, size, true);
            }
            return true;
        }
        Ready::No => out.cut(start),
    }
    false
}

/// Reads piece by piece, since what is at hand is known for pieces: all data, all zeros, or not.
fn try_pieces(export: &dyn Export, mut offset: u64, mut target: &mut [u8]) -> Ready {
    let mut all = None;
    while !target.is_empty() {
        let length = usize::try_from(PIECE_BYTES - offset % PIECE_BYTES).unwrap_or(target.len());
        let (piece, rest) = target.split_at_mut(length.min(target.len()));
        let found = export.try_read_at(offset, piece);
        if found == Ready::No || all.is_some_and(|all| all != found) {
            return Ready::No;
        }
        all = Some(found);
        offset += piece.len() as u64;
        target = rest;
    }
    all.unwrap_or(Ready::No)
}

/// The reply to a request without content in it.
pub(crate) fn conclusion(style: ReplyStyle, tag: Tag, length: u64, done: Result<(), ExportError>) -> Vec<u8> {
    match done {
        Ok(()) => style.success(tag),
        Err(error) => {
            tracing::debug!(offset = error.offset, error = %error.message, "a request failed");
            failure(style, tag, &error, tag.offset, length)
        }
    }
}

/// The reply to a request for `length` bytes from `start` on that failed: the reported offset must
/// lie among them whatever the export says.
fn failure(style: ReplyStyle, tag: Tag, error: &ExportError, start: u64, length: u64) -> Vec<u8> {
    let errno = match error.kind {
        FailureKind::Io => Errno::Io,
        FailureKind::NoSpace => Errno::NoSpc,
        FailureKind::NotFast => Errno::NotSup,
        FailureKind::ReadOnly => Errno::Perm,
        FailureKind::Invalid => Errno::Inval,
    };
    // A flush has no bytes to point to.
    let Some(last) = length.checked_sub(1) else {
        return style.error(tag, errno, &error.message);
    };
    let offset = error.offset.clamp(start, start.saturating_add(last));
    style.error_at(tag, errno, &error.message, offset)
}

/// Calls an export; a panic in it becomes an error of this one request.
pub(crate) fn guarded<T>(
    offset: u64,
    call: impl FnOnce() -> Result<T, ExportError>,
) -> Result<T, ExportError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(server_failure(offset)))
}

/// The error that a client gets when the server itself failed.
pub(crate) fn server_failure(offset: u64) -> ExportError {
    ExportError::io(offset, "the server failed on this request; see its log")
}

/// Joins neighbours of one kind, drops empty extents, and cuts at `within` bytes.
fn merged(extents: impl IntoIterator<Item = Extent>, within: u64) -> Vec<Extent> {
    let mut left = within;
    let mut joined: Vec<Extent> = Vec::new();
    for extent in extents {
        let length = extent.length.min(left);
        left -= length;
        match joined.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.flags == extent.flags => last.length += length,
            _ => joined.push(Extent { length, ..extent }),
        }
    }
    joined
}

/// Block descriptors, as length and flags, for a request of `length` bytes (T6): at least one,
/// at most `most`, none empty or longer than `longest`, all but the last together shorter than the request.
fn descriptors(extents: &[Extent], length: u64, most: usize, longest: u64) -> Vec<(u64, u32)> {
    let mut found = Vec::new();
    let mut covered = 0;
    for extent in extents.iter().take(most) {
        let described = extent.length.min(longest);
        found.push((described, extent.flags));
        covered += described;
        // A longer extent than a descriptor can say ends the reply early; the client asks on.
        if covered >= length || described < extent.length {
            break;
        }
    }
    if found.is_empty() {
        found.push((length.min(longest), 0));
    }
    found
}

#[cfg(test)]
mod tests;
