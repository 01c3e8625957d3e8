//! `tenon live`: Live Models.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use tenon::{LiveCondition, LiveModel, QuantizationQuality};

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::progress::Progress;
use crate::table::{Table, facts};

/// Live Models: what was deployed, and where
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon live list\n  \
    tenon live check local/my-model:latest\n  \
    tenon live remove my-model --from-environment")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List them
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one
    Show {
        /// environment/model, or the model where only one environment has it
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Ask the environment whether it is still there, the same, and answers; exit code 6 if not
    Check {
        /// environment/model, or the model where only one environment has it
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Drop the entry
    Remove {
        /// environment/model, or the model where only one environment has it
        name: String,
        /// Also remove the model there
        #[arg(long)]
        from_environment: bool,
    },
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let out = &mut io::stdout().lock();
    let tenon = home.open()?;
    match arguments.command {
        Command::List { json } => {
            let all = tenon.live_models()?;
            if json {
                return Ok(output::json(out, &all)?);
            }
            if all.is_empty() {
                let deploy = "tenon deploy MODEL --env NAME --quantization Q";
                return Ok(writeln!(out, "There is no Live Model. {deploy} makes one.")?);
            }
            let mut table = Table::new(&[
                "ENVIRONMENT",
                "MODEL",
                "QUANTIZATION",
                " SIZE",
                "DEPLOYED",
                "CONDITION",
                "COMPLETE MODEL",
            ]);
            for live in &all {
                table.row(vec![
                    live.environment.to_string(),
                    live.model.clone(),
                    live.quantization.to_string(),
                    output::bytes(live.bytes),
                    output::time(live.created),
                    live.condition.name().into(),
                    subject(live),
                ]);
            }
            Ok(table.write(out)?)
        }
        Command::Show { name, json } => {
            let live = tenon.live_model(&name)?;
            if json { Ok(output::json(out, &live)?) } else { Ok(show(out, &live)?) }
        }
        Command::Check { name, json } => {
            let progress = Progress::waiting("asking the server");
            let live = tenon.check_live(&name, &progress);
            drop(progress);
            let live = live?;
            if json {
                output::json(out, &live)?;
            } else {
                let note = live.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
                writeln!(out, "{} is {}{note}", live.name(), live.condition.name())?;
            }
            if live.condition == LiveCondition::Live { Ok(()) } else { Err(Failure::Differs) }
        }
        Command::Remove { name, from_environment } => {
            let progress = Progress::waiting("asking the server");
            let removed = tenon.remove_live(&name, from_environment, &progress);
            drop(progress);
            let (live, was_there) = removed?;
            let there = match (from_environment, was_there) {
                (false, _) => format!("the model stays on {}", live.environment),
                (true, true) => format!("the model is removed from {}", live.environment),
                (true, false) => format!("{} did not have the model any more", live.environment),
            };
            Ok(writeln!(out, "The Live Model {} is dropped; {there}.", live.name())?)
        }
    }
}

/// What was deployed, as people call it.
pub(super) fn subject(live: &LiveModel) -> String {
    match &live.complete {
        Some(complete) => complete.to_string(),
        None => format!("adapter of {}", live.customized),
    }
}

/// What quantizing cost, in a line; the card has more.
fn cost(quality: &QuantizationQuality) -> String {
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    let decibels = quality.signal_to_noise.map(|db| format!(" ({db:.1} dB)")).unwrap_or_default();
    let worst = quality.worst.first().map(|worst| {
        format!("; worst {} ({}), {}", worst.name, worst.ggml_type, percent(worst.relative_error))
    });
    format!(
        "{:.2} bits per weight, relative error {}{decibels}{}",
        quality.bits_per_weight,
        percent(quality.relative_error),
        worst.unwrap_or_default()
    )
}

fn show(out: &mut dyn Write, live: &LiveModel) -> io::Result<()> {
    let weights: Vec<_> = live.weights.iter().map(ToString::to_string).collect();
    facts(
        out,
        &[
            ("environment", format!("{} ({} at {})", live.environment, live.kind, live.url)),
            ("model", live.model.clone()),
            ("digest", live.digest.clone().unwrap_or_default()),
            ("weights", weights.join(", ")),
            ("quantization", live.quantization.to_string()),
            ("cost", live.quality.as_ref().map(cost).unwrap_or_default()),
            ("size", output::bytes(live.bytes)),
            ("complete", live.complete.as_ref().map(ToString::to_string).unwrap_or_default()),
            (if live.complete.is_some() { "customized" } else { "adapter of" }, live.customized.to_string()),
            ("base", live.base.to_string()),
            ("deployment", live.deployment.to_string()),
            ("deployed", output::time(live.created)),
            ("checked", output::time(live.checked)),
            ("condition", live.condition.name().into()),
            ("note", live.note.clone().unwrap_or_default()),
        ],
    )
}
