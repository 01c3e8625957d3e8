//! FRoD: `W' = W V⁻ᵀ D⁻¹ (S + Λ) Vᵀ`, the base seen through a projection that layers of one kind share.
//!
//! `V` is `[in, in]` (`frod_V.<kind>`), and `U = W V⁻ᵀ D⁻¹`, with `D` the norms of the columns of `W V⁻ᵀ` (columns
//! shorter than 1e-12 are 0). The adapter trains the diagonal `Λ` (`frod_lambda_l [in]`) and a sparse `S`
//! (`frod_lambda_s_values`) at the places in `frod_s_indices.<kind> [2, n]`; PEFT makes `U` of the base when the
//! adapter is loaded, and merges `U (S + Λ) Vᵀ` in the base's place. A kind is the last two parts of a module's
//! path. Source: PEFT 0.21.2, `tuners/frod/layer.py`, `model.py`.
//!
//! An adapter may leave the projections out (`save_projection: false`). They are eigenvectors of all layers of a
//! kind, up to their signs, which `S` depends on: such an adapter is refused.

use std::sync::Arc;

use super::layer::{Features, Layer};
use super::product::{decomposition_bytes, transpose, whole};
use super::{KnownMethod, Merging, Method, Module};
use crate::kernel::{self, Level};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, Tile, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "FROD",
    name: "FRoD",
    formula: "`W V⁻ᵀ D⁻¹ (S + Λ) Vᵀ`, `V` shared by layers of a kind, `S` sparse; needs `save_projection`",
    source: "PEFT, `tuners/frod`",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Frod;

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        "fan_in_fan_out",
        "frod_dropout",
        "init_weights",
        "progressbar",
        "projection_prng_key",
        "regularization_alpha",
        "runtime_offload_base_weight",
        // The tensors tell.
        "save_projection",
        "sparse_rate",
    ])?;
    Ok(Box::new(Frod))
}

impl Method for Frod {
    fn parameters(&self) -> &'static [&'static str] {
        &["frod_lambda_l", "frod_lambda_s_values", "frod_V.*", "frod_s_indices.*", "frod_s_size.*"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        let shared = modules.iter().find(|module| module.path == "base_model");
        for module in modules.iter().filter(|module| module.path != "base_model") {
            let diagonal = module.need("frod_lambda_l", planner)?;
            let values = module.need("frod_lambda_s_values", planner)?;
            let kind = kind_of(&module.path);
            let part = |name: &str| shared.and_then(|shared| shared.get(&format!("{name}.{kind}")));
            let (Some(v), Some(places)) = (part("frod_V"), part("frod_s_indices")) else {
                return Err(planner.adapter.config().not_understood(
                    "save_projection",
                    format!(
                        "the projection of {kind} was not saved, and its eigenvectors' signs are not in the adapter: \
                         save it again with save_projection"
                    ),
                ));
            };
            let input = planner.adapter_shape(diagonal).first().copied();
            let layer = planner.layer(module, diagonal, Features { out: None, input })?;
            if layer.is_conv() {
                return Err(planner.shape_error(diagonal, layer.slot, "the weight of a linear layer".into()));
            }
            planner.expect_shape(diagonal, layer.slot, &[layer.input])?;
            planner.expect_shape(v, layer.slot, &[layer.input, layer.input])?;
            let sparse = match planner.adapter_shape(values) {
                [count] => *count,
                _ => return Err(planner.shape_error(values, layer.slot, "a vector".into())),
            };
            planner.expect_shape(places, layer.slot, &[2, sparse])?;
            // Says once more how wide `S` is.
            if let Some(size) = part("frod_s_size") {
                planner.expect_shape(size, layer.slot, &[2])?;
            }
            let held =
                decomposition_bytes(&layer).saturating_add(layer.input.saturating_pow(2).saturating_mul(16));
            planner.edit(layer.slot, "FRoD", Reprojected { v, places, diagonal, values, layer, held });
        }
        Ok(())
    }
}

/// What layers that share a projection have in common, as PEFT tells it from a module's path.
fn kind_of(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let [.., before, last] = parts[..] else { return path.into() };
    if !before.is_empty() && before.bytes().all(|byte| byte.is_ascii_digit()) {
        return last.into();
    }
    let kind = format!("{before}_{last}");
    let attention = parts.len() >= 3 && parts[parts.len() - 3] == "attention";
    if kind == "output_dense" && attention { "attention_output".into() } else { kind }
}

#[derive(Debug)]
struct Reprojected {
    v: usize,
    places: usize,
    diagonal: usize,
    values: usize,
    layer: Layer,
    held: u64,
}

impl Edit for Reprojected {
    fn held_bytes(&self) -> u64 {
        self.held
    }

