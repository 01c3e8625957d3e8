//! SHiRA: `W' = W + S`, `S` sparse.
//!
//! `shira_indices [2, n]` holds rows and columns, `shira_weight [n]` the values
//! that are added there; a place named twice gets both. Sources: Bhardwaj et
//! al. 2024; PEFT 0.21.2, `tuners/shira/layer.py` (`torch.sparse_coo_tensor`,
//! scaled by 1).

use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Edit, PreparedEdit, Tile, ValueRows};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "SHIRA",
    name: "SHiRA",
    formula: "`W + S`, `S` sparse",
    source: "Bhardwaj et al. 2024",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Shira;

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    // What chose the places while training; the adapter holds them.
    config.refuse_unknown_fields(&["fan_in_fan_out", "init_weights", "mask_type", "r", "random_seed"])?;
    Ok(Box::new(Shira))
}

impl Method for Shira {
    fn parameters(&self) -> &'static [&'static str] {
        &["shira_weight", "shira_indices"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let weight = module.need("shira_weight", planner)?;
            let indices = module.need("shira_indices", planner)?;
            let layer = planner.layer(module, weight, Features::default())?;
            let count = planner.adapter_shape(weight).first().copied().unwrap_or(0);
            planner.expect_shape(weight, layer.slot, &[count])?;
            planner.expect_shape(indices, layer.slot, &[2, count])?;
            if layer.is_conv() || layer.transposed {
                return Err(planner.shape_error(weight, layer.slot, "the weight of a linear layer".into()));
            }
            let edit = Sparse { weight, indices, rows: layer.rows(), cols: layer.cols() };
            planner.edit(layer.slot, "SHiRA", edit);
        }
        Ok(())
    }
}

/// `W[i, j] += s` for each of a list of places.
#[derive(Debug, Clone, Copy)]
struct Sparse {
    weight: usize,
    indices: usize,
    rows: u64,
    cols: u64,
}

/// Places in the order of rows, then columns.
pub(super) struct PreparedSparse {
    places: Vec<(u64, u64, f64)>,
}

impl PreparedSparse {
    /// Takes row, column and value of each place, in the order in which values for one place are added.
    pub(super) fn new(mut places: Vec<(u64, u64, f64)>) -> Self {
        // Stable.
        places.sort_by_key(|(row, col, _)| (*row, *col));
        Self { places }
    }
}

impl Edit for Sparse {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let weights = adapter.values(self.weight)?;
        let indices = adapter.integers(self.indices)?;
        let (rows, cols) = indices.split_at(indices.len() / 2);
        let outside = |what: &str, found: i64, below: u64| Error::Index {
            tensor: adapter.tensors()[self.indices].name.clone(),
            what: what.into(),
            found,
            below,
        };
        let within = |n: i64, below: u64| u64::try_from(n).ok().filter(|n| *n < below);
        let mut places = Vec::with_capacity(weights.len());
        for ((row, col), weight) in rows.iter().zip(cols).zip(weights.iter()) {
            let r = within(*row, self.rows).ok_or_else(|| outside("row", *row, self.rows))?;
            let c = within(*col, self.cols).ok_or_else(|| outside("column", *col, self.cols))?;
            places.push((r, c, *weight));
        }
        Ok(Box::new(PreparedSparse::new(places)))
    }
}

impl PreparedEdit for PreparedSparse {
    fn apply(&self, tile: &mut Tile<'_>) {
        let (first_row, cols, first_col) = (tile.first_row, tile.cols, tile.first_col);
        let end = first_row + tile.rows() as u64;
        let first = self.places.partition_point(|(row, ..)| *row < first_row);
        let in_rows = self.places[first..].iter().take_while(|(row, ..)| *row < end);
        for (row, col, weight) in in_rows {
            let col = *col as usize;
            if (first_col..first_col + cols).contains(&col) {
                let row = (*row - first_row) as usize;
                tile.values[row * cols + col - first_col] += weight;
            }
        }
    }
}
