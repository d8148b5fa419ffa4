//! What a process and its watchdog say to each other: small packets.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// One end of the connection.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What the process asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Thaw after this time.
    Arm(Duration),
    /// Thaw the first of the filesystems now, so many, and then no more.
    Thaw(u8),
}

/// What the watchdog says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "it is received while filesystems are frozen, without an allocation"
)]
pub enum Answer {
    Ready { has_own_cgroup: bool, is_locked: bool },
    Armed,
    Thawed(Thaws),
}

/// How thawing filesystems ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thaws {
    /// Whether the watchdog had thawed one of them before, because the time was up.
    pub has_timed_out: bool,
    /// The kernel's error number for each filesystem, or 0.
    pub errors: [u8; FILESYSTEMS_MAX],
}

/// How many filesystems a watchdog can have.
pub const FILESYSTEMS_MAX: usize = u8::MAX as usize;

const PACKET_BYTES: usize = 2 + FILESYSTEMS_MAX;

const ARM: u8 = b'A';
const THAW: u8 = b'T';
const READY: u8 = b'R';

impl Channel {
    /// Both ends; neither is inherited by a program that is started.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Channel(ours), theirs))
    }

    pub fn of(descriptor: OwnedFd) -> Channel {
        Channel(descriptor)
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The other end finds that nobody is here any more.
    pub fn close(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    pub fn send(&self, order: Order) -> io::Result<()> {
        match order {
            Order::Arm(budget) => {
                let nanoseconds = u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX);
                let mut packet = [ARM; 9];
                packet[1..].copy_from_slice(&nanoseconds.to_le_bytes());
                self.send_bytes(&packet)
            }
            Order::Thaw(count) => self.send_bytes(&[THAW, count]),
        }
    }

    pub fn say(&self, answer: Answer) -> io::Result<()> {
        match answer {
            Answer::Ready {
                has_own_cgroup,
                is_locked,
            } => self.send_bytes(&[READY, u8::from(has_own_cgroup), u8::from(is_locked)]),
            Answer::Armed => self.send_bytes(&[ARM]),
            Answer::Thawed(thaws) => {
                let mut packet = [THAW; PACKET_BYTES];
                packet[1] = u8::from(thaws.has_timed_out);
                packet[2..].copy_from_slice(&thaws.errors);
                self.send_bytes(&packet)
            }
        }
    }

    fn send_bytes(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            match send(self.0.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next order; `None` when the other end is closed.
    pub fn order(&self) -> io::Result<Option<Order>> {
        let mut packet = [0; 9];
        match self.receive(&mut packet)? {
            [] => Ok(None),
            [ARM, nanoseconds @ ..] => {
                let nanoseconds = nanoseconds.try_into().map_err(|_| nonsense())?;
                let budget = Duration::from_nanos(u64::from_le_bytes(nanoseconds));
                Ok(Some(Order::Arm(budget)))
            }
            [THAW, count] => Ok(Some(Order::Thaw(*count))),
            _ => Err(nonsense()),
        }
    }

    /// The next answer.
    pub fn answer(&self, patience: Duration) -> io::Result<Answer> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut descriptors = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        while let Err(errno) = poll(&mut descriptors, timeout).and_then(|ready| match ready {
            0 => Err(Errno::ETIMEDOUT),
            _ => Ok(()),
        }) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let mut packet = [0; PACKET_BYTES];
        match self.receive(&mut packet)? {
            [READY, own_cgroup, locked] => Ok(Answer::Ready {
                has_own_cgroup: *own_cgroup != 0,
                is_locked: *locked != 0,
            }),
            [ARM] => Ok(Answer::Armed),
            [THAW, has_timed_out, errors @ ..] => Ok(Answer::Thawed(Thaws {
                has_timed_out: *has_timed_out != 0,
                errors: errors.try_into().map_err(|_| nonsense())?,
            })),
            [] => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(nonsense()),
        }
    }

    fn receive<'p>(&self, packet: &'p mut [u8]) -> io::Result<&'p [u8]> {
        loop {
            match recv(self.0.as_raw_fd(), packet, MsgFlags::empty()) {
                Ok(length) => return Ok(&packet[..length]),
                Err(Errno::EINTR) => {}
                // The other end was closed before it had read everything.
                Err(Errno::ECONNRESET) => return Ok(&packet[..0]),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn nonsense() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_arrive_as_they_were_sent() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::of(theirs);
        for order in [Order::Arm(Duration::from_micros(200_001)), Order::Thaw(7)] {
            ours.send(order).unwrap();
            assert_eq!(theirs.order().unwrap(), Some(order));
        }
        let ready = Answer::Ready {
            has_own_cgroup: true,
            is_locked: false,
        };
        let mut errors = [0; FILESYSTEMS_MAX];
        errors[FILESYSTEMS_MAX - 1] = 22;
        let thawed = Answer::Thawed(Thaws {
            has_timed_out: true,
            errors,
        });
        for answer in [ready, Answer::Armed, thawed] {
            theirs.say(answer).unwrap();
            assert_eq!(ours.answer(Duration::MAX).unwrap(), answer);
        }
        let silence = ours.answer(Duration::ZERO).unwrap_err();
        assert_eq!(silence.kind(), io::ErrorKind::TimedOut);
        ours.close();
        assert_eq!(theirs.order().unwrap(), None);
    }
}
