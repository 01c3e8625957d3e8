//! `tenon merge --config`: whole models joined with one another.

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;
use tenon::{Blend, Blended, PlannedBlend};

use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;

/// Plans the blend; shows the plan or runs it, as `dry_run` and `json` say.
pub(crate) fn run(blend: Blend, dry_run: bool, json: bool) -> Result<(), Failure> {
    let plan = blend.plan()?;
    let out = &mut io::stdout().lock();
    if dry_run {
        return Ok(if json { plan_json(out, &plan) } else { plan_text(out, &plan) }?);
    }
    if !json {
        for note in plan.notes() {
            let _ = writeln!(io::stderr(), "note: {note}");
        }
    }
    let blended = plan.run(&Progress::over(plan.work_bytes(), "merging"))?;
    Ok(if json { blended_json(out, &blended) } else { blended_text(out, &plan, &blended) }?)
}

/// How often the inputs are read where that is more than once: `2 more times`.
fn describe_surveys(surveys: usize) -> String {
    match surveys {
        0 => String::new(),
        1 => "  read once more first".into(),
        n => format!("  read {n} times more first"),
    }
}

fn plan_text(out: &mut impl Write, plan: &PlannedBlend) -> io::Result<()> {
    let width = plan.tensors().map(|t| t.info.name.len()).max().unwrap_or(0);
    for tensor in plan.tensors() {
        let shape = tensor.info.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let models = match tensor.models[..] {
            [model] => format!("of {model}"),
            ref models => format!("of {} models", models.len()),
        };
        let surveys = describe_surveys(tensor.surveys);
        writeln!(out, "{:<width$}  {:<5} {shape}  {models}{surveys}", tensor.info.name, tensor.info.dtype)?;
    }
    writeln!(out)?;
    writeln!(out, "method    {}", plan.method())?;
    for model in plan.models() {
        writeln!(out, "model     {model}")?;
    }
    writeln!(out, "result    {} parameters", output::count(plan.parameters()))?;
    for (name, bytes) in plan.shards() {
        writeln!(out, "shard     {name}  {}", output::bytes(bytes))?;
    }
    writeln!(out, "beside    {}", plan.companions().collect::<Vec<_>>().join(", "))?;
    let (needed, free) = (output::bytes(plan.output_bytes()), output::bytes(plan.available_bytes()));
    writeln!(out, "disk      {needed} needed, {free} free")?;
    for note in plan.notes() {
        writeln!(out, "note      {note}")?;
    }
    writeln!(out, "\nNothing was written (--dry-run).")
}

fn plan_json(out: &mut impl Write, plan: &PlannedBlend) -> io::Result<()> {
    let tensors: Vec<_> = plan
        .tensors()
        .map(|t| {
            json!({
                "name": t.info.name, "dtype": t.info.dtype.name(), "shape": t.info.shape,
                "bytes": t.info.bytes(), "surveys": t.surveys,
                "models": t.models.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        })
        .collect();
    let shards: Vec<_> = plan.shards().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect();
    let plan = json!({
        "method": plan.method(),
        "models": plan.models().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "tensors": tensors,
        "shards": shards,
        "companions": plan.companions().collect::<Vec<_>>(),
        "parameters": plan.parameters(),
        "bytes_needed": plan.output_bytes(),
        "bytes_available": plan.available_bytes(),
        "notes": plan.notes(),
    });
    writeln!(out, "{plan:#}")
}

fn blended_json(out: &mut impl Write, blended: &Blended) -> io::Result<()> {
    let mut object = serde_json::to_value(&blended.manifest).map_err(io::Error::other)?;
    object["path"] = blended.out.to_string_lossy().into();
    object["seconds"] = blended.elapsed.as_secs_f64().into();
    object["peak_memory_bytes"] = output::peak_memory().into();
    writeln!(out, "{object:#}")
}

fn blended_text(out: &mut impl Write, plan: &PlannedBlend, blended: &Blended) -> io::Result<()> {
    let bytes: u64 = blended.manifest.outputs.iter().map(|f| f.bytes).sum();
    let rate = bytes as f64 / blended.elapsed.as_secs_f64().max(1e-9);
    writeln!(out, "{} is whole.\n", blended.out.display())?;
    writeln!(out, "  method    {}", plan.method())?;
    for model in &blended.manifest.models {
        let name = Path::new(&model.path).file_name().unwrap_or_default().to_string_lossy();
        writeln!(out, "  model     {name}")?;
    }
    let memory =
        output::peak_memory().map(|n| format!(", {} of memory", output::bytes(n))).unwrap_or_default();
    writeln!(
        out,
        "  written   {} parameters, {} in {} files, {} ({}/s){memory}\n",
        output::count(plan.parameters()),
        output::bytes(bytes),
        blended.manifest.outputs.len() + 1,
        output::duration(blended.elapsed),
        output::bytes(rate as u64),
    )?;
    for file in blended.manifest.outputs.iter().filter(|f| f.name.ends_with(".safetensors")) {
        writeln!(out, "  {}  {}", file.sha256, file.name)?;
    }
    Ok(())
}
