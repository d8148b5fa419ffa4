//! The job that a command is about.

use clap::builder::NonEmptyStringValueParser;

/// The job of a command.
#[derive(Debug, clap::Args)]
pub struct JobName {
    /// Name of the job
    // An empty one would be another place in the API.
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}
