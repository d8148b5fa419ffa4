//! Help, man pages and completions: there for every command of both programs.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use common::{SMC_IMAGE, run};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use testkit::guard::ScratchDir;

const SMCCTL: &str = env!("CARGO_BIN_EXE_smcctl");

/// Both programs: path, name, a command that must be among those that are found.
const PROGRAMS: [(&str, &str, &str); 2] = [
    (SMCCTL, "smcctl", "job create"),
    (SMC_IMAGE, "smc-image", "tls-init"),
];

const SHELLS: [&str; 5] = ["bash", "zsh", "fish", "elvish", "powershell"];

fn help(program: &str, command: &[String]) -> String {
    run(Command::new(program).args(command).arg("--help")).ok()
}

/// Every command that help lists below this one.
fn commands(program: &str, above: &[String]) -> Vec<Vec<String>> {
    let help = help(program, above);
    let Some((_, listed)) = help.split_once("\nCommands:\n") else {
        return Vec::new();
    };
    let names = listed
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help");
    let mut found = Vec::new();
    for name in names {
        let command = [above, &[name.to_owned()]].concat();
        found.extend(commands(program, &command));
        found.push(command);
    }
    found
}

fn all_commands(program: &str, known: &str) -> Vec<Vec<String>> {
    let all = commands(program, &[]);
    assert!(all.iter().any(|command| command.join(" ") == known), "{all:?}");
    all
}

#[test]
fn help_is_there_for_every_command() {
    for (program, name, known) in PROGRAMS {
        for command in all_commands(program, known) {
            let help = help(program, &command);
            let usage = format!("Usage: {name} {}", command.join(" "));
            assert!(help.contains(&usage) && help.contains("--json"), "{help}");
            let about = help.lines().next().unwrap();
            assert!(
                !about.is_empty() && !about.starts_with("Usage"),
                "{command:?} says nothing: {help}"
            );
            let short = run(Command::new(program).args(&command).arg("-h")).ok();
            assert!(short.contains(&usage), "{short}");
        }
        let version = run(Command::new(program).arg("--version")).ok();
        assert!(version.starts_with(&format!("{name} ")), "{version}");
    }
}

#[test]
fn help_names_what_smcctl_needs_to_know() {
    let help = help(SMCCTL, &[]);
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
    for (program, name, known) in PROGRAMS {
        let scratch = ScratchDir::new("smc-pages").unwrap();
        let dir = scratch.join("man/man1");
        assert_eq!(run(Command::new(program).arg("man").arg(&dir)).ok(), "");
        let mut expected: BTreeSet<String> = all_commands(program, known)
            .iter()
            .map(|command| format!("{name}-{}.1", command.join("-")))
            .collect();
        expected.insert(format!("{name}.1"));
        let written = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(written.collect::<BTreeSet<_>>(), expected);
        for page in expected {
            let text = fs::read_to_string(dir.join(&page)).unwrap();
            let title = page.strip_suffix(".1").unwrap();
            assert!(text.contains(&format!(".TH {title} 1")), "{page}: {text}");
            assert!(
                text.contains(".SH SYNOPSIS") && text.contains(".SH DESCRIPTION"),
                "{page}: {text}"
            );
        }
        let nowhere = run(Command::new(program).args(["man", "/proc/nowhere"])).fails(1);
        assert!(
            nowhere.starts_with(&format!("{name}: create /proc/nowhere: ")),
            "{nowhere}"
        );
    }
}

#[test]
fn shells_complete_every_command() {
    for (program, name, known) in PROGRAMS {
        let all = all_commands(program, known);
        for shell in SHELLS {
            let script = run(Command::new(program).args(["completions", shell])).ok();
            assert!(script.contains(name), "{shell}: {script}");
            for command in all.iter().flatten() {
                assert!(script.contains(command), "{shell} does not know {command}");
            }
        }
        run(Command::new(program).args(["completions", "csh"])).fails(2);
        let bash = run(Command::new(program).args(["completions", "bash"])).ok();
        let scratch = ScratchDir::new("smc-pages").unwrap();
        let script = scratch.join("script");
        fs::write(&script, bash).unwrap();
        run(Command::new("bash").arg("-n").arg(&script)).ok();
    }
}

#[test]
fn the_reference_of_smcctl_names_every_command() {
    let reference = include_str!("../../docs/smcctl.md");
    for command in all_commands(SMCCTL, "job create") {
        let leaf = commands(SMCCTL, &command).is_empty();
        let named = reference.contains(&format!("smcctl {}", command.join(" ")));
        assert!(!leaf || named, "docs/smcctl.md does not name {command:?}");
    }
    let help = help(SMCCTL, &["job".to_owned(), "create".to_owned()]);
    for option in help
        .split_whitespace()
        .filter(|word| word.starts_with("--") && *word != "--help")
    {
        let option = option.trim_end_matches([',', '.', ')']);
        assert!(
            reference.contains(option),
            "docs/smcctl.md does not name {option}"
        );
    }
}
