//! Wireshark's dissector follows what several clients and the server say to each other over TCP.
//!
//! That of Wireshark 4.4 knows reads, writes and disconnects in compact headers, and simple replies to whatever; it passes
//! over the rest. So one client does without structured replies, and each reply to it must be found.

use crate::run::{client_ends, nbdsh, newer, run_client, runner};
use crate::served::{NOISE, Store, text};
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::process::{PATIENCE, Server, wait_until};

/// Name of an export that nobody has: once a client's wish for it is in the capture, so is all that was before it.
const LAST: &str = "smc-end-of-the-capture";
const REQUEST: &str = "0x25609513";
const SIMPLE_REPLY: &str = "0x67446698";
/// Rounds of [`simple_session`], and requests of each that the dissector knows and does not know.
const ROUNDS: usize = 40;
const READS_AND_WRITES: usize = 8;
const OTHERS: usize = 4;
/// ENOSPC on the wire.
const NO_SPACE: &str = "28";

/// A capture of all that goes through one TCP port of this machine.
struct Capture {
    dumpcap: Server,
    file: PathBuf,
    log: PathBuf,
}

impl Capture {
    fn start(store: &Store, port: u16) -> Result<Self> {
        let (file, log) = (store.path("session.pcapng"), store.path("dumpcap.log"));
        let mut command = Command::new(runner());
        // Whole packets, and 64 MiB for what arrives while the disk is slow.
        command.args(["dumpcap", "-q", "-i", "lo", "-s", "0", "-B", "64"]);
        command.args(["-f", &format!("tcp port {port}"), "-w", text(&file)]);
        let dumpcap = Server::start(&mut command, &log)?;
        wait_until(PATIENCE, || dumpcap.log().contains("File:"))?;
        Ok(Self { dumpcap, file, log })
    }

    /// The file, once the packet with [`LAST`] is in it; none may have been lost.
    fn finish(self) -> Result<PathBuf> {
        wait_until(PATIENCE, || {
            let captured = fs::read(&self.file).unwrap_or_default();
            captured.windows(LAST.len()).any(|bytes| bytes == LAST.as_bytes())
        })?;
        drop(self.dumpcap);
        let log = fs::read_to_string(&self.log)?;
        println!("{log}");
        assert!(log.contains("(100.0%)"), "packets were lost: {log}");
        Ok(self.file)
    }
}

/// Lines that tshark prints about the packets that pass `filter`, in these fields or summed up.
fn dissect(capture: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut args = vec!["-r", text(capture)];
    // NBD is known by its looks and not by its port, which by chance may be that of another protocol.
    args.extend([
        "-o",
        "tcp.try_heuristic_first:TRUE",
        "--only-protocols",
        "frame,eth,ip,tcp,nbd",
    ]);
    // A busy machine may capture two packets in the other order.
    args.extend(["-o", "tcp.reassemble_out_of_order:TRUE", "-Y", filter]);
    if !fields.is_empty() {
        args.extend(["-T", "fields"]);
    }
    fields.iter().for_each(|field| args.extend(["-e", field]));
    let said = newer("tshark", &args).stdout;
    said.lines().map(str::to_owned).collect()
}

/// All values of one field in the packets of `filter`; a packet may hold several.
fn values(capture: &Path, filter: &str, field: &str) -> Vec<String> {
    let lines = dissect(capture, filter, &[field]);
    let each = lines.iter().flat_map(|line| line.split(','));
    each.filter(|value| !value.is_empty())
        .map(str::to_owned)
        .collect()
}

fn count(values: &[String], wanted: &str) -> usize {
    values.iter().filter(|value| *value == wanted).count()
}

