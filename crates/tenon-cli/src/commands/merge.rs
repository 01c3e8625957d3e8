//! `tenon merge`: an adapter and its base, or whole models, joined into one model directory.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tenon::{Blend, Combination, Fate, How, Level, Merge, Merged, OutputDtype, Plan, PlannedAdapter};

use super::combination::{CombinationArguments, parse_adapter, parse_how};
use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;

/// Merge adapters into their base model, or whole models with one another.
///
/// Streams from disk to disk in constant memory. The result is a model directory as transformers,
/// vLLM and others load it; it appears at --out whole or not at all. tenon.json in it tells what it
/// was made from, with the SHA-256 of every file.
///
/// Several adapters are merged one after the other, each into what those before it made; or, with
/// --combine, made into one first, as PEFT's add_weighted_adapter does, without a file in between. A
/// weight scales what an adapter adds.
///
/// With --config, whole models are merged as a mergekit configuration says: linear, slerp, nuslerp,
/// multislerp, karcher, task_arithmetic, ties, dare_linear, dare_ties, della, della_linear,
/// breadcrumbs, breadcrumbs_ties, sce, ram, ramplus_tl, model_stock, nearswap, passthrough.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon merge --base Llama-3.2-1B --adapter my-lora --out my-model\n  \
    tenon merge --base Llama-3.2-1B --adapter my-lora --out my-model --dry-run\n  \
    tenon merge --base Llama-3.2-1B --adapter my-lora --out my-model --dtype bf16 --json | jq .outputs\n  \
    tenon merge --base Llama-3.2-1B --adapter style:0.7 --adapter facts:0.4 --combine cat --out my-model\n  \
    tenon merge --base Llama-3.2-1B --adapter first --adapter second --out my-model\n  \
    tenon merge --base llama-7b --delta vicuna-7b-delta --out vicuna-7b\n  \
    tenon merge --config ties.yml --out my-model")]
pub(crate) struct Arguments {
    /// Directory of the base model (config.json and safetensors)
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    base: Option<PathBuf>,

    /// Directory of an adapter (adapter_config.json and adapter_model.safetensors), and its weight after a
    /// colon [default: 1]; give it several times for several
    #[arg(long, value_name = "DIR[:WEIGHT]", required_unless_present_any = ["config", "delta"], value_parser = parse_adapter)]
    adapter: Vec<(PathBuf, f64)>,

    /// Directory of a full-weight delta, and its weight after a colon [default: 1]: a model whose tensors
    /// are what a training added to the base's
    #[arg(long, value_name = "DIR[:WEIGHT]", conflicts_with_all = ["adapter", "combine", "config"], value_parser = parse_adapter)]
    delta: Vec<(PathBuf, f64)>,

    /// Combine the adapters into one first: linear, cat, svd, ties, dare_linear, dare_ties or
    /// magnitude_prune, each of the last four also with _svd
    #[arg(long, value_name = "HOW", requires = "adapter", value_parser = parse_how)]
    combine: Option<How>,

    /// Merge the adapters one after the other, which is done without --combine
    #[arg(long, requires = "adapter", conflicts_with = "combine")]
    stack: bool,

    #[command(flatten)]
    combination: CombinationArguments,

    /// mergekit configuration that says which whole models to merge, and how
    #[arg(long, value_name = "FILE", conflicts_with_all = ["base", "adapter", "dtype"])]
    config: Option<PathBuf>,

    /// Seed of what --config and --combine draw at random [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Directory to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Element type of the result; auto keeps the base's, tensor by tensor
    #[arg(long, value_enum, default_value = "auto")]
    dtype: DtypeArgument,

    /// Largest shard: a number with B, kB, MB, GB, TB or KiB, MiB, GiB, TiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    max_shard_size: u64,

    /// Worker threads; does not change a byte [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Replace a model that is at --out already, once the new one is whole
    #[arg(long)]
    overwrite: bool,

    /// With --config, hash the models' files whole, so that tenon.json has their SHA-256 where nobody
    /// knows it; otherwise it has that of a sample, which takes a fraction of the time
    #[arg(long, requires = "config")]
    hash_inputs: bool,

    /// Let NaN and infinity through where the merge makes them
    #[arg(long)]
    allow_non_finite: bool,

    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,

    /// Instructions to use at most; does not change a byte (for comparing)
    #[arg(long, env = "TENON_CPU", value_name = "LEVEL", hide = true, value_parser = ["scalar", "avx2", "avx512"])]
    cpu: Option<String>,

