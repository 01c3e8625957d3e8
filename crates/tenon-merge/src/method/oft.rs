//! OFT: the weight's input side rotated in blocks, `W' = W diag(R_1, .., R_n)ᵀ`.
//!
//! `oft_R [n, b (b - 1) / 2]` holds the upper triangles of skew-symmetric `Q`
//! of size `b`, one a block of `b` inputs (`block_share`: one for all). `R` is
//! the Cayley transform `(I - Q) (I + Q)^-1`, or, with `use_cayley_neumann`, a
//! few terms of the series of its inverse (so PEFT signs `Q` there):
//! `I + 2 Q + 2 Q² + .. + Q^(t - 1)`. `coft` first shrinks each `Q` to a
//! Frobenius norm of `eps / sqrt(n)`. An embedding takes `W R`, along its
//! dimension. Sources: Qiu et al. 2023 (OFT); Qiu et al. 2025 (OFTv2); PEFT
//! 0.21.2, `tuners/oft/layer.py`.
//!
//! Before PEFT 0.18 the last term of the series counted twice too; adapters of
//! that time (their configuration names no version, or a lower one) are merged
//! as they were trained.
//!
//! The layer that PEFT trains for a convolution rotates patches of its input,
//! which no kernel larger than 1 x 1 equals; what PEFT merges is `W Rᵀ`, and
//! so does Tenon, with a note.

use super::layer::Features;
use super::rotation::{self, Blocks};
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Edit, PreparedEdit, Tile, ValueRows};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "OFT",
    name: "OFT",
    formula: "`W Rᵀ`, `R` orthogonal in blocks; embeddings `W R`",
    source: "Qiu et al. 2023",
    merging: Merging::Reads(read),
};

/// How `Q` becomes a rotation.
#[derive(Debug, Clone, PartialEq)]
enum Transform {
    Cayley,
    /// Coefficients of the powers of `Q`.
    Series(Vec<f64>),
}

#[derive(Debug)]
struct Oft {
    transform: Transform,
    /// Norm that each `Q` may have, times the root of the number of blocks.
    constraint: Option<f64>,
    block_share: bool,
    /// Size of the blocks, or their number; PEFT takes the nearest that divides the layer's inputs.
    size: Option<u64>,
    count: Option<u64>,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        "block_share",
        "coft",
        "eps",
        "fan_in_fan_out",
        "init_weights",
        // Drops blocks while training only.
        "module_dropout",
        "num_cayley_neumann_terms",
        "oft_block_size",
        "r",
        "use_cayley_neumann",
    ])?;
    let transform = if config.flag_or("use_cayley_neumann", true)? {
        let terms = config.count("num_cayley_neumann_terms")?.unwrap_or(5);
        if terms > 1000 {
            return Err(config.wrong("num_cayley_neumann_terms", "at most 1000"));
        }
        Transform::Series(series(terms as usize, ends_once(config)))
    } else {
        Transform::Cayley
    };
    let eps = config.number("eps")?.unwrap_or(6e-5);
    // PEFT writes 0 for the one that the other decides.
    let given = |field: &str| match config.value(field) {
        Some(value) if value == 0 => Ok(None),
        _ => config.count(field),
    };
    Ok(Box::new(Oft {
        size: given("oft_block_size")?,
        count: given("r")?,
        transform,
        constraint: config.flag("coft")?.then_some(eps),
        block_share: config.flag("block_share")?,
    }))
}

/// Coefficients of a series of that many terms.
fn series(terms: usize, ends_once: bool) -> Vec<f64> {
    let mut coefficients = vec![1.0, 2.0];
    coefficients.truncate(terms);
    if terms > 2 {
        coefficients.resize(terms, 2.0);
        if ends_once {
            // PEFT adds the last power always, so that three terms have a fourth.
            coefficients.resize(terms.max(4), 1.0);
            if let Some(last) = coefficients.last_mut() {
                *last = 1.0;
            }
        }
    }
    coefficients
}

/// Whether the version of PEFT that wrote the configuration adds the last term of the series once.
fn ends_once(config: &AdapterConfig) -> bool {
    let version = config.value("peft_version").and_then(|v| v.as_str()).unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u64>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= (0, 18),
        _ => false,
    }
}

impl Method for Oft {
    fn parameters(&self) -> &'static [&'static str] {
        &["oft_R", "oft_embedding_R", "oft_r"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        modules.iter().try_for_each(|module| self.plan_layer(module, planner))
    }
}

