//! Serving an image beside qemu-nbd and nbdkit: the same disk, the same clients, Unix sockets, everybody through the
//! page cache.

use crate::measure::{Goal, median, run, settle, sorted, spread};
use crate::servers::{Contender, Content, Forms, client, version};
use anyhow::{Context, Result};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use serde_json::Value;
use std::process::Command;
use std::time::Instant;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub size_bytes: u64,
    /// Seconds of each run of fio.
    pub seconds: u32,
    /// Runs of everything.
    pub rounds: usize,
}

/// What a client does with a server.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// fio's nbd engine, random reads of 4 KiB, so many in flight.
    Random(u32),
    /// fio's nbd engine, sequential reads of 1 MiB, so many in flight.
    Sequential(u32),
    /// nbdcopy of the whole disk to nowhere.
    Nbdcopy,
    /// qemu-img convert of the whole disk to nowhere.
    Convert,
}

#[derive(Debug, Clone, Copy)]
enum Caches {
    /// The server has served the whole disk before.
    Warm,
    /// The server is a new one, and the page cache is empty.
    Cold,
}

/// A load and its figures: one a round, for each contender, ours first.
#[derive(Debug)]
struct Measured {
    load: Load,
    caches: Caches,
    figures: Vec<(Contender, Vec<f64>)>,
}

const WARM: [Load; 6] = [
    Load::Random(1),
    Load::Random(32),
    Load::Sequential(1),
    Load::Sequential(8),
    Load::Nbdcopy,
    Load::Convert,
];
const COLD: [Load; 2] = [Load::Nbdcopy, Load::Convert];

impl Load {
    fn name(self, caches: Caches) -> String {
        let name = match self {
            Self::Random(depth) => format!("fio, random 4 KiB, QD {depth}"),
            Self::Sequential(depth) => format!("fio, sequential 1 MiB, QD {depth}"),
            Self::Nbdcopy => "nbdcopy URI null:".to_owned(),
            Self::Convert => "qemu-img convert to null-co".to_owned(),
        };
        match caches {
            Caches::Warm => format!("{name}, warm"),
            Caches::Cold => format!("{name}, cold"),
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Random(_) | Self::Sequential(_) => "fio",
            Self::Nbdcopy => "nbdcopy",
            Self::Convert => "qemu-img",
        }
    }

    /// Whom it is put on. A copy skips zeros that a server tells it of, so the ceiling has nothing to copy.
    fn contenders(self, content: Content) -> impl Iterator<Item = Contender> {
        let copies = matches!(self, Self::Nbdcopy | Self::Convert);
        let all = content.contenders().iter().copied();
        all.filter(move |&contender| !copies || contender != Contender::Null)
    }

    /// The goal beside this rival (docs/benchmarks.md).
    fn goal(self, rival: Contender) -> Goal {
        match (self, rival) {
            (Self::Random(32), Contender::Qcow2 | Contender::Qcow2Zstd) => Goal::RateAtLeast(1.3),
            (Self::Sequential(_), Contender::Nbdkit) => Goal::RateAtLeast(0.9),
            _ => Goal::Beside,
        }
    }

    fn show(self, figure: f64) -> String {
        match self {
            Self::Random(_) => format!("{figure:.0} IOPS"),
            Self::Sequential(_) => format!("{figure:.0} MiB/s"),
            Self::Nbdcopy | Self::Convert => format!("{figure:.2} s"),
        }
    }

    /// How many times as fast as theirs ours is.
    fn ratio(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Self::Random(_) | Self::Sequential(_) => ours / theirs,
            Self::Nbdcopy | Self::Convert => theirs / ours,
        }
    }

    /// Runs the client: operations a second, MiB a second, or the seconds that a copy took.
    fn measure(self, uri: &str, plan: Plan) -> Result<f64> {
        let mut command = client(self.program());
        match self {
            Self::Random(depth) => {
                let read = fio(
                    command.args(["--rw=randread", "--bs=4k"]),
                    depth,
                    uri,
                    plan.seconds,
                )?;
                positive(&read["iops"])
            }
            Self::Sequential(depth) => {
                let read = fio(command.args(["--rw=read", "--bs=1M"]), depth, uri, plan.seconds)?;
                Ok(positive(&read["bw_bytes"])? / f64::from(1 << 20))
            }
            Self::Nbdcopy => seconds(command.args([uri, "null:"])),
            Self::Convert => seconds(
                command
                    .args(["convert", "-n", "-f", "raw", "--target-image-opts", uri])
                    .arg(format!("driver=null-co,size={}", plan.size_bytes)),
            ),
        }
    }
}

