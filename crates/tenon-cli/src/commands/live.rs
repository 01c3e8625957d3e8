//! `tenon live`: Live Models.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde_json::json;
use tenon::{Error, LiveCondition, LiveModel, QuantizationQuality, Tenon};

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::progress::Progress;
use crate::table::{Table, facts};

/// Live Models: what was deployed, and where
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon live list\n  \
    tenon live check\n  \
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
        /// environment/model, or the model where only one environment has it [default: all]
        name: Option<String>,
        /// Print one JSON object; of all, an array
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
        Command::Check { name: Some(name), json } => {
            let live = check(&tenon, &name)?;
            if json {
                output::json(out, &live)?;
            } else {
                writeln!(out, "{}", condition(&live))?;
            }
            if live.condition == LiveCondition::Live { Ok(()) } else { Err(Failure::Differs) }
        }
        Command::Check { name: None, json } => check_all(out, &tenon, json),
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

fn check(tenon: &Tenon, name: &str) -> Result<LiveModel, Error> {
    let progress = Progress::waiting("asking the server");
    tenon.check_live(name, &progress)
}

/// Each of them; one that cannot be asked about does not keep the others from being asked.
fn check_all(out: &mut dyn Write, tenon: &Tenon, json: bool) -> Result<(), Failure> {
    let (mut found, mut all_live) = (vec![], true);
    for name in tenon.live_models()?.iter().map(LiveModel::name) {
        let (object, line) = match check(tenon, &name) {
            Ok(live) => {
                all_live &= live.condition == LiveCondition::Live;
                (json!(live), condition(&live))
            }
            Err(error) if error.is_cancelled() => return Err(error.into()),
            Err(error) => {
                all_live = false;
                (json!({ "name": name, "error": error.to_string() }), format!("{name}: {error}"))
            }
        };
        if !json {
            writeln!(out, "{line}")?;
        }
        found.push(object);
    }
    if json {
        output::json(out, &found)?;
    } else if found.is_empty() {
        writeln!(out, "There is no Live Model.")?;
    }
    if all_live { Ok(()) } else { Err(Failure::Differs) }
}

/// How it is, in a line.
fn condition(live: &LiveModel) -> String {
    let note = live.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
    format!("{} is {}{note}", live.name(), live.condition.name())
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
