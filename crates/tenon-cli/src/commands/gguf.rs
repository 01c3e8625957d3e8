//! `tenon gguf`: a model as one GGUF file, quantized or not; and what is in such a file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value as Json, json};
use tenon::{
    FileType, Gguf, GgufFile, GgufMetadata, GgufOptions, GgufPlan, GgufTensor, GgufValue, How, Merge,
    Quantization, Rules, TensorType,
};

use super::combination::{CombinationArguments, parse_adapter, parse_how};
use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::progress::Progress;
use crate::table::{Table, facts, printable};

/// Make a GGUF file, quantized or not, or look into one.
///
/// The bytes are those of llama.cpp's convert_hf_to_gguf.py and llama-quantize (build 10488), made in one
/// pass without anything in between on the disk. MODEL is a directory or the name of a Complete Model;
/// with --base and --adapter it is what a merge of the two would give. The file appears whole or not at all.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
    tenon gguf my-model --out my-model-Q4_K_M.gguf --quantization q4_K_M\n  \
    tenon gguf --base Llama-3.2-1B --adapter my-lora --out my-model-Q8_0.gguf --quantization q8_0\n  \
    tenon gguf my-complete-model --quantization q4_K_M --json | jq .path\n  \
    tenon gguf inspect my-model-Q4_K_M.gguf"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    inspect: Option<Inspect>,

    /// Directory of the model, or name of a Complete Model
    #[arg(value_name = "MODEL", conflicts_with_all = ["base", "adapter"])]
    model: Option<String>,

    /// Directory of a base model, to be merged with --adapter on the way
    #[arg(long, value_name = "DIR", requires = "adapter")]
    base: Option<PathBuf>,

    /// Directory of an adapter, and its weight after a colon [default: 1]; give it several times for several
    #[arg(long, value_name = "DIR[:WEIGHT]", requires = "base", value_parser = parse_adapter)]
    adapter: Vec<(PathBuf, f64)>,

    /// Combine the adapters into one first, as in `tenon merge`
    #[arg(long, value_name = "HOW", requires = "adapter", value_parser = parse_how)]
    combine: Option<How>,

    #[command(flatten)]
    combination: CombinationArguments,

    /// Seed of what --combine draws at random [default: 0]
    #[arg(long, value_name = "N", requires = "combine")]
    seed: Option<u64>,

    /// File to make; that of a Complete Model is kept in the home if this is not given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Element type of what is not quantized; auto is the model's own, or f16
    #[arg(long = "type", value_enum, default_value = "auto")]
    file_type: TypeArgument,

    /// What to quantize to: no_quantization, q8_0, q4_K_M or q4_K_S
    #[arg(long, value_name = "QUANTIZATION", default_value = "no_quantization")]
    quantization: Quantization,

    /// Name of the model in the file [default: made from the directory's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// llama.cpp's name of the pre-tokenizer, such as llama-bpe, where it cannot be recognised
    #[arg(long, value_name = "NAME")]
    pre_tokenizer: Option<String>,

    /// Importance matrix of llama-imatrix (GGUF or .dat), for what is quantized
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,

    /// Whose rules choose the types of tensors, for what is quantized
    #[arg(long, value_enum, default_value = "llama-quantize")]
    rules: RulesArgument,

    /// Type of the quantized tensors whose names match a pattern, before the rules; several times for several
    #[arg(long, value_name = "PATTERN=TYPE")]
    tensor_type: Vec<TensorType>,

    /// Worker threads; does not change a byte [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Replace a GGUF file that is at --out already, once the new one is whole
    #[arg(long)]
    overwrite: bool,

    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RulesArgument {
    /// llama.cpp's program
    LlamaQuantize,
    /// What Ollama makes when it quantizes itself: a few tensors of some architectures keep more
    Ollama,
}

