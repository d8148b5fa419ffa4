//! What is made from a command line's definition: man pages and completions for shells.

use crate::output;
use anyhow::Context;
use clap::Command;
use clap_complete::Shell;
use std::fs;
use std::path::PathBuf;

/// Write man pages, one for the program and one for each of its commands
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The directory to write them to; it is created where it is missing
    dir: PathBuf,
}

/// Print a script that lets a shell complete commands and options
///
/// For bash, put it into /etc/bash_completion.d; for zsh, as _NAME of the program into a directory of $fpath;
/// for fish, into /etc/fish/completions.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Writes the pages.
///
/// # Errors
/// A directory or a file that cannot be written.
pub fn man(command: Command, args: &ManArgs) -> anyhow::Result<()> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    clap_mangen::generate_to(command, dir).with_context(|| format!("write man pages to {}", dir.display()))
}

/// Prints the script on stdout.
///
/// # Errors
/// As for [`output::line`].
pub fn completions(mut command: Command, args: &CompletionsArgs) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    let script = String::from_utf8(script).context("the script is not text")?;
    output::line(script.trim_end())
}
