//! One connection on standard input and output, for `--stdio`.

use anyhow::Context;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getpeername, getsockopt, sockopt,
};
use nix::sys::stat::fstat;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

/// Bytes copied at a time.
const COPIED_BYTES: usize = 256 << 10;

/// Copies between a stream and standard input and output, where these are not the stream themselves.
#[derive(Debug)]
#[must_use = "what was written to the stream may still be on its way"]
pub struct Relay(Option<JoinHandle<()>>);

impl Relay {
    /// Waits until everything that was written to the stream has left by standard output; the stream must be closed.
    /// It does not wait for the end of standard input.
    pub fn finish(self) {
        if let Some(Err(_)) = self.0.map(JoinHandle::join) {
            tracing::error!("copying to standard output panicked");
        }
    }
}

/// The connection that standard input and output are, as a stream.
///
/// Both may be one Unix stream socket, which then is the stream. Of pipes, files or terminals everything is copied by
/// two threads: the end of standard input ends what is read from the stream, and when nobody reads standard output any
/// more, the stream ends.
///
/// # Errors
/// Standard input or output that is closed, and threads that cannot be started.
pub fn connection() -> anyhow::Result<(UnixStream, Relay)> {
    let input = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("use standard input")?;
    let output = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .context("use standard output")?;
    join(input, output).context("make a connection of standard input and output")
}

fn join(input: OwnedFd, output: OwnedFd) -> io::Result<(UnixStream, Relay)> {
    set_blocking(&input)?;
    set_blocking(&output)?;
    if is_connection(&input, &output)? {
        return Ok((UnixStream::from(input), Relay(None)));
    }
    let (stream, ours) = UnixStream::pair()?;
    let for_input = ours.try_clone()?;
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || take_in(File::from(input), &for_input))?;
    let thread = thread::Builder::new()
        .name("stdout".to_owned())
        .spawn(move || give_out(&ours, File::from(output)))?;
    Ok((stream, Relay(Some(thread))))
}

/// Whoever had these before may have left them in non-blocking mode.
fn set_blocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// Whether both are the same connected Unix stream socket.
fn is_connection(input: &OwnedFd, output: &OwnedFd) -> io::Result<bool> {
    let (a, b) = (fstat(input)?, fstat(output)?);
    if (a.st_dev, a.st_ino) != (b.st_dev, b.st_ino) {
        return Ok(false);
    }
    // What is no socket, or not connected, has no peer.
    let peer = getpeername::<SockaddrStorage>(input.as_raw_fd());
    let is_unix = peer.is_ok_and(|peer| peer.family() == Some(AddressFamily::Unix));
    Ok(is_unix && getsockopt(input, sockopt::SockType) == Ok(SockType::Stream))
}

fn take_in(input: File, stream: &UnixStream) {
    if let Err(error) = copy(input, stream) {
        tracing::debug!(%error, "standard input is not read to its end");
    }
    // The reader finds the end. It may have closed the stream already.
    let _ = stream.shutdown(Shutdown::Write);
}

fn give_out(stream: &UnixStream, output: File) {
    if let Err(error) = copy(stream, output) {
        tracing::debug!(%error, "standard output takes no more");
    }
    // Whoever writes to the stream must not wait for a reader.
    let _ = stream.shutdown(Shutdown::Both);
}

/// By reading and writing: what else the kernel has for it is none of the calls that a confined server may make.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; COPIED_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => to.write_all(&buffer[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: usize = 10 << 20;

    /// A stream whose both ends are pipes: what goes in, and what comes out.
    fn on_pipes() -> (io::PipeWriter, io::PipeReader, UnixStream, Relay) {
        let (input, sender) = io::pipe().unwrap();
        let (receiver, output) = io::pipe().unwrap();
        let (stream, relay) = join(input.into(), output.into()).unwrap();
        (sender, receiver, stream, relay)
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..=250).cycle().take(len).collect()
    }

    #[test]
    fn a_socket_is_the_connection_itself() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (mut stream, relay) = join(ours.try_clone().unwrap().into(), ours.into()).unwrap();
        assert!(relay.0.is_none(), "no thread is needed");
        let writer = thread::spawn(move || {
            peer.write_all(b"ping").unwrap();
            let mut answer = String::new();
            peer.read_to_string(&mut answer).unwrap();
            answer
        });
        // Blocking, whatever it was before.
        let mut question = [0; 4];
        stream.read_exact(&mut question).unwrap();
        stream.write_all(b"pong").unwrap();
        drop(stream);
        relay.finish();
        assert_eq!((&question, &*writer.join().unwrap()), (b"ping", "pong"));
    }

    #[test]
    fn two_sockets_are_no_connection() {
        let (mut sender, input) = UnixStream::pair().unwrap();
        let (mut receiver, output) = UnixStream::pair().unwrap();
        let (mut stream, relay) = join(input.into(), output.into()).unwrap();
        sender.write_all(b"in").unwrap();
        let mut got = [0; 2];
        stream.read_exact(&mut got).unwrap();
        stream.write_all(&got).unwrap();
        drop(stream);
        relay.finish();
        let mut out = String::new();
        receiver.read_to_string(&mut out).unwrap();
        assert_eq!(out, "in");
    }

    #[test]
    fn everything_passes_in_both_directions_and_so_does_the_end() {
        let (mut sender, mut receiver, mut stream, relay) = on_pipes();
        let sending = thread::spawn(move || sender.write_all(&bytes(LONG)));
        let receiving = thread::spawn(move || {
            let mut received = Vec::new();
            receiver.read_to_end(&mut received).map(|_| received)
        });
        let mut taken = Vec::new();
        // To the end of input, after which there is still something to say.
        stream.read_to_end(&mut taken).unwrap();
        stream.write_all(&taken).unwrap();
        drop(stream);
        relay.finish();
        sending.join().unwrap().unwrap();
        assert!(receiving.join().unwrap().unwrap() == bytes(LONG));
    }

    #[test]
    fn the_end_does_not_wait_for_more_input() {
        let (sender, mut receiver, mut stream, relay) = on_pipes();
        stream.write_all(b"last words").unwrap();
        drop(stream);
        relay.finish();
        let mut received = String::new();
        receiver.read_to_string(&mut received).unwrap();
        assert_eq!(received, "last words");
        drop(sender);
    }

    #[test]
    fn a_stream_ends_when_nobody_reads_its_output() {
        let (_sender, receiver, mut stream, relay) = on_pipes();
        drop(receiver);
        let refused = stream.write_all(&bytes(LONG)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        relay.finish();
    }
}
