//! `tenon base`: Base Models, registered where they lie.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use tenon::{BaseModel, ModelName, Tenon};

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::progress::Progress;
use crate::table::{Table, facts};

/// Base Models: pretrained models, registered where they lie
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon base add Llama-3.2-1B\n  \
    tenon base add ~/models/llama --name llama-1b --template llama.modelfile\n  \
    tenon base list")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register a model directory (config.json and safetensors)
    Add {
        /// The directory
        dir: PathBuf,
        /// Its technical name [default: that of its repository or directory]
        #[arg(long)]
        name: Option<ModelName>,
        /// Deployment Template File: a Go template or a Modelfile
        #[arg(long, value_name = "FILE")]
        template: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the Base Models
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
    Template(super::template::Arguments),
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let out = &mut io::stdout().lock();
    match arguments.command {
        Command::Add { dir, name, template, json } => {
            let tenon = home.open()?;
            let progress = Progress::over(Tenon::base_bytes(&dir)?, "hashing");
            let mut base = tenon.add_base(&dir, name, &progress)?;
            drop(progress);
            if let Some(template) = template {
                match tenon.set_template(base.name.as_str(), &template) {
                    Ok(with_template) => base = with_template,
                    Err(error) => {
                        // Added without what was asked for would be half done.
                        tenon.registry().remove_base(base.name.as_str()).map_err(tenon::Error::from)?;
                        return Err(error.into());
                    }
                }
            }
            if json {
                return Ok(output::json(out, &base)?);
            }
            writeln!(out, "Base Model {} is registered: {}", base.name, describe(&base))?;
        }
        Command::List { json } => {
            let bases: Vec<BaseModel> = home.open()?.registry().all().map_err(tenon::Error::from)?;
            if json {
                return Ok(output::json(out, &bases)?);
            }
            let mut table =
                Table::new(&["NAME", " PARAMETERS", "TYPE", " SIZE", "ARCHITECTURE", "TEMPLATE", "PATH"]);
            for base in &bases {
                table.row(vec![
                    base.name.to_string(),
                    output::count(base.model.parameters),
                    base.model.dtype.clone(),
                    output::bytes(base.model.bytes),
                    base.model.architecture.clone(),
                    base.template.as_ref().map_or_else(|| "-".into(), |template| template.file.clone()),
                    base.path.display().to_string(),
                ]);
            }
            if bases.is_empty() {
                writeln!(out, "No Base Model is registered. tenon base add DIR does that.")?;
            } else {
                table.write(out)?;
            }
        }
        Command::Show { name, json } => {
            let base: BaseModel = home.open()?.registry().get(&name).map_err(tenon::Error::from)?;
            if json {
                return Ok(output::json(out, &base)?);
            }
            facts(
                out,
                &[
                    ("name", base.name.to_string()),
                    ("path", base.path.display().to_string()),
                    ("model", describe(&base)),
                    ("repository", base.repository.clone().unwrap_or_default()),
                    ("revision", base.revision.clone().unwrap_or_default()),
                    ("template", base.template.as_ref().map(|t| t.file.clone()).unwrap_or_default()),
                    ("registered", output::time(base.created)),
                ],
            )?;
            writeln!(out)?;
            for file in &base.files {
                let digest = file.sha256.map_or_else(|| "not hashed yet".into(), |digest| digest.to_string());
                writeln!(out, "{digest:<64}  {}", file.name)?;
            }
        }
        Command::Remove { name } => {
            let base = home.open()?.registry().remove_base(&name).map_err(tenon::Error::from)?;
            writeln!(out, "Base Model {} is forgotten; {} stays as it is.", base.name, base.path.display())?;
        }
        Command::Template(arguments) => return super::template::run(arguments, home, out),
    }
    Ok(())
}

fn describe(base: &BaseModel) -> String {
    let model = &base.model;
    format!(
        "{}, {} parameters, {}, {}",
        model.architecture,
        output::count(model.parameters),
        model.dtype,
        output::bytes(model.bytes)
    )
}
