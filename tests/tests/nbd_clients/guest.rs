//! The kernel's client, in a guest: reads an image, mounts it, writes to an overlay and finds it again.

use crate::run::{run_client, runner};
use crate::served::{DISK, Store, text};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::process::run;
use vm_tests::guest::{BootOptions, run_initramfs};
use vm_tests::initramfs::{Extra, build_with};
use vm_tests::kernel::Kernel;

const INIT: &str = include_str!("../../../vm-tests/guest/nbd-init.sh");
const DRIVERS: [&str; 4] = ["virtio_pci", "virtio_net", "nbd", "ext4"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// `nbd-client` of the newer release, with the loader and the libraries that it needs.
fn nbd_client() -> Result<Vec<Extra>> {
    let root = runner().with_file_name("usr");
    let libraries = root.join("lib/x86_64-linux-gnu");
    let client = root.join("sbin/nbd-client");
    let mut list = Command::new(libraries.join(LOADER));
    let listed = run(list
        .arg("--library-path")
        .arg(&libraries)
        .arg("--list")
        .arg(&client))?;
    let mut extras = vec![extra("bin", &client)?, extra("lib", &libraries.join(LOADER))?];
    for found in listed.lines().filter_map(|line| line.split_once("=> /")) {
        let path = found.1.split_whitespace().next().context("a path follows")?;
        let path = PathBuf::from(format!("/{path}"));
        if !path.ends_with(LOADER) {
            extras.push(extra("lib", &path)?);
        }
    }
    assert!(
        extras.iter().any(|extra| extra.path == "lib/libc.so.6"),
        "{listed}"
    );
    Ok(extras)
}

fn extra(directory: &str, file: &Path) -> Result<Extra> {
    let name = file.file_name().context("a file has a name")?;
    Ok(Extra {
        path: format!("{directory}/{}", name.to_string_lossy()),
        content: fs::read(file).with_context(|| format!("read {}", file.display()))?,
    })
}

fn sha256(file: &Path) -> String {
    let said = run_client("sha256sum", &[file]).stdout;
    said.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn the_kernels_client_reads_an_image_and_writes_to_an_overlay() -> Result<()> {
    let store = Store::new("nbd-clients-kernel")?;
    let (_server, port) = store.serve_tcp(&["--no-tls", "--overlay"])?;
    let kernel = Kernel::cached()?;
    let archive = build_with(&kernel.modules(&DRIVERS)?, INIT, &nbd_client()?)?;
    let options = BootOptions {
        memory_mib: 256,
        ..BootOptions::default()
    };
    // Nothing but the init's words on the console, lest the kernel's get between them.
    let parameters = format!("loglevel=0 smc.port={port}");
    let console = run_initramfs(&kernel, &archive, &parameters, &options)?;
    println!("the kernel's client in a guest:\n{console}");
    let said = |what: &str| {
        let found = console.lines().find_map(|line| line.strip_prefix(what));
        found
            .unwrap_or_else(|| panic!("{what} is missing in\n{console}"))
            .trim()
    };
    said("SMC-DONE");
    assert_eq!(said("SMC-BYTES "), DISK.to_string());
    assert_eq!(said("SMC-SHA256 "), sha256(&store.truth[1]));
    assert_eq!(said("SMC-HELLO "), "from the image");

    // Another client finds a good filesystem, with what the guest wrote and without what it removed.
    let copy = store.path("guest.img");
    run_client("nbdcopy", &[&store.uri("web01/2:vda@guest"), text(&copy)]);
    run_client("e2fsck", &["-f", "-n", text(&copy)]);
    let found = store.path("new");
    run_client(
        "debugfs",
        &["-R", &format!("dump /new {}", text(&found)), text(&copy)],
    );
    assert_eq!(said("SMC-FOUND "), sha256(&found));
    let root = run_client("debugfs", &["-R", "ls -p /", text(&copy)]).stdout;
    assert!(root.contains("/hello/") && !root.contains("/noise/"), "{root}");
    store.assert_unchanged()
}
