//! The fuzzers' functions on stable: every file of the corpora, a fixed number of generated inputs, and a conversation
//! with everything in it, cut and ended at every byte.

use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::wire::{Client, Fields};
use super::*;
use crate::proto::{cmd, cmd_flag, opt};
use crate::reply::ReplyStyle::{self, Extended, Simple, Structured};
use testkit::corpus::{Corpora, call};

const CORPORA: Corpora = Corpora::of(env!("CARGO_MANIFEST_DIR"));

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 8).unwrap() % bound.max(1)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| self.next().to_le_bytes()[3]).collect()
    }

    /// Some bytes changed, inserted, removed, or doubled.
    fn mutate(&mut self, input: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let len = self.below(24).min(input.len() - at);
            let byte = self.next().to_le_bytes()[3];
            match self.below(5) {
                0 if at < input.len() => input[at] ^= 1 << (byte % 8),
                1 if at < input.len() => input[at] = byte,
                2 => drop(input.drain(at..at + len)),
                3 => input.insert(at, byte),
                _ => input.extend_from_within(at..at + len),
            }
        }
    }
}

/// A conversation with every option and every command in it, good and bad.
fn recorded(style: ReplyStyle, name: &str) -> Vec<u8> {
    let mut client = Client::default();
    client.flags(3);
    client.option(99, b"unknown");
    client.option(opt::STARTTLS, &[]);
    client.option(opt::LIST, &[]);
    client.option(opt::INFO, &wire::info(name, &[3, 1]));
    client.option(opt::INFO, &wire::info("no such export", &[]));
    client.option(opt::SET_META_CONTEXT, &wire::meta(name, &["base:allocation"]));
    if style != Simple {
        client.option(opt::STRUCTURED_REPLY, &[]);
    }
    if style == Extended {
        client.option(opt::EXTENDED_HEADERS, &[]);
        client.option(opt::STRUCTURED_REPLY, &[]);
    }
    client.option(opt::LIST_META_CONTEXT, &wire::meta(name, &[]));
    client.option(
        opt::SET_META_CONTEXT,
        &wire::meta(name, &["base:allocation", exports::PAGES]),
    );
    client.option(opt::GO, &wire::info("secret", &[]));
    client.option(opt::GO, &wire::info(name, &[1, 2, 3, 3]));
    commands(&mut client, style);
    client.bytes
}

fn commands(client: &mut Client, style: ReplyStyle) {
    let announced = if style == Extended {
        cmd_flag::PAYLOAD_LEN
    } else {
        0
    };
    let mut ask = |command, flags, offset, length, payload: &[u8]| {
        let fields = Fields {
            flags,
            command,
            offset,
        };
        client.request(style, fields, length, payload);
    };
    ask(cmd::READ, 0, 69_990, 20, &[]);
    ask(cmd::READ, cmd_flag::DF, 139_000, 3000, &[]);
    ask(cmd::READ, 0, 200_000, 100, &[]);
    ask(cmd::READ, 0, exports::SIZE, 1, &[]);
    ask(cmd::READ, 0, 0, 0, &[]);
    ask(cmd::WRITE, announced | cmd_flag::FUA, 5003, 9, b"some data");
    ask(cmd::WRITE, announced, 200_500, 3, b"bad");
    ask(cmd::WRITE, announced, exports::SIZE - 1, 4, b"long");
    ask(cmd::READ, 0, 5000, 16, &[]);
    ask(cmd::WRITE_ZEROES, cmd_flag::NO_HOLE, 5005, 3, &[]);
    ask(cmd::WRITE_ZEROES, cmd_flag::FAST_ZERO, 8192, 4096, &[]);
    ask(cmd::TRIM, 0, 69_000, 2000, &[]);
    ask(cmd::READ, 0, 68_900, 2200, &[]);
    ask(cmd::CACHE, 0, 0, 4096, &[]);
    ask(cmd::FLUSH, 0, 0, 0, &[]);
    ask(cmd::BLOCK_STATUS, 0, 4000, 200_000, &[]);
    ask(cmd::BLOCK_STATUS, cmd_flag::REQ_ONE, 69_000, 2000, &[]);
    if style == Extended {
        let filter = [&300_000_u64.to_be_bytes()[..], &[0, 0, 0, 1]].concat();
        ask(cmd::BLOCK_STATUS, announced, 0, 12, &filter);
        ask(cmd::BLOCK_STATUS, announced, 0, 11, &filter[..11]);
        ask(cmd::READ, announced, 0, 4, b"junk");
    }
    ask(77, 0, 0, 0, &[]);
    ask(cmd::READ, 0, 1, 7, &[]);
    ask(cmd::DISC, 0, 0, 0, &[]);
}

const STYLES: [ReplyStyle; 3] = [Simple, Structured, Extended];

fn conversations() -> impl Iterator<Item = Session> {
    let names = ["overlay", "rw", "disk"];
    let all = STYLES.into_iter().zip(names);
    all.map(|(style, name)| Session::of(recorded(style, name)))
}

#[test]
fn a_recorded_conversation_is_answered_to_its_end() {
    for style in STYLES {
        for name in ["disk", "rw", "overlay"] {
            let session = Session::of(recorded(style, name));
            let (_, outcome) = session.run();
            assert_eq!(outcome.style, Some(style));
            assert_eq!(outcome.requests, if style == Extended { 22 } else { 19 });
            assert!(outcome.closed);
        }
    }
}

