//! Where log lines go: to the journal with their fields where systemd started us, to stderr otherwise.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Begins logging. The variable `SMC_LOG` counts more than `level`.
pub fn begin(level: &str) {
    let filter = EnvFilter::try_from_env("SMC_LOG")
        .or_else(|_| level.parse::<EnvFilter>())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        // Fields become JOB=, IMAGE= and so on: `journalctl -u smcd JOB=web01`.
        return registry.with(journal.with_field_prefix(None)).init();
    }
    let stderr = tracing_subscriber::fmt::layer()
        // A sync outlives whoever read its log.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    registry.with(stderr).init();
}
