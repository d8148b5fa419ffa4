//! The steps of the demo, in order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use ::boot::{Accelerator, nbd_uri};
use anyhow::{Context, Result, ensure};
use testkit::guard::{LoopDevice, ScratchDir};
use testkit::process::{self, Server};
use vm_tests::disk::{BootDisk, MountedRoot};
use vm_tests::guest::{self, BootOptions, BootReport};
use vm_tests::payload::{PAYLOAD_DIR, Payload};

use crate::report::{self, Image, Steps};
use crate::tools::{SyncReport, Tools};
use crate::writer::Writer;

const DISK_BYTES: u64 = 1 << 30;
const PAYLOAD_BYTES: u64 = 64 << 20;
const MONDAY: &str = "monday 09:00";
const TUESDAY: &str = "tuesday 09:00";

/// A source server's disk, and where its images go.
struct Source {
    disk: BootDisk,
    mount_point: PathBuf,
    store: PathBuf,
    // Dropped last: everything above lies on it.
    device: LoopDevice,
}

/// Makes the source and its two images, boots both, and returns what each said.
pub fn run(tools: &Tools, scratch: &ScratchDir) -> Result<Vec<Image>> {
    let started = Instant::now();
    let mut steps = Steps::default();
    process::observe(report::command);
    println!("smc demo: image a server twice, the second time while it works, and boot both images.");

    let source = build_source(&mut steps, scratch)?;
    let first = sync_first(&mut steps, tools, &source)?;
    let second = sync_while_written(&mut steps, tools, &source)?;
    let boots = boot_both(&mut steps, tools, scratch, &source, [&first, &second])?;

    steps.next("Verify the store: every checksum of every block, and every digest.");
    let verified = process::run(&mut tools.verify(&source.store))?;
    report::result(&process::tail(&verified, 3).replace('\n', "\n   "));

    source.device.detach()?;
    println!("\nDone in {:.0} s.", started.elapsed().as_secs_f64());
    let [monday, tuesday] = boots;
    Ok(vec![
        Image {
            sync: first,
            boot: monday,
        },
        Image {
            sync: second,
            boot: tuesday,
        },
    ])
}

fn build_source(steps: &mut Steps, scratch: &ScratchDir) -> Result<Source> {
    steps.next("Build the source server: a disk with boot loader, kernel, ext4 root and real files.");
    let file = scratch.sparse_file("source.disk", DISK_BYTES)?;
    let device = LoopDevice::attach(&file)?;
    let payload = Payload::collect(&[Path::new("/usr/bin"), Path::new("/usr/share")], PAYLOAD_BYTES)?;
    let mount_point = scratch.join("mnt");
    let disk = BootDisk::create(device.path(), &mount_point, MONDAY, &payload)?;
    let (size, files) = (report::size(DISK_BYTES), report::size(payload.size_bytes()));
    report::result(&format!(
        "{} is {size}, holds {files} of files, and is named '{MONDAY}'.",
        device.path().display()
    ));
    Ok(Source {
        disk,
        mount_point,
        store: scratch.join("store"),
        device,
    })
}

fn sync(tools: &Tools, source: &Source) -> Result<SyncReport> {
    let report = SyncReport::parse(&process::run(
        &mut tools.sync(&source.store, source.device.path()),
    )?)?;
    let disk = report.disk();
    let [size, compared, dirty, stored] = [
        disk.size_bytes,
        disk.compared_bytes,
        disk.dirty_bytes,
        disk.stored_bytes,
    ]
    .map(report::size);
    let (image, kind, seconds, class) = (&report.image, &report.kind, report.seconds, &report.consistency);
    report::result(&format!(
        "{image} ({kind}): {compared} of {size} compared, {dirty} dirty, {stored} stored, in {seconds:.1} s."
    ));
    report::result(&format!(
        "Consistency class: {class} ({}).",
        report::class_meaning(class)
    ));
    Ok(report)
}

fn sync_first(steps: &mut Steps, tools: &Tools, source: &Source) -> Result<SyncReport> {
    steps.next("Full sync of the unmounted disk.");
    let first = sync(tools, source)?;
    expect_image(&first, "web01/1", "full")?;

    steps.next("Recompute the digest from the raw disk: it must be the image's.");
    let digest = process::run(&mut tools.digest(source.device.path()))?;
    let expected = &first.disk().digest;
    ensure!(
        digest.contains(expected.as_str()),
        "the disk's digest is {}, the image's {expected}",
        digest.trim()
    );
    report::result(&format!("{expected}: the same."));
    Ok(first)
}

