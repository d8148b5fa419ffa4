//! What a command costs in a chain of many images beside the same in a chain of few.

use crate::measure::{median, run, sorted};
use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use smc_tests::program;
use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use testkit::guard::ScratchDir;
use testkit::noise;
use testkit::process::wait_until;

/// Images of the short chain, with which the long one is compared.
const FEW: u64 = 10;
/// Size of the disk: each image changes another cluster of it, so every image needs the layers of all earlier ones.
const DISK_BYTES: u64 = 128 << 20;
const CLUSTER_BYTES: usize = 64 << 10;
/// More than that beside the short chain misses the goal.
const GOAL_SECONDS: f64 = 0.3;

/// Prints the medians of some rounds in chains of ten and of `images` images, with warm caches.
pub fn print(images: u64, rounds: usize) -> Result<()> {
    let dir = ScratchDir::new("bench-chains")?;
    let chains = [FEW, images].map(|count| Chain::build(&dir, count));
    let [few, many] = chains;
    let (few, many) = (few?, many?);
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let many_title = format!("{images} images");
    table.set_header(["what", "10 images", &many_title, "more", "goal", "met"]);
    for (what, work) in OPERATIONS {
        // In turn, so that both meet the same neighbours.
        let mut seconds = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (chain, seconds) in [&few, &many].into_iter().zip(&mut seconds) {
                seconds.push(work(chain).with_context(|| what.to_owned())?);
            }
        }
        let [few, many] = seconds.map(|seconds| median(&sorted(seconds.into_iter())));
        table.add_row([
            what.to_owned(),
            format!("{few:.3} s"),
            format!("{many:.3} s"),
            format!("{:.3} s", many - few),
            format!("<= {GOAL_SECONDS} s"),
            if many - few <= GOAL_SECONDS { "yes" } else { "no" }.to_owned(),
        ]);
    }
    println!("\n{table}");
    Ok(())
}

type Operation = fn(&Chain) -> Result<f64>;

const OPERATIONS: [(&str, Operation); 4] = [
    ("ls", Chain::ls),
    ("serve, until it answers LIST", Chain::serve),
    ("rm of the oldest image", Chain::rm),
    ("sync", Chain::sync),
];

/// A store with one chain.
struct Chain {
    dir: PathBuf,
    /// Number of the oldest image.
    oldest: Cell<u64>,
}

impl Chain {
    fn build(dir: &ScratchDir, images: u64) -> Result<Self> {
        let chain = Self {
            dir: dir.join(images.to_string()),
            oldest: Cell::new(1),
        };
        std::fs::create_dir(&chain.dir)?;
        let source = File::create_new(chain.source())?;
        source.set_len(DISK_BYTES)?;
        for image in 0..images {
            let cluster = noise(CLUSTER_BYTES, image + 1);
            source.write_all_at(&cluster, image * cluster.len() as u64)?;
            chain.sync()?;
        }
        Ok(chain)
    }

    fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    fn source(&self) -> PathBuf {
        self.dir.join("source.raw")
    }

    fn image(&self) -> Command {
        let mut command = Command::new(program("smc-image"));
        command.arg("--store").arg(self.store());
        command
    }

    fn ls(&self) -> Result<f64> {
        seconds(|| run(self.image().arg("ls")).map(drop))
    }

    fn serve(&self) -> Result<f64> {
        let socket = self.dir.join("nbd.sock");
        let mut command = self.image();
        command
            .args(["serve", "--socket"])
            .arg(&socket)
            .stdout(Stdio::null());
        let begun = Instant::now();
        let mut server = command.spawn().context("start smc-image serve")?;
        let answered = wait_until(Duration::from_secs(300), || UnixStream::connect(&socket).is_ok())
            .context("wait for the server")
            .and_then(|_| list(&socket));
        let seconds = begun.elapsed().as_secs_f64();
        server.kill()?;
        server.wait()?;
        std::fs::remove_file(&socket)?;
        answered.map(|()| seconds)
    }

    fn rm(&self) -> Result<f64> {
        let oldest = self.oldest.replace(self.oldest.get() + 1);
        seconds(|| run(self.image().args(["rm", &format!("web01/{oldest}")])).map(drop))
    }

    fn sync(&self) -> Result<f64> {
        let mut command = Command::new(program("smcd"));
        command
            .args(["sync", "--job", "web01", "--store"])
            .arg(self.store());
        command
            .arg("--disk")
            .arg(format!("vda={}", self.source().display()));
        seconds(|| run(&mut command).map(drop))
    }
}

fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Asks for all exports by NBD_OPT_LIST and nothing else (nbdinfo would ask about each of them).
fn list(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.read_exact(&mut [0; 18]).context("read the greeting")?;
    stream.write_all(&1u32.to_be_bytes())?;
    stream.write_all(b"IHAVEOPT")?;
    stream.write_all(&[3u32.to_be_bytes(), 0u32.to_be_bytes()].concat())?;
    loop {
        // Magic (8), option (4), kind (4), length (4).
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).context("read the list")?;
        let [.., a, b, c, d] = reply;
        let length = u32::from_be_bytes([a, b, c, d]);
        std::io::copy(&mut (&stream).take(length.into()), &mut std::io::sink())?;
        match reply[12..16] {
            // NBD_REP_ACK: that was all.
            [0, 0, 0, 1] => return Ok(()),
            // NBD_REP_SERVER.
            [0, 0, 0, 2] => {}
            _ => bail!("the server refused to list its exports"),
        }
    }
}
