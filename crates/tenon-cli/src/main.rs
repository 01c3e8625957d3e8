//! The command `tenon`: arguments in, the facade called, results shown.
//!
//! Results go to standard output, everything else to standard error. Exit
//! codes: 0 done; 1 something failed; 2 wrong arguments; 3 an input is wrong;
//! 4 no room on the disk; 5 the target exists already; 130 cancelled.

mod commands;
mod failure;
mod output;
mod progress;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Joins trained adapters with their base models into whole models.
#[derive(Debug, Parser)]
#[command(
    name = "tenon",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 an input is wrong, 4 no room on the disk,\n\
                  5 the target exists already, 130 cancelled."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Merge(commands::merge::Arguments),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Merge(arguments) => commands::merge::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
