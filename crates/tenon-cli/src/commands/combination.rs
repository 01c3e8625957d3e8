//! The arguments that name several adapters and say how they are combined.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tenon::{Combination, How, MajoritySign};

/// How adapters are combined, beside the way itself.
#[derive(Debug, Clone, Args)]
pub(crate) struct CombinationArguments {
    /// Share of elements that ties, magnitude_prune and dare keep, up to 1 [default: 1]
    #[arg(long, value_name = "SHARE", requires = "combine")]
    density: Option<f64>,

    /// What decides an element's sign in ties and dare_ties [default: total]
    #[arg(long, value_enum, value_name = "SIGN", requires = "combine")]
    majority_sign: Option<SignArgument>,

    /// Rank of the result of svd and those with _svd [default: the largest of the adapters']
    #[arg(long, value_name = "RANK", requires = "combine", value_parser = clap::value_parser!(u64).range(1..=65536))]
    rank: Option<u64>,
}

impl CombinationArguments {
    /// The combination that they ask for.
    pub(crate) fn combination(&self, how: How, seed: u64) -> Combination {
        let majority_sign = match self.majority_sign {
            None | Some(SignArgument::Total) => MajoritySign::Total,
            Some(SignArgument::Frequency) => MajoritySign::Frequency,
        };
        Combination { how, density: self.density.unwrap_or(1.0), majority_sign, rank: self.rank, seed }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SignArgument {
    /// The sum of the elements
    Total,
    /// Most adapters
    Frequency,
}

/// `DIR` or `DIR:WEIGHT`. What exists as it stands is a directory with a colon in its name.
pub(crate) fn parse_adapter(text: &str) -> Result<(PathBuf, f64), String> {
    if Path::new(text).exists() {
        return Ok((text.into(), 1.0));
    }
    match text.rsplit_once(':').map(|(dir, weight)| (dir, weight.parse::<f64>())) {
        Some((dir, Ok(weight))) if weight.is_finite() && !dir.is_empty() => Ok((dir.into(), weight)),
        Some((_, Ok(_))) => Err("the weight must be a number".into()),
        _ => Ok((text.into(), 1.0)),
    }
}

pub(crate) fn parse_how(name: &str) -> Result<How, String> {
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
