//! `tenon inspect`: what a directory or file is.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use tenon::Inspection;

use crate::failure::Failure;
use crate::output;
use crate::table::{Table, facts, printable};

/// Say what a directory or file is, and whether Tenon can merge it
///
/// Reads headers and small JSON files only: names, shapes, settings. Adapters of PEFT, MLX-LM and
/// kohya, outputs of trainings, models plain and quantized; what must be converted first is told with
/// the command that does it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon inspect my-lora\n  \
    tenon inspect outputs            # a training's output: which checkpoint would be merged\n  \
    tenon inspect Llama-3.2-1B --json | jq .quantization")]
pub(crate) struct Arguments {
    /// The directory or file
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let it = tenon::inspect(&arguments.path)?;
    let out = &mut io::stdout().lock();
    if arguments.json {
        return Ok(output::json(out, &it)?);
    }
    Ok(text(out, &it)?)
}

fn text(out: &mut dyn Write, it: &Inspection) -> io::Result<()> {
    let number = |n: f64| Value::from(n).to_string().trim_end_matches(".0").to_string();
    let mut settings = vec![];
    settings.extend(it.method.clone());
    settings.extend(it.rank.map(|rank| format!("rank {rank}")));
    settings.extend(it.alpha.map(|alpha| format!("alpha {}", number(alpha))));
    let mut size = vec![];
    if it.parameters > 0 {
        size.push(format!("{} parameters in {} tensors", output::count(it.parameters), it.tensors));
    }
    size.extend(it.dtype.clone());
    if it.bytes > 0 {
        size.push(output::bytes(it.bytes));
    }
    let targets = match it.modules {
        Some(modules) => format!("{} ({modules} modules)", it.targets.join(", ")),
        None => it.targets.join(", "),
    };
    let merges = match (it.mergeable, &it.into, &it.why_not) {
        (true, Some(into), _) => format!("yes: {into}"),
        (true, None, _) => "yes".into(),
        (false, _, Some(why)) => format!("no: {why}"),
        (false, ..) => "no".into(),
    };
    let path = it.path.display().to_string();
    let format = it.format.as_deref().map(|format| format!(" ({format})")).unwrap_or_default();
    facts(
        out,
        &[
            ("path", path),
            ("what", format!("{}{format}", kind(it.kind))),
            ("model", it.architecture.clone().unwrap_or_default()),
            ("method", settings.join(", ")),
            ("targets", targets),
            ("base", it.base.clone().unwrap_or_default()),
            ("size", size.join(", ")),
        ],
    )?;
    for format in &it.quantization {
        writeln!(out, "stored   {} tensors as {}", format.tensors, printable(&format.format))?;
    }
    writeln!(out, "merges   {}", printable(&merges))?;
    for note in &it.notes {
        writeln!(out, "note     {}", printable(note))?;
    }
    if !it.training.is_empty() {
        writeln!(out)?;
        let mut table = Table::new(&["TRAINING", "VALUE", "FROM"]);
        for fact in &it.training {
            let value = fact.value.as_str().map_or_else(|| fact.value.to_string(), str::to_string);
            table.row(vec![fact.name.clone(), value, fact.source.clone()]);
        }
        table.write(out)?;
    }
    if !it.checkpoints.is_empty() {
        writeln!(out)?;
        let mut table = Table::new(&["CHECKPOINT", " STEP", " EPOCH", " LOSS", "ADAPTER"]);
        for one in &it.checkpoints {
            let cell = |n: Option<f64>| n.map(|n| format!("{n:.4}")).unwrap_or_default();
            let adapter = if one.has_adapter { "yes" } else { "no" }.into();
            table.row(vec![one.name.clone(), one.step.to_string(), cell(one.epoch), cell(one.loss), adapter]);
        }
        table.write(out)?;
    }
    Ok(())
}

fn kind(kind: &str) -> &str {
    match kind {
        "adapter" => "adapter",
        "training" => "output of a training",
        "base_model" => "whole model",
        "complete_model" => "Complete Model",
        "merged_model" => "model merged by Tenon",
        "sharded_state" => "shards of a training's state",
        "pickle" => "pickled weights",
        "gguf" => "GGUF file",
        "tensors" => "tensors without a configuration",
        _ => "nothing that Tenon knows",
    }
}
