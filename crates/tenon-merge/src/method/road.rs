//! RoAd: output features turned in pairs, `W' = R W` and `b' = R b`.
//!
//! Features fall into groups of `g`, and in a group feature `j` of the first half
//! makes a pair with `j + g / 2`. With `c = alpha cos(theta)`, `s = alpha sin(theta)`,
//!
//! `y1' = c1 y1 - s1 y2`, `y2' = c2 y2 + s2 y1`.
//!
//! | variant | angles and lengths | |
//! | --- | --- | --- |
//! | `road_1` | `out / 2` | one for a pair |
//! | `road_2` | `out` | one for a feature |
//! | `road_4` | `2 out` | in each group first those of `c`, then those of `s` |
//!
//! Sources: Liao and Monz 2024; PEFT 0.21.2, `tuners/road/layer.py`.

use std::sync::Arc;

use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, Tile, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "ROAD",
    name: "RoAd",
    formula: "`R W`, `R b`, `R` of scaled rotations of pairs (variants 1, 2, 4)",
    source: "Liao and Monz 2024",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Road {
    variant: Variant,
    group: u64,
}

#[derive(Debug, Clone, Copy)]
enum Variant {
    One,
    Two,
    Four,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&["group_size", "init_weights", "variant"])?;
    let variant = match config.text("variant")? {
        None | Some("road_1") => Variant::One,
        Some("road_2") => Variant::Two,
        Some("road_4") => Variant::Four,
        Some(_) => return Err(config.wrong("variant", "road_1, road_2 or road_4")),
    };
    let group = config.count("group_size")?.unwrap_or(64);
    if !group.is_multiple_of(2) {
        return Err(config.wrong("group_size", "an even number"));
    }
    Ok(Box::new(Road { variant, group }))
}

impl Method for Road {
    fn parameters(&self) -> &'static [&'static str] {
        &["road_theta", "road_alpha"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let theta = module.need("road_theta", planner)?;
            let alpha = module.need("road_alpha", planner)?;
            let count = planner.adapter_shape(theta).first().copied().unwrap_or(0);
            let out = match self.variant {
                Variant::One => count.saturating_mul(2),
                Variant::Two => count,
                Variant::Four => count / 2,
            };
            let layer = planner.layer(module, theta, Features { out: Some(out), input: None })?;
            if layer.is_conv() || layer.transposed || !layer.out.is_multiple_of(self.group) {
                let expected = format!("a linear layer whose outputs {} divides", self.group);
                return Err(planner.shape_error(theta, layer.slot, expected));
            }
            let expected = match self.variant {
                Variant::One => layer.out / 2,
                Variant::Two => layer.out,
                Variant::Four => 2 * layer.out,
            };
            planner.expect_shape(theta, layer.slot, &[expected])?;
            planner.expect_shape(alpha, layer.slot, &[expected])?;
            let turn = Turn {
                theta,
                alpha,
                variant: self.variant,
                group: self.group as usize,
                out: layer.out as usize,
            };
            // Both features of a pair must be at hand: a group is one row of the matrix.
            planner.join_rows(layer.slot, self.group);
            planner.edit(layer.slot, "RoAd", turn);
            if let Some(bias) = planner.bias_of(&layer, theta)? {
                planner.join_rows(bias, self.group);
                planner.edit(bias, "RoAd", turn);
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    theta: usize,
    alpha: usize,
    variant: Variant,
    group: usize,
    out: usize,
}

struct PreparedTurn {
    /// What a feature keeps of itself.
    own: Arc<[f64]>,
    /// What it takes of its pair's other.
    other: Arc<[f64]>,
    group: usize,
}

impl Edit for Turn {
    fn needs_whole_rows(&self) -> bool {
        true
    }

    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let (theta, alpha) = (adapter.values(self.theta)?, adapter.values(self.alpha)?);
        let (half, group) = (self.group / 2, self.group);
        let (mut own, mut other) = (Vec::with_capacity(self.out), Vec::with_capacity(self.out));
        for feature in 0..self.out {
            let (number, within) = (feature / group, feature % group);
            let (cos_at, sin_at) = match self.variant {
                Variant::One => (number * half + within % half, number * half + within % half),
                Variant::Two => (feature, feature),
                Variant::Four => (number * 2 * group + within, number * 2 * group + group + within),
            };
            let sign = if within < half { -1.0 } else { 1.0 };
            own.push(alpha[cos_at] * libm::cos(theta[cos_at]));
            other.push(sign * alpha[sin_at] * libm::sin(theta[sin_at]));
        }
        Ok(Box::new(PreparedTurn { own: own.into(), other: other.into(), group }))
    }
}

impl PreparedEdit for PreparedTurn {
    fn apply(&self, tile: &mut Tile<'_>) {
        let (half, cols) = (self.group / 2, tile.cols / self.group);
        let groups = (tile.first_row as usize..).zip(tile.values.chunks_exact_mut(tile.cols.max(1)));
        for (number, values) in groups {
            let (first, second) = values.split_at_mut(half * cols);
            let pairs = first.chunks_exact_mut(cols.max(1)).zip(second.chunks_exact_mut(cols.max(1)));
            for (j, (first, second)) in pairs.enumerate() {
                let at = number * self.group + j;
                let (own, other) = (&self.own[at..], &self.other[at..]);
                for (a, b) in first.iter_mut().zip(second) {
                    let turned = (own[0] * *a + other[0] * *b, own[half] * *b + other[half] * *a);
                    (*a, *b) = turned;
                }
            }
        }
    }
}