impl From<RulesArgument> for Rules {
    fn from(rules: RulesArgument) -> Self {
        match rules {
            RulesArgument::LlamaQuantize => Rules::LlamaQuantize,
            RulesArgument::Ollama => Rules::Ollama,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Inspect {
    /// Show the keys and tensors of a GGUF file
    Inspect(InspectArguments),
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// The file
    file: PathBuf,

    /// Print one JSON object, with every value in full
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TypeArgument {
    Auto,
    F32,
    F16,
    Bf16,
}

impl From<TypeArgument> for FileType {
    fn from(file_type: TypeArgument) -> Self {
        match file_type {
            TypeArgument::Auto => FileType::Auto,
            TypeArgument::F32 => FileType::F32,
            TypeArgument::F16 => FileType::F16,
            TypeArgument::Bf16 => FileType::Bf16,
        }
    }
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    if let Some(Inspect::Inspect(arguments)) = arguments.inspect {
        return inspect(&arguments);
    }
    let options = GgufOptions {
        file_type: arguments.file_type.into(),
        name: arguments.name.clone(),
        pre_tokenizer: arguments.pre_tokenizer.clone(),
        imatrix: arguments.imatrix.clone(),
        rules: arguments.rules.into(),
        tensor_types: arguments.tensor_type.clone(),
        threads: arguments.threads.map(usize::from),
        measure: arguments.json,
    };
    let registered = arguments.model.as_deref().filter(|model| !Path::new(model).is_dir());
    let out = match (&arguments.out, registered) {
        (Some(out), _) => out.clone(),
        (None, Some(complete)) if !arguments.dry_run => {
            return artifact(complete, &arguments, &options, home);
        }
        // A plan that is only shown goes nowhere.
        (None, _) if arguments.dry_run => PathBuf::from("model.gguf"),
        (None, _) => return Err(Failure::Usage("say where the file goes: --out FILE".into())),
    };
    let gguf = match (&arguments.base, arguments.adapter.is_empty(), arguments.model.as_deref()) {
        (Some(base), false, _) => {
            let mut merge = Merge::several(base, arguments.adapter.clone(), &out);
            if let Some(how) = arguments.combine {
                merge = merge.combine(arguments.combination.combination(how, arguments.seed.unwrap_or(0)));
            }
            Gguf::of_merge(merge, out)
        }
        (.., Some(complete)) if registered.is_some() => Gguf::of(home.open()?.path(complete)?, out),
        (.., Some(dir)) => Gguf::of(dir, out),
        _ => {
            return Err(Failure::Usage(
                "say what to convert: a directory, a Complete Model, or --base and --adapter".into(),
            ));
        }
    };
    let overwrite = arguments.overwrite || (arguments.dry_run && arguments.out.is_none());
    let plan = gguf.quantization(arguments.quantization).options(options).overwrite(overwrite).plan()?;
    let stdout = &mut io::stdout().lock();
    if arguments.dry_run {
        return Ok(if arguments.json { plan_json(stdout, &plan) } else { plan_text(stdout, &plan) }?);
    }
    if !arguments.json {
        for note in plan.notes() {
            let _ = writeln!(io::stderr(), "note: {note}");
        }
    }
    let written = plan.run(&Progress::over(plan.work_bytes(), "converting"))?;
    if arguments.json {
        let object = json!({
            "path": written.path.to_string_lossy(),
            "sha256": written.digest,
            "bytes": written.bytes,
            "quantization": plan.quantization(),
            "architecture": plan.metadata().text("general.architecture"),
            "name": plan.metadata().text("general.name"),
            "tensors": plan.tensors().len(),
            "parameters": parameters(plan.tensors()),
            "measured": measured_json(&plan),
            "notes": plan.notes(),
            "seconds": written.elapsed.as_secs_f64(),
            "peak_memory_bytes": output::peak_memory(),
        });
        return Ok(output::json(stdout, &object)?);
    }
    let rate = written.bytes as f64 / written.elapsed.as_secs_f64().max(1e-9);
    let memory =
        output::peak_memory().map(|n| format!(", {} of memory", output::bytes(n))).unwrap_or_default();
    writeln!(stdout, "{} is whole.\n", written.path.display())?;
    facts(
        stdout,
        &[
            ("model", plan.metadata().text("general.name").unwrap_or_default().to_string()),
            ("types", describe_types(plan.tensors())),
            (
                "written",
                format!(
                    "{} parameters, {}, {} ({}/s){memory}",
                    output::count(parameters(plan.tensors())),
                    output::bytes(written.bytes),
                    output::duration(written.elapsed),
                    output::bytes(rate as u64),
                ),
            ),
            ("sha256", written.digest.to_string()),
        ],
    )?;
    Ok(())
}

/// What quantization did to each tensor, in ratios and decibels.
fn measured_json(plan: &GgufPlan) -> Vec<Json> {
    let tensors = plan.tensors().iter().enumerate();
    let one = |(number, tensor): (usize, &GgufTensor)| {
        let quality = plan.quality(number)?;
        Some(json!({
            "name": tensor.name,
            "type": tensor.ggml_type.name(),
            "relative_error": quality.relative_error,
            "signal_to_noise_db": quality.signal_to_noise,
            "rms_error": quality.rms_error,
            "largest_error": quality.largest_error,
            "infinite_rows": quality.infinite_rows,
        }))
    };
    tensors.filter_map(one).collect()
}

fn artifact(
    complete: &str,
    arguments: &Arguments,
    options: &GgufOptions,
    home: &HomeArgument,
) -> Result<(), Failure> {
    let tenon = home.open()?;
    let artifact = tenon.plan_gguf_artifact(complete, arguments.quantization, options)?;
    let progress = Progress::over(artifact.work_bytes(), "converting");
    let artifact = artifact.make(&progress)?;
    drop(progress);
    let stdout = &mut io::stdout().lock();
    if arguments.json {
        let object = json!({
            "path": artifact.path.to_string_lossy(),
            "sha256": artifact.digest,
            "bytes": artifact.bytes,
            "quantization": artifact.quantization,
            "model": artifact.model.as_str(),
            "reused": artifact.reused,
            "quality": artifact.quality,
            "measured": artifact.tensors,
        });
        return Ok(output::json(stdout, &object)?);
    }
    let how = if artifact.reused { "there already" } else { "made" };
    Ok(facts(
        stdout,
        &[
            ("model", artifact.model.to_string()),
            ("file", artifact.path.to_string_lossy().into_owned()),
            ("size", format!("{}, {}, {how}", output::bytes(artifact.bytes), artifact.quantization)),
            ("sha256", artifact.digest.to_string()),
        ],
    )?)
}

fn parameters(tensors: &[GgufTensor]) -> u64 {
    tensors.iter().map(GgufTensor::elements).sum()
}

/// `12 Q4_K, 4 Q6_K, 9 F32`: the types by how much of the file they are.
fn describe_types(tensors: &[GgufTensor]) -> String {
    let mut types: Vec<(&str, usize, u64)> = vec![];
    for tensor in tensors {
        let name = tensor.ggml_type.name();
        match types.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, n, bytes)) => (*n, *bytes) = (*n + 1, *bytes + tensor.bytes()),
            None => types.push((name, 1, tensor.bytes())),
        }
    }
    types.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
    let words = types.iter().map(|(name, n, bytes)| format!("{n} {name} ({})", output::bytes(*bytes)));
    words.collect::<Vec<_>>().join(", ")
}

fn shape(tensor: &GgufTensor) -> String {
    tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ")
}

fn tensor_table(out: &mut dyn Write, tensors: &[GgufTensor]) -> io::Result<()> {
    let mut table = Table::new(&["TENSOR", "TYPE", "SHAPE", " SIZE"]);
    for tensor in tensors {
        table.row(vec![
            tensor.name.clone(),
            tensor.ggml_type.name().into(),
            shape(tensor),
            output::bytes(tensor.bytes()),
        ]);
    }
    table.write(out)
}

/// The keys of a file, long values cut.
fn key_lines(out: &mut dyn Write, metadata: &GgufMetadata) -> io::Result<()> {
    let width = metadata.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    for (key, value) in metadata.iter() {
        writeln!(out, "{:<width$}  {}", printable(key), short(value))?;
    }
    Ok(())
}

/// A value in a line.
fn short(value: &GgufValue) -> String {
    const LONGEST: usize = 72;
    let cut = |text: String| match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}… ({} characters)", &text[..at], text.chars().count()),
        None => text,
    };
    let Some(len) = value.array_len() else { return cut(printable(&value.to_string())) };
    let Json::Array(first) = value.to_json(4) else { return format!("[{len} values]") };
    let mut first: Vec<String> = first.iter().map(|value| cut(printable(&value.to_string()))).collect();
    if len > first.len() as u64 {
        first.push(format!("… {len} values"));
    }
    format!("[{}]", first.join(", "))
}

