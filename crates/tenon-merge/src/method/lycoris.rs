//! What the methods from LyCORIS (LoHa, LoKr) have in common: their
//! configuration, and matrices given as two factors or as two factors and a core.
//!
//! A matrix `[rows, cols]` is `a b`, with `a [rows, r]` and `b [r, cols]`. The
//! weight of a convolution may have a core `t [r, r, k..]` between them, and
//! then `a` is `[r, rows]` and `b [r, in]`:
//! `M[o, (i, k)] = sum_p a[p, o] sum_q t[p, q, k] b[q, i]` (PEFT 0.21.2,
//! `tuners/loha/layer.py`, `lokr/layer.py`, `make_weight_cp`).

use std::sync::Arc;

use super::layer::Layer;
use super::scaling::Scaling;
use crate::edit::{Factor, pack};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error};

/// Reads what both have, refusing fields that are neither theirs nor among `known`.
pub(super) fn read(config: &AdapterConfig, known: &[&str]) -> Result<Scaling, Error> {
    let common = [
        "alpha",
        "alpha_pattern",
        "init_weights",
        // Dropped while training only.
        "module_dropout",
        "r",
        "rank_dropout",
        "rank_pattern",
        // The tensors tell.
        "use_effective_conv2d",
    ];
    config.refuse_unknown_fields(&[&common, known].concat())?;
    Scaling::read(config, "alpha", false)
}

/// A matrix as the adapter's tensors give it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    a: usize,
    b: usize,
    core: Option<usize>,
    pub(super) rows: usize,
    /// Input features, `kernel` columns each.
    inputs: usize,
    kernel: usize,
    pub(super) rank: usize,
    /// Whether all elements of both factors are `f32` values.
    pub(super) exact: bool,
}

/// A matrix as two factors.
pub(super) struct Factors {
    /// `[rows, rank]`.
    pub(super) left: Arc<[f64]>,
    /// `[rank, cols]`.
    pub(super) right: Arc<[f64]>,
}

impl Product {
    /// The matrix of `rows` rows and `inputs` times `layer`'s kernel columns that three tensors give;
    /// fails unless their shapes agree with it and `rank`.
    pub(super) fn new(
        [a, b]: [usize; 2],
        core: Option<usize>,
        [rows, inputs]: [u64; 2],
        rank: u64,
        layer: &Layer,
        planner: &Planner<'_>,
    ) -> Result<Self, Error> {
        let kernel = layer.kernel();
        let expect = |tensor: usize, shape: &[u64]| planner.expect_shape(tensor, layer.slot, shape);
        match core {
            None => {
                expect(a, &[rows, rank])?;
                expect(b, &[rank, inputs.saturating_mul(kernel)])?;
            }
            Some(core) => {
                let extents = match layer.shape[2..] {
                    [k] => [k, 1],
                    [k, l] => [k, l],
                    _ => {
                        let expected = "a convolution of one or two dimensions".into();
                        return Err(planner.shape_error(core, layer.slot, expected));
                    }
                };
                expect(a, &[rank, rows])?;
                expect(b, &[rank, inputs])?;
                expect(core, &[rank, rank, extents[0], extents[1]])?;
            }
        }
        Ok(Self {
            a,
            b,
            core,
            rows: rows as usize,
            inputs: inputs as usize,
            kernel: kernel as usize,
            rank: rank as usize,
            exact: core.is_none() && planner.is_narrow(a) && planner.is_narrow(b),
        })
    }

    pub(super) fn cols(&self) -> usize {
        self.inputs * self.kernel
    }

    pub(super) fn factors(&self, adapter: &Adapter) -> Result<Factors, Error> {
        let Self { rows, inputs, kernel, rank, .. } = *self;
        let Some(core) = self.core else {
            return Ok(Factors { left: adapter.values(self.a)?, right: adapter.values(self.b)? });
        };
        let left = pack(adapter, &Factor::by_rank(self.a, rows as u64), 1, rows, rank, false)?;
        let (core, b) = (adapter.values(core)?, adapter.values(self.b)?);
        let mut right = vec![0.0; rank * inputs * kernel];
        for p in 0..rank {
            for q in 0..rank {
                let core = &core[(p * rank + q) * kernel..][..kernel];
                let b = &b[q * inputs..][..inputs];
                let right = right[p * inputs * kernel..][..inputs * kernel].chunks_exact_mut(kernel.max(1));
                for (right, b) in right.zip(b) {
                    for (sum, t) in right.iter_mut().zip(core) {
                        *sum += t * b;
                    }
                }
            }
        }
        Ok(Factors { left, right: right.into() })
    }
}