/// Requests one after the other and several at once, legal ones and one that is refused in each round.
fn simple_session(uri: &str) {
    let lines = format!(
        "
data = h.pread(1 << 18, {noise})
for i in range({ROUNDS}):
    at = i << 16
    h.pwrite(data[:5000 + i], at + i)
    assert h.pread(5000 + i, at + i) == data[:5000 + i]
    h.zero(4096, at)
    h.trim(8192, at + 8192)
    h.cache(4096, at)
    h.flush()
    try:
        h.pwrite(b'x' * 512, h.get_size())
    except nbd.Error as error:
        assert error.errno == 'ENOSPC', error.errno
    else:
        raise AssertionError('written beyond the end')
    parts = [nbd.Buffer(1 << 16) for j in range(4)]
    cookies = [h.aio_pread(part, {noise} + (j << 16)) for j, part in enumerate(parts)]
    left = set(cookies)
    while left:
        left = {{cookie for cookie in left if not h.aio_command_completed(cookie)}}
        if left:
            h.poll(-1)
    h.pread(1, at)
h.shutdown()",
        noise = NOISE.0
    );
    nbdsh(&[
        "-c",
        "h.set_strict_mode(0)",
        "-c",
        "h.set_request_structured_replies(False)",
        "-c",
        &format!("h.connect_uri('{uri}')"),
        "-c",
        &lines,
    ]);
}

/// Clients that take structured replies read and write.
fn structured_sessions(store: &Store, uri: &str) {
    run_client("nbdinfo", &["--map", uri]);
    run_client("nbdcopy", &["--connections=2", uri, "null:"]);
    let truth = text(&store.truth[1]);
    run_client("nbdcopy", &["--connections=2", truth, uri]);
    let commands = [
        "write -P 0x5a 1M 3M",
        "write -z 2M 100k",
        "discard 21M 1M",
        "read -P 0x5a 1M 1M",
    ];
    let mut args = vec!["-f", "raw", "-d", "unmap"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let said = run_client("qemu-io", &[&args[..], &[uri]].concat()).stdout;
    assert!(!said.contains("failed"), "{said}");
    let at = format!("--uri={uri}");
    let load = ["--rw=randrw", "--bsrange=512-64k", "--iodepth=16", "--size=8m"];
    run_client(
        "fio",
        &[
            &["--name=t", "--ioengine=nbd", &at, "--output-format=terse"][..],
            &load,
        ]
        .concat(),
    );
}

#[test]
fn a_dissector_follows_every_request_and_every_simple_reply() -> Result<()> {
    let store = Store::new("nbd-clients-dissector")?;
    let (_server, port) = store.serve_tcp(&["--no-tls", "--overlay"])?;
    let uri = |export: &str| format!("nbd://127.0.0.1:{port}/{export}");
    let capture = Capture::start(&store, port)?;
    simple_session(&uri("web01/2:vda"));
    structured_sessions(&store, &uri("web01/2:vda@wire"));
    client_ends(1, "nbdinfo", &["--size", &uri(LAST)]);
    let capture = capture.finish()?;

    // The first filter shows that the second one can find something.
    assert!(!dissect(&capture, "_ws.expert.severity == Chat", &[]).is_empty());
    let errors = dissect(&capture, "_ws.malformed || _ws.expert.severity == Error", &[]);
    assert!(errors.is_empty(), "{errors:#?}");

    // The first connection is that of the client without structured replies.
    let simple = "nbd && tcp.stream == 0";
    let magics = values(&capture, simple, "nbd.magic");
    let known = 1 + ROUNDS * READS_AND_WRITES;
    let answered = known + ROUNDS * OTHERS;
    assert_eq!(count(&magics, REQUEST), known + 1, "the last request disconnects");
    assert_eq!(count(&magics, SIMPLE_REPLY), answered);
    assert_eq!(values(&capture, simple, "nbd.response_to").len(), known);
    let results = values(&capture, simple, "nbd.error");
    assert_eq!(count(&results, NO_SPACE), ROUNDS);
    assert_eq!(count(&results, "0"), answered - ROUNDS, "{results:?}");

    let others = values(&capture, "nbd && tcp.stream > 0", "nbd.type");
    println!("requests by the other clients: {}", others.len());
    for (request, kind, at_least) in [("read", "0", 100), ("write", "1", 100), ("disconnect", "2", 5)] {
        assert!(count(&others, kind) >= at_least, "{request}: {others:?}");
    }
    store.assert_unchanged()
}
