//! Help, man pages and completions: there for every command.

mod fake;

use fake::SMCCTL;
use testkit::pages::Program;

fn smcctl() -> Program<'static> {
    Program::new(SMCCTL, "smcctl", "job create")
}

#[test]
fn help_is_there_for_every_command() {
    smcctl().assert_help();
}

#[test]
fn help_names_what_smcctl_needs_to_know() {
    let help = smcctl().help(&[]);
    for word in [
        "/run/smc/smcd.sock",
        "SMC_SOCKET",
        "NO_COLOR",
        "Exit codes",
        "50MiB",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(!help.contains("  man "), "{help}");
}

#[test]
fn there_is_a_man_page_for_every_command() {
    smcctl().assert_man_pages();
}

#[test]
fn shells_complete_every_command() {
    smcctl().assert_completions();
}

#[test]
fn the_reference_of_smcctl_names_every_command() {
    let reference = include_str!("../../docs/smcctl.md");
    let smcctl = smcctl();
    for command in smcctl.commands() {
        let leaf = smcctl.is_leaf(command);
        let named = reference.contains(&format!("smcctl {}", command.join(" ")));
        assert!(!leaf || named, "docs/smcctl.md does not name {command:?}");
    }
    let help = smcctl.help(&["job".to_owned(), "create".to_owned()]);
    for option in help
        .split_whitespace()
        .filter(|word| word.starts_with("--") && *word != "--help")
    {
        let option = option.trim_end_matches([',', '.', ')']);
        let option = option.split_once("[=").map_or(option, |(name, _)| name);
        assert!(
            reference.contains(option),
            "docs/smcctl.md does not name {option}"
        );
    }
}
