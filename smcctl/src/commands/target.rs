//! `smcctl target`: the machines that take this one's images.

use crate::client::{Request, target};
use crate::context::Context;
use crate::view;
use api::{AddTarget, TargetList};
use clap::Subcommand;
use cli::output;
use std::process::ExitCode;

/// Make targets known, list and forget them
///
/// A target is another machine, which takes this one's images over the network: smc-store runs there. `smcctl job create
/// --target` sends the images of a job there.
#[derive(Debug, Subcommand)]
pub enum TargetCommand {
    /// Enrol this machine at a target: make a key, and have the target sign it
    Add {
        /// Name of the target on this machine
        name: String,
        /// The line that `smc-store enrol` has printed on the target; read from standard input if it is -. It is used up by this
        line: String,
        /// The target is known already: get another key in place of the one that is of no use any more; jobs continue with their images
        #[arg(long)]
        again: bool,
    },
    /// List targets: whether they answer, what room they have, and which jobs use them
    Ls,
    /// Have a target sign a new key; a sync does so by itself when less than 30 days are left
    Renew {
        /// Name of the target
        name: String,
    },
    /// Forget a target: this machine's key for it is deleted, the images there stay
    ///
    /// It is refused while an unfinished job sends its images there.
    Rm {
        /// Name of the target
        name: String,
    },
}

/// Does what is asked.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, command: &TargetCommand) -> anyhow::Result<ExitCode> {
    match command {
        TargetCommand::Add { name, line, again } => add(context, name, line, *again)?,
        TargetCommand::Ls => {
            let answer = context.client.send(&Request::get("/targets").slow())?;
            context.tell(&answer, |paint, list: &TargetList| {
                cli::targets::lines(paint, &list.targets, "smcctl target add")
            })?;
        }
        TargetCommand::Renew { name } => {
            let answer = context
                .client
                .send(&Request::post(target(name, Some("renew"))).slow())?;
            context.tell(&answer, |_, target| vec![view::targets::renewed(target)])?;
        }
        TargetCommand::Rm { name } => {
            context.client.send(&Request::delete(target(name, None)))?;
            if !context.json {
                output::line(format_args!(
                    "target {name} is forgotten here; `smc-store revoke` there takes this machine's rights"
                ))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn add(context: &Context, name: &str, line: &str, again: bool) -> anyhow::Result<()> {
    let wanted = AddTarget {
        name: name.to_owned(),
        line: cli::targets::invitation(line)?,
        again,
    };
    let answer = context
        .client
        .send(&Request::post("/targets").with(&wanted)?.slow())?;
    context.tell(&answer, |_, target| vec![view::targets::added(target)])
}