fn expect_image(report: &SyncReport, image: &str, kind: &str) -> Result<()> {
    ensure!(
        report.image == image,
        "the sync made {}, not {image}",
        report.image
    );
    ensure!(report.kind == kind, "{image} is {}, not {kind}", report.kind);
    ensure!(
        report.disk().name == "vda",
        "the disk of {image} is called {}, not vda",
        report.disk().name
    );
    Ok(())
}

fn sync_while_written(steps: &mut Steps, tools: &Tools, source: &Source) -> Result<SyncReport> {
    steps.next("The server runs again: its disk is mounted, files change, and it keeps writing to its log.");
    let root = source.disk.mount(&source.mount_point)?;
    let changed = change_files(&root)?;
    root.set_point_in_time(TUESDAY)?;
    root.write_manifest()?;
    root.sync()?;
    let writer = Writer::start(&root.path().join("var/log/requests.log"))?;
    report::result(&format!("{changed} and it is now named '{TUESDAY}'."));

    steps.next("Incremental sync while the disk is mounted and written to.");
    let before = writer.written_bytes();
    let second = sync(tools, source)?;
    let during = writer.written_bytes() - before;
    writer.stop()?;
    ensure!(
        during > 0,
        "nothing was written during the sync: it has shown nothing"
    );
    report::result(&format!(
        "The server wrote and synced {} meanwhile.",
        report::size(during)
    ));
    expect_image(&second, "web01/2", "incremental")?;
    root.unmount()?;
    Ok(second)
}

/// Removes one file in twenty, overwrites as many, and adds a large one; says so.
fn change_files(root: &MountedRoot) -> Result<String> {
    let payload = root.path().join(PAYLOAD_DIR);
    let listed = process::run(Command::new("find").arg(&payload).args(["-type", "f"]))?;
    let mut files: Vec<&str> = listed.lines().collect();
    files.sort_unstable();
    let (mut removed, mut overwritten) = (0, 0);
    for (index, file) in files.iter().enumerate() {
        match index % 20 {
            3 => fs::remove_file(file)
                .with_context(|| format!("remove {file}"))
                .map(|()| removed += 1)?,
            13 => fs::write(file, format!("changed on {TUESDAY}\n").repeat(1000))
                .with_context(|| format!("overwrite {file}"))
                .map(|()| overwritten += 1)?,
            _ => {}
        }
    }
    let added = payload.join("added on tuesday");
    let content: Vec<u8> = (0..2_000_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(&added, &content).with_context(|| format!("write {}", added.display()))?;
    let size = report::size(content.len() as u64);
    Ok(format!(
        "Of {} files {removed} were removed and {overwritten} overwritten, {size} were added,",
        files.len()
    ))
}

fn boot_both(
    steps: &mut Steps,
    tools: &Tools,
    scratch: &ScratchDir,
    source: &Source,
    syncs: [&SyncReport; 2],
) -> Result<[BootReport; 2]> {
    steps.next("Serve both images over NBD.");
    let socket = scratch.join("nbd.sock");
    let mut serve = tools.serve(&source.store, &socket, &syncs.map(|sync| sync.image.as_str()));
    let _server = Server::start_on_socket(&mut serve, &socket, &scratch.join("serve.log"))?;
    report::result(&format!("Listening on {}.", socket.display()));

    steps.next("Choose how guests run: KVM if a small guest works on it, otherwise translated (TCG).");
    let accelerator = guest::accelerator()?;
    report::result(&format!("{accelerator}."));

    let [first, second] = syncs;
    let monday = boot(steps, &socket, first, MONDAY, accelerator)?;
    let tuesday = boot(steps, &socket, second, TUESDAY, accelerator)?;
    Ok([monday, tuesday])
}

fn boot(
    steps: &mut Steps,
    socket: &Path,
    sync: &SyncReport,
    expected: &str,
    accelerator: Accelerator,
) -> Result<BootReport> {
    let image = &sync.image;
    steps.next(&format!(
        "Boot {image} over NBD on a throw-away overlay; it must report '{expected}'."
    ));
    let uri = nbd_uri(socket, &format!("{image}:{}", sync.disk().name));
    let options = BootOptions {
        accelerator: Some(accelerator),
        ..BootOptions::default()
    };
    let boot = guest::boot(&uri, &options)?;
    for line in boot.console.lines().filter(|line| line.contains("SMC-")) {
        report::result(&format!("| {line}"));
    }
    let point = &boot.point_in_time;
    ensure!(point == expected, "{image} reports '{point}', not '{expected}'");
    ensure!(
        boot.files_ok,
        "files of {image} differ from their checksums:\n{}",
        process::tail(&boot.console, 25)
    );
    let (up, done) = (boot.seconds, boot.total_seconds);
    report::result(&format!(
        "Up in {up:.1} s, {} files checked and powered off after {done:.1} s.",
        boot.files
    ));
    Ok(boot)
}