#[test]
fn a_conversation_may_end_at_every_byte() {
    for session in conversations() {
        let mut answered = 0;
        for length in 0..session.client.len() {
            let ended = Session::of(session.client[..length].to_vec());
            let (said, outcome) = ended.run();
            assert!(!outcome.closed && said.len() >= answered);
            answered = said.len();
        }
    }
}

#[test]
fn a_conversation_is_the_same_wherever_it_is_cut() {
    for mut session in conversations() {
        let (whole, expected) = session.run();
        for cut in 1..session.client.len() {
            session.cuts = BTreeSet::from([cut]);
            let (said, outcome) = session.run();
            assert_eq!((said.len(), outcome), (whole.len(), expected), "cut at {cut}");
        }
        session.cuts = (0..session.client.len()).collect();
        assert_eq!(session.run().1, expected);
    }
}

#[test]
fn a_server_may_go_down_at_every_byte() {
    for mut session in conversations() {
        for drained_at in 0..session.client.len() {
            session.drained_at = drained_at;
            session.cuts = BTreeSet::from([drained_at]);
            session.run();
        }
    }
}

#[test]
fn a_real_server_answers_a_conversation_that_ends_anywhere() {
    for session in conversations() {
        let length = session.client.len();
        for end in (0..length).step_by(61).chain([length]) {
            let outcome = session.run_over_socket(end, true);
            assert_eq!(outcome.closed, end == length);
        }
        for end in (0..length).step_by(311) {
            session.run_over_socket(end, false);
        }
    }
}

/// Such a panic drops one connection and would go unseen otherwise.
#[test]
fn a_handshake_that_is_closed_without_a_word_fails_nothing_in_the_server() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        let thread = thread::current();
        if thread.name().is_some_and(|name| name.starts_with("nbd-worker")) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        hook(panicked);
    }));
    let outcome = Session::of(vec![0xff; 4]).run_over_socket(4, true);
    assert!(outcome.closed);
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}

#[test]
fn every_file_of_the_corpora_breaks_no_rule() {
    let size = CORPORA.run(&TARGETS).unwrap();
    assert!(size < 200_000, "{size} bytes");
}

#[test]
fn generated_sequences_get_far_and_break_no_rule() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut requests, mut styles) = (0, [0; 3]);
    for _ in 0..3000 {
        let input = numbers.bytes(600);
        call(TARGETS[1], &input);
        let session = script::write(&mut Unstructured::new(&input), false);
        let (_, outcome) = session.run();
        requests += outcome.requests;
        if let Some(at) = STYLES.iter().position(|style| outcome.style == Some(*style)) {
            styles[at] += 1;
        }
    }
    assert!(requests > 10_000, "no more than {requests} requests");
    assert!(
        styles.iter().all(|count| *count > 200),
        "sessions of each style: {styles:?}"
    );
}

#[test]
fn mutated_bytes_break_no_rule() {
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    let whole: Vec<Vec<u8>> = conversations().map(|session| session.client).collect();
    let inputs = CORPORA.inputs("bytes").unwrap();
    for _ in 0..2000 {
        let mut input = match numbers.below(2) {
            0 => inputs[numbers.below(inputs.len())].clone(),
            _ => [&[0, 3, 9, 0], &whole[numbers.below(3)][..]].concat(),
        };
        numbers.mutate(&mut input);
        call(TARGETS[0], &input);
    }
}

#[test]
fn generated_sequences_break_no_rule_over_sockets() {
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    for _ in 0..60 {
        let input = numbers.bytes(400);
        call(TARGETS[2], &input);
    }
}

/// Something that is wrong has to be found: the server's bytes with one of them changed.
#[test]
fn the_oracle_notices_what_is_wrong() {
    for session in conversations() {
        let (said, _) = session.run();
        let greeting_to_infos = 18..said.len().min(1200);
        let unnoticed = greeting_to_infos.filter(|at| {
            let mut wrong = said.clone();
            wrong[*at] ^= 0x40;
            catch_unwind(AssertUnwindSafe(|| session.check(&wrong, true))).is_ok()
        });
        // Texts for people may say anything.
        let texts = unnoticed.filter(|at| !said[*at].is_ascii_graphic() && said[*at] != b' ');
        assert_eq!(texts.collect::<Vec<_>>(), Vec::<usize>::new());
        for length in 0..said.len() {
            let cut = catch_unwind(AssertUnwindSafe(|| session.check(&said[..length], true)));
            assert!(cut.is_err(), "{length} of {} bytes are not enough", said.len());
            if length > 3000 {
                break;
            }
        }
        let more = [&said[..], b"x"].concat();
        assert!(catch_unwind(AssertUnwindSafe(|| session.check(&more, true))).is_err());
    }
}

/// The first inputs, by hand; the fuzzers find the rest.
#[test]
#[ignore = "writes the first files of fuzz/corpus"]
fn write_the_first_corpora() {
    let put = |target: &str, number: usize, bytes: &[u8]| CORPORA.write_first(target, number, bytes).unwrap();
    for (number, session) in conversations().enumerate() {
        put("bytes", number, &[&[0, 3, 0, 0], &session.client[..]].concat());
    }
    for number in 0..9_u8 {
        let mut client = Client::default();
        let style = STYLES[usize::from(number % 3)];
        commands(&mut client, style);
        let control = [number * 5, number % 3 + number / 3 * 4, number * 3, number * 30];
        put(
            "bytes",
            10 + usize::from(number),
            &[&control, &client.bytes[..]].concat(),
        );
    }
    let mut numbers = Numbers(7);
    for number in 0..40 {
        put("sequence", number, &numbers.bytes(500));
        put("server", number, &numbers.bytes(300));
    }
}
