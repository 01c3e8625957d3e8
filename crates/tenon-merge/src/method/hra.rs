//! HRA: the weight's input side reflected `r` times,
//! `W' = W (I - 2 u_1 u_1ᵀ) .. (I - 2 u_r u_rᵀ)`, each `u` scaled to length 1.
//!
//! `hra_u` is `[in, r]`. With `apply_GS` the vectors are first made orthogonal
//! (Gram and Schmidt, each against those before it), and the product equals
//! `I - 2 Σ u uᵀ`. Sources: Yuan et al. 2024; PEFT 0.21.2, `tuners/hra/layer.py`.

use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Edit, PreparedEdit, Tile, ValueRows};
use crate::kernel::{self, Level};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "HRA",
    name: "HRA",
    formula: "`W (I - 2 u_1 u_1ᵀ) .. (I - 2 u_r u_rᵀ)`",
    source: "Yuan et al. 2024",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Hra {
    rank: u64,
    orthogonalise: bool,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&["apply_GS", "bias", "init_weights", "r"])?;
    let rank = config.count("r")?.unwrap_or(8);
    Ok(Box::new(Hra { rank, orthogonalise: config.flag("apply_GS")? }))
}

impl Method for Hra {
    fn parameters(&self) -> &'static [&'static str] {
        &["hra_u"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let u = module.need("hra_u", planner)?;
            let layer = planner.layer(module, u, Features::default())?;
            planner.expect_plain(u, &layer)?;
            let stored = planner.adapter_shape(u).get(1).copied().unwrap_or(0);
            planner.expect_shape(u, layer.slot, &[layer.input, stored])?;
            if stored != self.rank {
                return Err(planner.rank_error(module, u, stored, self.rank));
            }
            if self.orthogonalise && stored > layer.input {
                // PEFT divides what rounding left of the last ones by its length.
                return Err(planner.adapter.config().not_understood(
                    "apply_GS",
                    format!("{stored} vectors of {} elements cannot all be orthogonal", layer.input),
                ));
            }
            let edit = Reflect { u, rank: stored as usize, orthogonalise: self.orthogonalise };
            planner.edit(layer.slot, "HRA", edit);
        }
        Ok(())
    }
}

/// `W := W (I - 2 u uᵀ)` for one vector after another.
#[derive(Debug, Clone, Copy)]
struct Reflect {
    u: usize,
    rank: usize,
    orthogonalise: bool,
}

struct PreparedReflect {
    /// Of length 1.
    vectors: Vec<Vec<f64>>,
}

impl Edit for Reflect {
    fn needs_whole_rows(&self) -> bool {
        true
    }

    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let level = Level::detect();
        let values = adapter.values(self.u)?;
        let mut vectors: Vec<Vec<f64>> = Vec::with_capacity(self.rank);
        for k in 0..self.rank {
            let mut vector: Vec<f64> = values.iter().skip(k).step_by(self.rank).copied().collect();
            if self.orthogonalise {
                for before in &vectors {
                    let along = kernel::dot(level, before, &vector);
                    kernel::add_scaled(level, &mut vector, before, -along);
                }
            }
            let norm = kernel::row_norm(level, &vector);
            vector.iter_mut().for_each(|value| *value /= norm);
            vectors.push(vector);
        }
        Ok(Box::new(PreparedReflect { vectors }))
    }
}

impl PreparedEdit for PreparedReflect {
    fn apply(&self, tile: &mut Tile<'_>) {
        for row in tile.values.chunks_exact_mut(tile.cols.max(1)) {
            for vector in &self.vectors {
                let along = kernel::dot(tile.level, row, vector);
                kernel::add_scaled(tile.level, row, vector, -2.0 * along);
            }
        }
    }
}
