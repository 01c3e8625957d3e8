//! The command `tenon`: arguments in, the facade called, results shown.
//!
//! Results go to standard output, everything else to standard error. Exit
//! codes: 0 done; 1 something failed; 2 wrong arguments; 3 an input is wrong;
//! 4 no room on the disk; 5 a name or target is taken or in use; 6 what was
//! verified is not what it was; 130 cancelled.

mod commands;
mod failure;
mod home;
mod output;
mod progress;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::home::HomeArgument;

/// Joins trained adapters with their base models into whole models.
#[derive(Debug, Parser)]
#[command(
    name = "tenon",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 an input is wrong, 4 no room on the disk,\n\
                  5 a name or target is taken or in use, 6 what was verified is not what it was, 130 cancelled."
)]
struct Cli {
    #[command(flatten)]
    home: HomeArgument,

    #[command(subcommand)]
    command: Command,
}

// In the order in which people come to them; clap lists them so.
#[derive(Debug, Subcommand)]
enum Command {
    Save(commands::save::Arguments),
    Deploy(commands::deploy::Arguments),
    Jobs(commands::jobs::Arguments),
    List(commands::complete::ListArguments),
    /// Show a Complete Model
    Show(commands::complete::NameArguments),
    Card(commands::complete::CardArguments),
    Verify(commands::complete::VerifyArguments),
    /// Print where a Complete Model lies
    Path(commands::complete::PathArguments),
    Delete(commands::complete::DeleteArguments),
    Live(commands::live::Arguments),
    Env(commands::env::Arguments),
    Base(commands::base::Arguments),
    Customized(commands::customized::Arguments),
    Registry(commands::registry::Arguments),
    Serve(commands::serve::Arguments),
    Merge(commands::merge::Arguments),
    Combine(commands::combine::Arguments),
    Gguf(commands::gguf::Arguments),
    Inspect(commands::inspect::Arguments),
    Completions(commands::shell::CompletionArguments),
    Man(commands::shell::ManArguments),
    #[command(hide = true)]
    Work(commands::save::WorkArguments),
}

fn main() -> ExitCode {
    let Cli { home, command } = Cli::parse();
    let result = match command {
        Command::Save(arguments) => commands::save::run(arguments, &home),
        Command::Deploy(arguments) => commands::deploy::run(arguments, &home),
        Command::Jobs(arguments) => commands::jobs::run(arguments, &home),
        Command::List(arguments) => commands::complete::list(arguments, &home),
        Command::Show(arguments) => commands::complete::show(arguments, &home),
        Command::Card(arguments) => commands::complete::card(arguments, &home),
        Command::Verify(arguments) => commands::complete::verify(arguments, &home),
        Command::Path(arguments) => commands::complete::path(arguments, &home),
        Command::Delete(arguments) => commands::complete::delete(arguments, &home),
        Command::Live(arguments) => commands::live::run(arguments, &home),
        Command::Env(arguments) => commands::env::run(arguments, &home),
        Command::Base(arguments) => commands::base::run(arguments, &home),
        Command::Customized(arguments) => commands::customized::run(arguments, &home),
        Command::Registry(arguments) => commands::registry::run(arguments, &home),
        Command::Serve(arguments) => commands::serve::run(arguments, &home),
        Command::Merge(arguments) => commands::merge::run(arguments),
        Command::Combine(arguments) => commands::combine::run(arguments),
        Command::Gguf(arguments) => commands::gguf::run(arguments, &home),
        Command::Inspect(arguments) => commands::inspect::run(arguments),
        Command::Completions(arguments) => commands::shell::completions(arguments, Cli::command()),
        Command::Man(arguments) => commands::shell::man(arguments, Cli::command()),
        Command::Work(arguments) => commands::save::work(arguments, &home),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