    fn prepare(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let level = Level::detect();
        let Layer { out, input, transposed, .. } = self.layer;
        let (out, input) = (out as usize, input as usize);
        let v = adapter.values(self.v)?;
        // Wᵀ, `[in, out]`, becomes `(W V⁻ᵀ)ᵀ`.
        let weight = whole(before)?;
        let mut columns = if transposed { weight } else { transpose(&weight, out, input) };
        if !solve(&v, input, &mut columns, out) {
            return Err(adapter.config().not_understood(
                "frod_V",
                "the projection cannot be inverted; PEFT then takes a pseudo-inverse with a threshold, which Tenon does not",
            ));
        }
        for column in columns.chunks_exact_mut(out.max(1)) {
            let norm = kernel::row_norm(level, column);
            column.iter_mut().for_each(|value| *value = if norm > 1e-12 { *value / norm } else { 0.0 });
        }
        // `(U (S + Λ))ᵀ`: row j is the sum of rows i of Uᵀ times (S + Λ)[i][j].
        let mut projected = vec![0.0; columns.len()];
        let mut add = |from: usize, to: usize, factor: f64| {
            let target = &mut projected[to * out..][..out];
            kernel::add_scaled(level, target, &columns[from * out..][..out], factor);
        };
        for (k, factor) in adapter.values(self.diagonal)?.iter().enumerate() {
            add(k, k, *factor);
        }
        let (places, values) = (adapter.integers(self.places)?, adapter.values(self.values)?);
        let (rows, cols) = places.split_at(values.len());
        for ((row, col), value) in rows.iter().zip(cols).zip(values.iter()) {
            let inside = |place: i64| usize::try_from(place).ok().filter(|place| *place < input);
            let (Some(row), Some(col)) = (inside(*row), inside(*col)) else {
                return Err(Error::Index {
                    tensor: adapter.tensors()[self.places].name.clone(),
                    what: "place".into(),
                    found: if inside(*row).is_none() { *row } else { *col },
                    below: input as u64,
                });
            };
            add(row, col, *value);
        }
        // `W'ᵀ = V (U (S + Λ))ᵀ`.
        columns.fill(0.0);
        for (row, factors) in columns.chunks_exact_mut(out.max(1)).zip(v.chunks_exact(input.max(1))) {
            for (from, factor) in projected.chunks_exact(out.max(1)).zip(factors) {
                kernel::add_scaled(level, row, from, *factor);
            }
        }
        let merged = if transposed { columns } else { transpose(&columns, input, out) };
        Ok(Box::new(Merged { values: merged.into(), cols: before.cols() }))
    }
}

/// Solves `M X = B` for a square `M` and many right sides, in place: elimination with the largest pivots. Gives
/// whether there is a solution.
fn solve(matrix: &[f64], n: usize, right: &mut [f64], cols: usize) -> bool {
    let level = Level::detect();
    let mut matrix = matrix.to_vec();
    for k in 0..n {
        let size = |row: &usize| matrix[row * n + k].abs();
        let pivot = (k..n).max_by(|a, b| size(a).total_cmp(&size(b)).then(b.cmp(a))).unwrap_or(k);
        let value = matrix[pivot * n + k];
        if value == 0.0 || !value.is_finite() {
            return false;
        }
        for (values, width) in [(&mut matrix[..], n), (&mut *right, cols)] {
            if pivot != k {
                let (first, second) = values.split_at_mut(pivot * width);
                first[k * width..][..width].swap_with_slice(&mut second[..width]);
            }
        }
        for row in k + 1..n {
            let factor = -matrix[row * n + k] / value;
            if factor != 0.0 {
                for (values, width, from) in [(&mut matrix[..], n, k), (&mut *right, cols, 0)] {
                    let (first, second) = values.split_at_mut(row * width);
                    kernel::add_scaled(
                        level,
                        &mut second[from..width],
                        &first[k * width + from..][..width - from],
                        factor,
                    );
                }
            }
        }
    }
    for k in (0..n).rev() {
        let (first, second) = right.split_at_mut(k * cols);
        let own = &mut second[..cols];
        own.iter_mut().for_each(|value| *value /= matrix[k * n + k]);
        for row in 0..k {
            kernel::add_scaled(level, &mut first[row * cols..][..cols], own, -matrix[row * n + k]);
        }
    }
    true
}

/// The whole merged weight, as stored.
struct Merged {
    values: Arc<[f64]>,
    cols: usize,
}

impl PreparedEdit for Merged {
    fn apply(&self, tile: &mut Tile<'_>) {
        for (row, values) in tile.values.chunks_exact_mut(tile.cols.max(1)).enumerate() {
            let start = (tile.first_row as usize + row) * self.cols + tile.first_col;
            values.copy_from_slice(&self.values[start..start + tile.cols]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_as_peft_tells_them() {
        for (path, kind) in [
            ("model.layers.3.self_attn.q_proj", "self_attn_q_proj"),
            ("encoder.layer.0.attention.output.dense", "attention_output"),
            ("encoder.layer.0.output.dense", "output_dense"),
            ("h.2.c_attn", "c_attn"),
            ("score", "score"),
        ] {
            assert_eq!(kind_of(path), kind);
        }
    }

    #[test]
    fn a_system_is_solved_and_one_without_solution_is_told() {
        // The first pivot is 0: rows are exchanged.
        let matrix = [0.0, 2.0, 1.0, 1.0, -1.0, 0.0, 3.0, 0.5, -2.0];
        let solution = [1.0, -2.0, 0.25, 4.0, 3.0, 0.0];
        let mut right: Vec<f64> = (0..3)
            .flat_map(|row| (0..2).map(move |col| (row, col)))
            .map(|(row, col)| (0..3).map(|k| matrix[row * 3 + k] * solution[k * 2 + col]).sum())
            .collect();
        assert!(solve(&matrix, 3, &mut right, 2));
        assert!(right.iter().zip(&solution).all(|(found, wanted)| (found - wanted).abs() < 1e-14));
        assert!(!solve(&[1.0, 2.0, 2.0, 4.0], 2, &mut [1.0, 1.0], 1));
    }
}
