//! `tenon registry`: catalogue and directories compared.

use std::io::{self, Write};

use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::table::printable;

/// The catalogue, compared with what is on the disk
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare the catalogue with the manifests of the Complete Models
    Check {
        /// Make the catalogue follow the manifests
        #[arg(long)]
        repair: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let Command::Check { repair, json } = arguments.command;
    let report = home.open()?.check(repair)?;
    let out = &mut io::stdout().lock();
    if json {
        output::json(out, &report)?;
    } else {
        let done = if repair {
            ("listed now", "unlisted now", "brought up to date")
        } else {
            ("not listed", "listed, but gone", "listed otherwise than its manifest says")
        };
        for (what, names) in [(done.0, &report.unlisted), (done.1, &report.missing), (done.2, &report.differ)]
        {
            for name in names {
                writeln!(out, "{name}: {what}")?;
            }
        }
        for (name, reason) in &report.foreign {
            writeln!(out, "{}: no Complete Model: {}", printable(name), printable(reason))?;
        }
        for name in &report.inputs_gone {
            writeln!(out, "{name}: its directory is gone")?;
        }
        writeln!(out, "{} Complete Models are as the catalogue has them.", report.agree)?;
        if !report.is_clean() && !repair {
            writeln!(out, "\nNext: tenon registry check --repair")?;
        }
    }
    if report.is_clean() || repair { Ok(()) } else { Err(Failure::Differs) }
}