fn seconds(command: &mut Command) -> Result<f64> {
    let begun = Instant::now();
    run(command)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// What fio reports of its reads.
fn fio(command: &mut Command, depth: u32, uri: &str, seconds: u32) -> Result<Value> {
    let output = run(command
        .args([
            "--name=nbd",
            "--ioengine=nbd",
            "--norandommap",
            "--time_based",
            "--output-format=json",
        ])
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--uri={uri}")))?;
    // The engine says that it is connected before the report begins.
    let begin = output
        .iter()
        .position(|&byte| byte == b'{')
        .context("fio reports nothing")?;
    let mut report: Value = serde_json::from_slice(&output[begin..]).context("parse fio's report")?;
    Ok(report["jobs"][0]["read"].take())
}

fn positive(figure: &Value) -> Result<f64> {
    figure
        .as_f64()
        .filter(|&figure| figure > 0.0)
        .context("fio reports that it read nothing")
}

/// Measures everything on both kinds of data and prints a table for each.
pub fn print(plan: Plan) -> Result<()> {
    let versions = ["qemu-nbd", "nbdkit", "nbdcopy", "fio"].map(version);
    let versions = versions.into_iter().collect::<Result<Vec<_>>>()?;
    println!(
        "\nNBD servers: {} MiB, a third of it holes; {} rounds; {} s a run of fio. {}.",
        plan.size_bytes >> 20,
        plan.rounds,
        plan.seconds,
        versions.join("; ")
    );
    for content in [Content::Noise, Content::Files] {
        eprintln!("nbd: making {} MiB, {}", plan.size_bytes >> 20, content.name());
        let forms = Forms::new(content, plan.size_bytes)?;
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header([
            "what",
            "against",
            "ours",
            "theirs",
            "speed: ours / theirs (median)",
            "spread",
            "goal",
            "met",
        ]);
        for measured in warm(&forms, plan)?.into_iter().chain(cold(&forms, plan)?) {
            for row in rows(&measured) {
                table.add_row(row);
            }
        }
        println!("\nServing {} data:\n\n{table}", content.name());
    }
    Ok(())
}

/// All servers run at once, and each is loaded in turn.
fn warm(forms: &Forms, plan: Plan) -> Result<Vec<Measured>> {
    settle()?;
    let mut servers = Vec::new();
    for &contender in forms.content.contenders() {
        let serving = forms.serve(contender)?;
        forms.check(&serving)?;
        servers.push(serving);
    }
    let measure = |load: Load| {
        in_turn(forms.content, load, Caches::Warm, plan, |contender| {
            let serving = servers.iter().find(|serving| serving.contender == contender);
            load.measure(&serving.context("no such server")?.uri, plan)
        })
    };
    WARM.into_iter().map(measure).collect()
}

/// One server at a time, a new one for each run.
fn cold(forms: &Forms, plan: Plan) -> Result<Vec<Measured>> {
    let measure = |load: Load| {
        in_turn(forms.content, load, Caches::Cold, plan, |contender| {
            let serving = forms.serve(contender)?;
            settle()?;
            // What the client itself needs is loaded again before the time starts.
            version(load.program())?;
            load.measure(&serving.uri, plan)
        })
    };
    COLD.into_iter().map(measure).collect()
}

/// All contenders in turn, round after round, each round beginning with another one.
fn in_turn(
    content: Content,
    load: Load,
    caches: Caches,
    plan: Plan,
    mut measure: impl FnMut(Contender) -> Result<f64>,
) -> Result<Measured> {
    let mut figures: Vec<_> = load
        .contenders(content)
        .map(|contender| (contender, Vec::new()))
        .collect();
    for round in 0..plan.rounds {
        let mut said = Vec::new();
        for turn in 0..figures.len() {
            let index = (round + turn) % figures.len();
            let (contender, figures) = &mut figures[index];
            let name = contender.name();
            let figure = measure(*contender).with_context(|| format!("{}: {name}", load.name(caches)))?;
            said.push(format!("{name} {}", load.show(figure)));
            figures.push(figure);
        }
        eprintln!(
            "nbd, {}, {}: round {} of {}: {}",
            content.name(),
            load.name(caches),
            round + 1,
            plan.rounds,
            said.join(", ")
        );
    }
    Ok(Measured {
        load,
        caches,
        figures,
    })
}

/// A row for each rival.
fn rows(measured: &Measured) -> Vec<Vec<String>> {
    let load = measured.load;
    let middle = |figures: &[f64]| load.show(median(&sorted(figures.iter().copied())));
    let Some(((_, ours), rivals)) = measured.figures.split_first() else {
        return Vec::new();
    };
    let row = |(rival, theirs): &(Contender, Vec<f64>)| {
        let pairs = ours.iter().zip(theirs);
        let ratios = sorted(pairs.map(|(&ours, &theirs)| load.ratio(ours, theirs)));
        let ratio = median(&ratios);
        let (goal, met) = load.goal(*rival).judge(ratio);
        vec![
            load.name(measured.caches),
            rival.name().to_owned(),
            middle(ours),
            middle(theirs),
            format!("{ratio:.2}"),
            spread(&ratios),
            goal,
            met.to_owned(),
        ]
    };
    rivals.iter().map(row).collect()
}
