//! `smc-image boot`: whether an image starts, and how it looks when it does.

mod check;

use crate::context::Context;
use crate::guest::machine::{self, Described, Started, Wanted};
use crate::guest::terminal::{self, Terminal};
use crate::guest::watch::{Check, watch};
use crate::overlay::parse_limit;
use anyhow::Context as _;
use boot::{Accelerator, Bus, Forward, Network};
use clap::ValueEnum;
use cli::interrupt::{Interrupt, Interrupted};
use cli::output;
use cli::text;
use cli::units::{parse_duration, parse_size};
use imagefmt::{Image, ImageRef};
use regex::Regex;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Boot an image in QEMU
///
/// Nothing is copied and the image is not changed: QEMU reads it over NBD, and what the guest writes goes to an
/// overlay that is deleted at the end. The guest has all disks of the image, and no network, so it cannot reach the
/// servers that the real server talks to. Its serial console is on the terminal; Ctrl-C ends it.
///
/// With --check, nobody has to watch: smc-image ends the guest as soon as a login prompt appears on its serial
/// console, or as soon as it knows why none does. The other options that begin with --check wait for something else.
/// The result is stored beside the image as its boot verdict, which 'ls', 'info' and 'verdict' show. The exit code is 0
/// if the image booted, 1 if not, and 3 if not and the image is damaged.
///
/// A server shows a login prompt on its serial console if console=ttyS0 is on its kernel's command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, with all its disks
    #[arg(value_name = "IMAGE", value_parser = parse_image)]
    image: ImageRef,
    /// Wait for a login prompt on the serial console, and store the result
    #[arg(long)]
    check: bool,
    /// Wait for a line on the serial console that matches this regular expression instead
    #[arg(long, value_name = "REGEX", value_parser = Regex::new, group = "awaited")]
    check_console: Option<Regex>,
    /// Wait until this TCP port of the guest answers instead. It leads to the guest alone, from 127.0.0.1; the guest needs an
    /// address by DHCP
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), group = "awaited")]
    check_port: Option<u16>,
    /// Wait until the guest agent (qemu-guest-agent) answers instead
    #[arg(long, group = "awaited")]
    check_agent: bool,
    /// Wait until systemd has started everything and nothing has failed instead; asked through the guest agent, which has to
    /// allow guest-exec
    #[arg(long, group = "awaited")]
    check_systemd: bool,
    /// Wait until this program succeeds instead. Its environment has SMC_IMAGE, and in SMC_FORWARDS the ports of --forward
    #[arg(long, value_name = "PROGRAM", group = "awaited")]
    check_script: Option<PathBuf>,
    /// How long a check may take
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = parse_timeout)]
    timeout: Duration,
    /// Also show the console during a check
    #[arg(long)]
    show_console: bool,
    /// Firmware of the guest [default: the one for which the disks were made]
    #[arg(long)]
    firmware: Option<FirmwareName>,
    /// What executes the guest's code: the processor (kvm), or QEMU's translator (tcg), which is much slower
    /// [default: kvm if it works]
    #[arg(long)]
    accelerator: Option<AcceleratorName>,
    /// How the disks are attached; shows with which controllers the guest can start
    #[arg(long, value_name = "BUS", default_value = "virtio")]
    disk_bus: BusName,
    /// Memory of the guest
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_memory)]
    memory: u64,
    /// Number of processors of the guest
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,
    /// Network of the guest: none; isolated, in which it reaches nothing and is reached by forwarded ports alone; or user, in
    /// which it reaches what this machine reaches [default: none, or isolated where a check or --forward needs it]
    #[arg(long)]
    net: Option<NetworkName>,
    /// Forward port HOST of 127.0.0.1 to port GUEST of the guest
    #[arg(long, value_name = "HOST:GUEST", value_parser = parse_forward)]
    forward: Vec<Forward>,
    /// Show the guest's screen on this Unix socket, for a VNC viewer
    #[arg(long, value_name = "SOCKET")]
    vnc: Option<PathBuf>,
    /// Largest amount that the guest may write
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = parse_limit)]
    overlay_limit: u64,
    /// Directory for what the guest writes and does not fit into memory, in a file without a name
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    overlay_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FirmwareName {
    Bios,
    Uefi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AcceleratorName {
    Kvm,
    Tcg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BusName {
    Virtio,
    Scsi,
    Sata,
    Nvme,
    Ide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NetworkName {
    None,
    Isolated,
    User,
}

impl From<BusName> for Bus {
    fn from(name: BusName) -> Self {
        match name {
            BusName::Virtio => Self::Virtio,
            BusName::Scsi => Self::Scsi,
            BusName::Sata => Self::Sata,
            BusName::Nvme => Self::Nvme,
            BusName::Ide => Self::Ide,
        }
    }
}

impl From<AcceleratorName> for Accelerator {
    fn from(name: AcceleratorName) -> Self {
        match name {
            AcceleratorName::Kvm => Self::Kvm,
            AcceleratorName::Tcg => Self::Tcg,
        }
    }
}

fn parse_image(text: &str) -> Result<ImageRef, String> {
    let image: ImageRef = text.parse().map_err(|error: imagefmt::Error| error.to_string())?;
    match &image.disk {
        None => Ok(image),
        Some(disk) => Err(format!("a guest has all disks of its image: leave :{disk} out")),
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        time if time < Duration::from_secs(1) => Err("no guest boots in less than a second".to_owned()),
        time => Ok(time),
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if !(32 * MIB..=4096 * 1024 * MIB).contains(&size) => {
            Err("a guest can have 32MiB to 4TiB of memory".to_owned())
        }
        size => Ok(size),
    }
}

fn parse_forward(text: &str) -> Result<Forward, String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
    let ports = text
        .split_once(':')
        .map(|(host, guest)| (port(host), port(guest)));
    match ports {
        Some((Some(host), Some(guest))) => Ok(Forward { host, guest }),
        _ => Err("write two port numbers, like 2222:22".to_owned()),
    }
}

/// Boots it, until somebody or something ends it.
///
/// # Errors
/// Wrong use, an image that cannot be opened, and a guest that cannot be started or watched. A guest that does not boot is no
/// error: the exit code says it.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(error) = wrong_use(args) {
        error.exit();
    }
    let wanted = wanted(args)?;
    let store = context.open_store()?;
    // Held while the guest runs: nobody deletes the image meanwhile.
    let image = store.image(&args.image)?;
    let interrupt = Interrupt::install()?;
    match check_of(args) {
        None => show(&image, &wanted, &interrupt),
        Some(check) => {
            let check = check::BootCheck {
                check,
                timeout: args.timeout,
                shows_console: args.show_console,
                json: context.json,
            };
            check.run(&store, &image, &wanted, &interrupt)
        }
    }
}

