//! `tenon combine`: several LoRA adapters made into one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use tenon::{Combination, How, MajoritySign};

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

    /// Share of elements that ties, magnitude_prune and dare keep, up to 1
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    density: f64,

    /// What decides an element's sign in ties and dare_ties
    #[arg(long, value_enum, value_name = "SIGN", default_value = "total")]
    majority_sign: SignArgument,

    /// Rank of the result of svd and those with _svd [default: the largest of the adapters']
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u64).range(1..=65536))]
    rank: Option<u64>,

    /// Decides which elements dare keeps: the same each time, but not PyTorch's
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SignArgument {
    /// The sum of the elements
    Total,
    /// Most adapters
    Frequency,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { adapter, combine, out, density, majority_sign, rank, seed, json } = arguments;
    let majority_sign = match majority_sign {
        SignArgument::Total => MajoritySign::Total,
        SignArgument::Frequency => MajoritySign::Frequency,
    };
    let what = Combination { how: combine, density, majority_sign, rank, seed };
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

/// `DIR` or `DIR:WEIGHT`. What exists as it stands is a directory with a colon in its name.
fn parse_adapter(text: &str) -> Result<(PathBuf, f64), String> {
    if Path::new(text).exists() {
        return Ok((text.into(), 1.0));
    }
    match text.rsplit_once(':').map(|(dir, weight)| (dir, weight.parse::<f64>())) {
        Some((dir, Ok(weight))) if weight.is_finite() && !dir.is_empty() => Ok((dir.into(), weight)),
        Some((_, Ok(_))) => Err("the weight must be a number".into()),
        _ => Ok((text.into(), 1.0)),
    }
}

fn parse_how(name: &str) -> Result<How, String> {
    name.parse().map_err(|error: tenon::MergeError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_stands_after_the_last_colon() {
        assert_eq!(parse_adapter("a"), Ok(("a".into(), 1.0)));
        assert_eq!(parse_adapter("a:0.5"), Ok(("a".into(), 0.5)));
        assert_eq!(parse_adapter("dir:x/a:-2"), Ok(("dir:x/a".into(), -2.0)));
        assert_eq!(parse_adapter("dir:x/a"), Ok(("dir:x/a".into(), 1.0)));
        assert!(parse_adapter("a:nan").is_err());
        assert!(parse_how("ties_qr").unwrap_err().contains("none of linear"));
        assert_eq!(parse_how("ties_svd"), Ok(How::TiesSvd));
        assert_eq!(parse_how("dare_ties"), Ok(How::DareTies));
    }
}
