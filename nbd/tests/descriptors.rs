//! Alone in its process, because it counts the process's descriptors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use std::fs;
use std::net::TcpStream;

use common::raw::{CMD_READ, Raw};
use common::{MemoryDisk, Running, eventually};

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_thousand_connections_of_every_kind_leave_no_descriptor_behind() {
    let server = Running::of(MemoryDisk::mixed());
    // One of each first, so that what is made once is made.
    let one_of_each = |round: usize| match round % 4 {
        0 => drop(Raw::connect(&server.socket())),
        1 => drop(Raw::greeted(&server.socket())),
        2 => Raw::transmitting(&server.socket(), true).request(CMD_READ, 1, 0, 1 << 20),
        _ => drop(TcpStream::connect(server.tcp).unwrap()),
    };
    (0..4).for_each(one_of_each);
    std::thread::sleep(std::time::Duration::from_millis(200));
    let before = open_descriptors();
    (0..1000).for_each(|round| {
        one_of_each(round);
        // Within the limit of connections.
        if round % 64 == 63 {
            eventually("connections are closed", || open_descriptors() <= before + 32);
        }
    });
    eventually("all descriptors are closed", || open_descriptors() <= before);
}
