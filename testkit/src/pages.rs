//! What every program owes its users: help, man pages and completions for every command. What is missing panics.

#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::guard::ScratchDir;
use crate::program::run;

const SHELLS: [&str; 5] = ["bash", "zsh", "fish", "elvish", "powershell"];

/// A program and its commands.
#[derive(Debug)]
pub struct Program<'a> {
    path: &'a str,
    name: &'a str,
    commands: Vec<Vec<String>>,
}

impl<'a> Program<'a> {
    /// Asks the program at `path` for its commands, among which must be `known`.
    pub fn new(path: &'a str, name: &'a str, known: &str) -> Self {
        let commands = commands(path, &[]);
        let found = commands.iter().any(|command| command.join(" ") == known);
        assert!(found, "{commands:?}");
        Self { path, name, commands }
    }

    /// Every command, as its words.
    pub fn commands(&self) -> &[Vec<String>] {
        &self.commands
    }

    /// Whether a command has none below it.
    pub fn is_leaf(&self, command: &[String]) -> bool {
        let below = |other: &Vec<String>| other.len() > command.len() && other.starts_with(command);
        !self.commands.iter().any(below)
    }

    /// What `--help` prints.
    pub fn help(&self, command: &[String]) -> String {
        help(self.path, command)
    }

    /// Every command has a long and a short help that says what it is for, and the program a version.
    pub fn assert_help(&self) {
        let (program, name) = (self.path, self.name);
        for command in &self.commands {
            let help = self.help(command);
            let usage = format!("Usage: {name} {}", command.join(" "));
            assert!(help.contains(&usage) && help.contains("--json"), "{help}");
            let about = help.lines().next().unwrap();
            assert!(
                !about.is_empty() && !about.starts_with("Usage"),
                "{command:?} says nothing: {help}"
            );
            let short = run(Command::new(program).args(command).arg("-h")).ok();
            assert!(short.contains(&usage), "{short}");
        }
        let version = run(Command::new(program).arg("--version")).ok();
        assert!(version.starts_with(&format!("{name} ")), "{version}");
    }

    /// `man DIR` writes a page for the program and one for each command, and nothing else.
    pub fn assert_man_pages(&self) {
        let (program, name) = (self.path, self.name);
        let scratch = ScratchDir::new("smc-pages").unwrap();
        let dir = scratch.join("man/man1");
        assert_eq!(run(Command::new(program).arg("man").arg(&dir)).ok(), "");
        let mut expected: BTreeSet<String> = self
            .commands
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

    /// `completions SHELL` prints a script that knows every command.
    pub fn assert_completions(&self) {
        let (program, name) = (self.path, self.name);
        for shell in SHELLS {
            let script = run(Command::new(program).args(["completions", shell])).ok();
            assert!(script.contains(name), "{shell}: {script}");
            for command in self.commands.iter().flatten() {
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