    /// Bytes of a tile; does not change a byte (for comparing)
    #[arg(long, value_name = "SIZE", hide = true, value_parser = parse_size)]
    tile_size: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DtypeArgument {
    Auto,
    F32,
    F16,
    Bf16,
}

impl From<DtypeArgument> for OutputDtype {
    fn from(dtype: DtypeArgument) -> Self {
        match dtype {
            DtypeArgument::Auto => OutputDtype::Auto,
            DtypeArgument::F32 => OutputDtype::F32,
            DtypeArgument::F16 => OutputDtype::F16,
            DtypeArgument::Bf16 => OutputDtype::Bf16,
        }
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(config) = &arguments.config {
        let mut blend = Blend::new(config, &arguments.out)
            .seed(arguments.seed.unwrap_or(0))
            .max_shard_size(arguments.max_shard_size)
            .overwrite(arguments.overwrite)
            .hash_inputs(arguments.hash_inputs)
            .allow_non_finite(arguments.allow_non_finite);
        if let Some(threads) = arguments.threads {
            blend = blend.threads(threads.into());
        }
        if let Some(level) = arguments.cpu.as_deref().and_then(Level::named) {
            blend = blend.level(level);
        }
        if let Some(bytes) = arguments.tile_size {
            blend = blend.tile_bytes(bytes);
        }
        return super::blend::run(blend, arguments.dry_run, arguments.json);
    }
    let is_delta = !arguments.delta.is_empty();
    let adapters = if is_delta { &arguments.delta } else { &arguments.adapter };
    let (Some(base), [_, ..]) = (&arguments.base, &adapters[..]) else {
        return Err(Failure::Usage("--base and --adapter or --delta, or --config, must be given".into()));
    };
    if arguments.seed.is_some() && arguments.combine.is_none() {
        return Err(Failure::Usage("--seed is for --config and --combine; nothing else is drawn".into()));
    }
    let mut merge = Merge::several(base, adapters.clone(), &arguments.out)
        .delta(is_delta)
        .dtype(arguments.dtype.into())
        .max_shard_size(arguments.max_shard_size)
        .overwrite(arguments.overwrite)
        .allow_non_finite(arguments.allow_non_finite);
    if let Some(how) = arguments.combine {
        merge = merge.combine(arguments.combination.combination(how, arguments.seed.unwrap_or(0)));
    }
    if let Some(threads) = arguments.threads {
        merge = merge.threads(threads.into());
    }
    if let Some(level) = arguments.cpu.as_deref().and_then(Level::named) {
        merge = merge.level(level);
    }
    if let Some(bytes) = arguments.tile_size {
        merge = merge.tile_bytes(bytes);
    }
    let plan = merge.plan()?;
    let out = &mut io::stdout().lock();
    if arguments.dry_run {
        return Ok(if arguments.json { plan_json(out, &plan) } else { plan_text(out, &plan) }?);
    }
    if !arguments.json {
        for note in plan.notes() {
            let _ = writeln!(io::stderr(), "note: {note}");
        }
    }
    let merged = plan.run(&Progress::over(plan.work_bytes(), "merging"))?;
    if arguments.json {
        return Ok(merged_json(out, &merged)?);
    }
    Ok(merged_text(out, &plan, &merged, base)?)
}

/// What an adapter is, in a few words: `LoRA, rank 8, alpha 16`.
fn describe_adapter(adapter: &PlannedAdapter<'_>) -> String {
    let mut words = vec![adapter.method.to_string()];
    for (field, word) in [("r", "rank"), ("lora_alpha", "alpha")] {
        if let Some(n) = adapter.config.get(field).and_then(Value::as_number) {
            words.push(format!("{word} {n}"));
        }
    }
    if adapter.weight != 1.0 {
        words.push(format!("weight {}", adapter.weight));
    }
    words.join(", ")
}

/// How adapters are combined, in a few words: `ties, density 0.4`.
fn describe_combination(what: &Combination) -> String {
    let name = what.how.name();
    let mut words = vec![name.to_string()];
    if !matches!(what.how, How::Linear | How::Cat | How::Svd) {
        words.push(format!("density {}", what.density));
    }
    if name.contains("ties") {
        words.push(format!("majority sign {}", what.majority_sign.name()));
    }
    if name.ends_with("svd") {
        words.extend(what.rank.map(|rank| format!("rank {rank}")));
    }
    if name.contains("dare") {
        words.push(format!("seed {}", what.seed));
    }
    words.join(", ")
}

/// `21 edited (LoRA), 9 copied`.
fn describe_tensors(plan: &Plan) -> String {
    let mut groups: BTreeMap<(Fate, Vec<&str>), usize> = BTreeMap::new();
    for tensor in plan.tensors() {
        *groups.entry((tensor.fate, tensor.methods)).or_default() += 1;
    }
    let mut words = vec![];
    for ((fate, methods), n) in groups.into_iter().rev() {
        let method =
            if methods.is_empty() { String::new() } else { format!(" ({})", methods.join(", then ")) };
        words.push(format!("{n} {}{method}", fate_word(fate)));
    }
    words.join(", ")
}

fn fate_word(fate: Fate) -> &'static str {
    match fate {
        Fate::Copied => "copied",
        Fate::Converted => "converted",
        Fate::Edited => "edited",
        Fate::Replaced => "replaced",
        Fate::Added => "added",
    }
}

fn plan_text(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    let width = plan.tensors().map(|t| t.info.name.len()).max().unwrap_or(0);
    for tensor in plan.tensors() {
        let mut method = if tensor.methods.is_empty() {
            String::new()
        } else {
            format!("  {}", tensor.methods.join(", then "))
        };
        if let Some(format) = plan.dequantized_from(&tensor.info.name) {
            method.push_str(&format!("  from {format}"));
        }
        let shape = tensor.info.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        writeln!(
            out,
            "{:<9} {:<width$}  {:<5} {shape}{method}",
            fate_word(tensor.fate),
            tensor.info.name,
            tensor.info.dtype
        )?;
    }
    writeln!(out)?;
    let several = plan.adapters().count() > 1;
    for adapter in plan.adapters() {
        let dir = if several { format!("{}  ", adapter.dir.display()) } else { String::new() };
        writeln!(out, "adapter   {dir}{}", describe_adapter(&adapter))?;
    }
    match plan.combination() {
        Some(what) => writeln!(out, "combine   {}", describe_combination(what))?,
        None if several => writeln!(out, "stack     one after the other, rounded once")?,
        None => {}
    }
    writeln!(out, "tensors   {}", describe_tensors(plan))?;
    writeln!(out, "model     {} parameters", output::count(plan.parameters()))?;
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

fn plan_json(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    let tensors: Vec<_> = plan
        .tensors()
        .map(|t| {
            json!({
                "name": t.info.name, "dtype": t.info.dtype.name(), "shape": t.info.shape,
                "bytes": t.info.bytes(), "fate": fate_word(t.fate),
                "method": (!t.methods.is_empty()).then(|| t.methods.join(", then ")),
                "dequantized_from": plan.dequantized_from(&t.info.name),
            })
        })
        .collect();
    let shards: Vec<_> = plan.shards().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect();
    let adapters: Vec<_> = plan
        .adapters()
        .map(|adapter| json!({ "path": adapter.dir, "method": adapter.method, "weight": adapter.weight }))
        .collect();
    let plan = json!({
        "adapters": adapters,
        "combine": plan.combination().map(describe_combination),
        "tensors": tensors,
        "shards": shards,
        "companions": plan.companions().collect::<Vec<_>>(),
        "parameters": plan.parameters(),
        "bytes_needed": plan.output_bytes(),
        "bytes_available": plan.available_bytes(),
        "notes": plan.notes(),
        "dequantized": plan
            .dequantized()
            .map(|(format, tensors)| json!({ "format": format, "tensors": tensors }))
            .collect::<Vec<_>>(),
    });
    writeln!(out, "{plan:#}")
}

fn merged_json(out: &mut impl Write, merged: &Merged) -> io::Result<()> {
    let mut object = serde_json::to_value(&merged.manifest).map_err(io::Error::other)?;
    object["path"] = merged.out.to_string_lossy().into();
    object["seconds"] = merged.elapsed.as_secs_f64().into();
    object["peak_memory_bytes"] = output::peak_memory().into();
    writeln!(out, "{object:#}")
}

fn merged_text(out: &mut impl Write, plan: &Plan, merged: &Merged, base: &Path) -> io::Result<()> {
    let bytes: u64 = merged.manifest.outputs.iter().map(|f| f.bytes).sum();
    let rate = bytes as f64 / merged.elapsed.as_secs_f64().max(1e-9);
    writeln!(out, "{} is whole.\n", merged.out.display())?;
    writeln!(out, "  base      {}", base.display())?;
    for adapter in plan.adapters() {
        writeln!(out, "  adapter   {} ({})", adapter.dir.display(), describe_adapter(&adapter))?;
    }
    if let Some(what) = plan.combination() {
        writeln!(out, "  combine   {}", describe_combination(what))?;
    }
    writeln!(out, "  tensors   {}", describe_tensors(plan))?;
    let memory =
        output::peak_memory().map(|n| format!(", {} of memory", output::bytes(n))).unwrap_or_default();
    writeln!(
        out,
        "  written   {} parameters, {} in {} files, {} ({}/s){memory}\n",
        output::count(plan.parameters()),
        output::bytes(bytes),
        merged.manifest.outputs.len() + 1,
        output::duration(merged.elapsed),
        output::bytes(rate as u64),
    )?;
    for file in merged.manifest.outputs.iter().filter(|f| f.name.ends_with(".safetensors")) {
        writeln!(out, "  {}  {}", file.sha256, file.name)?;
    }
    Ok(())
}

/// `5GB`, `200 MB`, `1GiB`, or plain bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" | "k" => 1_000,
        "mb" | "m" => 1_000_000,
        "gb" | "g" => 1_000_000_000,
        "tb" | "t" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(format!("{unit:?} is no unit of size; write 5GB or 512MiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no size; write 5GB or 512MiB"))?;
    let bytes = number * factor as f64;
    if !(1.0..1e18).contains(&bytes) {
        return Err(format!("{text:?} is out of range"));
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1.5 MiB"), Ok(1_572_864));
        assert_eq!(parse_size("77"), Ok(77));
        for bad in ["", "GB", "-1GB", "5 parsecs", "0", "1e300", "99999999TB", "nan"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
