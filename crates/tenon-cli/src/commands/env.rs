//! `tenon env`: Deployment Environments.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use tenon::{DeploymentEnvironment, Environment, EnvironmentKind, KeySource, ModelName};

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::progress::Progress;
use crate::table::{Table, facts, printable};

/// Deployment Environments: servers that models are deployed to.
///
/// A key is never kept, only the name of the environment variable or the file that has it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon env add local --kind ollama --url http://localhost:11434\n  \
    tenon env add gpu --kind ollama --url https://gpu.example --api-key-env GPU_KEY --option uploads=4\n  \
    tenon env test local")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add one; its server is asked by tenon env test
    Add(AddArguments),
    /// List them
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
    /// Reach its server: version, what it supports, how much room
    Test {
        /// Its name
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Forget one; its server is not touched
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
struct AddArguments {
    /// Its name
    name: ModelName,

    /// ollama, llama-server, vllm, or openai for any other server with OpenAI's API (SGLang, TGI)
    #[arg(long)]
    kind: EnvironmentKind,

    /// Address of the server
    #[arg(long)]
    url: String,

    /// Environment variable that has the key
    #[arg(long, value_name = "VAR", conflicts_with = "api_key_file")]
    api_key_env: Option<String>,

    /// File that has the key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// PEM certificates to trust besides the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Seconds after which a silent server counts as hung [default: 30]
    #[arg(long, value_name = "S")]
    timeout: Option<f64>,

    /// An option of the kind; a wrong one lists those there are
    #[arg(long = "option", value_name = "NAME=VALUE")]
    options: Vec<String>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let out = &mut io::stdout().lock();
    match arguments.command {
        Command::Add(arguments) => add(out, arguments, home),
        Command::List { json } => {
            let environments = home.open()?.environments()?;
            if json {
                return Ok(output::json(out, &environments)?);
            }
            if environments.is_empty() {
                let add = "tenon env add NAME --kind ollama --url URL";
                return Ok(writeln!(out, "There is no Deployment Environment. {add} adds one.")?);
            }
            let mut table = Table::new(&["NAME", "KIND", "URL", "KEY", "LAST TEST"]);
            for record in &environments {
                table.row(vec![
                    record.name.to_string(),
                    record.environment.kind.to_string(),
                    record.environment.url.clone(),
                    key(record),
                    last_test(record),
                ]);
            }
            Ok(table.write(out)?)
        }
        Command::Show { name, json } => {
            let record = home.open()?.environment(&name)?;
            if json {
                return Ok(output::json(out, &record)?);
            }
            let environment = &record.environment;
            let options: Vec<_> =
                environment.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
            Ok(facts(
                out,
                &[
                    ("name", record.name.to_string()),
                    ("kind", environment.kind.to_string()),
                    ("url", environment.url.clone()),
                    ("key", key(&record)),
                    ("ca", environment.ca.as_ref().map(|ca| ca.display().to_string()).unwrap_or_default()),
                    ("timeout", format!("{} s", environment.timeout_seconds)),
                    ("options", options.join(", ")),
                    ("added", output::time(record.created)),
                    ("last test", last_test(&record)),
                ],
            )?)
        }
        Command::Test { name, json } => {
            let tenon = home.open()?;
            let progress = Progress::waiting("asking the server");
            let report = tenon.test_environment(&name, &progress);
            drop(progress);
            let report = report?;
            if json {
                return Ok(output::json(out, &report)?);
            }
            let condition = &report.condition;
            let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "it does not tell".into(), output::bytes);
            let can = &report.capabilities;
            let takes = [
                (can.gguf, "GGUF"),
                (can.safetensors, "safetensors"),
                (can.adapters, "adapters"),
                (can.quantizes, "quantizes by itself"),
            ];
            let takes: Vec<_> = takes.iter().filter(|(can, _)| *can).map(|(_, what)| *what).collect();
            let version = condition.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
            let mut lines = vec![
                ("server", format!("{}{version}", condition.server)),
                ("takes", takes.join(", ")),
                ("models", format!("{}, {}", condition.models.len(), bytes(condition.model_bytes))),
                ("loaded", bytes(condition.loaded_bytes)),
                ("room", bytes(condition.free_bytes)),
            ];
            lines.extend(condition.notes.iter().chain(&report.warnings).map(|note| ("note", note.clone())));
            Ok(facts(out, &lines)?)
        }
        Command::Remove { name } => {
            let record = home.open()?.remove_environment(&name)?;
            Ok(writeln!(
                out,
                "Deployment Environment {} is forgotten; its server was not touched.",
                record.name
            )?)
        }
    }
}

fn add(out: &mut dyn Write, arguments: AddArguments, home: &HomeArgument) -> Result<(), Failure> {
    let mut environment = Environment::new(arguments.kind, arguments.url);
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    environment.key = match (arguments.api_key_env, arguments.api_key_file) {
        (Some(name), _) => Some(KeySource::Variable(name)),
        (None, file) => file.map(|file| KeySource::File(absolute(file))),
    };
    environment.ca = arguments.ca.map(absolute);
    if let Some(seconds) = arguments.timeout {
        environment.timeout_seconds = seconds;
    }
    for option in arguments.options {
        let Some((name, value)) = option.split_once('=') else {
            return Err(Failure::Usage(format!("--option {option:?} has no =; write --option NAME=VALUE")));
        };
        environment.options.insert(name.into(), value.into());
    }
    let record = home.open()?.add_environment(arguments.name, environment)?;
    for warning in record.environment.warnings() {
        let _ = writeln!(io::stderr(), "note: {}", printable(&warning));
    }
    if arguments.json {
        return Ok(output::json(out, &record)?);
    }
    writeln!(out, "Deployment Environment {} is added.", record.name)?;
    Ok(writeln!(out, "\nNext: tenon env test {}", record.name)?)
}

fn key(record: &DeploymentEnvironment) -> String {
    record.environment.key.as_ref().map_or_else(|| "-".into(), KeySource::to_string)
}

fn last_test(record: &DeploymentEnvironment) -> String {
    let Some(test) = &record.tested else { return "never".into() };
    let result = match (&test.condition, &test.reason) {
        (Some(condition), _) => {
            format!("{} {}", condition.server, condition.version.as_deref().unwrap_or_default())
        }
        (None, reason) => reason.clone().unwrap_or_else(|| "failed".into()),
    };
    format!("{} {}", output::time(test.at), result.trim_end())
}
