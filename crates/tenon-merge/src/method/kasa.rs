//! KaSA: `W' = W - U_r S_r V_rᵀ + s B diag(d) A`, LoRA beside a base that lost its smallest singular directions.
//!
//! `W = U S Vᵀ`, and `U_r S_r V_rᵀ` is its part along the `r` smallest singular values, `r` the adapter's rank;
//! PEFT takes it out of the base when the adapter is added. Where the `r` smallest are distinct from the others
//! that part is one matrix, whatever signs a decomposition picks. A base that lost it before loses nothing more.
//! Sources: Wang et al. 2024; PEFT 0.21.2, `tuners/lora/variants.py`.

use super::product::{Factors, Pair, instead_of_smallest};
use crate::{Adapter, Error, ValueRows};

/// The factors of both updates beside each other, of rank `2 r`.
#[derive(Debug)]
pub(super) struct Kasa {
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) diagonal: usize,
    pub(super) rank: usize,
    pub(super) scale: f64,
}

impl Factors for Kasa {
    fn factors(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Pair, Error> {
        let (a, b, d) = (adapter.values(self.a)?, adapter.values(self.b)?, adapter.values(self.diagonal)?);
        let scaled = b.iter().zip(d.iter().cycle()).map(|(b, d)| self.scale * (b * d));
        instead_of_smallest(before, self.rank, scaled, &a)
    }
}
