//! `tenon combine`: several LoRA adapters made into one.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tenon::How;

use super::combination::{CombinationArguments, parse_adapter, parse_how};
use crate::failure::Failure;
use crate::output;

/// Combine several LoRA adapters into one, which can then be merged or saved.
///
/// Does what PEFT's add_weighted_adapter does, under the same names. Cat is exactly the weighted sum of
/// the adapters; svd the nearest to that of a given rank; linear adds up the factors, a rough
/// approximation; ties and magnitude_prune keep the largest elements of the factors first, dare_linear and
/// dare_ties random ones; with _svd after their names these four prune whole updates, and cut the sum to a
/// rank. The result is an adapter directory like any other.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon combine --adapter style:0.7 --adapter facts:0.4 --combine cat --out both\n  \
    tenon combine --adapter a --adapter b --adapter c --combine ties --density 0.3 --out three\n  \
    tenon merge --base Llama-3.2-1B --adapter both --out my-model")]
pub(crate) struct Arguments {
    /// Directory of an adapter, and its weight after a colon [default: 1]; give it several times
    #[arg(long, value_name = "DIR[:WEIGHT]", required = true, value_parser = parse_adapter)]
    adapter: Vec<(PathBuf, f64)>,

    /// How to combine them: linear, cat, svd, ties, dare_linear, dare_ties or magnitude_prune, each of the
    /// last four also with _svd
    #[arg(long, value_name = "HOW", default_value = "cat", value_parser = parse_how)]
    combine: How,

    /// Directory to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    #[command(flatten)]
    combination: CombinationArguments,

    /// Decides which elements dare keeps: the same each time, but not PyTorch's
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { adapter, combine, out, combination, seed, json } = arguments;
    let what = combination.combination(combine, seed);
    let bytes = tenon::combine(&adapter, &what, &out, &())?;
    let stdout = &mut io::stdout().lock();
    if json {
        let adapters: Vec<_> =
            adapter.iter().map(|(dir, weight)| json!({"adapter": dir, "weight": weight})).collect();
        return Ok(output::json(stdout, &json!({"out": out, "bytes": bytes, "adapters": adapters}))?);
    }
    writeln!(stdout, "{} adapters combined in {} ({})", adapter.len(), out.display(), output::bytes(bytes))?;
    Ok(())
}
