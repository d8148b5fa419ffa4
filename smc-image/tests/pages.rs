//! Help, man pages and completions: there for every command.

mod common;

use common::SMC_IMAGE;
use testkit::pages::Program;

fn smc_image() -> Program<'static> {
    Program::new(SMC_IMAGE, "smc-image", "tls-init")
}

#[test]
fn help_is_there_for_every_command() {
    smc_image().assert_help();
}

#[test]
fn there_is_a_man_page_for_every_command() {
    smc_image().assert_man_pages();
}

#[test]
fn shells_complete_every_command() {
    smc_image().assert_completions();
}
