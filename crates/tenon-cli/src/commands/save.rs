//! `tenon save`: a Customized Model becomes a Complete Model. And `tenon work`, which does so for others.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use tenon::{BaseModel, QueuedSaving, RegistryError, Saved, Saving, Tenon, Uuid};

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::progress::Progress;
use crate::table;

/// Save a Customized Model as a Complete Model.
///
/// Merges adapter and base into a model that needs neither, with a Model Card, in the home. All
/// parameters are chosen automatically; nothing is quantized. With --base, the two are directories
/// and need not be registered before.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon save outputs/my-lora --base Llama-3.2-1B\n  \
    tenon save Llama-3.2-1B_my-lora_20260309_1a2b\n  \
    tenon save Llama-3.2-1B_my-lora_20260309_1a2b --detach && tenon jobs --watch")]
pub(crate) struct Arguments {
    /// Name of a Customized Model; with --base, an adapter directory
    #[arg(value_name = "CUSTOMIZED")]
    customized: String,

    /// Directory of the base, or name of a Base Model: registers what is not registered yet
    #[arg(long, value_name = "DIR")]
    base: Option<String>,

    /// Return at once; tenon jobs shows how far it is
    #[arg(long)]
    detach: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let tenon = home.open()?;
    let customized = match &arguments.base {
        Some(base) => register(&tenon, Path::new(&arguments.customized), base)?,
        None => named(&tenon, &arguments.customized)?,
    };
    let queued = tenon.queue(&customized)?;
    follow(&tenon, home, queued, arguments.detach, arguments.json)
}

/// Leaves a Saving to a worker, or works on it and tells what came of it.
pub(crate) fn follow(
    tenon: &Tenon,
    home: &HomeArgument,
    queued: QueuedSaving,
    detach: bool,
    json: bool,
) -> Result<(), Failure> {
    let saving = queued.saving.clone();
    if detach {
        // The worker takes the Saving over from this process.
        drop(queued);
        home.start_worker(Some(saving.id))?;
        let out = &mut io::stdout().lock();
        if json {
            return Ok(output::json(out, &saving)?);
        }
        writeln!(out, "Saving {} is queued; it will be {}.", saving.id, saving.model)?;
        writeln!(out, "\nNext: tenon jobs --watch")?;
        return Ok(());
    }
    if crate::home::was_interrupted(tenon) {
        home.start_worker(None)?;
    }
    let ahead = tenon.registry().open_jobs::<Saving>().map_err(tenon::Error::from)?;
    let ahead = ahead.iter().filter(|other| other.id != saving.id).count();
    if ahead >= tenon::PARALLEL_SAVINGS {
        let _ = writeln!(io::stderr(), "note: {ahead} Savings come first; this one waits for its turn");
    }
    let saved = work_on(tenon, queued)?;
    let out = &mut io::stdout().lock();
    if json {
        let mut object = serde_json::to_value(&saved.manifest).map_err(io::Error::other)?;
        object["path"] = tenon.path(saved.model.name.as_str())?.to_string_lossy().into();
        object["resumed_shards"] = saved.resumed_shards.into();
        object["peak_memory_bytes"] = output::peak_memory().into();
        return Ok(output::json(out, &object)?);
    }
    Ok(summary(out, tenon, &saved)?)
}

/// Registers adapter and base where they are not, and says under which names.
fn register(tenon: &Tenon, adapter: &Path, base: &str) -> Result<String, Failure> {
    let dir = PathBuf::from(base);
    let mut err = io::stderr().lock();
    let named = tenon.registry().find::<BaseModel>(base).map_err(tenon::Error::from)?;
    let base = match named {
        Some(base) if !dir.is_dir() => base,
        _ => {
            let (base, new) = tenon.base_at(&dir)?;
            let verb = if new { "registered as" } else { "known as" };
            let _ = writeln!(err, "base     {verb} Base Model {}", base.name);
            base
        }
    };
    let (customized, new) = tenon.customized_at(adapter, &base)?;
    let verb = if new { "registered as" } else { "known as" };
    let _ = writeln!(err, "adapter  {verb} Customized Model {}", customized.name);
    Ok(customized.name.to_string())
}