impl Oft {
    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        if let Some(old) = module.get("oft_r") {
            return Err(Error::Field {
                path: planner.adapter.weights().path().into(),
                field: planner.adapter_name(old).into(),
                found: "a rotation as PEFT before 0.16 wrote it".into(),
                expected:
                    "oft_R; newer PEFT versions do not read such an adapter either: merge it with PEFT 0.15"
                        .into(),
            });
        }
        let embedding = module.get("oft_embedding_R").is_some();
        let parameter = if embedding { "oft_embedding_R" } else { "oft_R" };
        let tensor = module.need(parameter, planner)?;
        let layer = planner.layer(module, tensor, Features::default())?;
        planner.expect_plain(tensor, &layer)?;
        let wrong = |expected: String| planner.shape_error(tensor, layer.slot, expected);
        let &[blocks, triangle] = planner.adapter_shape(tensor) else {
            return Err(wrong("[blocks, size (size - 1) / 2]".into()));
        };
        let size = size_of(triangle).ok_or_else(|| wrong("[blocks, size (size - 1) / 2]".into()))?;
        let count = layer.input / size;
        let expected = match (self.size, self.count) {
            (Some(size), _) => nearest_divisor(layer.input, size),
            (None, Some(count)) => layer.input / nearest_divisor(layer.input, count).max(1),
            (None, None) => size,
        };
        if size != expected {
            return Err(wrong(format!(
                "blocks of size {expected}, whose triangle has {}",
                expected * (expected - 1) / 2
            )));
        }
        if !layer.input.is_multiple_of(size) || blocks != if self.block_share { 1 } else { count } {
            let shared = if self.block_share { "one block for all" } else { "blocks" };
            return Err(wrong(format!("{shared} of a size that divides {}", layer.input)));
        }
        if layer.is_conv() && layer.kernel() > 1 {
            planner.notes.push(format!(
                "{}: the layer that was trained rotates patches of its input, which no kernel of this size equals; \
                 merged as PEFT merges it",
                module.path
            ));
        }
        let edit = Rotate {
            tensor,
            size: size as usize,
            blocks: blocks as usize,
            transform: self.transform.clone(),
            limit: self.constraint.map(|eps| eps / (blocks as f64).sqrt()),
            transposed: !embedding,
        };
        planner.edit(layer.slot, "OFT", edit);
        Ok(())
    }
}

/// The divisor of `features` nearest to `wanted`, of two as near the lower (PEFT, `adjust_oft_parameters`).
fn nearest_divisor(features: u64, wanted: u64) -> u64 {
    if wanted >= features || features == 0 {
        return features.max(1);
    }
    let divides = |n: &u64| features.is_multiple_of(*n);
    let higher = (wanted..=features).find(divides).unwrap_or(features);
    let lower = (1..=wanted).rev().find(divides).unwrap_or(1);
    if wanted - lower <= higher - wanted { lower } else { higher }
}

/// The size of a matrix whose upper triangle, without the diagonal, has so many elements.
fn size_of(triangle: u64) -> Option<u64> {
    let size = (1 + triangle.checked_mul(8)?).isqrt().div_ceil(2);
    (size * (size - 1) / 2 == triangle).then_some(size)
}

/// `W := W M`, `M` block-diagonal of rotations or their transposes.
#[derive(Debug, Clone)]
struct Rotate {
    tensor: usize,
    size: usize,
    blocks: usize,
    transform: Transform,
    /// Largest Frobenius norm of `Q`.
    limit: Option<f64>,
    transposed: bool,
}

impl Edit for Rotate {
    fn needs_whole_rows(&self) -> bool {
        true
    }

    fn held_bytes(&self) -> u64 {
        (self.blocks as u64).saturating_mul((self.size as u64).saturating_mul(self.size as u64)) * 8
    }

    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let size = self.size;
        let triangle = size * (size - 1) / 2;
        let values = adapter.values(self.tensor)?;
        let mut matrices = Vec::with_capacity(self.blocks * size * size);
        for block in 0..self.blocks {
            let upper = &values[block * triangle..(block + 1) * triangle];
            let mut skew = self.skew(upper);
            // A rotation's transpose is that of the opposite `Q`.
            if self.transposed {
                skew.iter_mut().for_each(|value| *value = -*value);
            }
            matrices.extend(match &self.transform {
                Transform::Cayley => rotation::cayley(&skew, size),
                Transform::Series(coefficients) => rotation::polynomial(&skew, size, coefficients),
            });
        }
        Ok(Box::new(PreparedRotate { blocks: Blocks { size, matrices: matrices.into() } }))
    }
}

impl Rotate {
    fn skew(&self, upper: &[f64]) -> Vec<f64> {
        let size = self.size;
        let norm = upper.iter().map(|v| 2.0 * v * v).sum::<f64>().sqrt();
        let shrink = self.limit.filter(|limit| norm > *limit).map_or(1.0, |limit| limit / norm);
        let mut skew = vec![0.0; size * size];
        let mut upper = upper.iter();
        for row in 0..size {
            for col in row + 1..size {
                let value = upper.next().copied().unwrap_or_default() * shrink;
                (skew[row * size + col], skew[col * size + row]) = (value, -value);
            }
        }
        skew
    }
}

struct PreparedRotate {
    blocks: Blocks,
}

impl PreparedEdit for PreparedRotate {
    fn apply(&self, tile: &mut Tile<'_>) {
        self.blocks.turn(tile.level, tile.values, tile.cols);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_is_that_of_each_version() {
        assert_eq!(series(1, true), [1.0]);
        assert_eq!(series(2, true), [1.0, 2.0]);
        assert_eq!(series(3, true), [1.0, 2.0, 2.0, 1.0]);
        assert_eq!(series(4, true), [1.0, 2.0, 2.0, 1.0]);
        assert_eq!(series(5, true), [1.0, 2.0, 2.0, 2.0, 1.0]);
        assert_eq!(series(3, false), [1.0, 2.0, 2.0]);
        assert_eq!(series(5, false), [1.0, 2.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_size_that_does_not_divide_gives_way_to_the_nearest_that_does() {
        assert_eq!(nearest_divisor(12, 4), 4);
        assert_eq!(nearest_divisor(12, 5), 4);
        assert_eq!(nearest_divisor(18, 8), 9);
        assert_eq!(nearest_divisor(13, 5), 1);
        assert_eq!(nearest_divisor(13, 8), 13);
        assert_eq!(nearest_divisor(13, 20), 13);
    }

    #[test]
    fn a_triangle_tells_its_size() {
        for size in 1..200 {
            assert_eq!(size_of(size * (size - 1) / 2), Some(size));
        }
        assert_eq!(size_of(2), None);
        assert_eq!(size_of(u64::MAX), None);
    }
}
