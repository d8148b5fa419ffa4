//! The command line of smc-store.

use crate::authority::Identity;
use crate::config::{self, Config};
use crate::follow;
use crate::list;
use crate::registry::{Registry, Role};
use crate::serve;
use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use cli::exit::WrongUse;
use cli::output::{complain, line};
use cli::pages::{self, CompletionsArgs, ManArgs};
use jiff::Timestamp;
use remote::{Invitation, tls};
use std::path::PathBuf;
use std::process::ExitCode;

/// Take images of other machines over the network, and keep them
///
/// `smc-store serve` runs as a service on the target. Each source that is enrolled appends images to its own store, STORES/SOURCE, on
/// which all commands of smc-image work (`smc-image --store STORES/SOURCE ls`). A source can delete nothing.
#[derive(Debug, Parser)]
#[command(name = "smc-store", version)]
struct Cli {
    /// Configuration file [default: /etc/smc/smc-store.toml, if it exists]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take images, as a service
    Serve,

    /// Print the line with which a source is enrolled, or a machine that may read a source's images
    ///
    /// On that machine, `smcd target add NAME LINE` takes it. It can be used once, within an hour.
    Enrol {
        /// Name that the machine is to have here
        source: String,
        /// Host name or address under which the source reaches this machine, and the port unless it is 7310 [default: this
        /// machine's host name]
        #[arg(long, value_name = "HOST[:PORT]")]
        address: Option<String>,
        /// What it may do: push its own images (a source), or pull those of a source
        #[arg(long, value_enum, default_value_t = Role::Push)]
        role: Role,
        /// The source whose images it may read, with --role pull
        #[arg(long, value_name = "SOURCE", required_if_eq("role", "pull"))]
        of: Option<String>,
        /// Let a source enrol once more, with a new key: its old key is of no use then
        #[arg(long)]
        again: bool,
    },

    /// List sources, their jobs, and what was received last
    Ls {
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },

    Follow(follow::Args),

    /// Take all rights from a source; its images stay
    Revoke {
        /// The source
        source: String,
    },

    /// Accept an image that changes far more than those before it, so that old images are deleted again
    Accept {
        /// The source
        source: String,
    },

    Completions(CompletionsArgs),
    #[command(hide = true)]
    Man(ManArgs),
}

/// Reads the command line and does what it asks.
///
/// # Errors
/// That of the command.
pub fn run() -> Result<ExitCode> {
    let cli: Cli = match cli::exit::parse() {
        Ok(cli) => cli,
        Err(code) => return Ok(code),
    };
    match &cli.command {
        Command::Completions(args) => pages::completions(Cli::command(), args)?,
        Command::Man(args) => pages::man(Cli::command(), args)?,
        command => {
            let config =
                Config::load(cli.config.as_deref()).map_err(|error| WrongUse(format!("{error:#}")))?;
            return execute(command, config);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn execute(command: &Command, config: Config) -> Result<ExitCode> {
    if let Command::Follow(args) = command {
        return follow::run(&config, args);
    }
    change_or_show(command, config)?;
    Ok(ExitCode::SUCCESS)
}

fn change_or_show(command: &Command, config: Config) -> Result<()> {
    let registry = Registry::in_directory(&config.state_dir);
    match command {
        Command::Serve => {
            let filter = tracing_subscriber::EnvFilter::new(&config.log);
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_writer(std::io::stderr)
                .init();
            serve::run(config)
        }
        Command::Enrol {
            source,
            address,
            role,
            of,
            again,
        } => {
            let of = of.as_deref();
            if of.is_some() != (*role == Role::Pull) {
                return Err(WrongUse("--of is for --role pull".to_owned()).into());
            }
            enrol(&config, &registry, source, of, address.as_deref(), *again)
        }
        Command::Ls { json } => list::list(&config, &registry, *json),
        Command::Revoke { source } => {
            registry.revoke(source)?;
            line(format_args!(
                "{source} has no rights here any more; its images, if it has any, stay in {}",
                config.store_of(source).display()
            ))
        }
        Command::Accept { source } => {
            let frozen = registry.accept(source)?;
            line(format_args!(
                "image {} ({}) is accepted: old images of {source} are deleted again",
                frozen.image, frozen.reason
            ))
        }
        Command::Follow(_) | Command::Completions(_) | Command::Man(_) => Ok(()),
    }
}

fn enrol(
    config: &Config,
    registry: &Registry,
    source: &str,
    of: Option<&str>,
    address: Option<&str>,
    again: bool,
) -> Result<()> {
    imagefmt::check_name("source", source).map_err(|error| WrongUse(error.to_string()))?;
    let address = match address {
        Some(address) => with_port(address),
        None => with_port(&host_name()?),
    };
    remote::check_address(&address).map_err(|error| WrongUse(error.to_string()))?;
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("create {}", config.state_dir.display()))?;
    let identity = Identity::open(&config.state_dir)?;
    let invitation = Invitation {
        address,
        source: source.to_owned(),
        authority: tls::key_hash_of_pem(identity.authority.certificate())?,
        secret: registry.invite(source, of, again, Timestamp::now())?,
    };
    complain(
        "Within an hour, on that machine: smcd target add NAME LINE, where NAME is what it is to call this target, and LINE is",
    );
    line(invitation)
}

/// An address with the port that targets have unless told otherwise.
fn with_port(address: &str) -> String {
    let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
        let is_whole = !host.contains(':') || host.ends_with(']');
        is_whole && port.parse::<u16>().is_ok()
    });
    match (has_port, address.contains(':') && !address.starts_with('[')) {
        (true, _) => address.to_owned(),
        (false, true) => format!("[{address}]:{}", config::PORT),
        (false, false) => format!("{address}:{}", config::PORT),
    }
}

fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("read this machine's host name")?;
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_address_has_a_port() {
        let addresses = [
            ("backup", "backup:7310"),
            ("backup:80", "backup:80"),
            ("192.0.2.1", "192.0.2.1:7310"),
            ("2001:db8::7", "[2001:db8::7]:7310"),
            ("[2001:db8::7]", "[2001:db8::7]:7310"),
            ("[2001:db8::7]:80", "[2001:db8::7]:80"),
        ];
        for (given, expected) in addresses {
            assert_eq!(with_port(given), expected);
        }
    }
}
