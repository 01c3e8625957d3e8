//! KaSA: `W' = W - U_r S_r V_rᵀ + s B diag(d) A`, LoRA beside a base that lost its smallest singular directions.
//!
//! `W = U S Vᵀ`, and `U_r S_r V_rᵀ` is its part along the `r` smallest singular values, `r` the adapter's rank;
//! PEFT takes it out of the base when the adapter is added. Where the `r` smallest are distinct from the others
//! that part is one matrix, whatever signs a decomposition picks. A base that lost it before loses nothing more.
//! Sources: Wang et al. 2024; PEFT 0.21.2, `tuners/lora/variants.py`.

use super::product::{Factors, Pair, whole};
use crate::svd::decompose;
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
        let (rows, cols) = (before.rows() as usize, before.cols());
        let svd = decompose(&whole(before)?, rows, cols);
        let kept = svd.values.len() - self.rank;
        let (a, b, d) = (adapter.values(self.a)?, adapter.values(self.b)?, adapter.values(self.diagonal)?);
        let mut out = Vec::with_capacity(rows * 2 * self.rank);
        for (row, b) in b.chunks_exact(self.rank).enumerate() {
            out.extend(b.iter().zip(d.iter()).map(|(b, d)| self.scale * (b * d)));
            out.extend((kept..svd.values.len()).map(|k| -svd.values[k] * svd.left[k][row]));
        }
        let mut input = a.to_vec();
        svd.right[kept..].iter().for_each(|direction| input.extend_from_slice(direction));
        Ok(Pair { out, input })
    }
}