/// What the arguments contradict each other in.
fn wrong_use(args: &Args) -> Option<clap::Error> {
    let is_check = check_of(args).is_some();
    let needs_network = !args.forward.is_empty() || args.check_port.is_some();
    let what = if args.show_console && !is_check {
        "--show-console is for a check: without --check the console is shown"
    } else if needs_network && args.net == Some(NetworkName::None) {
        "--forward and --check-port need a network: --net isolated, or --net user"
    } else {
        return None;
    };
    Some(clap::Error::raw(
        clap::error::ErrorKind::ArgumentConflict,
        format!("{what}\n"),
    ))
}

fn check_of(args: &Args) -> Option<Check> {
    let absolute = |program: &PathBuf| std::path::absolute(program).unwrap_or_else(|_| program.clone());
    let console = args.check_console.clone().map(Check::Console);
    console
        .or_else(|| args.check_port.map(Check::Port))
        .or_else(|| args.check_agent.then_some(Check::Agent))
        .or_else(|| args.check_systemd.then_some(Check::Systemd))
        .or_else(|| {
            args.check_script
                .as_ref()
                .map(|program| Check::Script(absolute(program)))
        })
        .or_else(|| args.check.then_some(Check::Login))
}

fn wanted(args: &Args) -> anyhow::Result<Wanted> {
    let absolute = |path: &PathBuf| std::path::absolute(path).context("find the socket's path");
    Ok(Wanted {
        uefi: args.firmware.map(|name| name == FirmwareName::Uefi),
        accelerator: args.accelerator.map(Accelerator::from),
        bus: args.disk_bus.into(),
        memory_mib: u32::try_from(args.memory / MIB).context("use the size of the memory")?,
        cpus: args.cpus,
        network: network(args)?,
        vnc: args.vnc.as_ref().map(absolute).transpose()?,
        overlay_dir: args.overlay_dir.clone(),
        overlay_limit_bytes: args.overlay_limit,
    })
}

/// What the guest reaches. A port that is checked is forwarded too.
fn network(args: &Args) -> anyhow::Result<Network> {
    let mut forwards = args.forward.clone();
    if let Some(guest) = args.check_port
        && !forwards.iter().any(|forward| forward.guest == guest)
    {
        let host = free_port().context("find a free port of 127.0.0.1")?;
        forwards.push(Forward { host, guest });
    }
    Ok(match (args.net, forwards.is_empty()) {
        (Some(NetworkName::User), _) => Network::User(forwards),
        (Some(NetworkName::Isolated), _) | (None, false) => Network::Isolated(forwards),
        (Some(NetworkName::None), _) | (None, true) => Network::None,
    })
}

/// A port on which nobody listens now. QEMU says so if somebody has taken it before it can.
fn free_port() -> std::io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// Shows the console, and lets the keyboard be the guest's.
fn show(image: &Image, wanted: &Wanted, interrupt: &Interrupt) -> anyhow::Result<ExitCode> {
    let Started {
        mut running,
        disks: _disks,
        described,
        socket: _socket,
    } = machine::start(image, wanted, interrupt)?;
    output::complain(format_args!(
        "smc-image: {}; Ctrl-C ends it",
        introduction(image, wanted, &described)
    ));
    let _terminal = Terminal::take_over()?;
    terminal::type_to(running.console())?;
    let watched = watch(&mut running, None, None, None, true, interrupt);
    match watched {
        // That is how it is ended.
        Err(error) if error.is::<Interrupted>() => {}
        watched => drop(watched?),
    }
    match running.end() {
        None => Ok(ExitCode::SUCCESS),
        Some(how) => Err(anyhow::Error::msg(how)),
    }
}

fn introduction(image: &Image, wanted: &Wanted, described: &Described) -> String {
    let disks = text::count(image.disks().len(), "disk");
    let network = match wanted.network {
        Network::None => "no network",
        Network::Isolated(_) => "a network without a way out",
        Network::User(_) => "QEMU's user network",
    };
    format!(
        "booting {} by {} ({}) with {}, {disks} on {}, {network}",
        image.id(),
        described.firmware,
        described.firmware_reason,
        described.accelerator,
        wanted.bus,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_pairs_of_numbers() {
        let forward = parse_forward("2222:22").unwrap();
        assert_eq!((forward.host, forward.guest), (2222, 22));
        for wrong in ["22", "0:22", "22:0", "a:b", "1:2:3", "22:70000"] {
            assert!(parse_forward(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_guest_has_the_whole_image() {
        assert!(parse_image("web01/7").is_ok());
        assert!(parse_image("web01/7:vda").unwrap_err().contains("leave :vda out"));
    }
}
