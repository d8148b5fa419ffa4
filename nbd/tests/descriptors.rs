//! Alone in its process, because it counts the process's descriptors and memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use std::fs;
use std::net::TcpStream;

use common::raw::{CMD_READ, Raw};
use common::{MemoryDisk, Running};
use testkit::process::{resident_bytes, wait_for};

const CONNECTIONS: usize = 10_000;
/// What an allocator may keep for later of what ten thousand connections had in turn.
const SLACK_KIB: u64 = 16 << 10;

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_kib() -> u64 {
    resident_bytes(std::process::id()).unwrap() >> 10
}

#[test]
fn ten_thousand_connections_of_every_kind_leave_neither_descriptors_nor_memory_behind() {
    let server = Running::of(MemoryDisk::mixed());
    let one_of_each = |round: usize| match round % 4 {
        0 => drop(Raw::connect(&server.socket())),
        1 => drop(Raw::greeted(&server.socket())),
        2 => Raw::transmitting(&server.socket(), true).request(CMD_READ, 1, 0, 1 << 20),
        _ => drop(TcpStream::connect(server.tcp).unwrap()),
    };
    // The server has all its rings once it greets.
    (0..8).for_each(|_| drop(Raw::greeted(&server.socket())));
    let before_all = open_descriptors();
    let many = |count: usize| {
        (0..count).for_each(|round| {
            one_of_each(round);
            // Within the limit of connections.
            if round % 64 == 63 {
                wait_for("connections are closed", || open_descriptors() <= before_all + 32);
            }
        });
        wait_for("all descriptors are closed", || open_descriptors() <= before_all);
    };
    // Some first, so that what is made once is made.
    many(500);
    let (descriptors, memory) = (open_descriptors(), resident_kib());
    many(CONNECTIONS);
    println!(
        "{CONNECTIONS} connections: descriptors {descriptors} before, {} after; resident {memory} KiB before, {} after",
        open_descriptors(),
        resident_kib()
    );
    wait_for("all descriptors are closed", || open_descriptors() <= descriptors);
    wait_for("the memory is released", || resident_kib() <= memory + SLACK_KIB);
}
