//! Low-rank updates whose factors are not stored as they are multiplied:
//! `s B diag(d) A`, where `A` or `B` may be block-diagonal, or `A` pooled.
//!
//! | factor | stored | stands for |
//! | --- | --- | --- |
//! | dense | `A [r, in]`, `B [out, r]` | itself |
//! | blocks | `A [r, in / n]`, `B [out, r / n]` | `n` blocks along the diagonal |
//! | pooled | `A [r, in / g]` | each column `g` times: `A` of the sums of `g` inputs |

use crate::edit::{Edit, PreparedEdit, PreparedLowRank, ValueRows};
use crate::method::layer::Layer;
use crate::planner::Planner;
use crate::{Adapter, Error};

/// How a factor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    Dense,
    Blocks(u64),
    Pooled(u64),
}

/// `W += scale B diag(d) A`, or its transpose.
#[derive(Debug, Clone)]
pub(super) struct Composed {
    pub(super) a: (usize, Storage),
    pub(super) b: (usize, Storage),
    pub(super) diagonal: Option<usize>,
    pub(super) rank: u64,
    pub(super) scale: f64,
}

impl Composed {
    /// Adds the edit of a layer; fails unless the factors' shapes agree with it.
    pub(super) fn plan(
        self,
        layer: &Layer,
        label: &'static str,
        planner: &mut Planner<'_>,
    ) -> Result<(), Error> {
        let Self { a, b, diagonal, rank, scale } = self;
        let wrong = |tensor: usize, n: u64| {
            planner.shape_error(tensor, layer.slot, format!("extents that {n} blocks divide"))
        };
        let (out, input) = (layer.out, layer.input);
        let narrowed = |(tensor, storage): (usize, Storage), extent: u64| match storage {
            Storage::Dense => Ok(extent),
            Storage::Blocks(n) if n == 0 || !extent.is_multiple_of(n) => Err(wrong(tensor, n)),
            Storage::Pooled(n) if n == 0 || !extent.is_multiple_of(n) => Err(wrong(tensor, n)),
            Storage::Blocks(n) | Storage::Pooled(n) => Ok(extent / n),
        };
        planner.expect_shape(a.0, layer.slot, &[rank, narrowed(a, input)?])?;
        planner.expect_shape(b.0, layer.slot, &[out, narrowed(b, rank)?])?;
        // An unfolded factor must not be larger than the weight, whatever a file of few bytes says.
        if [a.1, b.1] != [Storage::Dense; 2] && rank > out.min(input) {
            return Err(planner.shape_error(
                a.0,
                layer.slot,
                format!("a rank of at most {}", out.min(input)),
            ));
        }
        // The blocks' other side.
        if let (_, Storage::Blocks(n)) = a
            && !rank.is_multiple_of(n)
        {
            return Err(wrong(a.0, n));
        }
        if let (_, Storage::Blocks(n)) = b
            && !out.is_multiple_of(n)
        {
            return Err(wrong(b.0, n));
        }
        if let Some(diagonal) = diagonal
            && planner.adapter.tensors()[diagonal].elements() != rank
        {
            return Err(planner.shape_error(diagonal, layer.slot, format!("{rank} elements")));
        }
        let exact = diagonal.is_none() && planner.is_narrow(a.0) && planner.is_narrow(b.0);
        let edit = Edited {
            composed: Self { a, b, diagonal, rank, scale },
            out: out as usize,
            input: input as usize,
            transposed: layer.transposed,
            exact,
        };
        planner.edit(layer.slot, label, edit);
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Edited {
    composed: Composed,
    out: usize,
    input: usize,
    transposed: bool,
    exact: bool,
}

impl Edit for Edited {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let Self { out, input, transposed, exact, .. } = *self;
        let Composed { a, b, diagonal, rank, scale } = self.composed;
        let rank = rank as usize;
        let mut a = unfold(&adapter.values(a.0)?, a.1, rank, input);
        let b = unfold(&adapter.values(b.0)?, b.1, out, rank);
        if let Some(diagonal) = diagonal {
            let diagonal = adapter.values(diagonal)?;
            for (row, factor) in a.chunks_exact_mut(input.max(1)).zip(diagonal.iter()) {
                row.iter_mut().for_each(|value| *value *= factor);
            }
        }
        let (left, right, rows, cols) = if transposed {
            (transpose(&a, input), transpose(&b, rank), input, out)
        } else {
            (b, a, out, input)
        };
        Ok(Box::new(PreparedLowRank {
            left: left.into(),
            right: right.into(),
            rank,
            groups: 1,
            rows_per_group: rows,
            cols,
            scale,
            exact,
        }))
    }
}

/// A factor `[rows, cols]` as it is multiplied.
fn unfold(values: &[f64], storage: Storage, rows: usize, cols: usize) -> Vec<f64> {
    let mut unfolded = vec![0.0; rows * cols];
    if unfolded.is_empty() {
        return unfolded;
    }
    for (row, target) in unfolded.chunks_exact_mut(cols).enumerate() {
        match storage {
            Storage::Dense => target.copy_from_slice(&values[row * cols..][..cols]),
            Storage::Blocks(n) => {
                let (width, height) = (cols / n as usize, rows / n as usize);
                let block = row / height;
                target[block * width..][..width].copy_from_slice(&values[row * width..][..width]);
            }
            Storage::Pooled(group) => {
                let (group, width) = (group as usize, cols / group as usize);
                let pooled = &values[row * width..][..width];
                for (targets, value) in target.chunks_exact_mut(group).zip(pooled) {
                    targets.fill(*value);
                }
            }
        }
    }
    unfolded
}

/// The transpose of a matrix of `cols` columns.
fn transpose(values: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_unfold() {
        let values = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(unfold(&values, Storage::Dense, 2, 2), values);
        assert_eq!(unfold(&values, Storage::Blocks(2), 2, 4), [1., 2., 0., 0., 0., 0., 3., 4.]);
        assert_eq!(unfold(&values, Storage::Blocks(2), 4, 2), [1., 0., 2., 0., 0., 3., 0., 4.]);
        assert_eq!(unfold(&values, Storage::Pooled(2), 2, 4), [1., 1., 2., 2., 3., 3., 4., 4.]);
        assert_eq!(transpose(&[1., 2., 3., 4., 5., 6.], 3), [1., 4., 2., 5., 3., 6.]);
    }
}
