//! `tenon customized`: adapters, linked to their Base Models.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use tenon::{CustomizedModel, Uuid};

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::table::{Table, facts};

/// Customized Models: adapters, linked to their Base Models
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon customized add outputs/my-lora --base Llama-3.2-1B\n  \
    tenon customized add outputs/checkpoint-500 --base Llama-3.2-1B --train-name support-bot\n  \
    tenon customized list")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register an adapter directory (adapter_config.json and adapter_model.safetensors)
    Add {
        /// The directory
        dir: PathBuf,
        /// Name of its Base Model
        #[arg(long)]
        base: String,
        /// The directory is a full-weight delta: a model whose tensors are what the training added
        #[arg(long)]
        delta: bool,
        /// Name of the training [default: that of the directory]
        #[arg(long, value_name = "NAME")]
        train_name: Option<String>,
        /// UUID of the training [default: drawn]
        #[arg(long, value_name = "UUID")]
        training_id: Option<Uuid>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the Customized Models
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one
    Show {
        /// Its name
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Forget one; its directory stays
    Remove {
        /// Its name
        name: String,
    },
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let out = &mut io::stdout().lock();
    match arguments.command {
        Command::Add { dir, base, delta, train_name, training_id, json } => {
            let (home, train_name) = (home.open()?, train_name.as_deref());
            let customized = match delta {
                true => home.add_customized_delta(&dir, &base, train_name, training_id)?,
                false => home.add_customized(&dir, &base, train_name, training_id)?,
            };
            if json {
                return Ok(output::json(out, &customized)?);
            }
            writeln!(out, "Customized Model {} is registered.", customized.name)?;
            writeln!(out, "\nNext: tenon save {}", customized.name)?;
        }
        Command::List { json } => {
            let all: Vec<CustomizedModel> = home.open()?.registry().all().map_err(tenon::Error::from)?;
            if json {
                return Ok(output::json(out, &all)?);
            }
            let mut table = Table::new(&["NAME", "BASE", "METHOD", "REGISTERED", "PATH"]);
            for customized in &all {
                table.row(vec![
                    customized.name.to_string(),
                    customized.base.to_string(),
                    customized.peft_type.clone(),
                    output::time(customized.created),
                    customized.path.display().to_string(),
                ]);
            }
            if all.is_empty() {
                writeln!(
                    out,
                    "No Customized Model is registered. tenon customized add DIR --base NAME does that."
                )?;
            } else {
                table.write(out)?;
            }
        }
        Command::Show { name, json } => {
            let customized: CustomizedModel =
                home.open()?.registry().get(&name).map_err(tenon::Error::from)?;
            if json {
                return Ok(output::json(out, &customized)?);
            }
            facts(
                out,
                &[
                    ("name", customized.name.to_string()),
                    ("base", customized.base.to_string()),
                    ("path", customized.path.display().to_string()),
                    ("method", customized.peft_type.clone()),
                    ("training", format!("{} ({})", customized.train_name, customized.training_id)),
                    ("registered", output::time(customized.created)),
                ],
            )?;
        }
        Command::Remove { name } => {
            let customized = home.open()?.registry().remove_customized(&name).map_err(tenon::Error::from)?;
            let path = customized.path.display();
            writeln!(out, "Customized Model {} is forgotten; {path} stays as it is.", customized.name)?;
        }
    }
    Ok(())
}
