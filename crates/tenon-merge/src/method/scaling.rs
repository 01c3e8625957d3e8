//! Rank and scale of a module by its path: `alpha / r`, each perhaps by a pattern of its own.

use crate::pattern::Patterns;
use crate::{AdapterConfig, Error};

/// Ranks and alphas of a configuration.
#[derive(Debug)]
pub(crate) struct Scaling {
    rank: u64,
    alpha: f64,
    rank_pattern: Patterns,
    alpha_pattern: Patterns,
    rank_stabilised: bool,
}

impl Scaling {
    /// Reads `r`, `rank_pattern`, `alpha_pattern`, and alpha from the field `alpha`. Both are 8 where
    /// they are left out, as in PEFT.
    pub(crate) fn read(config: &AdapterConfig, alpha: &str, rank_stabilised: bool) -> Result<Self, Error> {
        let not_whole = |(_, rank): &(&str, f64)| *rank < 1.0 || rank.fract() != 0.0;
        if config.numbers_by_pattern("rank_pattern")?.iter().any(not_whole) {
            return Err(config.wrong("rank_pattern", "whole numbers above 0"));
        }
        Ok(Self {
            rank: config.count("r")?.unwrap_or(8),
            alpha: config.number(alpha)?.unwrap_or(8.0),
            rank_pattern: Patterns::read(config, "rank_pattern")?,
            alpha_pattern: Patterns::read(config, "alpha_pattern")?,
            rank_stabilised,
        })
    }

    /// Rank and scale of a module (or parameter) by its path, where the stored rank is one of those
    /// that the configuration allows; else the rank it asks for.
    pub(crate) fn of(&self, path: &str, stored: u64) -> Result<(u64, f64), u64> {
        // PEFT sorts the patterns when it saves them, so the first that matches need not be the one
        // that training went by. The tensor tells.
        let mut ranks = self.rank_pattern.all(path).map(|r| r as u64).peekable();
        let wanted = ranks.peek().copied().unwrap_or(self.rank);
        let rank = if ranks.any(|rank| rank == stored) { stored } else { wanted };
        if rank == stored { Ok((rank, self.scale(path, rank))) } else { Err(rank) }
    }

    /// The largest rank that any module may have.
    pub(crate) fn largest_rank(&self) -> u64 {
        self.rank_pattern.numbers().map(|r| r as u64).max().unwrap_or(0).max(self.rank)
    }

    /// Rank and scale of a module whose tensors do not tell its rank.
    pub(crate) fn by_path(&self, path: &str) -> (u64, f64) {
        let rank = self.rank_pattern.find(path).map_or(self.rank, |r| r as u64);
        (rank, self.scale(path, rank))
    }

    fn scale(&self, path: &str, rank: u64) -> f64 {
        let alpha = self.alpha_pattern.find(path).unwrap_or(self.alpha);
        if self.rank_stabilised { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }
}
