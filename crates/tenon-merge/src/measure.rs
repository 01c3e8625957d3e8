//! What a merge did to each tensor, measured while it is done.
//!
//! Every strip of an edited tensor is compared before the edit, after it and
//! after rounding. The sums of a tensor are added in the order of its rows,
//! whichever thread came first, so that the figures are the same each time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::kernel::Differences;

/// How far a tensor was moved, and what rounding cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorMeasure {
    /// Name.
    pub name: String,
    /// Elements.
    pub elements: u64,
    /// Elements that came out with another value.
    pub changed: u64,
    /// Euclidean (Frobenius) norm of the base's values.
    pub base_norm: f64,
    /// Norm of what the adapter added, before rounding.
    pub delta_norm: f64,
    /// Largest magnitude that it added to an element.
    pub largest_delta: f64,
    /// Norm of the difference between the exact result and the one written.
    pub rounding_norm: f64,
    /// Effective rank of the low-rank product: `(sum s²)² / sum s⁴` over its singular values `s`.
    /// It is 1 when one direction carries everything, the rank when all carry the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_rank: Option<f64>,
}

/// Gathers the measures of tensors as their rows come by in any order, each row once.
#[derive(Debug, Default)]
pub(crate) struct Measuring {
    tensors: Mutex<BTreeMap<usize, Gathering>>,
}

#[derive(Debug, Default)]
struct Gathering {
    /// Sums of tiles by their first row, until all rows came by.
    tiles: BTreeMap<u64, (u64, Differences)>,
    sums: Differences,
    /// Rows in `sums`.
    rows: u64,
    effective_rank: Option<f64>,
}

impl Measuring {
    /// Takes in a tile: `count` rows from `first_row` on.
    pub(crate) fn add(&self, tensor: usize, first_row: u64, count: u64, tile: Differences) {
        let mut tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        let gathering = tensors.entry(tensor).or_default();
        gathering.tiles.insert(first_row, (count, tile));
        while let Some((count, tile)) = gathering.tiles.remove(&gathering.rows) {
            gathering.rows += count;
            gathering.sums = add(gathering.sums, tile);
        }
    }

    /// Notes the effective rank of a tensor's low-rank product.
    pub(crate) fn rank(&self, tensor: usize, effective_rank: Option<f64>) {
        let mut tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        tensors.entry(tensor).or_default().effective_rank = effective_rank;
    }

    /// The measures of a tensor of `rows` rows, once all of them came by.
    pub(crate) fn of(&self, tensor: usize, rows: u64, name: &str, elements: u64) -> Option<TensorMeasure> {
        let tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        let Gathering { sums, rows: seen, effective_rank, .. } = tensors.get(&tensor)?;
        (*seen == rows).then(|| TensorMeasure {
            name: name.to_string(),
            elements,
            changed: sums.changed as u64,
            base_norm: sums.before.sqrt(),
            delta_norm: sums.delta.sqrt(),
            largest_delta: sums.largest,
            rounding_norm: sums.rounding.sqrt(),
            effective_rank: *effective_rank,
        })
    }
}

/// Sums of both.
pub(crate) fn add(a: Differences, b: Differences) -> Differences {
    Differences {
        before: a.before + b.before,
        delta: a.delta + b.delta,
        rounding: a.rounding + b.rounding,
        largest: if b.largest > a.largest { b.largest } else { a.largest },
        changed: a.changed + b.changed,
    }
}

/// Rank up to which an effective rank is worth its `rank² (rows + cols)` products.
const MEASURED_RANK: usize = 64;

/// Effective rank of `left * right`, `left` being `[rows, rank]` and `right` `[rank, cols]`.
///
/// The squares of the product's singular values are the eigenvalues of
/// `M = (leftᵀ left)(right rightᵀ)`, so their sum is the trace of `M` and the
/// sum of their squares that of `M²`: nothing larger than rank × rank is made.
pub(crate) fn effective_rank(left: &[f64], right: &[f64], rank: usize) -> Option<f64> {
    if rank == 0 || rank > MEASURED_RANK {
        return None;
    }
    let mut left_gram = vec![0.0; rank * rank];
    for row in left.chunks_exact(rank) {
        for (i, a) in row.iter().enumerate() {
            for (sum, b) in left_gram[i * rank..].iter_mut().zip(row) {
                *sum += a * b;
            }
        }
    }
    let cols = right.len() / rank;
    let right_row = |k: usize| &right[k * cols..(k + 1) * cols];
    let mut right_gram = vec![0.0; rank * rank];
    for i in 0..rank {
        for j in 0..=i {
            let dot: f64 = right_row(i).iter().zip(right_row(j)).map(|(a, b)| a * b).sum();
            (right_gram[i * rank + j], right_gram[j * rank + i]) = (dot, dot);
        }
    }
    let product = |i: usize, j: usize| -> f64 {
        (0..rank).map(|k| left_gram[i * rank + k] * right_gram[k * rank + j]).sum()
    };
    let matrix: Vec<f64> = (0..rank * rank).map(|at| product(at / rank, at % rank)).collect();
    let trace: f64 = (0..rank).map(|i| matrix[i * rank + i]).sum();
    let squares: f64 = (0..rank * rank).map(|at| matrix[at] * matrix[at % rank * rank + at / rank]).sum();
    let effective = trace * trace / squares;
    effective.is_finite().then_some(effective)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_direction_counts_one_and_equal_ones_count_all() {
        // Orthogonal columns and rows with norms 1, 1: both directions carry the same.
        assert_eq!(effective_rank(&[1., 0., 0., 1., 0., 0.], &[0., 1., 1., 0.], 2), Some(2.0));
        // The second column is zero.
        assert_eq!(effective_rank(&[3., 0., 4., 0.], &[1., 2., 5., 6.], 2), Some(1.0));
        // Singular values 2 and 1: (4 + 1)² / (16 + 1).
        assert_eq!(effective_rank(&[2., 0., 0., 1.], &[1., 0., 0., 1.], 2), Some(25.0 / 17.0));
        // Nothing learnt yet.
        assert_eq!(effective_rank(&[0.; 4], &[1., 0., 0., 1.], 2), None);
    }

    #[test]
    fn tiles_in_any_order_give_the_same_sums() {
        let tile =
            |x: f64| Differences { before: x, delta: x / 3.0, rounding: x / 7.0, largest: x, changed: 1.0 };
        let in_order = Measuring::default();
        let reversed = Measuring::default();
        for i in 0..10u32 {
            in_order.add(3, u64::from(i) * 2, 2, tile(0.1 + f64::from(i)));
            let j = 9 - i;
            assert_eq!(reversed.of(3, 20, "w", 60), None);
            reversed.add(3, u64::from(j) * 2, 2, tile(0.1 + f64::from(j)));
        }
        assert_eq!(in_order.of(3, 20, "w", 60), reversed.of(3, 20, "w", 60));
        assert_eq!(reversed.of(3, 20, "w", 60).unwrap().changed, 10);
    }
}
