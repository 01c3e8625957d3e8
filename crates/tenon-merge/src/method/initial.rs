//! What LoRA adapters take out of the base that they begin with: PiSSA its largest singular directions, OLoRA the
//! first directions of its QR decomposition.
//!
//! * PiSSA: `W' = W - U_r S_r V_rᵀ + s B A`, along the `r` largest singular values. (`pissa_niter_N` finds them by
//!   random projections, other ones each time that PEFT loads the adapter, and is refused.)
//! * OLoRA: `W' = W - s Q_r R_r + s B A`, with `Q_r` the first `r` columns and `R_r` the first rows of `W = Q R`:
//!   `Q_r R_r = Q_r Q_rᵀ W`, whatever signs the decomposition picks.
//!
//! PEFT takes it out whenever it adds or loads an adapter whose configuration says so. One that was converted when
//! it was saved, or that was saved for a base without that part, says `init_lora_weights: true` and is plain LoRA.
//! Sources: Meng et al. 2024 (PiSSA); Büyükakyüz 2024 (OLoRA); PEFT 0.21.2, `tuners/lora/layer.py`.

use super::product::{Factors, Pair, rows_times, transpose, whole};
use crate::svd::{Along, orthogonalise, part};
use crate::{Adapter, Error, ValueRows};

/// What an adapter began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Initial {
    /// The largest singular directions.
    Singular,
    /// The first directions of a QR decomposition.
    Orthonormal,
}

impl Initial {
    /// By `init_lora_weights`.
    pub(super) fn of(init: &str) -> Option<Self> {
        match init {
            "pissa" => Some(Self::Singular),
            _ if init.eq_ignore_ascii_case("olora") => Some(Self::Orthonormal),
            _ => None,
        }
    }
}

/// The part of the base that it is.
#[derive(Debug)]
pub(super) struct TakenOut {
    pub(super) initial: Initial,
    pub(super) rank: usize,
    /// Whether the weight is stored `[in, out]`.
    pub(super) transposed: bool,
}

impl Factors for TakenOut {
    fn factors(&self, _: &Adapter, before: &dyn ValueRows) -> Result<Pair, Error> {
        let (rows, cols, rank) = (before.rows() as usize, before.cols(), self.rank);
        let values = whole(before)?;
        match self.initial {
            Initial::Singular => {
                let (a, b) = part(&values, rows, cols, Along::Largest(rank));
                Ok(match self.transposed {
                    false => Pair { out: b, input: a },
                    true => Pair { out: transpose(&a, rank, cols), input: transpose(&b, rows, rank) },
                })
            }
            Initial::Orthonormal => {
                let column = |k: usize| values.iter().skip(k).step_by(cols).copied().collect();
                let basis = orthogonalise((0..rank).map(column).collect()).0.concat();
                let out = transpose(&basis, rank, rows);
                let input = rows_times(before, &out, rank)?;
                Ok(Pair { out, input })
            }
        }
    }
}
