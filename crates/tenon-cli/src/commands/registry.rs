//! `tenon registry`: catalogue and directories compared, and what can be made again removed.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde_json::json;
use tenon::CompleteModel;

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::table::printable;

/// The catalogue, compared with what is on the disk; room on it had again
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
    /// Remove the GGUF files that are kept with Complete Models; they are made again when needed
    Clean {
        /// Complete Models [default: all]
        #[arg(value_name = "NAME")]
        complete: Vec<String>,
        /// Say what would be removed, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    match arguments.command {
        Command::Check { repair, json } => check(home, repair, json),
        Command::Clean { complete, dry_run, json } => clean(home, complete, dry_run, json),
    }
}

fn clean(home: &HomeArgument, mut names: Vec<String>, dry_run: bool, json: bool) -> Result<(), Failure> {
    let tenon = home.open()?;
    if names.is_empty() {
        names = tenon
            .registry()
            .all::<CompleteModel>()
            .map_err(tenon::Error::from)?
            .into_iter()
            .map(|model| model.name.into())
            .collect();
    }
    let mut removed = vec![];
    for name in &names {
        let files = match dry_run {
            true => tenon.kept_ggufs(name)?,
            false => tenon.remove_kept_ggufs(name, |_| true)?,
        };
        removed.extend(files.into_iter().map(|file| (name, file)));
    }
    let bytes: u64 = removed.iter().map(|(_, file)| file.bytes).sum();
    let out = &mut io::stdout().lock();
    if json {
        let files: Vec<_> =
            removed.iter().map(|(model, file)| json!({ "model": model, "gguf": file })).collect();
        return Ok(output::json(out, &json!({ "bytes": bytes, "removed": !dry_run, "files": files }))?);
    }
    for (name, file) in &removed {
        writeln!(out, "{name}: {}, {}", file.quantization, output::bytes(file.bytes))?;
    }
    let done = if dry_run { "would be free" } else { "free now" };
    Ok(writeln!(out, "{} GGUF files, {} {done}.", removed.len(), output::bytes(bytes))?)
}

fn check(home: &HomeArgument, repair: bool, json: bool) -> Result<(), Failure> {
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