fn plan_text(out: &mut impl Write, plan: &GgufPlan) -> io::Result<()> {
    key_lines(out, plan.metadata())?;
    writeln!(out)?;
    tensor_table(out, plan.tensors())?;
    writeln!(out)?;
    let mut lines = vec![
        ("model", format!("{} parameters", output::count(parameters(plan.tensors())))),
        ("types", describe_types(plan.tensors())),
        (
            "disk",
            format!(
                "{} needed, {} free",
                output::bytes(plan.output_bytes()),
                output::bytes(plan.available_bytes())
            ),
        ),
    ];
    lines.extend(plan.notes().into_iter().map(|note| ("note", note)));
    facts(out, &lines)?;
    writeln!(out, "\nNothing was written (--dry-run).")
}

fn plan_json(out: &mut impl Write, plan: &GgufPlan) -> io::Result<()> {
    let object = json!({
        "quantization": plan.quantization(),
        "metadata": plan.metadata().to_json(usize::MAX),
        "tensors": plan.tensors().iter().map(GgufTensor::to_json).collect::<Vec<_>>(),
        "parameters": parameters(plan.tensors()),
        "bytes_needed": plan.output_bytes(),
        "bytes_available": plan.available_bytes(),
        "notes": plan.notes(),
    });
    output::json(out, &object)
}

fn inspect(arguments: &InspectArguments) -> Result<(), Failure> {
    let file = GgufFile::open(&arguments.file).map_err(tenon::Error::from)?;
    let out = &mut io::stdout().lock();
    if arguments.json {
        let mut object = file.to_json(usize::MAX);
        object["parameters"] = parameters(&file.tensors).into();
        return Ok(output::json(out, &object)?);
    }
    key_lines(out, &file.metadata)?;
    writeln!(out)?;
    tensor_table(out, &file.tensors)?;
    writeln!(out)?;
    Ok(facts(
        out,
        &[
            ("format", format!("GGUF version {}", file.version)),
            ("size", output::bytes(file.len())),
            ("model", format!("{} parameters", output::count(parameters(&file.tensors)))),
            ("types", describe_types(&file.tensors)),
        ],
    )?)
}