fn named(tenon: &Tenon, name: &str) -> Result<String, Failure> {
    let found: Result<tenon::CustomizedModel, _> = tenon.registry().get(name);
    match found {
        Ok(customized) => Ok(customized.name.to_string()),
        Err(RegistryError::NotFound { .. }) if Path::new(name).join("adapter_config.json").exists() => {
            Err(Failure::Usage(format!(
                "{name} is a directory; to save it, say what its base is: tenon save {name} --base DIR"
            )))
        }
        Err(error) => Err(tenon::Error::from(error).into()),
    }
}

fn work_on(tenon: &Tenon, queued: QueuedSaving) -> Result<Saved, Failure> {
    let progress = Progress::over(tenon.saving_bytes(&queued)?, "saving");
    Ok(tenon.run_saving(queued, &progress)?)
}

fn summary(out: &mut dyn Write, tenon: &Tenon, saved: &Saved) -> io::Result<()> {
    let model = &saved.model;
    writeln!(out, "{} is whole.\n", model.name)?;
    let path = tenon.registry().home().complete(&model.name);
    let facts = saved.manifest.saving.as_ref();
    let seconds = facts.map_or(0.0, |facts| facts.seconds);
    let resumed = match saved.resumed_shards {
        0 => String::new(),
        n => format!(", {n} shards of an interrupted attempt kept"),
    };
    let memory =
        output::peak_memory().map(|n| format!(", {} of memory", output::bytes(n))).unwrap_or_default();
    let mut lines = vec![
        ("  path", path.display().to_string()),
        ("  method", saved.method.clone()),
        (
            "  model",
            format!(
                "{}, {} parameters, {}",
                model.model.architecture,
                output::count(model.model.parameters),
                model.model.dtype
            ),
        ),
        (
            "  written",
            format!(
                "{} in {} files, {}{memory}{resumed}",
                output::bytes(model.bytes),
                saved.manifest.outputs.len() + 1,
                output::duration(std::time::Duration::from_secs_f64(seconds.max(0.0)))
            ),
        ),
    ];
    for note in &saved.manifest.notes {
        lines.push(("  note", note.clone()));
    }
    table::facts(out, &lines)?;
    writeln!(out, "\nNext: tenon card {0}, tenon verify {0}", model.name)
}

/// Work on queued Savings and deployments until none is left (what --detach starts).
#[derive(Debug, Args)]
pub(crate) struct WorkArguments {
    /// The Saving to begin with
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,

    /// The deployment to begin with
    #[arg(long, value_name = "UUID")]
    deployment: Option<Uuid>,
}

pub(crate) fn work(arguments: WorkArguments, home: &HomeArgument) -> Result<(), Failure> {
    crate::home::leave_terminal();
    let tenon = home.open()?;
    // Their records tell what became of them.
    if let Some(id) = arguments.deployment
        && let Some(queued) = tenon.adopt_deployment(Some(id))?
    {
        let _ = super::deploy::work_on(&tenon, queued);
    }
    let mut next = tenon.adopt(arguments.id)?;
    loop {
        if let Some(queued) = next {
            let _ = work_on(&tenon, queued);
        } else if let Some(queued) = tenon.adopt_deployment(None)? {
            let _ = super::deploy::work_on(&tenon, queued);
        } else {
            return Ok(());
        }
        next = tenon.adopt(None)?;
    }
}

/// A Saving as a line of JSON has it.
pub(crate) fn saving_json(saving: &Saving) -> serde_json::Value {
    let mut object = serde_json::to_value(saving).unwrap_or_else(|_| json!({}));
    object["share"] = json!(saving.course.share());
    object
}
