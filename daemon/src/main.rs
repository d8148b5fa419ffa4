//! smcd: syncs disks into images, once (`smcd sync`) or by a schedule, as a service.

mod args;
mod clock;
mod config;
mod engine;
mod http;
mod job;
mod logging;
mod oneshot;
mod owner;
mod ownership;
mod priority;
mod serve;
mod service;
mod shortfall;
mod signals;
mod state;
mod stores;
mod targets;
mod thawing;
mod units;

use anyhow::Result;
use args::{Cli, Command};
use clap::Parser;
use cli::output::complain;
use config::Config;
use std::process::ExitCode;

/// What a command found out for the shell: 1 failed, 2 wrong use (clap's own errors too), 3 damage found.
const FAILED: u8 = 1;
const WRONG_USE: u8 = 2;
const DAMAGED: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        None => return service(&cli),
        Some(Command::Sync(args)) => {
            logging::begin("warn");
            return report_sync(oneshot::run(args));
        }
        Some(Command::Tracker(args)) => oneshot::tracker(args),
        Some(Command::Target(args)) => oneshot::target(args),
        Some(Command::Completions { shell }) => args::print_completions(*shell),
        Some(Command::Man { dir }) => args::write_man_pages(dir),
        Some(Command::Openapi) => args::print(&http::openapi_json()),
        Some(Command::Thaw { lists }) => thawing::thaw(lists),
        Some(Command::ThawWatchdog(args)) => thawing::watch(args),
    };
    report(done)
}

/// The service, or only a look at its configuration.
fn service(cli: &Cli) -> ExitCode {
    let config = match Config::load(cli.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            complain(format_args!("smcd: {error:#}"));
            return ExitCode::from(WRONG_USE);
        }
    };
    if cli.check_config {
        return report(args::print(&format!("{}\n", described(&config))));
    }
    logging::begin(&config.log);
    report(serve::run(config))
}

fn described(config: &Config) -> String {
    match &config.file {
        Some(file) => format!("{} is valid", file.display()),
        None => format!(
            "there is no {}: all settings have their defaults",
            config::DEFAULT_PATH
        ),
    }
}

fn report(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("smcd: {error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

fn report_sync(done: engine::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("smcd: {}", error.full_message()));
            ExitCode::from(match error.kind() {
                engine::ErrorKind::Damaged => DAMAGED,
                _ => FAILED,
            })
        }
    }
}
